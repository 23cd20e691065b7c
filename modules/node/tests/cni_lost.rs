//! The store is deleted while pods run: nobody gets an address or a port that one of them has, and what they have goes with
//! them.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;
mod stage;

use pods::{Node, Pod, addresses, on_a_node, run};
use serde_json::{Value, json};
use stage::{Stage, elements, on_a_stage, web};

/// All of the data directory goes.
fn lose(node: &Node) {
    lose_part(node, "-mindepth 1");
}

/// What `find` finds in the data directory goes.
fn lose_part(node: &Node, what: &str) {
    run(&format!("find {} {what} -delete", node.data.path().display()));
}

/// A configuration that asks for an address.
fn asks(mut conf: Value, address: &str) -> Value {
    conf["runtimeConfig"]["ips"] = json!([address]);
    conf
}

fn guarded(stage: &Stage<'_>, ports: &Value) -> Value {
    let mut conf = stage.conf(ports);
    (conf["portIsolation"], conf["macspoofchk"]) = (json!(true), json!(true));
    conf
}

#[test]
fn whole_store_lost_while_pods_run() {
    lost_while_pods_run("-mindepth 1");
}

#[test]
fn all_files_of_the_store_lost_while_pods_run() {
    lost_while_pods_run("-not -type d");
}

fn lost_while_pods_run(part: &str) {
    on_a_stage(|stage| {
        let node = stage.node;
        let conf = guarded(stage, &web(8080, json!({})));
        let plain = stage.conf(&json!([]));
        let (one, two) = (Pod::new("one"), Pod::new("two"));
        let first = addresses(&node.call("ADD", &one, &conf).ok());
        let second = addresses(&node.call("ADD", &two, &plain).ok());
        lose_part(node, part);
        // The next in turn would be those of the first pod.
        let new = Pod::new("new");
        let given = addresses(&node.call("ADD", &new, &plain).ok());
        assert!(
            !given.iter().any(|address| first.contains(address) || second.contains(address)),
            "{given:?}"
        );
        for pod in [&one, &two] {
            assert!(new.can(&format!(
                "ping -c3 -i0.2 -W2 {}",
                if pod.id == "one" { &first[0] } else { &second[0] }
            )));
        }
        assert_eq!(node.entries().len(), 4, "three pods and a note: {:?}", node.entries());
        // Addresses and ports belong to whom they belonged to.
        let late = Pod::new("late");
        for (held, holder) in [(&first[0], "one/eth0"), (&first[1], "one/eth0"), (&second[1], "two/eth0")] {
            let refused = node.call("ADD", &late, &asks(plain.clone(), held));
            assert!(refused.text.contains(&format!("belongs to container {holder}")), "{}", refused.text);
            assert_eq!(refused.code(), 105);
        }
        assert_eq!(node.call("ADD", &late, &stage.conf(&web(8080, json!({})))).code(), 110);
        assert_eq!(node.call("ADD", &one, &conf).code(), 102);
        // What they have goes with them.
        assert!(elements() > 0);
        node.call("DEL", &one, &plain).ok();
        assert_eq!(elements(), 0);
        assert_eq!(addresses(&node.call("ADD", &late, &asks(conf.clone(), &first[0])).ok())[0], first[0]);
        for pod in [&two, &new, &late] {
            node.call("DEL", pod, &plain).ok();
        }
        stage::assert_clean(stage);
    });
}

#[test]
fn what_was_lost_goes_before_anybody_noticed() {
    on_a_stage(|stage| {
        let node = stage.node;
        let conf = guarded(stage, &web(8080, json!({})));
        let (one, two) = (Pod::new("one"), Pod::new("two"));
        for gone in [&one, &two] {
            node.call("ADD", gone, &conf).ok();
            lose(node);
            if gone.id == "one" {
                node.call("DEL", gone, &conf).ok();
            } else {
                let mut gc = conf.clone();
                gc["cni.dev/valid-attachments"] = json!([]);
                node.call("GC", gone, &gc).ok();
            }
            stage::assert_clean(stage);
            assert!(node.ports().iter().all(|port| port == "lan"), "{:?}", node.ports());
        }
    });
}

#[test]
fn gc_takes_links_without_reservations_of_its_network_only() {
    on_a_node(|node| {
        let [kept, gone, foreign] = ["kept", "gone", "foreign"].map(Pod::new);
        let mut other = node.conf("1.1.0");
        (other["name"], other["ranges"]) = (json!("other"), json!(["10.9.0.0/24"]));
        other["bridge"] = json!("homelab9");
        for (pod, conf) in
            [(&kept, node.conf("1.1.0")), (&gone, node.conf("1.1.0")), (&foreign, other.clone())]
        {
            node.call("ADD", pod, &conf).ok();
        }
        lose(node);
        let mut gc = node.conf("1.1.0");
        gc["cni.dev/valid-attachments"] = json!([{ "containerID": "kept", "ifname": "eth0" }]);
        node.call("GC", &gone, &gc).ok();
        assert!(kept.can("ping -c1 -W2 10.244.1.1") && foreign.can("ping -c1 -W2 10.9.0.1"));
        assert!(!gone.can("ip link show dev eth0"));
        node.del(&kept);
        node.call("DEL", &foreign, &other).ok();
        node.assert_clean();
    });
}

/// A list that was renamed, and an id so long that the link does not say all of it.
#[test]
fn pods_of_another_name_of_the_network_keep_their_addresses() {
    on_a_node(|node| {
        let (old, long) = (Pod::new("old"), Pod::new(&"c".repeat(300)));
        let held = [&old, &long].map(|pod| addresses(&node.add(pod)));
        let mut renamed = node.conf("1.1.0");
        renamed["name"] = json!("renamed");
        for conf in [renamed, {
            lose(node);
            node.conf("1.1.0")
        }] {
            let new = Pod::new("new");
            let given = addresses(&node.call("ADD", &new, &conf).ok());
            assert!(!held.iter().flatten().any(|address| given.contains(address)), "{given:?} {held:?}");
            node.call("DEL", &new, &conf).ok();
        }
        node.del(&old);
        node.del(&long);
        // What the renamed list noted of them goes when it needs an address.
        assert_eq!(node.ports(), Vec::<String>::new());
    });
}
