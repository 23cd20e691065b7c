//! Whatever a node holds and whatever it shall hold: a transaction ends in the one or in the other.

use homelab_model::{
    Address, Content, File, Key, Link, LinkKind, Module, NftChain, NftTable, NodeObject, Object, Route, Spec,
    Symlink, Sysctl,
};
use homelab_protocol::{Request, Response};
use proptest::collection::vec;
use proptest::prelude::*;

use super::scenarios::previous;
use crate::fake::World;
use crate::fake::laptop::{Known, Step, apply, hello, holder, lock, send, talk, transaction};

fn object(spec: Spec) -> NodeObject {
    NodeObject { module: Module::Vtep, spec }
}

/// Objects from a list of choices: 0 is none, other numbers are variants. `strange`: also such as no plan can make.
fn objects(choices: &[u8], strange: bool) -> Vec<NodeObject> {
    let mut specs = Vec::new();
    let mut choice = choices.iter().copied();
    let mut next = || choice.next().unwrap_or(0);
    for n in 0..4 {
        let content = match next() {
            0 => continue,
            3 if strange => Content::Opaque(format!("binary file {n}")),
            variant => Content::Text(format!("text {variant}")),
        };
        let path = format!("/etc/homelab/{n}");
        specs.push(Spec::File(File { path, mode: 0o644, owner: "0:0".into(), content }));
    }
    for n in 0..2 {
        let target = match next() {
            0 => continue,
            3 if strange => "(regular file)".to_owned(),
            variant => format!("target-{variant}"),
        };
        specs.push(Spec::Symlink(Symlink { path: format!("/opt/cni/bin/{n}"), target }));
    }
    for n in 0..2 {
        let variant = next();
        let (address, route, sysctl) = (next(), next(), next());
        if variant == 0 {
            continue;
        }
        let name = format!("homelab.{n}");
        let kind = LinkKind::Vxlan {
            vni: variant.into(),
            port: 8472,
            local: "192.168.1.1".parse().expect("an address"),
            learning: false,
            checksum_offload: false,
        };
        let (mac, alias) = ("02:00:00:00:00:01".to_owned(), "homelab".to_owned());
        specs.push(Spec::Link(Link { name: name.clone(), mac, mtu: 1450, up: true, alias, kind }));
        if address > 0 {
            let address = format!("10.{n}.0.{address}/24").parse().expect("a network");
            specs.push(Spec::Address(Address { link: name.clone(), address }));
        }
        if route > 0 {
            specs.push(Spec::Route(Route {
                destination: format!("10.24{n}.0.0/16").parse().expect("a network"),
                metric: 0,
                via: Some(format!("10.{n}.0.{route}").parse().expect("an address")),
                link: Some(name.clone()),
                onlink: true,
                source: None,
                r#type: "unicast".into(),
            }));
        }
        if sysctl > 0 {
            let key = format!("net.ipv4.conf.homelab/{n}.rp_filter");
            specs.push(Spec::Sysctl(Sysctl { key, link: Some(name), value: sysctl.to_string() }));
        }
    }
    let table = "homelab".to_owned();
    let (chains, forward) = ([next(), next()], next());
    if chains.iter().any(|c| *c > 0) {
        specs.push(Spec::NftTable(NftTable { name: table.clone(), sets: Vec::new() }));
    }
    for (n, rule) in chains.into_iter().enumerate().filter(|(_, c)| *c > 0) {
        let (name, rules) = (format!("chain{n}"), vec![format!("rule {rule}")]);
        specs.push(Spec::NftChain(NftChain { table: table.clone(), name, hook: None, rules }));
    }
    if forward > 0 {
        let key = "net.ipv4.ip_forward".to_owned();
        specs.push(Spec::Sysctl(Sysctl { key, link: None, value: forward.to_string() }));
    }
    let mut objects: Vec<NodeObject> = specs.into_iter().map(object).collect();
    objects.sort_by_key(Object::key);
    objects
}

fn world(objects: &[NodeObject]) -> World {
    let world = World::new();
    let mut state = world.0.borrow_mut();
    for object in objects {
        match object.key() {
            key @ (Key::File(_) | Key::Symlink(_)) => state.disk.files.insert(key, object.clone()),
            key => {
                if let Key::Sysctl(name) = &key {
                    state.disk.originals.insert(name.clone());
                }
                state.volatile.kernel.insert(key, object.clone())
            }
        };
    }
    drop(state);
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn undo_is_where_it_began_and_confirm_is_the_goal(
        from in vec(0_u8..4, 17),
        to in vec(0_u8..4, 17),
    ) {
        let (a, b) = (objects(&from, true), objects(&to, false));
        let taken_back = world(&a);
        let begun = transaction(&taken_back, "a0", &b);
        let request = Request::Rollback { id: "a0".into(), reason: "the test says so".into() };
        let steps: Vec<Step<'_>> =
            vec![hello(), lock(), send(Request::Begin(Box::new(begun))), send(Request::Run), send(request)];
        let heard = talk(&taken_back, steps);
        prop_assert_eq!(heard.last(), Some(&Response::RolledBack { left: Vec::new() }));
        prop_assert_eq!(taken_back.observed(), a.clone());
        prop_assert!(taken_back.0.borrow().disk.undo.is_empty());

        let kept = world(&a);
        prop_assert_eq!(apply(&kept, &transaction(&kept, "a1", &b)), Known::Confirmed);
        prop_assert_eq!(kept.observed(), b.clone());
        let last = previous(&kept).expect("one was confirmed");
        prop_assert!(last.confirmed.revertible);
        let mut back = transaction(&kept, "a2", &last.before);
        back.by = holder("rollback");
        prop_assert_eq!(apply(&kept, &back), Known::Confirmed);
        prop_assert_eq!(kept.observed(), a);
        prop_assert!(!previous(&kept).expect("the rollback itself").confirmed.revertible);
    }
}
