//! A node on which other CNI plugins were, or still are: what is handled, what is refused and in which words.

mod pods;

use std::collections::BTreeSet;
use std::path::Path;

use pods::{Answer, Pod, addresses, on_a_node, run, start};
use serde_json::{Value, json};

/// A refusal of a link or range that is somebody else's: its message and details.
fn refused(answer: Answer) -> String {
    let error: Value = serde_json::from_str(&answer.text).expect("JSON");
    assert_eq!(answer.code(), 101, "{error}");
    format!("{}; {}", error["msg"].as_str().expect("msg"), error["details"].as_str().unwrap_or(""))
}

fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} not in: {text}");
    }
}

/// What the plugin `bridge` makes of a pod, by hand: a pair with a name like its own, an address, a default route.
fn foreign_pod(id: &str, bridge: &str, veth: &str, address: &str) -> Pod {
    let pod = Pod::new(id);
    run(&format!("ip link add {veth} type veth peer name eth0 netns {}", pod.path().display()));
    run(&format!("ip link set {veth} master {bridge} up"));
    pod.run("ip link set lo up");
    pod.run("ip link set eth0 up");
    pod.run(&format!("ip address add {address}/24 dev eth0"));
    pod.run("ip route add default via 10.244.1.1");
    pod
}

/// host-local's file and libcni's record of it, below a directory that stands for /var/lib.
fn stored(var: &Path, id: &str, veth: &str, address: &str) {
    let (networks, results) = (var.join("cni/networks/cbr0"), var.join("cni/results"));
    for directory in [&networks, &results] {
        std::fs::create_dir_all(directory).expect("directory");
    }
    std::fs::write(networks.join(address), format!("{id}\r\neth0")).expect("file");
    let record = json!({ "kind": "cniCacheV1", "containerId": id, "result": { "interfaces": [
        { "name": "cni0" }, { "name": veth }, { "name": "eth0", "sandbox": "/var/run/netns/x" }] } });
    std::fs::write(results.join(format!("cbr0-{id}-eth0")), record.to_string()).expect("file");
}

#[test]
fn existing_bridge_with_another_address_cni_306() {
    on_a_node(|node| {
        run("ip link add homelab0 type bridge");
        run("ip link set homelab0 alias homelab up");
        run("ip address add 10.244.9.1/24 dev homelab0");
        let pod = Pod::new("c1");
        assert_eq!(addresses(&node.add(&pod))[0], "10.244.1.2");
        assert!(pod.can("ping -4 -c1 -W1 10.244.1.1"), "its gateway");
        // Pods of the earlier range may still be there.
        assert!(run("ip address show dev homelab0").contains("10.244.9.1/24"));
        node.del(&pod);
        node.assert_clean();
    });
}

#[test]
fn foreign_bridge_with_the_pod_range_podman_12306() {
    on_a_node(|node| {
        run("ip link add cni0 type bridge");
        run("ip link set cni0 up");
        run("ip address add 10.244.1.1/24 dev cni0");
        let old = foreign_pod("old", "cni0", "veth0123abcd", "10.244.1.7");
        let pod = Pod::new("c1");
        let add = || refused(node.call("ADD", &pod, &node.conf("1.1.0")));
        assert_has(&add(), &["10.244.1.0/24", "link cni0 has the address 10.244.1.1/24", "homelab plan"]);
        assert!(!run("ip -o link").contains("homelab0"), "nothing was made");
        // The same with our bridge in place, and with a range around ours.
        run("ip link add homelab0 type bridge");
        run("ip link set homelab0 alias homelab up");
        assert_has(&add(), &["cni0"]);
        run("ip address replace 10.244.0.1/16 dev cni0");
        run("ip address del 10.244.1.1/24 dev cni0");
        assert_has(&add(), &["10.244.0.1/16"]);
        assert_eq!(node.entries(), Vec::<String>::new());
        // Another range lives side by side with it.
        run("ip address replace 10.88.0.1/16 dev cni0");
        run("ip address del 10.244.0.1/16 dev cni0");
        node.add(&pod);
        node.del(&pod);
        assert_eq!(node.ports(), ["veth0123abcd"], "a pod of others is left alone");
        drop(old);
    });
}

#[test]
fn a_strangers_link_under_our_name_is_refused() {
    on_a_node(|node| {
        let pod = Pod::new("c1");
        run("ip link add br-lan type bridge");
        run("ip link add homelab0 type veth peer name far0");
        run("ip link set homelab0 master br-lan");
        let words = refused(node.call("ADD", &pod, &node.conf("1.1.0")));
        assert_has(&words, &["link homelab0 is in the way", "remove or rename it", "veth"]);
        assert_eq!(node.call("STATUS", &pod, &node.conf("1.1.0")).code(), 50);
        run("ip link del homelab0");
        node.add(&pod);
        node.del(&pod);
    });
}

/// Bridges one behind the other. The kernel makes no bridge a port of another one (`br_add_if`), so they hang together by a
/// cable; other masters, which it has as modules only, are in the model's tests. A pod range on the outer bridge or on a
/// strangers' inner one is refused by its name; a bridge of others with its own range may be where it is.
#[test]
fn nested_bridges_with_the_pod_range_are_refused_by_name() {
    on_a_node(|node| {
        let old = Pod::new("old");
        node.add(&old);
        run("ip link add br-lan type bridge");
        let refusal = run("! ip link set homelab0 master br-lan 2>&1");
        assert_has(&refusal, &["Can not enslave a bridge to a bridge"]);
        node.del(&old);
        let pod = Pod::new("c1");
        run("ip link add cni0 type bridge");
        run("ip link add up0 type veth peer name down0");
        run("ip link set up0 master br-lan up && ip link set down0 master cni0 up");
        run("ip link set br-lan up && ip link set cni0 up");
        for made in [true, false] {
            if !made {
                run("ip link del homelab0");
            }
            for (link, address) in [("br-lan", "10.244.0.1/16"), ("cni0", "10.244.1.1/24")] {
                run(&format!("ip address add {address} dev {link}"));
                if made {
                    // It lacks its gateway, as after a change of ranges.
                    run("ip address del 10.244.1.1/24 dev homelab0 2>/dev/null || true");
                }
                let words = refused(node.call("ADD", &pod, &node.conf("1.1.0")));
                let named = format!("link {link} has the address {address}");
                assert_has(&words, &["10.244.1.0/24", &named, "homelab plan"]);
                run(&format!("ip address del {address} dev {link}"));
            }
        }
        assert!(!run("ip -o link").contains("homelab0"), "nothing was made");
        run("ip address add 10.9.0.1/24 dev cni0 && ip address add 192.168.9.1/24 dev br-lan");
        node.add(&pod);
        assert!(pod.can("ping -c3 -i0.2 -W2 10.244.1.1"));
        node.del(&pod);
        assert_eq!(node.entries(), Vec::<String>::new());
    });
}

#[test]
fn a_bridge_handed_over_keeps_running_pods_and_their_addresses() {
    on_a_node(|node| {
        run("ip link add cni0 type bridge");
        run("ip link set cni0 up");
        run("ip address add 10.244.1.1/24 dev cni0");
        let old = [("old1", "veth1", "10.244.1.2"), ("old2", "veth2", "10.244.1.4")];
        let var = tempfile::tempdir().expect("directory");
        let pods = old.map(|(id, veth, address)| {
            stored(var.path(), id, veth, address);
            foreign_pod(id, "cni0", veth, address)
        });
        // Of a container that is gone.
        stored(var.path(), "gone", "veth9", "10.244.1.3");
        assert!(pods[0].can("ping -c5 -i0.2 -W2 10.244.1.4"));
        // Both know the gateway's MAC address, which the bridge has from one of their ports and would change with the
        // first new one: those seconds of silence nobody may see.
        for pod in &pods {
            assert!(pod.can("ping -c5 -i0.2 -W2 10.244.1.1"));
        }
        // What `homelab plan` says to do.
        run("ip link set cni0 down && ip link set cni0 name homelab0 alias homelab up");
        let through = format!("mount --bind {} /var/lib", var.path().display());
        let mut conf = node.conf("1.1.0");
        conf["ranges"] = json!(["10.244.1.0/24"]);
        let call = |command: &str, pod: &Pod, conf: &Value| {
            node.finish(start(node.command(command, pod, Some(&through)), conf))
        };
        let new = ["new1", "new2", "new3"].map(Pod::new);
        let given: Vec<String> =
            new.iter().flat_map(|pod| addresses(&call("ADD", pod, &conf).ok())).collect();
        assert_eq!(given, ["10.244.1.3", "10.244.1.5", "10.244.1.6"], "none that a running pod has");
        for (pod, (.., address)) in pods.iter().zip(old) {
            assert!(pod.can("ping -c5 -i0.2 -W2 10.244.1.1"), "gateway");
            for other in &given {
                assert!(pod.can(&format!("ping -c5 -i0.2 -W2 {other}")), "{other}");
            }
            assert!(new.iter().all(|new| new.can(&format!("ping -c5 -i0.2 -W2 {address}"))), "{address}");
        }
        // Asked for by name it is refused with its holder; and given when that is gone.
        let another = Pod::new("another");
        let mut asked = conf.clone();
        asked["args"] = json!({ "cni": { "ips": ["10.244.1.4"] } });
        let answer = call("ADD", &another, &asked);
        assert_has(&answer.text, &["10.244.1.4 belongs to container old2 of network cbr0"]);
        assert_eq!(answer.code(), 105);
        run("ip link del veth2");
        assert_eq!(addresses(&call("ADD", &another, &asked).ok()), ["10.244.1.4"]);
        for pod in new.iter().chain([&another]) {
            call("DEL", pod, &conf).ok();
        }
        let left: BTreeSet<String> = node.ports().into_iter().collect();
        assert_eq!(left, BTreeSet::from(["veth1".to_owned()]), "a pod of others is left alone");
    });
}
