//! The CNI plugin as a runtime sees it, on the real kernel: every test has a node (network namespace), pods and an
//! IPAM store of its own.

mod pods;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use pods::{Node, PLUGIN, Pod, addresses, on_a_node, run, schemas, start};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("object").keys().map(String::as_str).collect()
}

/// The shape of a result as the specification of its version has it, to the field.
fn check_shape(result: &Value, version: &str, sandbox: &str) {
    schemas::assert_result(version, result);
    if version < "0.3.0" {
        assert_eq!(keys(result), BTreeSet::from(["cniVersion", "ip4", "ip6", "dns"]));
        assert_eq!(result["ip4"]["routes"][0]["dst"], "0.0.0.0/0");
        assert_eq!(result["ip6"]["routes"][0]["dst"], "::/0");
        return;
    }
    assert_eq!(keys(result), BTreeSet::from(["cniVersion", "interfaces", "ips", "routes", "dns"]));
    let interfaces = result["interfaces"].as_array().expect("interfaces");
    assert_eq!(interfaces.len(), 3);
    for (index, interface) in interfaces.iter().enumerate() {
        let mut want = BTreeSet::from(["name", "mac"]);
        if version == "1.1.0" {
            want.insert("mtu");
            assert_eq!(interface["mtu"], 1450);
        }
        if index == 2 {
            want.insert("sandbox");
            assert_eq!(interface["sandbox"], sandbox);
        }
        assert_eq!(keys(interface), want);
    }
    for (ip, family) in result["ips"].as_array().expect("ips").iter().zip(["4", "6"]) {
        let mut want = BTreeSet::from(["interface", "address", "gateway"]);
        if version < "1.0.0" {
            want.insert("version");
            assert_eq!(ip["version"], family);
        }
        assert_eq!(keys(ip), want);
        assert_eq!(ip["interface"], 2);
    }
    let destinations: Vec<&Value> =
        result["routes"].as_array().expect("routes").iter().map(|r| &r["dst"]).collect();
    assert_eq!(destinations, ["0.0.0.0/0", "::/0"]);
}

#[test]
fn add_check_del_in_every_version() {
    on_a_node(|node| {
        for version in VERSIONS {
            let pod = Pod::new("c1");
            let mut conf = node.conf(version);
            let result = node.call("ADD", &pod, &conf).ok();
            check_shape(&result, version, &pod.path().display().to_string());
            // What the result says is what the kernel has.
            for interface in result["interfaces"].as_array().into_iter().flatten() {
                let inside = interface["sandbox"].is_string();
                let show = format!("ip -o link show dev {}", interface["name"].as_str().expect("name"));
                let link = if inside { pod.run(&show) } else { run(&show) };
                assert!(link.contains(interface["mac"].as_str().expect("mac")), "{link}");
                assert!(link.contains("mtu 1450") && link.contains(",UP"), "{link}");
            }
            for (family, key) in [("-4", "ip4"), ("-6", "ip6")].into_iter().filter(|_| version < "0.3.0") {
                let ip = result[key]["ip"].as_str().expect("address");
                assert!(pod.run(&format!("ip {family} addr show dev eth0")).contains(ip), "{ip}");
            }
            conf["prevResult"] = result;
            if version >= "0.4.0" {
                node.call("CHECK", &pod, &conf).ok();
            } else {
                assert_eq!(node.call("CHECK", &pod, &conf).code(), 1, "CHECK is younger");
            }
            node.call("DEL", &pod, &conf).ok();
            node.assert_clean();
            assert!(!pod.can("ip link show dev eth0"));
        }
    });
}

#[test]
fn pods_reach_each_other_and_their_gateway_at_once() {
    on_a_node(|node| {
        let (one, two) = (Pod::new("c1"), Pod::new("c2"));
        let first = addresses(&node.add(&one));
        // One packet each: no waiting for duplicate address detection or a bridge's forward delay.
        assert!(one.can("ping -6 -c1 -W1 fd00:10:1::1"), "gateway, IPv6");
        assert!(one.can("ping -4 -c1 -W1 10.244.1.1"), "gateway, IPv4");
        let second = addresses(&node.add(&two));
        assert_eq!((first[0].as_str(), first[1].as_str()), ("10.244.1.2", "fd00:10:1::2"));
        assert_eq!((second[0].as_str(), second[1].as_str()), ("10.244.1.3", "fd00:10:1::3"));
        for (pod, peer) in [(&one, &second), (&two, &first)] {
            for address in peer {
                // 1450 - 20 - 8 and 1450 - 40 - 8.
                let (fits, over) = if address.contains(':') { (1402, 1403) } else { (1422, 1423) };
                assert!(pod.can(&format!("ping -c3 -i0.2 -W2 -M do -s {fits} {address}")), "{address}");
                assert!(!pod.can(&format!("ping -c1 -W1 -M do -s {over} {address}")), "{address}");
            }
            assert!(pod.can("ping -c3 -i0.2 -W2 127.0.0.1"), "lo is up");
            let routes = pod.run("ip route") + &pod.run("ip -6 route");
            assert!(routes.contains("default via 10.244.1.1 dev eth0"), "{routes}");
            assert!(routes.contains("default via fd00:10:1::1 dev eth0"), "{routes}");
        }
        // The node to a pod.
        run(&format!("ping -c1 -W1 {}", first[0]));
        run(&format!("ping -c1 -W1 {}", second[1]));
    });
}

#[test]
fn the_pair_is_as_planned() {
    on_a_node(|node| {
        let pod = Pod::new("c1");
        let result = node.add(&pod);
        let host = result["interfaces"][1]["name"].as_str().expect("name");
        assert!(host.len() == 15 && host.starts_with("hl"), "{host}");
        let port = run(&format!("bridge -d link show dev {host}"));
        assert!(port.contains("hairpin on") && port.contains("master homelab0"), "{port}");
        assert!(run(&format!("ip link show dev {host}")).contains("alias homelab-pod:c1/eth0"));
        // The MAC address follows from the address: 10.244.1.2.
        assert_eq!(result["interfaces"][2]["mac"], "02:68:0a:f4:01:02");
        assert_eq!(pod.run("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "0");
        let inside = pod.run("ip -6 addr show dev eth0");
        assert!(!inside.contains("tentative"), "{inside}");
        assert_eq!(node.entries(), [format!("{host},10.244.1.2,fd00:10:1::2")]);
        // The bridge that the plugin had to make is the one that the objects describe.
        let bridge =
            run("ip -d addr show dev homelab0") + &run("cat /proc/sys/net/ipv6/conf/homelab0/accept_ra");
        for part in [
            "02:00:00:00:00:01",
            "mtu 1450",
            "alias homelab",
            "10.244.1.1/24",
            "fd00:10:1::1/64",
            "stp_state 0",
        ] {
            assert!(bridge.contains(part), "{part}: {bridge}");
        }
        assert!(bridge.ends_with("0\n"), "{bridge}");
    });
}

#[test]
fn one_family_and_the_kernels_mtu() {
    on_a_node(|node| {
        for (range, gateway) in [("10.9.0.0/28", "10.9.0.1"), ("fd00:9::/64", "fd00:9::1")] {
            let pod = Pod::new("c1");
            let mut conf = node.conf("1.1.0");
            conf["ranges"] = json!([range]);
            conf["bridge"] = json!(if range.contains(':') { "homelab6" } else { "homelab4" });
            conf["mtu"] = json!(0);
            let result = node.call("ADD", &pod, &conf).ok();
            assert_eq!(result["interfaces"][2]["mtu"], 1500);
            assert_eq!(result["ips"].as_array().map(Vec::len), Some(1));
            assert!(pod.can(&format!("ping -c3 -i0.2 -W2 {gateway}")), "{gateway}");
            node.call("DEL", &pod, &conf).ok();
        }
        node.assert_clean();
    });
}

#[test]
fn del_tolerates_absence_of_everything() {
    on_a_node(|node| {
        let conf = node.conf("1.0.0");
        let pod = Pod::new("c1");
        node.call("DEL", &pod, &conf).ok();
        assert!(!node.data.path().join("home").exists(), "DEL makes nothing");
        node.add(&pod);
        node.call("DEL", &pod, &conf).ok();
        node.call("DEL", &pod, &conf).ok();
        node.add(&pod);
        // No CNI_NETNS, as after a reboot; a path that is gone; no prevResult in both.
        node.call_with("DEL", &pod, &conf, &[("CNI_NETNS", "")]).ok();
        node.assert_clean();
        node.add(&pod);
        node.call_with("DEL", &pod, &conf, &[("CNI_NETNS", "/run/netns/gone")]).ok();
        node.assert_clean();
        // The namespace itself is gone, and the pair with it.
        node.add(&pod);
        let id = pod.id.clone();
        drop(pod);
        let gone = Pod::new(&id);
        node.call("DEL", &gone, &conf).ok();
        node.assert_clean();
        // A configuration that no ADD would take.
        node.add(&gone);
        let mut broken = conf.clone();
        broken["ranges"] = json!("?");
        broken["what"] = json!(1);
        node.call("DEL", &gone, &broken).ok();
        node.assert_clean();
    });
}

#[test]
fn errors_have_the_codes_of_the_specification() {
    on_a_node(|node| {
        let pod = Pod::new("c1");
        let conf = node.conf("1.0.0");
        let with = |field: &str, value: Value| {
            let mut conf = conf.clone();
            conf[field] = value;
            conf
        };
        assert_eq!(node.call("ADD", &pod, &with("cniVersion", json!("0.5.0"))).code(), 1);
        assert_eq!(node.call("ADD", &pod, &with("ipam", json!({ "type": "host-local" }))).code(), 2);
        assert_eq!(node.call("ADD", &pod, &with("ranges", json!([]))).code(), 7);
        assert_eq!(node.call("ADD", &pod, &with("name", json!("../x"))).code(), 7);
        assert_eq!(node.call("ADD", &pod, &json!([])).code(), 6);
        assert_eq!(node.call("WHAT", &pod, &conf).code(), 4);
        for (name, value) in [
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", "much-too-long-name"),
            ("CNI_NETNS", ""),
            ("CNI_NETNS", "/run/netns/gone"),
            ("CNI_NETNS", "/proc/self/status"),
            ("CNI_ARGS", "WHAT=ever"),
        ] {
            assert_eq!(node.call_with("ADD", &pod, &conf, &[(name, value)]).code(), 4, "{name}={value}");
        }
        // A file where the directory should be.
        let file = node.data.path().join("file");
        std::fs::write(&file, "").expect("file");
        assert_eq!(node.call("ADD", &pod, &with("dataDir", json!(file))).code(), 5);
        std::fs::remove_file(&file).expect("file");
        // The node's own namespace is no pod, unless the runtime says so.
        let own = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
        assert_eq!(node.call_with("ADD", &pod, &conf, &[("CNI_NETNS", &own)]).code(), 8);
        // Then it is tried, and fails where the gateway turns out to be the pod itself; nothing stays.
        let forced = [("CNI_NETNS", own.as_str()), ("CNI_NETNS_OVERRIDE", "1")];
        assert_eq!(node.call_with("ADD", &pod, &conf, &forced).code(), 103);
        node.assert_clean();
    });
}

#[test]
fn a_second_add_is_refused_and_harms_nothing() {
    on_a_node(|node| {
        let pod = Pod::new("c1");
        let conf = node.conf("1.0.0");
        let first = addresses(&node.add(&pod));
        assert_eq!(node.call("ADD", &pod, &conf).code(), 102);
        assert!(pod.can("ping -c3 -i0.2 -W2 10.244.1.1"));
        assert_eq!(node.entries().len(), 1);
        // Another container may not take over its namespace's interface either, and keeps no address for it.
        let thief = Pod::new("c2");
        let path = pod.path().display().to_string();
        assert_eq!(node.call_with("ADD", &thief, &conf, &[("CNI_NETNS", &path)]).code(), 102);
        assert_eq!(node.entries().len(), 1);
        // A second interface of the same container is another attachment; the first keeps the default route.
        let second = node.call_with("ADD", &pod, &conf, &[("CNI_IFNAME", "net1")]).ok();
        assert_ne!(addresses(&second), first);
        assert!(pod.run("ip route show default").contains("dev eth0"));
        node.del(&pod);
        assert_eq!(node.entries().len(), 1, "DEL of eth0 leaves net1");
        node.call_with("DEL", &pod, &conf, &[("CNI_IFNAME", "net1")]).ok();
        node.assert_clean();
    });
}

#[test]
fn check_finds_what_differs() {
    on_a_node(|node| {
        // Where, what, how it is mended where others need it, and what CHECK says.
        let breakages = [
            ("node", "ip link set PORT nomaster", "", "link PORT is no port of the bridge"),
            ("node", "ip link set PORT down", "", "link PORT is down"),
            ("node", "bridge link set dev PORT hairpin off", "", "link PORT does not send back (hairpin)"),
            (
                "node",
                "ip link set PORT mtu 1400",
                "",
                "eth0 of the container has MTU 1450, and its end on the node 1400",
            ),
            ("node", "ip link set PORT alias other", "", "link PORT has another alias"),
            ("node", "ip link del PORT", "", "link PORT on the node is missing"),
            ("pod", "ip link set eth0 down", "", "eth0 of the container is down"),
            ("pod", "ip link set eth0 mtu 1400", "", "eth0 of the container has MTU 1400 instead of 1450"),
            ("pod", "ip link set eth0 down name eth9", "", "eth0 of the container is missing"),
            (
                "pod",
                "ip addr del 10.244.1.OWN/24 dev eth0",
                "",
                "eth0 of the container has no address 10.244.1.OWN/24",
            ),
            (
                "pod",
                "ip -6 addr flush dev eth0 scope global",
                "",
                "eth0 of the container has no address fd00:10:1::",
            ),
            ("pod", "ip route del default", "", "eth0 of the container has no default route via 10.244.1.1"),
            (
                "pod",
                "ip -6 route del default",
                "",
                "eth0 of the container has no default route via fd00:10:1::1",
            ),
            (
                "pod",
                "ip link set eth0 address 02:00:00:00:00:99",
                "",
                "eth0 of the container has MAC address 02:00:00:00:00:99 instead of 02:68:",
            ),
            (
                "node",
                "ip addr del 10.244.1.1/24 dev homelab0",
                "ip addr add 10.244.1.1/24 dev homelab0",
                "bridge homelab0 has no address 10.244.1.1/24",
            ),
            ("node", "ip link del homelab0", "", "bridge homelab0 is missing"),
        ];
        for (number, (place, breakage, mend, words)) in breakages.into_iter().enumerate() {
            let pod = Pod::new(&format!("c{number}"));
            let mut conf = node.conf("1.1.0");
            let result = node.call("ADD", &pod, &conf).ok();
            let port = result["interfaces"][1]["name"].as_str().expect("name").to_owned();
            let own = addresses(&result)[0].rsplit('.').next().expect("octet").to_owned();
            conf["prevResult"] = result;
            node.call("CHECK", &pod, &conf).ok();
            let filled = |text: &str| text.replace("PORT", &port).replace("OWN", &own);
            if place == "pod" {
                pod.run(&filled(breakage))
            } else {
                run(&filled(breakage))
            };
            let answer = node.call("CHECK", &pod, &conf);
            assert!(answer.text.contains(&filled(words)), "{breakage}: {}", answer.text);
            assert_eq!(answer.code(), 104, "{breakage}");
            if !mend.is_empty() {
                run(mend);
                node.call("CHECK", &pod, &conf).ok();
            }
            node.del(&pod);
            assert_eq!(node.call("CHECK", &pod, &conf).code(), 3, "nothing is left");
        }
        // A node whose MTU was changed does not fail the pods of before.
        let pod = Pod::new("c");
        let mut conf = node.conf("1.0.0");
        conf["prevResult"] = node.call("ADD", &pod, &conf).ok();
        conf["mtu"] = json!(1400);
        node.call("CHECK", &pod, &conf).ok();
        assert_eq!(node.call("CHECK", &pod, &node.conf("1.0.0")).code(), 7, "no prevResult");
    });
}

#[test]
fn foreign_links_are_left_alone() {
    on_a_node(|node| {
        run("ip link add homelab0 type bridge");
        let before = run("ip -d link show dev homelab0");
        let pod = Pod::new("c1");
        assert_eq!(node.call("ADD", &pod, &node.conf("1.0.0")).code(), 101);
        assert_eq!(run("ip -d link show dev homelab0"), before);
        node.assert_clean();
        assert_eq!(node.call("STATUS", &pod, &node.conf("1.1.0")).code(), 50);
        // As soon as it is ours it will do.
        run("ip link set homelab0 alias homelab up");
        node.call("STATUS", &pod, &node.conf("1.1.0")).ok();
        node.add(&pod);
    });
}

#[test]
fn version_and_a_person_calling() {
    on_a_node(|node| {
        let pod = Pod::new("c1");
        let answer = node.call("VERSION", &pod, &json!({ "cniVersion": "0.4.0" })).ok();
        schemas::assert_version("0.4.0", &answer);
        assert_eq!(answer, json!({ "cniVersion": "0.4.0", "supportedVersions": VERSIONS }));
        let mut process = Command::new(PLUGIN);
        std::os::unix::process::CommandExt::arg0(&mut process, "homelab");
        let output = process.output().expect("plugin");
        assert!(output.status.success() && output.stdout.is_empty());
        assert!(
            String::from_utf8_lossy(&output.stderr)
                .contains("0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0")
        );
    });
}

#[test]
fn sixty_four_pods_at_once() {
    on_a_node(|node| {
        let pods: Vec<Pod> = (0..64).map(|n| Pod::new(&format!("c{n}"))).collect();
        let conf = node.conf("1.0.0");
        let all = |command: &str| -> Vec<Value> {
            // No bridge yet: whoever comes first makes it.
            let children: Vec<_> =
                pods.iter().map(|pod| start(node.command(command, pod, None), &conf)).collect();
            children.into_iter().map(|child| node.finish(child).ok()).collect()
        };
        let results = all("ADD");
        let given: Vec<String> = results.iter().flat_map(addresses).collect();
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 128);
        assert_eq!((node.ports().len(), node.entries().len()), (64, 64));
        assert!(pods[0].can(&format!("ping -c3 -i0.2 -W2 {}", given[126])));
        assert!(pods[63].can(&format!("ping -c3 -i0.2 -W2 {}", given[1])));
        all("DEL");
        node.assert_clean();
    });
}

/// What a killed ADD leaves never harms: DEL takes all of it away, and no address is on two pods meanwhile.
#[test]
fn killed_at_any_point() {
    on_a_node(|node| {
        let conf = node.conf("1.0.0");
        let resident = Pod::new("resident");
        node.add(&resident);
        let pod = Pod::new("measured");
        let began = Instant::now();
        node.add(&pod);
        let whole = began.elapsed();
        node.del(&pod);
        const ROUNDS: u32 = 80;
        let mut killed = 0;
        for round in 0..ROUNDS {
            let pod = Pod::new(&format!("c{round}"));
            let mut child = start(node.command("ADD", &pod, None), &conf);
            std::thread::sleep(whole * round / ROUNDS);
            killed += u32::from(child.kill().is_ok());
            child.wait().expect("plugin");
            // Before the runtime's DEL comes, another pod is attached.
            let other = Pod::new(&format!("o{round}"));
            let given = addresses(&node.add(&other));
            let left = pod.run("ip -o addr show");
            for address in &given {
                assert!(!left.contains(&format!("{address}/")), "{address}: {left}");
            }
            assert!(other.can("ping -c3 -i0.2 -W2 10.244.1.1"), "round {round}");
            node.del(&other);
            if round % 2 == 0 {
                node.del(&pod);
            } else {
                // A runtime that does not know the container any more.
                node.call_with("DEL", &pod, &conf, &[("CNI_NETNS", "")]).ok();
            }
            assert_eq!((node.ports().len(), node.entries().len()), (1, 1), "round {round}");
        }
        assert!(killed > 0);
        node.del(&resident);
        node.assert_clean();
    });
}

/// A DEL that was killed is finished by the next one.
#[test]
fn killed_del_is_repeated() {
    on_a_node(|node| {
        let conf = node.conf("1.0.0");
        for round in 0..20 {
            let pod = Pod::new(&format!("c{round}"));
            node.add(&pod);
            let mut child = start(node.command("DEL", &pod, None), &conf);
            std::thread::sleep(Duration::from_micros(150) * round);
            let _ = child.kill();
            child.wait().expect("plugin");
            node.del(&pod);
            node.assert_clean();
        }
    });
}

fn small(node: &Node) -> Value {
    let mut conf = node.conf("1.1.0");
    conf["ranges"] = json!(["10.8.0.0/29"]);
    conf
}

#[test]
fn a_full_range_says_so() {
    on_a_node(|node| {
        let conf = small(node);
        let pods: Vec<Pod> = (0..5).map(|n| Pod::new(&format!("c{n}"))).collect();
        for pod in &pods {
            node.call("ADD", pod, &conf).ok();
        }
        let late = Pod::new("late");
        let answer = node.call("ADD", &late, &conf);
        assert!(answer.text.contains("no free address in 10.8.0.0/29"), "{}", answer.text);
        assert_eq!(answer.code(), 100);
        assert!(!late.can("ip link show dev eth0"));
        assert_eq!(node.call("STATUS", &late, &conf).code(), 50);
        node.call("DEL", &pods[3], &conf).ok();
        node.call("STATUS", &late, &conf).ok();
        assert_eq!(addresses(&node.call("ADD", &late, &conf).ok()), ["10.8.0.5"]);
    });
}

/// cni#204: nobody calls DEL for a pod whose namespace is gone. The address comes back when it is needed.
#[test]
fn addresses_of_vanished_pods_are_found_again() {
    on_a_node(|node| {
        let conf = small(node);
        for round in 0..12 {
            let pod = Pod::new(&format!("c{round}"));
            node.call("ADD", &pod, &conf).ok();
            drop(pod);
            // The kernel takes the pair away behind the namespace.
            let deadline = Instant::now() + Duration::from_secs(10);
            while !node.ports().is_empty() {
                assert!(Instant::now() < deadline, "the pair outlives its namespace");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert!(node.entries().len() <= 5);
    });
}

/// cni#204, plugins#252, k8s#108121, k3s#5885: addresses leak at every reboot until none is left.
#[test]
fn ipam_leak_after_reboot() {
    on_a_node(|node| {
        let conf = small(node);
        let old: Vec<Pod> = (0..5).map(|n| Pod::new(&format!("old{n}"))).collect();
        for pod in &old {
            node.call("ADD", pod, &conf).ok();
        }
        let late = Pod::new("late");
        assert_eq!(node.call("ADD", &late, &conf).code(), 100);
        // The node boots anew: kernel state is gone, the disk is not, and the boot has another identity.
        let ports = node.ports();
        for port in &ports {
            run(&format!("ip link del {port}"));
        }
        run("ip link del homelab0");
        let boot = node.data.path().with_extension("boot");
        std::fs::write(&boot, "01234567-89ab-cdef-0123-456789abcdef\n").expect("file");
        let line = format!("mount --bind {} /proc/sys/kernel/random/boot_id", boot.display());
        let call = |command: &str, pod: &Pod| {
            node.finish(start(node.command(command, pod, Some(&line)), &conf)).ok()
        };
        let first = call("ADD", &late);
        // An address rests across a reboot, too.
        assert_eq!(addresses(&first), ["10.8.0.2"]);
        assert_eq!(node.entries().len(), 1, "nothing of the old boot is left");
        // Late DELs of the old boot's pods free nothing of the new one.
        for pod in &old {
            call("DEL", pod);
        }
        assert_eq!(node.entries().len(), 1);
        call("DEL", &late);
        node.assert_clean();
        std::fs::remove_file(&boot).expect("file");
    });
}

#[test]
fn gc_keeps_only_what_the_runtime_names() {
    on_a_node(|node| {
        let pods: Vec<Pod> = (0..3).map(|n| Pod::new(&format!("c{n}"))).collect();
        for pod in &pods {
            node.add(pod);
        }
        let mut other = node.conf("1.1.0");
        other["name"] = json!("other");
        let neighbour = Pod::new("n");
        node.call("ADD", &neighbour, &other).ok();
        let mut conf = node.conf("1.1.0");
        conf["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }]);
        node.call("GC", &pods[0], &conf).ok();
        assert!(pods[1].can("ping -c3 -i0.2 -W2 10.244.1.1"));
        assert!(!pods[0].can("ip link show dev eth0") && !pods[2].can("ip link show dev eth0"));
        let held = |network: &str| {
            run(&format!("find {}/{network} -type l", node.data.path().display())).lines().count()
        };
        // The other network has the same ranges: it gives none of the addresses that were taken, and goes on to hold them.
        assert_eq!((held("home"), held("other")), (1, 4), "another network's pod stays");
        assert!(neighbour.can("ping -c3 -i0.2 -W2 10.244.1.1"), "another network's pod stays");
        assert_eq!(node.call("GC", &pods[0], &node.conf("1.1.0")).code(), 7, "without the list");
        assert_eq!(node.call("GC", &pods[0], &node.conf("1.0.0")).code(), 1, "older than GC");
    });
}
