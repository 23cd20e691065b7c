//! What the kernel does with links, addresses and routes, and what of it the backend hides.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::IpAddr;

use common::{OtherNetns, in_netns_of, in_new_netns, run};
use homelab_linux::{Kinds, Node, Root};
use homelab_model::{
    Address, Change, Key, Link, LinkKind, Module, Neighbour, NodeObject, Object, Route, Scope, Spec, diff,
    invert, ours,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn observed(node: &mut Node) -> Vec<NodeObject> {
    let mut objects = node.observe_objects(&Scope::default(), Kinds::KERNEL).unwrap();
    objects.sort_by_key(Object::key);
    objects
}

fn apply(node: &mut Node, changes: &[Change<NodeObject>]) {
    if let Err(error) = node.apply_all(changes, &mut |_| {}) {
        panic!("{error}\n{changes:#?}");
    }
}

#[track_caller]
fn assert_same(node: &mut Node, wanted: &[NodeObject], when: &str) {
    let left = diff(&observed(node), wanted);
    assert!(left.is_empty(), "{when}: {left:#?}");
}

fn object(module: Module, spec: Spec) -> NodeObject {
    NodeObject { module, spec }
}

fn vxlan(name: &str) -> Link {
    Link {
        name: name.into(),
        mac: "02:aa:00:00:00:01".into(),
        mtu: 1450,
        up: true,
        alias: ours::LINK_ALIAS.into(),
        kind: LinkKind::Vxlan {
            vni: 7,
            port: 8472,
            local: ip("192.0.2.1"),
            learning: false,
            checksum_offload: true,
        },
    }
}

fn bridge(name: &str) -> Link {
    Link { kind: LinkKind::Bridge { stp: false }, ..vxlan(name) }
}

fn index(name: &str) -> String {
    run(&format!("ip -o link show {name}")).split(':').next().unwrap().to_owned()
}

fn open(directory: &tempfile::TempDir) -> Node {
    Node::open(Root::at(directory.path())).unwrap()
}

#[test]
fn an_update_in_place_does_not_make_the_link_anew() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = open(&directory);
        for first in [vxlan("hv0"), bridge("hb0")] {
            let name = first.name.clone();
            let make = |link: &Link| object(Module::Vtep, Spec::Link(link.clone()));
            apply(&mut node, &[Change::Create { after: make(&first) }]);
            let before = index(&name);
            if name == "hb0" {
                let shown = run("ip -d link show hb0");
                assert!(shown.contains("addrgenmode eui64") && shown.contains("forward_delay 0 "), "{shown}");
            }
            let kind = match &first.kind {
                LinkKind::Vxlan { vni, port, local, learning, .. } => LinkKind::Vxlan {
                    vni: *vni,
                    port: *port,
                    local: *local,
                    learning: *learning,
                    checksum_offload: false,
                },
                _ => LinkKind::Bridge { stp: true },
            };
            let steps = [
                Link { mac: "02:aa:00:00:00:02".into(), ..first.clone() },
                Link { mtu: 1400, ..first.clone() },
                Link { up: false, ..first.clone() },
                Link { kind, ..first.clone() },
                Link { alias: String::new(), ..first.clone() },
            ];
            for step in steps {
                for (from, to) in [(&first, &step), (&step, &first)] {
                    let change = Change::Update { before: make(from), after: make(to) };
                    assert!(make(from).updates_in_place(&make(to)));
                    apply(&mut node, &[change]);
                    let scope =
                        Scope { keys: vec![(Key::Link(name.clone()), Module::Vtep)], device: String::new() };
                    let now = node.observe_objects(&scope, Kinds::KERNEL).unwrap();
                    assert!(now.contains(&make(to)), "{to:?} is not {now:?}");
                    assert_eq!(index(&name), before, "{to:?}");
                    if to.kind == (LinkKind::Bridge { stp: false }) {
                        // A delay would keep new pods from the network for as long.
                        assert!(run("ip -d link show hb0").contains("forward_delay 0 "), "{from:?}");
                    }
                }
            }
        }
    });
}

/// Pods that know their gateway by its old address would send into the void for seconds.
#[test]
fn neighbours_of_a_link_are_told_of_its_new_mac_address() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = open(&directory);
        let first = bridge("hb0");
        let make = |link: &Link| object(Module::Cni, Spec::Link(link.clone()));
        apply(&mut node, &[Change::Create { after: make(&first) }]);
        run("ip address add 10.9.0.1/24 dev hb0 && ip address add fd09::1/64 dev hb0 nodad");
        run("ip link add v0 type veth peer name v1 && ip link set v0 master hb0 up");
        let pod = OtherNetns::new();
        let path = pod.path.display().to_string().replace("self", &std::process::id().to_string());
        run(&format!("ip link set v1 netns {path}"));
        let inside = |command: &str| in_netns_of(&pod, || run(command));
        inside(
            "ip link set v1 up; ip address add 10.9.0.2/24 dev v1; ip address add fd09::2/64 dev v1 nodad",
        );
        inside("ping -c3 -i0.2 -W2 10.9.0.1; ping -c3 -i0.2 -W2 fd09::1");
        let second = Link { mac: "02:aa:00:00:00:02".into(), ..first.clone() };
        apply(&mut node, &[Change::Update { before: make(&first), after: make(&second) }]);
        let known = inside("ip neigh show dev v1");
        assert_eq!(known.matches("02:aa:00:00:00:02").count(), 2, "{known}");
        inside("ping -c1 -W1 10.9.0.1; ping -c1 -W1 fd09::1");
        let off = run("cat /proc/sys/net/ipv4/conf/hb0/arp_notify /proc/sys/net/ipv6/conf/hb0/ndisc_notify");
        assert_eq!(off, "0\n0\n", "as before");
    });
}

#[test]
fn a_bridge_keeps_its_mtu_when_a_smaller_port_comes() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = open(&directory);
        for mtu in [1450, 1500] {
            let name = format!("hb{mtu}");
            let link = Link { mtu, ..bridge(&name) };
            apply(&mut node, &[Change::Create { after: object(Module::Cni, Spec::Link(link)) }]);
            run(&format!(
                "ip link add v{mtu} mtu 1300 type veth peer name w{mtu} && ip link set v{mtu} master {name} up"
            ));
            assert!(run(&format!("ip link show {name}")).contains(&format!("mtu {mtu} ")), "{mtu}");
        }
    });
}

#[test]
fn what_is_not_ours_is_in_the_way_and_stays() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = open(&directory);
        run("ip link add hb0 type bridge && ip link set hb0 addrgenmode none && ip link set hb0 up && ip addr add 10.1.0.1/24 dev hb0
             ip route add 10.77.0.0/24 via 10.1.0.2 proto static; ip -6 addr add fd01::1/64 dev hb0 nodad
             ip -6 route add fd77::/64 via fd01::2 dev hb0 proto static metric 1024");
        let before = run("ip -d link | sed 's/_timer *[0-9.]*//g'; ip addr; ip route; ip -6 route");
        let fail = |node: &mut Node, spec: Spec| {
            let change = [Change::Create { after: object(Module::Vtep, spec) }];
            let error = node.apply_all(&change, &mut |_| {}).unwrap_err().to_string();
            // The undo of a failed change must not harm either.
            apply(node, &invert(&change));
            error
        };
        let error = fail(&mut node, Spec::Link(bridge("hb0")));
        assert!(error.contains("hb0") && error.contains("another owner"), "{error}");
        for destination in ["10.77.0.0/24", "fd77::/64"] {
            let route = Route {
                destination: destination.parse().unwrap(),
                metric: if destination.contains('.') { 0 } else { 1024 },
                via: None,
                link: None,
                onlink: false,
                source: None,
                r#type: "unreachable".into(),
            };
            let error = fail(&mut node, Spec::Route(route));
            assert!(error.contains("in the way"), "{error}");
        }
        let address = Address { link: "hb0".into(), address: "10.2.0.1/24".parse().unwrap() };
        fail(&mut node, Spec::Address(address));
        assert_eq!(run("ip -d link | sed 's/_timer *[0-9.]*//g'; ip addr; ip route; ip -6 route"), before);
        // The kernel's own words come through.
        run("ip link add vx type vxlan id 7 dstport 8472 local 192.0.2.1");
        let error = fail(&mut node, Spec::Link(vxlan("hv0")));
        assert!(error.contains("File exists") && error.contains("VNI"), "{error}");
    });
}

#[test]
fn a_route_over_our_link_that_lost_its_mark_is_taken_over() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = open(&directory);
        let route = |destination: &str| Route {
            destination: destination.parse().unwrap(),
            metric: if destination.contains('.') { 0 } else { 1024 },
            via: None,
            link: Some("hv0".into()),
            onlink: false,
            source: None,
            r#type: "unicast".into(),
        };
        let mut wanted = vec![object(Module::Vtep, Spec::Link(vxlan("hv0")))];
        for destination in ["10.77.0.0/24", "fd77::/64"] {
            wanted.push(object(Module::Vtep, Spec::Route(route(destination))));
        }
        apply(&mut node, &diff(&[], &wanted));
        run("ip route change 10.77.0.0/24 dev hv0 proto static
             ip -6 route del fd77::/64 && ip -6 route add fd77::/64 dev hv0 proto static metric 1024");
        let changes = diff(&observed(&mut node), &wanted);
        assert_eq!(changes.len(), 2, "{changes:#?}");
        apply(&mut node, &changes);
        assert_same(&mut node, &wanted, "taken over");
        assert_eq!(run("ip route show 10.77.0.0/24; ip -6 route show fd77::/64").lines().count(), 2);
    });
}

#[test]
fn a_change_of_the_mac_address_keeps_neighbours_and_one_of_the_address_keeps_routes() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = open(&directory);
        let link = |mac: &str| object(Module::Vtep, Spec::Link(Link { mac: mac.into(), ..vxlan("hv0") }));
        let address = |text: &str| {
            let address = Address { link: "hv0".into(), address: text.parse().unwrap() };
            object(Module::Vtep, Spec::Address(address))
        };
        let rest = |mac: &str, own: &str| {
            let mut objects = vec![link(mac), address(own), address("fd00::1/128")];
            for peer in ["10.244.1.0", "fd00:1::"] {
                let peer = ip(peer);
                let destination = ipnet::IpNet::new(peer, if peer.is_ipv4() { 24 } else { 64 }).unwrap();
                let neighbour =
                    Neighbour { link: "hv0".into(), address: peer, mac: "02:bb:00:00:00:01".into() };
                let route = Route {
                    destination,
                    metric: if peer.is_ipv4() { 0 } else { 1024 },
                    via: Some(peer),
                    link: Some("hv0".into()),
                    onlink: true,
                    source: None,
                    r#type: "unicast".into(),
                };
                objects.push(object(Module::Vtep, Spec::Neighbour(neighbour)));
                objects.push(object(Module::Vtep, Spec::Route(route)));
            }
            objects
        };
        let first = rest("02:aa:00:00:00:01", "10.244.0.0/32");
        apply(&mut node, &diff(&[], &first));
        let second = rest("02:aa:00:00:00:09", "10.244.9.0/32");
        let changes = diff(&first, &second);
        assert_eq!(changes.len(), 3, "one update and one address for another: {changes:#?}");
        apply(&mut node, &changes);
        assert_same(&mut node, &second, "moved");
        apply(&mut node, &invert(&changes));
        assert_same(&mut node, &first, "back");
    });
}

#[test]
fn a_strangers_link_under_our_name_is_never_taken_over() {
    use homelab_linux::without_strangers;
    use homelab_model::Sysctl;
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = open(&directory);
        let sysctl =
            Sysctl { key: "net.ipv4.conf.hb0.rp_filter".into(), link: Some("hb0".into()), value: "2".into() };
        let address = Address { link: "hb0".into(), address: "10.244.1.1/24".parse().unwrap() };
        let desired = [
            object(Module::Cni, Spec::Link(bridge("hb0"))),
            object(Module::Cni, Spec::Address(address)),
            object(Module::Cni, Spec::Sysctl(sysctl)),
        ];
        let scope = Scope::of(&desired, "hv0");
        let look = |node: &mut Node| node.observe_objects(&scope, Kinds::KERNEL).unwrap();
        for kind in ["bridge", "veth peer name other", "vxlan id 5 dstport 9 local 192.0.2.1"] {
            run(&format!(
                "ip link add hb0 type {kind} && ip link set hb0 addrgenmode none && ip link set hb0 up && ip addr add 10.1.0.1/24 dev hb0"
            ));
            let before = run("ip link show hb0; ip addr show hb0; cat /proc/sys/net/ipv4/conf/hb0/rp_filter");
            let seen = look(&mut node);
            assert!(seen.len() >= 3, "it is reported: {seen:?}");
            assert_eq!(without_strangers(seen.clone(), &desired), []);
            // Even who does not filter does no harm: neither at once nor change by change.
            let changes = diff(&seen, &desired);
            assert!(node.apply_all(&changes, &mut |_| {}).is_err());
            for change in changes.iter().chain(&invert(&changes)) {
                let _ = homelab_model::Backend::apply(&mut node, change);
            }
            assert_eq!(
                run("ip link show hb0; ip addr show hb0; cat /proc/sys/net/ipv4/conf/hb0/rp_filter"),
                before
            );
            run("ip link del hb0");
        }
        // Ours that lost its mark comes back, and what it holds with it.
        apply(&mut node, &diff(&[], &desired));
        run("ip link set hb0 alias 'x' && ip addr add 10.7.0.1/24 dev hb0");
        let seen = look(&mut node);
        assert_eq!(without_strangers(seen.clone(), &desired), seen);
        let changes = diff(&seen, &desired);
        assert_eq!(changes.len(), 2, "{changes:#?}");
        apply(&mut node, &changes);
        assert_eq!(diff(&look(&mut node), &desired), []);
        apply(&mut node, &invert(&changes));
        assert_eq!(diff(&look(&mut node), &seen), []);
    });
}
