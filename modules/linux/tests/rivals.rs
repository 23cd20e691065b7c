//! Other service proxies on a node are found, and foreign tables stay as they are.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::proxy::{node, service, view, with_ruleset};
use common::{in_new_netns, load, run};
use homelab_linux::{Connections, Node, Root};
use homelab_model::{Balancer, Change, Module, NodeObject, Rival};
use homelab_proxy::{Elements, compile, ruleset};

/// A node with a `/proc` of its own, in which nothing runs.
fn alone(directory: &Path) -> Node {
    fs::create_dir_all(directory.join("proc/net")).unwrap();
    Node::open(Root::at(directory.join("root")).with_proc(directory.join("proc"))).unwrap()
}

fn rivals(node: &mut Node) -> Vec<Rival> {
    node.facts().unwrap().rival_proxies
}

fn family(name: &str) -> String {
    name.to_owned()
}

#[test]
fn chains_and_links_of_kube_proxy_are_found() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = alone(directory.path());
        assert_eq!(rivals(&mut node), []);
        // kubelet's own, Docker's, and names that are not quite kube-proxy's.
        load(
            "table ip mangle { chain KUBE-KUBELET-CANARY { }; chain KUBE-IPTABLES-HINT { }; }
             table ip nat { chain DOCKER { }; chain KUBE-SERVICES-2 { }; chain KUBE-MARK-MASQ { }; }
             table ip filter { chain KUBE-SERVICES { }; }
             table inet kube-proxy { chain services { }; }
             table ip kube-proxy-2 { chain services { }; }
             table ip kube-proxy { }",
        );
        run("ip link add kube-ipvs1 type bridge");
        assert_eq!(rivals(&mut node), []);
        load("table ip kube-proxy { chain services { }; }");
        assert_eq!(rivals(&mut node), [Rival::Nftables { family: family("ip") }]);
        load(
            "table ip6 kube-proxy { chain services { }; }
             table ip nat { chain KUBE-SERVICES { }; }
             table ip6 nat { chain KUBE-SERVICES { }; }",
        );
        run("ip link add kube-ipvs0 type bridge");
        let all = [
            Rival::Nftables { family: family("ip") },
            Rival::Nftables { family: family("ip6") },
            Rival::Iptables { family: family("ip") },
            Rival::Iptables { family: family("ip6") },
            Rival::Ipvs,
        ];
        assert_eq!(rivals(&mut node), all);
        run("nft delete table ip kube-proxy; nft delete table ip6 kube-proxy; nft flush table ip nat");
        run("nft delete chain ip nat KUBE-SERVICES; nft delete table ip6 nat; ip link del kube-ipvs0");
        assert_eq!(rivals(&mut node), []);
    });
}

#[test]
fn a_table_of_iptables_legacy_counts_with_what_kube_proxy_makes_rules_of() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = alone(directory.path());
        let write = |name: &str, text: &str| {
            fs::write(directory.path().join("proc/net").join(name), text).unwrap();
        };
        write("ip_tables_names", "nat\nfilter\n");
        write("ip_tables_matches", "addrtype\nconntrack\n");
        write("ip_tables_targets", "MASQUERADE\nDNAT\n");
        assert_eq!(rivals(&mut node), [], "Docker");
        write("ip_tables_matches", "addrtype\ncomment\n");
        assert_eq!(rivals(&mut node), [], "no mark");
        write("ip_tables_targets", "MASQUERADE\nMARK\n");
        assert_eq!(rivals(&mut node), [Rival::IptablesLegacy { family: family("ip") }]);
        write("ip_tables_names", "filter\n");
        write("ip6_tables_names", "nat\n");
        write("ip6_tables_matches", "comment\n");
        write("ip6_tables_targets", "MARK\n");
        assert_eq!(rivals(&mut node), [Rival::IptablesLegacy { family: family("ip6") }]);
    });
}

#[test]
fn a_process_is_found_by_its_name() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = alone(directory.path());
        let write = |path: &str, text: &str| {
            let path = directory.path().join("proc").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("12/comm", "kube-proxy-too\n");
        write("sys/comm", "kube-proxy\n");
        assert_eq!(rivals(&mut node), []);
        write("14/comm", "kube-proxy\n");
        assert_eq!(rivals(&mut node), [Rival::Process]);

        // A real one, among all that runs here.
        let program = directory.path().join("kube-proxy");
        fs::copy("/bin/sleep", &program).unwrap();
        let mut process = Command::new(&program).arg("60").spawn().unwrap();
        // The kernel sets the name after it has let the parent go on.
        while fs::read(format!("/proc/{}/comm", process.id())).unwrap() != b"kube-proxy\n" {
            std::thread::yield_now();
        }
        let found = rivals(&mut Node::open(Root::at(directory.path())).unwrap());
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(found.contains(&Rival::Process), "{found:?}");
    });
}

#[test]
fn proxies_of_other_makers_are_found() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = alone(directory.path());
        for (link, rival) in [
            ("cilium_host", Rival::Cilium),
            ("kube-dummy-if", Rival::KubeRouter),
            ("bpfin.cali", Rival::CalicoBpf),
        ] {
            run(&format!("ip link add {link} type bridge"));
            assert_eq!(rivals(&mut node), [rival]);
            run(&format!("ip link del {link}"));
        }
        // Real processes: a shell under their names, with their arguments.
        let found = |name: &str, arguments: &str| {
            let program = directory.path().join(name);
            fs::copy("/bin/sh", &program).unwrap();
            let mut command = Command::new(&program);
            let mut process = command
                .args(["-c", "read line"])
                .args(arguments.split(' '))
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            while fs::read_to_string(format!("/proc/{}/comm", process.id())).unwrap().trim_end() != name {
                std::thread::yield_now();
            }
            let found = rivals(&mut Node::open(Root::at(directory.path())).unwrap());
            drop(process.stdin.take());
            process.wait().unwrap();
            found
        };
        assert!(found("cilium-agent", "--config-dir=/tmp/cilium/config-map").contains(&Rival::Cilium));
        assert!(found("kube-router", "--run-router=true").contains(&Rival::KubeRouter));
        assert!(!found("kube-router", "--run-service-proxy=false").contains(&Rival::KubeRouter));
    });
}

#[test]
fn a_server_of_k3s_has_a_proxy_and_a_load_balancer_inside() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = alone(directory.path());
        let process = |pid: u32, name: &str, command: &str| {
            let path = directory.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("comm"), format!("{name}\n")).unwrap();
            fs::write(path.join("cmdline"), command).unwrap();
        };
        let mut found = || {
            let facts = node.facts().unwrap();
            (facts.rival_proxies, facts.rival_balancers)
        };
        process(10, "k3s-agent", "/usr/local/bin/k3s agent");
        process(11, "k3s", "k3s\0kubectl\0get\0pods");
        process(12, "k3s-server-too", "k3s server");
        assert_eq!(found(), (vec![], vec![]), "agents do as their servers say");
        // As it looks once it runs: its arguments are hidden.
        process(20, "k3s-server", "/usr/local/bin/k3s server\0\0\0");
        let k3s = Rival::BuiltIn { program: "k3s".into() };
        assert_eq!(found(), (vec![k3s.clone()], vec![Balancer::ServiceLb]));
        let file = directory.path().join("root/etc/rancher/k3s/config.yaml");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "disable-kube-proxy: true\ndisable: [servicelb]\n").unwrap();
        assert_eq!(found(), (vec![], vec![]));
        process(21, "rke2", "/usr/local/bin/rke2 server");
        assert_eq!(found(), (vec![Rival::BuiltIn { program: "rke2".into() }], vec![]));
        // A real one that starts, with its arguments still there: a script of that name, which waits.
        let program = directory.path().join("k3s-server");
        fs::copy("/bin/sh", &program).unwrap();
        fs::write(directory.path().join("server"), "read line").unwrap();
        let mut command = Command::new(&program);
        command.current_dir(directory.path()).args(["server", "--disable=servicelb"]).stdin(Stdio::piped());
        let mut process = command.spawn().unwrap();
        while fs::read(format!("/proc/{}/comm", process.id())).unwrap() != b"k3s-server\n" {
            std::thread::yield_now();
        }
        let facts = Node::open(Root::at(directory.path().join("other"))).unwrap().facts().unwrap();
        drop(process.stdin.take());
        process.wait().unwrap();
        assert!(facts.rival_proxies.contains(&k3s), "{:?}", facts.rival_proxies);
        assert!(!facts.rival_balancers.contains(&Balancer::ServiceLb), "{:?}", facts.rival_balancers);
    });
}

#[test]
fn programs_for_load_balancer_addresses_are_found_k3s_269_metallb_1871() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = alone(directory.path());
        let process = |pid: u32, name: &str, environment: &str| {
            let path = directory.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("comm"), format!("{name}\n")).unwrap();
            fs::write(path.join("environ"), environment.replace(' ', "\0")).unwrap();
        };
        let found = |node: &mut Node| node.facts().unwrap().rival_balancers;
        process(10, "speaker", "HOME=/root NOT_METALLB_HOST=1");
        process(11, "kube-vip", "vip_arp=true cp_enable=true");
        process(12, "entry", "SRC_PORT=80 HOME=/");
        process(13, "controller", "METALLB_DEPLOYMENT=controller");
        assert_eq!(found(&mut node), [], "names alone, the control plane's address, what announces nothing");
        process(20, "speaker", "HOME=/ METALLB_NODE_NAME=node1");
        assert_eq!(found(&mut node), [Balancer::MetalLb]);
        process(
            21,
            "entry",
            "SRC_PORT=80 SRC_RANGES=0.0.0.0/0 DEST_PROTO=TCP DEST_PORT=80 DEST_IPS=10.43.0.9",
        );
        process(22, "kube-vip", "vip_arp=true svc_enable=true");
        process(23, "lbnodeagent", "");
        process(24, "speaker", "METALLB_NODE_NAME=node1");
        let all = [Balancer::MetalLb, Balancer::ServiceLb, Balancer::KubeVip, Balancer::PureLb];
        assert_eq!(found(&mut node), all);
        assert_eq!(rivals(&mut node), [], "they are no service proxies");
    });
}

/// After what Docker, ufw, firewalld and kube-proxy load.
const FOREIGN: &str = r#"table ip nat {
    chain DOCKER {
        iifname "docker0" counter return
        iifname != "docker0" tcp dport 8080 counter dnat to 172.17.0.2:80
    }
    chain PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump DOCKER
    }
    chain POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        oifname != "docker0" ip saddr 172.17.0.0/16 counter masquerade
    }
    chain KUBE-SERVICES {
        ip daddr 10.96.0.10 udp dport 53 counter dnat to 10.244.1.9:53
    }
}
table ip filter {
    chain DOCKER-USER {
        counter return
    }
    chain ufw-user-forward {
    }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        counter jump ufw-user-forward
    }
}
table ip6 filter {
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
    }
}
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state established,related accept
        reject with icmpx admin-prohibited
    }
}
table ip kube-proxy {
    comment "rules for kube-proxy"
    set cluster-ips {
        type ipv4_addr
        elements = { 10.96.0.10, 10.96.0.5 }
    }
    map service-ips {
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = { 10.96.0.5 . tcp . 80 : goto service-web }
    }
    chain service-web {
        numgen random mod 1 vmap { 0 : goto endpoint-web }
    }
    chain endpoint-web {
        meta l4proto tcp dnat to 10.244.1.5:8080
    }
    chain services {
        ip daddr . meta l4proto . th dport vmap @service-ips
    }
    chain nat-prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        jump services
    }
}
table inet mine {
    map held {
        type ipv4_addr : ipv4_addr
        elements = { 10.0.0.1 : 10.0.0.2 }
    }
}
"#;

/// Everything in the kernel but our table.
fn foreign() -> Vec<String> {
    let tables = run("nft list tables");
    let foreign = tables.lines().filter(|line| !line.ends_with(" homelab-proxy"));
    foreign.map(|line| run(&format!("nft --numeric --handle list {line}"))).collect()
}

#[test]
fn foreign_tables_stay_as_they_are() {
    in_new_netns(|| {
        load(FOREIGN);
        let before = foreign();
        assert_eq!(before.len(), 6);
        let directory = tempfile::tempdir().unwrap();
        let mut node = with_ruleset(&directory);
        assert_eq!(foreign(), before, "the ruleset loads");
        let state = |last: u8| {
            let web = service("web", "TCP", &["10.96.0.5"], &[&format!("10.244.1.{last}:8080")]);
            let dns = service("dns", "UDP", &["10.96.0.10"], &["10.244.1.9:53"]);
            compile(&[web, dns], &view()).0
        };
        for last in 1..20 {
            node.sync_services(&state(last), Connections::OfChange).unwrap();
            let next = state(last + 100);
            let web = Elements::from([("default/web".to_owned(), next["default/web"].clone())]);
            node.sync_changed_services(&web).unwrap();
        }
        assert_eq!(foreign(), before, "services change");
        self::node(&directory).sync_services(&state(20), Connections::All).unwrap();
        node.sync_services(&Elements::new(), Connections::All).unwrap();
        assert_eq!(foreign(), before, "an agent starts anew, and the last service goes");
        let delete = |spec| Change::Delete { before: NodeObject { module: Module::Proxy, spec } };
        let changes: Vec<_> = ruleset(&view()).into_iter().rev().map(delete).collect();
        node.apply_all(&changes, &mut |_| {}).unwrap();
        assert!(!run("nft list tables").contains("homelab"));
        assert_eq!(foreign(), before, "all of ours is gone");
    });
}
