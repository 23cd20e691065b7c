//! Load-balancer addresses, with in-process nodes.
#![cfg(test)]

mod fake;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{Evil, Lan, Laptop, THREE, Trick, cluster, wait_until};
use homelab_driver::{ByNode, Goal, LbPicture, NodeError};
use homelab_model::{LbNode, LbWhere, Pool, PoolRange, Scanned};
use homelab_protocol::{Request, Response};

const OWNERS: [(&str, &str); 2] = [("192.168.50.200", "node1"), ("192.168.50.201", "node2")];
const PATIENCE: Duration = Duration::from_secs(30);

fn applied() -> Laptop {
    let laptop = Laptop::new(Lan::three());
    assert!(laptop.apply(&cluster(&THREE)).succeeded());
    laptop.lan.announce(&OWNERS);
    laptop
}

fn owners(answers: &ByNode<LbNode>) -> Vec<Option<String>> {
    LbPicture::of(answers).addresses.into_iter().map(|row| row.owner).collect()
}

#[test]
fn all_nodes_are_asked_and_a_bad_answer_is_that_nodes_alone() {
    let laptop = applied();
    let lie = |r: &Request| {
        let wrong = || Trick::Say(vec![Response::Confirmed]);
        matches!(r, Request::LoadBalancers).then(wrong)
    };
    laptop.lan.with("192.168.50.12", |m| m.fault.evil = Some(Evil(lie)));
    let home = cluster(&THREE);
    let prepared = laptop.prepare(&home, Goal::Desired);
    let answers = laptop.engine().load_balancers(&prepared);
    assert!(matches!(answers[1].1, Err(NodeError::OutOfTurn)), "{answers:?}");
    let picture = LbPicture::of(&answers);
    let states: Vec<LbWhere> = picture.addresses.iter().map(|row| row.state).collect();
    assert_eq!(states, [LbWhere::Announced, LbWhere::Elsewhere]);
    assert!(!picture.is_good());
    prepared.close(3);
    assert!(laptop.plan(&home).is_empty(), "looking changes nothing");
}

#[test]
fn a_cordoned_node_hands_over_and_every_plan_says_so_until_it_is_lifted() {
    let laptop = applied();
    let home = cluster(&THREE);
    let prepared = laptop.prepare(&home, Goal::Desired);
    let done = laptop.engine().cordon(&prepared, "node1", true).unwrap();
    assert!(done.changed && done.known, "{done:?}");
    assert_eq!(done.node.cordoned.as_ref().map(|by| by.who.as_str()), Some("me@laptop"));
    assert_eq!(owners(&done.before)[0].as_deref(), Some("node1"));
    assert_eq!(owners(&done.after), [Some("node2".to_owned()), Some("node2".to_owned())]);
    let again = laptop.engine().cordon(&prepared, "node1", true).unwrap();
    assert!(!again.changed && again.known, "{again:?}");
    prepared.close(3);
    let plan = laptop.plan(&home);
    assert!(plan.is_empty() && plan.warnings.iter().any(|w| w.contains("node1 is cordoned")), "{plan:?}");
    let prepared = laptop.prepare(&home, Goal::Desired);
    let lifted = laptop.engine().cordon(&prepared, "node1", false).unwrap();
    assert!(lifted.changed && lifted.known && lifted.node.cordoned.is_none(), "{lifted:?}");
    prepared.close(3);
    assert!(laptop.plan(&home).warnings.is_empty());
    // A destroy takes it away.
    let prepared = laptop.prepare(&home, Goal::Desired);
    laptop.engine().cordon(&prepared, "node1", true).unwrap();
    prepared.close(3);
    assert!(laptop.destroy(&home).succeeded());
    assert!(laptop.plan(&home).warnings.iter().all(|w| !w.contains("cordoned")));
}

#[test]
fn a_node_that_cannot_be_asked_is_not_cordoned() {
    let laptop = applied();
    laptop.lan.with("192.168.50.11", |m| m.fault.down = true);
    let prepared = laptop.prepare(&cluster(&THREE), Goal::Desired);
    assert!(laptop.engine().cordon(&prepared, "node1", true).is_err());
    prepared.close(3);
    laptop.lan.with("192.168.50.11", |m| m.fault.down = false);
    let refuse = |r: &Request| matches!(r, Request::Cordon { .. }).then_some(Trick::HangUp);
    laptop.lan.with("192.168.50.11", |m| m.fault.evil = Some(Evil(refuse)));
    let prepared = laptop.prepare(&cluster(&THREE), Goal::Desired);
    let error = laptop.engine().cordon(&prepared, "node1", true).unwrap_err();
    assert!(matches!(error, NodeError::Broken { .. }), "{error:?}");
    prepared.close(3);
}

#[test]
fn a_watched_node_that_goes_and_comes_back_is_heard_again_and_holds_up_no_other() {
    let laptop = applied();
    let mut prepared = laptop.prepare(&cluster(&THREE), Goal::Desired);
    // What each said last, and how many answers and errors there were.
    type Heard = BTreeMap<String, (usize, usize)>;
    let heard: Mutex<Heard> = Mutex::default();
    let count = |name: &str| heard.lock().unwrap().get(name).copied().unwrap_or_default();
    let engine = laptop.engine();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            engine.follow_load_balancers(&mut prepared, Duration::from_millis(5), &|name, answer| {
                let mut heard = heard.lock().unwrap();
                let (good, bad) = heard.entry(name.to_owned()).or_default();
                *(if answer.is_ok() { good } else { bad }) += 1;
            });
        });
        wait_until("all are heard", PATIENCE, || THREE.iter().all(|(name, _)| count(name).0 > 1));
        let hang_up = |r: &Request| matches!(r, Request::LoadBalancers).then_some(Trick::HangUp);
        laptop.lan.with("192.168.50.12", |m| (m.fault.evil, m.fault.down) = (Some(Evil(hang_up)), true));
        wait_until("it is missed", PATIENCE, || count("node2").1 > 2);
        let others = count("node1").0;
        wait_until("the others go on", PATIENCE, || count("node1").0 > others + 2);
        laptop.lan.with("192.168.50.12", |m| (m.fault.evil, m.fault.down) = (None, false));
        let before = count("node2").0;
        wait_until("it is heard again", PATIENCE, || count("node2").0 > before + 1);
        laptop.cancel.store(true, Ordering::Relaxed);
    });
    prepared.close(3);
}

/// The classic mistake: a pool that the router's DHCP server gives addresses of, too.
#[test]
fn addresses_of_pools_that_other_machines_use_are_named() {
    let laptop = applied();
    let home = cluster(&THREE);
    let one = |address: &str, mac: &str| Scanned {
        address: address.parse().unwrap(),
        mac: mac.to_owned(),
        interface: "eth0".to_owned(),
    };
    let foreign = one("192.168.50.203", "52:54:00:00:00:99");
    laptop.lan.with("192.168.50.11", |m| {
        m.neighbours = vec![foreign.clone(), one("192.168.50.9", "52:54:00:00:00:98")]
    });
    laptop.lan.with("192.168.50.12", |m| m.neighbours = vec![foreign]);
    laptop.lan.with("192.168.50.13", |m| {
        m.fault.evil = Some(Evil(|r| matches!(r, Request::Scan { .. }).then_some(Trick::HangUp)));
    });
    let prepared = laptop.prepare(&home, Goal::Desired);
    let range =
        |first: &str, last: &str| PoolRange { first: first.parse().unwrap(), last: last.parse().unwrap() };
    let addresses =
        vec![range("192.168.50.200", "192.168.50.220"), range("fd00::", "fd00::ffff:ffff:ffff:ffff")];
    let pools = [Pool {
        name: "default".into(),
        addresses,
        auto_assign: true,
        avoid_buggy_ips: false,
        service_allocation: None,
    }];
    let said = laptop.engine().scan_pools(&prepared, &pools);
    assert!(
        matches!(&said[..], [large, silent, used]
            if large.contains("fd00:: to fd00::ffff:ffff:ffff:ffff is not scanned")
            && silent.starts_with("node3: the pools were not scanned: ")
            && used.starts_with("192.168.50.203 of pool ")
            && used.contains("another machine, 52:54:00:00:00:99, as heard by node1 (eth0) and node2 (eth0)")),
        "{said:#?}"
    );
}
