//! The container runtimes of the nodes work, without internet.
#![allow(clippy::unwrap_used, reason = "a test fails by panic, also in its helpers")]

use homelab_lab::{LabGuard, LabOptions};

const CONFLIST: &str = r#"{"cniVersion":"0.4.0","name":"lab","plugins":[
{"type":"bridge","bridge":"cni0","isGateway":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.1.0/24"}]]}},
{"type":"portmap","capabilities":{"portMappings":true}}]}"#;

#[test]
fn containerd_runs_a_container() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(1)).unwrap();
    let image = lab.containerd("node1").unwrap();
    let said =
        lab.exec("node1", &["ctr", "run", "--rm", image, "one", "/bin/sh", "-c", "id -u; echo in"]).unwrap();
    assert_eq!(said.ok().unwrap().stdout, "0\nin\n");
    let limits = ["ctr", "run", "--rm", "--memory-limit", "10000000", image, "two", "/bin/true"];
    lab.exec("node1", &limits).unwrap().ok().unwrap();

    lab.exec_with_input("node1", &["tee", "/etc/cni/net.d/10-lab.conflist"], CONFLIST).unwrap().ok().unwrap();
    lab.exec("node1", &["ctr", "run", "--detach", "--cni", image, "web"]).unwrap().ok().unwrap();
    let script = "for try in $(seq 50); do curl -sf http://10.244.1.2:8080/ && exit; sleep 0.1; done; exit 1";
    assert_eq!(lab.sh("node1", script).unwrap().ok().unwrap().text(), "lab");
    // A pod that ignores SIGTERM does not hold up a reboot, and containerd is back after it.
    lab.reboot("node1").unwrap();
    let script = "for try in $(seq 100); do ctr version >/dev/null 2>&1 && exit; sleep 0.1; done; exit 1";
    lab.sh("node1", script).unwrap().ok().unwrap();
    assert!(
        lab.exec("node1", &["ctr", "images", "list", "-q"]).unwrap().ok().unwrap().stdout.contains(image)
    );
}

#[test]
fn podman_runs_a_container() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(1)).unwrap();
    lab.exec("node1", &["podman", "load", "--input", "/opt/images/lab.tar"]).unwrap().ok().unwrap();
    let run =
        ["podman", "run", "--rm", "--network=none", "docker.io/library/lab:1", "/bin/sh", "-c", "echo in"];
    assert_eq!(lab.exec("node1", &run).unwrap().ok().unwrap().text(), "in");
}
