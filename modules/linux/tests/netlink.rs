//! Events, readings during change, errors of nft.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{in_new_netns, nft_canonical, run};
use homelab_linux::netlink::{Events, Happened};
use homelab_linux::{Error, Kinds, Node, Root};
use homelab_model::{Change, Module, NftChain, NftTable, NodeObject, Scope, Spec, ours};

#[test]
fn events_say_what_happened() {
    in_new_netns(|| {
        let mut events = Events::open().unwrap();
        let none = Happened::default();
        assert!(!events.drain().unwrap().any());
        run(
            "ip link add b0 type bridge && ip link add vx0 type vxlan id 1 dstport 8472 && ip link set b0 up && ip link set vx0 up",
        );
        assert!(events.drain().unwrap().links);
        let mut happens = |command: &str| {
            events.drain().unwrap();
            run(command);
            events.wait().unwrap();
            events.drain().unwrap()
        };
        assert!(happens("ip addr add 10.0.0.1/24 dev b0").addresses);
        assert_eq!(happens("ip route add 10.1.0.0/16 via 10.0.0.2"), Happened { routes: true, ..none });
        assert_eq!(happens("ip -6 route add unreachable fd00::/64"), Happened { routes: true, ..none });
        assert_eq!(
            happens("ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:01 dev b0 nud permanent"),
            Happened { neighbours: true, ..none }
        );
        assert_eq!(
            happens("bridge fdb append 02:00:00:00:00:01 dev vx0 dst 192.0.2.1"),
            Happened { neighbours: true, ..none }
        );
        assert_eq!(happens("nft add table inet homelab"), Happened { nft: true, ..none });
        assert_eq!(happens("nft delete table inet homelab"), Happened { nft: true, ..none });
        assert_eq!(happens("nft add table ip homelab && nft delete table ip homelab"), none, "another's");
        assert_eq!(
            happens("nft 'add table inet homelab-proxy; add set inet homelab-proxy s { typeof ip daddr; }'"),
            Happened { nft: true, ..none }
        );
        assert_eq!(
            happens("nft add element inet homelab-proxy s '{ 10.0.0.1 }'"),
            Happened { services: true, ..none }
        );
        assert!(
            happens(
                "echo 0 > /proc/sys/net/ipv4/conf/b0/rp_filter; echo 2 > /proc/sys/net/ipv4/conf/b0/rp_filter"
            )
            .sysctls
        );
        assert!(happens("echo 1 > /proc/sys/net/ipv4/ip_forward").sysctls);
        assert!(happens("ip link del vx0").links);
        assert_eq!(events.drain().unwrap(), none);
    });
}

#[test]
fn neighbours_of_other_links_are_no_reason_to_look() {
    in_new_netns(|| {
        run(
            "ip link add b0 type bridge && ip link add b1 type bridge && ip link set b0 up && ip link set b1 up",
        );
        let index = |name: &str| -> u32 {
            run(&format!("ip -o link show {name}")).split(':').next().unwrap().parse().unwrap()
        };
        let mut events = Events::open().unwrap();
        events.watch_neighbours_of([index("b1")]);
        run("ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:01 dev b0 nud permanent");
        assert!(!events.drain().unwrap().any());
        run("ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:01 dev b1 nud permanent");
        assert!(events.drain().unwrap().neighbours);
    });
}

#[test]
fn events_of_links_are_of_links_and_addresses_alone() {
    in_new_netns(|| {
        let mut events = Events::of_links().unwrap();
        run("ip link add b0 type bridge && ip link set b0 up && ip addr add 10.0.0.1/24 dev b0");
        let happened = events.drain().unwrap();
        assert_eq!(happened, Happened { links: true, addresses: true, ..Happened::default() });
        run(
            "ip route add unreachable 10.9.0.0/24; nft add table inet homelab; ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev b0",
        );
        assert!(!events.drain().unwrap().any());
    });
}

#[test]
fn lost_events_are_said() {
    in_new_netns(|| {
        let mut events = Events::open().unwrap();
        let batch: String = (0..20_000)
            .map(|n| format!("route add unreachable 10.{}.{}.0/24\n", n / 250 % 250, n % 250))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), batch).unwrap();
        run(&format!("ip -batch {}", file.path().display()));
        assert!(events.drain().unwrap().overflow);
        assert!(!events.drain().unwrap().any());
        run("ip route del unreachable 10.0.0.0/24");
        assert_eq!(events.drain().unwrap(), Happened { routes: true, ..Happened::default() });
    });
}

#[test]
fn a_reading_during_changes_is_whole() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::open(Root::at(directory.path())).unwrap();
        let lasting: String = (0..2000)
            .map(|n| format!("route add unreachable 10.{}.{}.0/24 proto 104\n", n / 250, n % 250))
            .collect();
        let passing: String = (0..200)
            .map(|n| format!("route add unreachable 9.0.{n}.0/24\nroute del unreachable 9.0.{n}.0/24\n"))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lasting).unwrap();
        run(&format!("ip -batch {}", file.path().display()));
        std::fs::write(file.path(), passing).unwrap();
        let (end, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    run(&format!("ip -batch {}", file.path().display()));
                    run("ip link add x0 type bridge && ip link del x0");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut readings = 0;
            while readings < 40 || (rounds.load(Ordering::Relaxed) < 3 && Instant::now() < deadline) {
                readings += 1;
                let seen = node.observe_objects(&Scope::default(), Kinds::KERNEL).unwrap();
                assert_eq!(seen.len(), 2000);
            }
            end.store(true, Ordering::Relaxed);
        });
        assert!(rounds.into_inner() >= 3, "nothing changed while it was read");
    });
}

#[test]
fn a_table_that_comes_and_goes_is_there_or_not_and_no_error() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::open(Root::at(directory.path())).unwrap();
        let chains: String = (0..12).map(|n| format!("add chain inet homelab c{n}\n")).collect();
        let script = format!(
            "add table inet homelab\n{chains}delete table inet homelab\nadd table inet homelab\n{chains}"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script).unwrap();
        let end = AtomicBool::new(false);
        let mut sizes = std::collections::BTreeSet::new();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    run(&format!("nft -f {} && nft delete table inet homelab", file.path().display()));
                }
            });
            // As long as it takes to have met both: looking is quicker than nft starts.
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut readings = 0;
            while readings < 150 || (sizes.len() < 2 && Instant::now() < deadline) {
                readings += 1;
                let seen = node.observe_objects(&Scope::default(), Kinds::KERNEL);
                if seen.is_err() {
                    end.store(true, Ordering::Relaxed);
                }
                sizes.insert(seen.unwrap().len());
            }
            end.store(true, Ordering::Relaxed);
        });
        assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [0, 13], "all of it or nothing");
    });
}

fn chain(name: &str, rules: &[&str]) -> NodeObject {
    let rules = rules.iter().map(|r| (*r).to_owned()).collect();
    let chain = NftChain { table: ours::NFT_TABLE.into(), name: name.into(), hook: None, rules };
    NodeObject { module: Module::Vtep, spec: Spec::NftChain(chain) }
}

#[test]
fn an_error_of_nft_names_the_chain_and_changes_nothing() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::open(Root::at(directory.path())).unwrap();
        let table = NftTable { name: ours::NFT_TABLE.into(), sets: Vec::new() };
        let table = NodeObject { module: Module::Vtep, spec: Spec::NftTable(table) };
        let create = |after: NodeObject| Change::Create { after };
        for (rules, words) in [
            (&["ip saddr nonsense drop"][..], "nonsense"),
            (&["accept", "frobnicate"], "frobnicate"),
            // What nft understands and the kernel refuses.
            (&["jump nowhere"], "nowhere"),
        ] {
            let changes =
                [create(table.clone()), create(chain("good", &["accept"])), create(chain("wrong", rules))];
            let error = node.apply_all(&changes, &mut |_| {}).unwrap_err();
            assert_eq!(error.object.to_string(), "nft chain inet homelab wrong", "{error}");
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(run("nft list tables"), "", "all or nothing");
        }
        let hostile = [create(table), create(chain("wrong", &["accept; add table inet evil"]))];
        let error = node.apply_all(&hostile, &mut |_| {}).unwrap_err();
        assert!(matches!(*error.source, Error::Invalid(_)), "{error}");
        assert_eq!(run("nft list tables"), "");
    });
}

#[test]
fn rules_of_the_modules_are_in_nfts_own_words() {
    in_new_netns(|| {
        let objects = common::objects::objects(&common::objects::spec(2));
        let listed = nft_canonical(&objects);
        let mut chains = 0;
        for object in objects {
            match object.spec {
                Spec::NftTable(table) => assert_eq!(listed[&table.name].sets, table.sets),
                Spec::NftChain(chain) => {
                    chains += 1;
                    let found = listed[&chain.table].chains.iter().find(|c| c.name == chain.name);
                    assert_eq!(found, Some(&chain));
                }
                _ => {}
            }
        }
        assert!(chains > 2);
        assert_eq!(
            listed.keys().collect::<Vec<_>>(),
            ["bridge homelab", "inet homelab", "inet homelab-hostport", "inet homelab-proxy"]
        );
    });
}
