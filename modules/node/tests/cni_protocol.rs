//! Every command in every version with every error that it can give, and what a runtime may ask for one pod.

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;
mod pods;

use std::fs::File;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use homelab_linux::{Node as Machine, Root};
use homelab_model::{AgentFact, Backend, Module, NodeObject, PeerSpec, Spec, diff, ours};
use pods::{Node, Pod, addresses, on_a_node, run, start};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const COMMANDS: [&str; 5] = ["ADD", "CHECK", "DEL", "STATUS", "GC"];

/// What may be wrong, and the code of each command of [`COMMANDS`]; 0 where it does not matter to it.
struct Case {
    name: &'static str,
    conf: (&'static str, Value),
    env: (&'static str, &'static str),
    codes: [u64; 5],
}

fn cases(file: &std::path::Path) -> Vec<Case> {
    let conf = |name, field, value, codes| Case { name, conf: (field, value), env: ("", ""), codes };
    let env = |name, field, value, codes| Case { name, conf: ("", Value::Null), env: (field, value), codes };
    vec![
        conf("version of the future", "cniVersion", json!("7.0.0"), [1; 5]),
        conf("version that is no text", "cniVersion", json!(1), [6; 5]),
        conf("field", "vlan", json!(7), [2, 2, 0, 2, 0]),
        conf("capability", "runtimeConfig", json!({ "deviceID": "0000:04:00.5" }), [2, 2, 0, 2, 0]),
        conf("name", "name", json!("../etc"), [7; 5]),
        conf("no ranges", "ranges", json!([]), [7, 7, 0, 7, 0]),
        conf("address", "runtimeConfig", json!({ "ips": ["x"] }), [7, 7, 0, 0, 0]),
        conf("address of elsewhere", "runtimeConfig", json!({ "ips": ["192.0.2.1"] }), [7, 0, 0, 0, 0]),
        conf("previous result", "prevResult", json!([]), [6, 7, 0, 0, 0]),
        conf(
            "list of attachments",
            "cni.dev/valid-attachments",
            json!([{ "containerID": "/" }]),
            [0, 0, 0, 0, 7],
        ),
        // DEL fails, too, after it has taken away what it could.
        conf("store", "dataDir", json!(file), [5, 5, 0, 5, 5]),
        env("no container", "CNI_CONTAINERID", "", [4, 4, 4, 0, 0]),
        env("container of the file system", "CNI_CONTAINERID", "../x", [4, 4, 4, 0, 0]),
        env("container with a line", "CNI_CONTAINERID", "a\nb", [4, 4, 4, 0, 0]),
        env("no interface", "CNI_IFNAME", "", [4, 4, 4, 0, 0]),
        env("long interface", "CNI_IFNAME", "sixteen-bytes-xx", [4, 4, 4, 0, 0]),
        env("odd interface", "CNI_IFNAME", "e/0", [4, 4, 4, 0, 0]),
        env("no namespace", "CNI_NETNS", "", [4, 4, 0, 0, 0]),
        env("namespace that is gone", "CNI_NETNS", "/run/netns/gone", [4, 4, 0, 0, 0]),
        env("arguments", "CNI_ARGS", "WHAT=ever", [4, 4, 0, 0, 0]),
        env("command", "CNI_COMMAND", "UPDATE", [4; 5]),
        env("no command of this case", "CNI_COMMAND", "add", [4; 5]),
    ]
}

/// The configuration that `command` takes.
fn good(node: &Node, command: &str, version: &str, result: &Value) -> Value {
    let mut conf = node.conf(version);
    match command {
        "CHECK" | "DEL" => conf["prevResult"] = result.clone(),
        "GC" => conf["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }]),
        _ => {}
    }
    conf
}

#[test]
fn every_command_in_every_version_with_every_error() {
    on_a_node(|node| {
        let file = node.data.path().with_extension("file");
        File::create(&file).expect("file");
        let mut asked = 0;
        for version in VERSIONS {
            let pod = Pod::new("c1");
            let result = node.call("ADD", &pod, &node.conf(version)).ok();
            let before = (node.entries(), node.ports());
            for (position, command) in COMMANDS.into_iter().enumerate() {
                let since = ["0.1.0", "0.4.0", "0.1.0", "1.1.0", "1.1.0"][position];
                for case in cases(&file) {
                    // DEL at the end, ADD of another pod: this one stays as it is.
                    let mut conf = good(node, command, version, &result);
                    if !case.conf.0.is_empty() {
                        conf[case.conf.0] = case.conf.1.clone();
                    }
                    let younger =
                        version < since && case.env.0 != "CNI_COMMAND" && case.conf.0 != "cniVersion";
                    let code = if younger { 1 } else { case.codes[position] };
                    // There are chains, and so previous results of ADD, since 0.3.0.
                    let before_chains = command == "ADD" && case.conf.0 == "prevResult" && version < "0.3.0";
                    if code == 0 || before_chains {
                        continue;
                    }
                    let env = [case.env];
                    let env = if case.env.0.is_empty() { &[][..] } else { &env };
                    let other = Pod::new("c2");
                    let answer =
                        node.call_with(command, if command == "ADD" { &other } else { &pod }, &conf, env);
                    let error: Value = serde_json::from_str(&answer.text).expect("an error");
                    let known = case.conf.0 != "cniVersion";
                    assert_eq!(error["cniVersion"], if known { version } else { "1.1.0" }, "{error}");
                    assert_eq!(answer.code(), code, "{command} {version} {}: {error}", case.name);
                    assert_eq!((node.entries(), node.ports()), before, "{command} {version} {}", case.name);
                    asked += 1;
                }
                if command != "DEL" && version >= since && command != "ADD" {
                    node.call(command, &pod, &good(node, command, version, &result)).ok();
                }
            }
            for command in ["ADD", "DEL", "CHECK"] {
                let mut process = node.command(command, &pod, None);
                process.stdin(std::process::Stdio::null());
                assert_eq!(
                    node.finish(process.spawn().expect("plugin")).code(),
                    6,
                    "{command}: nothing on stdin"
                );
            }
            // The pod is there still, with all of it, and goes.
            assert!(pod.can("ping -c1 -W5 10.244.1.1"));
            assert_eq!(node.call("ADD", &pod, &node.conf(version)).code(), 102, "{version}");
            node.call("DEL", &pod, &good(node, "DEL", version, &result)).ok();
            if version >= "0.4.0" {
                let check = good(node, "CHECK", version, &result);
                assert_eq!(node.call("CHECK", &pod, &check).code(), 3, "{version}: nothing is known of it");
            }
            node.call("DEL", &pod, &good(node, "DEL", version, &Value::Null)).ok();
            node.assert_clean();
        }
        assert!(asked > 300, "{asked}");
        std::fs::remove_file(&file).expect("file");
    });
}

#[test]
fn addresses_and_a_mac_that_are_asked_for() {
    on_a_node(|node| {
        let mut conf = node.conf("1.1.0");
        conf["exclude"] = json!(["10.244.1.0/28"]);
        conf["runtimeConfig"] =
            json!({ "ips": ["10.244.1.7/24", "fd00:10:1::77"], "mac": "c2:11:22:33:44:55" });
        let pod = Pod::new("c1");
        let result = node.call("ADD", &pod, &conf).ok();
        assert_eq!(addresses(&result), ["10.244.1.7", "fd00:10:1::77"]);
        assert_eq!(result["interfaces"][2]["mac"], "c2:11:22:33:44:55");
        assert!(pod.can("ping -c1 -W2 10.244.1.1") && pod.can("ping -6 -c1 -W2 fd00:10:1::1"));
        let mut check = conf.clone();
        check["prevResult"] = result;
        node.call("CHECK", &pod, &check).ok();
        // Taken, and by whom.
        let late = Pod::new("c2");
        let answer = node.call("ADD", &late, &conf);
        assert!(answer.text.contains("10.244.1.7 belongs to pod test"), "{}", answer.text);
        assert_eq!(answer.code(), 105);
        assert!(!late.can("ip link show dev eth0"));
        // The same attachment with another wish is not torn apart.
        conf["runtimeConfig"] = json!({ "ips": ["10.244.1.8"] });
        assert_eq!(node.call("ADD", &pod, &conf).code(), 102);
        assert!(pod.can("ping -c1 -W2 10.244.1.1"));
        // By CNI_ARGS; the other family gets the same offset. Who asks for nothing gets nothing excluded.
        conf["runtimeConfig"] = Value::Null;
        let args = [("CNI_ARGS", "IgnoreUnknown=1;IP=10.244.1.9;MAC=")];
        assert_eq!(
            addresses(&node.call_with("ADD", &late, &conf, &args).ok()),
            ["10.244.1.9", "fd00:10:1::9"]
        );
        let plain = Pod::new("c3");
        assert_eq!(addresses(&node.call("ADD", &plain, &conf).ok()), ["10.244.1.16", "fd00:10:1::10"]);
        // Its next holder has another MAC address and is reached at once.
        node.del(&pod);
        conf["runtimeConfig"] = json!({ "ips": ["10.244.1.7"] });
        node.call("ADD", &pod, &conf).ok();
        assert!(run("ip neigh show 10.244.1.7 dev homelab0").is_empty(), "forgotten");
        run("ping -c1 -W2 10.244.1.7");
        for pod in [&pod, &late, &plain] {
            node.del(pod);
        }
        node.assert_clean();
    });
}

/// What is remembered of names, wherever it is.
fn remembered(node: &Node) -> Vec<String> {
    let names = node.data.path().join("home/names");
    let mut targets: Vec<String> = std::fs::read_dir(names)
        .into_iter()
        .flatten()
        .map(|entry| std::fs::read_link(entry.expect("entry").path()).expect("link").display().to_string())
        .collect();
    targets.sort();
    targets
}

#[test]
fn a_pod_of_a_name_gets_its_addresses_back() {
    on_a_node(|node| {
        let mut conf = node.conf("1.0.0");
        conf["sticky"] = json!(true);
        let add = |conf: &Value, id: &str, name: &str| {
            let pod = Pod::new(id);
            let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}");
            let given = addresses(&node.call_with("ADD", &pod, conf, &[("CNI_ARGS", &args)]).ok());
            node.call("DEL", &pod, conf).ok();
            given
        };
        let first = add(&conf, "a1", "web-0");
        assert_eq!(first, ["10.244.1.2", "fd00:10:1::2"]);
        let second = add(&conf, "a2", "web-1");
        assert_ne!(first, second);
        assert_eq!(add(&conf, "a3", "web-0"), first, "another container of the same name");
        assert_eq!(add(&conf, "a4", "web-1"), second);
        assert_eq!(remembered(node), ["default/web-0", "default/web-1"]);
        // Without the wish in the configuration nothing is remembered, and nothing kept free.
        let plain = node.conf("1.0.0");
        assert_ne!(add(&plain, "a5", "web-0"), first);
        assert_eq!(remembered(node).len(), 2);
        // Where all others are taken, it is no reservation; whoever comes last is remembered for an address.
        conf["ranges"] = json!(["10.8.0.0/30"]);
        assert_eq!(add(&conf, "a6", "db-0"), ["10.8.0.2"]);
        assert_eq!(add(&conf, "a7", "db-1"), ["10.8.0.2"]);
        assert_eq!(remembered(node), ["default/db-1", "default/web-0", "default/web-1"]);
        assert!(run(&format!("ls {}/home/names", node.data.path().display())).lines().count() == 3);
    });
}

/// A full range while another ADD is under way, whose entry is older than its link: the next try may do.
#[test]
fn try_again_while_nobody_can_tell() {
    on_a_node(|node| {
        let mut conf = node.conf("1.1.0");
        conf["ranges"] = json!(["10.8.0.0/30"]);
        let gone = Pod::new("gone");
        node.call("ADD", &gone, &conf).ok();
        drop(gone);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !node.ports().is_empty() {
            assert!(Instant::now() < deadline, "the pair outlives its namespace");
            std::thread::sleep(Duration::from_millis(5));
        }
        let adding = File::open(node.data.path().join("home/adding")).expect("file");
        adding.lock_shared().expect("lock");
        let pod = Pod::new("c1");
        assert_eq!(node.call("ADD", &pod, &conf).code(), 11);
        conf["runtimeConfig"] = json!({ "ips": ["10.8.0.2"] });
        assert_eq!(node.call("ADD", &pod, &conf).code(), 11, "an address that is asked for, too");
        adding.unlock().expect("unlock");
        node.call("ADD", &pod, &conf).ok();
        assert_eq!(node.entries().len(), 1);
        let late = Pod::new("c2");
        assert_eq!(node.call("ADD", &late, &conf).code(), 105);
        conf["runtimeConfig"] = Value::Null;
        assert_eq!(node.call("ADD", &late, &conf).code(), 100);
        node.call("DEL", &pod, &conf).ok();
        node.assert_clean();
    });
}

/// A process that is called like the agent.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// STATUS where the agent keeps the network: its file, its report and the kernel say what is there.
#[test]
fn status_needs_agent_tunnel_and_peers() {
    on_a_node(|node| {
        let system = tempfile::tempdir().expect("directory");
        let path = |part: &str| system.path().join(part);
        for part in ["etc/homelab", "run/homelab"] {
            std::fs::create_dir_all(path(part)).expect("directory");
        }
        let line = format!(
            "mount --bind {} /etc && mount --bind {} /run",
            path("etc").display(),
            path("run").display()
        );
        let pod = Pod::new("c1");
        let status = |name: &str| {
            let mut conf = node.conf("1.1.0");
            conf["name"] = json!(name);
            let answer = node.finish(start(node.command("STATUS", &pod, Some(&line)), &conf));
            let text = answer.text.clone();
            (if answer.status == Some(0) { 0 } else { answer.code() }, text)
        };
        assert_eq!(status("home").0, 0, "no agent is meant to be here");
        let mut spec = fixtures::spec(true);
        spec.peers = vec![PeerSpec {
            name: "node2".to_owned(),
            address: "192.168.50.12".parse().expect("address"),
            mac: "02:00:00:00:00:02".to_owned(),
            pod_cidrs: vec![fixtures::net("10.244.2.0/24"), fixtures::net("fd00:10:244:2::/64")],
        }];
        std::fs::write(path("etc/homelab/node.json"), spec.to_file()).expect("file");
        let (code, text) = status("home");
        assert!(code == 51 && text.contains("homelab.1"), "{text}");
        assert_eq!(status("storage").0, 0, "another network is not the agent's");
        // The tunnel as the agent makes it.
        let root = Root::at(system.path());
        let mut machine = Machine::open(root).expect("node");
        let in_links = |object: &NodeObject| {
            let spec = &object.spec;
            object.module == Module::Vtep
                && matches!(
                    spec,
                    Spec::Link(_) | Spec::Address(_) | Spec::Fdb(_) | Spec::Neighbour(_) | Spec::Route(_)
                )
        };
        let tunnel: Vec<NodeObject> =
            homelab_desired::foundation(&spec).into_iter().filter(in_links).collect();
        for change in diff(&[], &tunnel) {
            machine.apply(&change).expect("apply");
        }
        let (code, text) = status("home");
        assert!(code == 50 && text.contains("agent"), "{text}");
        let program = path("homelab-node");
        std::fs::copy("/bin/sleep", &program).expect("copy");
        let agent = Agent(Command::new(&program).arg("600").spawn().expect("agent"));
        let (version, config) = ("0".to_owned(), String::new());
        let report = AgentFact {
            pid: agent.0.id(),
            version,
            config,
            repairs: 0,
            errors: Vec::new(),
            kubernetes: None,
        };
        std::fs::write(path("run/homelab/agent.json"), serde_json::to_vec(&report).expect("JSON"))
            .expect("file");
        assert_eq!(status("home").0, 0);
        // A peer's part is gone, and then all of it; an agent that died says nothing.
        run("ip route del 10.244.2.0/24");
        let (code, text) = status("home");
        assert!(code == 51 && text.contains("10.244.2.0/24"), "{text}");
        run("ip link del homelab.1");
        assert_eq!(status("home").0, 51);
        for change in diff(&[], &tunnel) {
            machine.apply(&change).expect("apply");
        }
        assert_eq!(status("home").0, 0);
        drop(agent);
        assert_eq!(status("home").0, 50);
        assert_eq!(ours::NODE_SPEC, "/etc/homelab/node.json");
        // STATUS stops nothing else.
        node.add(&pod);
        node.del(&pod);
        node.assert_clean();
    });
}
