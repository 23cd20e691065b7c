//! What is said of an address, and when.
#![allow(clippy::unwrap_used)]

mod lan;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_speaker::announce::{Announcer, BURST, EventKind, State, Wanted};
use homelab_speaker::arp::Arp;
use homelab_speaker::frame::FrameError;
use homelab_speaker::mac::Mac;
use homelab_speaker::ndp::Ndp;
use lan::{INTERFACE, Lan, Said, announcement, foreign_mac, ms, node_mac, probe, question, wanted};

/// One address of each family.
fn addresses() -> [IpAddr; 2] {
    ["192.168.50.240", "fd00:50::f0"].map(|text| text.parse().unwrap())
}

/// Announcements as they are heard: two forms of ARP, one of NDP.
fn forms(address: IpAddr, times: &[u64]) -> Vec<(u64, Said)> {
    let count = if address.is_ipv4() { 2 } else { 1 };
    times.iter().flat_map(|at| std::iter::repeat_n((*at, Said::Announces(address)), count)).collect()
}

#[test]
fn an_address_that_nobody_announced_is_probed_and_then_announced() {
    for address in addresses() {
        let mut lan = Lan::of(1);
        let start = lan.now;
        lan.set(0, &[(address, false)]);
        assert_eq!(lan.state(0, address), Some(State::Probing));
        lan.run(ms(799));
        let probes = [0, 200, 400].map(|at| (at, Said::Asks(address)));
        assert_eq!(lan.said(0, address, start), probes);
        assert_eq!(lan.ask(address), [], "not before nobody answered");
        lan.run(ms(1));
        let announced = lan.now;
        lan.run(ms(21_500));
        assert_eq!(
            lan.said(0, address, announced),
            forms(address, &[0, 50, 150, 350, 750, 1500, 11_500, 21_500])
        );
        assert_eq!(lan.kinds(0, address), [EventKind::Probing, EventKind::Announced]);
        let status = lan.status(0, address).unwrap();
        assert_eq!((status.since, status.announcements), (announced, 8));
    }
}

#[test]
fn a_dead_peers_address_is_announced_at_once() {
    for address in addresses() {
        let mut lan = Lan::of(1);
        let start = lan.now;
        lan.set(0, &[(address, true)]);
        lan.run(ms(2000));
        let times = BURST.map(|at| u64::try_from(at.as_millis()).unwrap());
        assert_eq!(lan.said(0, address, start), forms(address, &times));
        assert_eq!(lan.ask(address), [node_mac(0)]);
    }
}

#[test]
fn an_address_turns_out_to_be_a_dead_peers_while_it_is_probed() {
    let [address, _] = addresses();
    let mut lan = Lan::of(1);
    lan.set(0, &[(address, false)]);
    lan.run(ms(100));
    lan.set(0, &[(address, true)]);
    assert_eq!(lan.said(0, address, lan.now), forms(address, &[0]));
    // The same again changes nothing.
    lan.set(0, &[(address, true)]);
    assert_eq!(lan.said(0, address, lan.now), forms(address, &[0]));
}

#[test]
fn clients_and_probes_are_answered_to_the_asker_alone() {
    let [v4, v6] = addresses();
    let mut lan = Lan::of(2);
    lan.set(0, &[(v4, true), (v6, true)]);
    lan.run(ms(3000));
    let client = foreign_mac(1);
    for address in addresses() {
        assert_eq!(lan.ask(address), [node_mac(0)]);
        assert_eq!(lan.status(0, address).unwrap().answered, 1);
    }
    // DHCP clients find the address in use. Who has no IPv6 address yet is answered with all others.
    let at = lan.now + ms(1);
    lan.run(ms(1));
    lan.say(probe(client, v4));
    lan.say(probe(client, v6));
    assert_eq!(lan.said(0, v4, at), [(0, Said::Answers(v4, client))]);
    assert_eq!(lan.said(0, v6, at), [(0, Said::Announces(v6))]);
    for address in addresses() {
        assert_eq!(lan.state(0, address), Some(State::Announced), "a probe claims nothing");
        assert_eq!(lan.status(0, address).unwrap().claims, 0);
    }
}

#[test]
fn a_foreign_holder_keeps_its_address_until_it_goes() {
    for address in addresses() {
        let mut lan = Lan::of(1);
        let holder = foreign_mac(0);
        lan.hold(holder, address, true);
        lan.set(0, &[(address, false)]);
        assert_eq!(lan.state(0, address), Some(State::Conflict));
        assert_eq!(lan.status(0, address).unwrap().conflict, Some(holder));
        let conflict = lan.now;
        lan.run(ms(30_000));
        let probes = [0, 10_000, 20_000, 30_000].map(|at| (at, Said::Asks(address)));
        assert_eq!(lan.said(0, address, conflict), probes, "one probe, one answer, every ten seconds");
        assert_eq!(lan.status(0, address).unwrap().since, conflict);
        // Being told again that the address is ours changes nothing.
        lan.set(0, &[(address, true)]);
        assert_eq!(lan.state(0, address), Some(State::Conflict));

        lan.hold(holder, address, false);
        lan.run(ms(10_800));
        assert_eq!(lan.state(0, address), Some(State::Announced));
        let kinds =
            [EventKind::Probing, EventKind::Conflict(holder), EventKind::ConflictOver, EventKind::Announced];
        assert_eq!(lan.kinds(0, address), kinds);
        assert_eq!(lan.status(0, address).unwrap().conflict, None);
    }
}

#[test]
fn another_holder_is_told_at_the_next_probe() {
    let [address, _] = addresses();
    let mut lan = Lan::of(1);
    lan.hold(foreign_mac(0), address, true);
    lan.set(0, &[(address, false)]);
    lan.hold(foreign_mac(0), address, false);
    for _ in 0..100 {
        lan.hold(foreign_mac(1), address, true);
        lan.say(announcement(foreign_mac(2), address));
    }
    assert_eq!(
        lan.status(0, address).unwrap().conflict,
        Some(foreign_mac(0)),
        "a flood of claims is no flood of events"
    );
    lan.run(ms(10_000));
    assert_eq!(lan.status(0, address).unwrap().conflict, Some(foreign_mac(1)));
    let conflicts = [0, 1].map(|n| EventKind::Conflict(foreign_mac(n)));
    assert_eq!(lan.kinds(0, address)[1..], conflicts);
}

#[test]
fn two_that_probe_for_the_same_address_both_keep_away() {
    for address in addresses() {
        let mut lan = Lan::of(2);
        lan.set(0, &[(address, false)]);
        lan.say(probe(node_mac(1), address));
        assert_eq!(lan.state(0, address), Some(State::Probing), "a member is no conflict");
        lan.say(probe(foreign_mac(0), address));
        assert_eq!(lan.status(0, address).unwrap().conflict, Some(foreign_mac(0)));
        lan.run(ms(10_800));
        assert_eq!(lan.state(0, address), Some(State::Announced));
    }
}

#[test]
fn an_announced_address_is_defended_once_and_then_given_up() {
    for address in addresses() {
        let mut lan = Lan::of(1);
        lan.set(0, &[(address, true)]);
        lan.run(ms(5000));
        let thief = foreign_mac(0);
        let first = lan.now;
        lan.say(announcement(thief, address));
        assert_eq!(
            lan.said(0, address, first),
            [(0, Said::Announces(address))],
            "RFC 5227 2.4 (b): a single one"
        );
        assert_eq!(lan.state(0, address), Some(State::Announced));
        // Ten seconds later that is forgotten.
        lan.run(ms(10_000));
        lan.say(announcement(thief, address));
        assert_eq!(lan.state(0, address), Some(State::Announced));
        lan.run(ms(9_999));
        let second = lan.now;
        lan.say(announcement(thief, address));
        assert_eq!(lan.said(0, address, second), []);
        assert_eq!(lan.state(0, address), Some(State::Conflict));
        assert_eq!(lan.ask(address), [], "the other answers now");
        assert_eq!(lan.status(0, address).unwrap().claims, 3);
        assert_eq!(lan.kinds(0, address), [EventKind::Announced, EventKind::Conflict(thief)]);
    }
}

#[test]
fn a_client_that_uses_the_address_as_its_own_claims_it() {
    let mut lan = Lan::of(1);
    lan.set(0, &addresses().map(|address| (address, false)));
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = addresses() else { panic!("families") };
    lan.say(Arp::request(foreign_mac(0), v4, "192.168.50.1".parse().unwrap()).build());
    lan.say(Ndp::solicitation(foreign_mac(0), v6, "fd00:50::1".parse().unwrap()).build());
    for address in addresses() {
        assert_eq!(lan.state(0, address), Some(State::Conflict));
    }
}

#[test]
fn a_conflict_with_a_machine_that_becomes_a_member_is_none() {
    let [address, _] = addresses();
    let mut lan = Lan::of(1);
    lan.hold(foreign_mac(0), address, true);
    lan.set(0, &[(address, false)]);
    assert_eq!(lan.state(0, address), Some(State::Conflict));
    let now = lan.now;
    let node = &mut lan.nodes[0].announcer;
    let output = node.members(BTreeSet::from([node_mac(0), foreign_mac(0)]), now);
    assert_eq!(output.frames, [(INTERFACE.to_owned(), probe(node_mac(0), address))]);
    lan.hold(foreign_mac(0), address, false);
    lan.run(ms(800));
    assert_eq!(lan.state(0, address), Some(State::Announced));
}

#[test]
fn what_is_released_is_not_spoken_of() {
    for address in addresses() {
        let mut lan = Lan::of(1);
        lan.set(0, &[(address, true)]);
        lan.run(ms(100));
        lan.set(0, &[]);
        lan.run(ms(1));
        let released = lan.now;
        assert_eq!(lan.ask(address), []);
        lan.run(ms(60_000));
        assert_eq!(lan.said(0, address, released), []);
        assert_eq!(lan.nodes[0].announcer.next_deadline(), None);
        assert_eq!(lan.kinds(0, address), [EventKind::Announced, EventKind::Released]);
    }
}

#[test]
fn a_link_that_is_back_is_told_at_once() {
    for address in addresses() {
        let mut lan = Lan::of(1);
        lan.set(0, &[(address, true)]);
        lan.run(ms(5000));
        lan.link(0, false);
        assert_eq!((lan.state(0, address), lan.ask(address)), (Some(State::Down), vec![]));
        assert_eq!(lan.nodes[0].announcer.next_deadline(), None);
        lan.run(ms(3000));
        let back = lan.now;
        lan.link(0, true);
        assert_eq!(lan.said(0, address, back), forms(address, &[0]));
        lan.link(0, true);
        lan.run(ms(60));
        assert_eq!(lan.said(0, address, back), forms(address, &[0, 50]), "being told twice is nothing new");

        // A new MAC address (a bond that fails over, a bridge that got a port).
        lan.run(ms(5000));
        lan.nodes[0].mac = Mac([2, 0, 0, 0, 1, 1]);
        let changed = lan.now;
        lan.link(0, true);
        assert_eq!(lan.said(0, address, changed), forms(address, &[0]));
    }
}

#[test]
fn a_link_that_is_lost_while_probing_starts_again() {
    let [address, _] = addresses();
    let mut lan = Lan::of(1);
    lan.set(0, &[(address, false)]);
    lan.run(ms(300));
    lan.link(0, false);
    lan.run(ms(300));
    let back = lan.now;
    lan.link(0, true);
    lan.run(ms(800));
    let said = lan.said(0, address, back);
    assert_eq!(said[..3], [0, 200, 400].map(|at| (at, Said::Asks(address))));
    assert_eq!(said[3..], forms(address, &[800]));
}

#[test]
fn two_members_after_a_partition_both_speak_up() {
    let [address, _] = addresses();
    let mut lan = Lan::of(2);
    lan.set(0, &[(address, true)]);
    lan.run(ms(5000));
    // The other side of the partition has it too, and the network heals.
    lan.set(1, &[(address, true)]);
    lan.run(ms(999));
    assert!(!lan.kinds(0, address).contains(&EventKind::Doubled(node_mac(1))), "it may be the next owner");
    lan.run(ms(1));
    assert!(lan.kinds(0, address).contains(&EventKind::Doubled(node_mac(1))));
    // It is settled: the first stays, and speaks last.
    lan.set(1, &[]);
    lan.run(ms(1));
    let settled = lan.now;
    lan.run(ms(3000));
    assert!(!lan.said(0, address, settled).is_empty());
    assert_eq!(lan.ask(address), [node_mac(0)]);
}

#[test]
fn a_handover_is_no_double() {
    let [address, _] = addresses();
    let mut lan = Lan::of(2);
    lan.set(0, &[(address, true)]);
    lan.run(ms(5000));
    lan.set(1, &[(address, true)]);
    lan.run(ms(200));
    lan.set(0, &[]);
    lan.run(ms(20_000));
    let doubled = |kind: &EventKind| matches!(kind, EventKind::Doubled(_));
    assert!(!lan.kinds(0, address).iter().any(doubled) && !lan.kinds(1, address).iter().any(doubled));
}

#[test]
fn only_the_right_interfaces_are_spoken_on() {
    let [address, v6] = addresses();
    let mut announcer = Announcer::new();
    let (a, b) = (Mac([2, 0, 0, 0, 0, 0xa]), Mac([2, 0, 0, 0, 0, 0xb]));
    let now = ms(1);
    assert_eq!(announcer.interface("a", Some(a), now).frames, []);
    assert_eq!(announcer.interface("b", Some(b), now).frames, []);
    let on = |names: &[&str], takeover| {
        let interfaces = names.iter().map(|name| (*name).to_owned()).collect();
        let wanted = Wanted { interfaces, takeover };
        BTreeMap::from([(address, wanted.clone()), (v6, wanted)])
    };
    let out = announcer.set(&on(&["a"], true), now);
    assert!(out.frames.iter().all(|(interface, _)| interface == "a") && out.frames.len() == 3);
    let asks = question(foreign_mac(0), address);
    assert_eq!(announcer.frame("a", &asks, now).unwrap().frames.len(), 1);
    assert_eq!(announcer.frame("b", &asks, now).unwrap().frames, []);
    assert_eq!(announcer.frame("c", &asks, now).unwrap().frames, []);
    // What one of our interfaces says is no conflict on another of the same LAN.
    assert_eq!(announcer.frame("b", &announcement(a, address), now).unwrap().events, []);
    // An interface that joins speaks at once: the address is ours already.
    let out = announcer.set(&on(&["a", "b"], false), now);
    assert!(out.frames.iter().all(|(interface, _)| interface == "b") && out.frames.len() == 3);
    assert_eq!(announcer.frame("b", &announcement(a, address), now).unwrap().events, []);
    assert!(announcer.status().iter().all(|status| status.state == State::Announced));
}

#[test]
fn what_is_for_others_or_damaged_changes_nothing() {
    let [address, _] = addresses();
    let mut lan = Lan::of(1);
    lan.set(0, &[(address, true)]);
    let now = lan.now;
    let announcer = &mut lan.nodes[0].announcer;
    // An answer between two others, seen by a promiscuous interface.
    let mut answer = announcement(foreign_mac(0), address);
    answer[..6].copy_from_slice(&foreign_mac(1).0);
    assert_eq!(announcer.frame(INTERFACE, &answer, now).unwrap().frames, []);
    // Our own frame, returned.
    assert_eq!(announcer.frame(INTERFACE, &announcement(node_mac(0), address), now).unwrap().frames, []);
    assert_eq!(announcer.frame(INTERFACE, &question(node_mac(0), address), now).unwrap().frames, []);
    assert_eq!(announcer.frame(INTERFACE, &answer[..20], now), Err(FrameError::Short(20)));
    assert_eq!(announcer.status()[0].claims, 0);
}

/// Nothing that was late is made up for in a heap.
#[test]
fn a_late_tick_sends_one_announcement() {
    let [address, _] = addresses();
    let mut announcer = Announcer::new();
    let _ = announcer.interface(INTERFACE, Some(node_mac(0)), ms(0));
    let _ = announcer.set(&wanted(&[(address, true)]), ms(0));
    assert_eq!(announcer.tick(ms(60_000)).frames.len(), 2);
    assert_eq!(announcer.next_deadline(), Some(ms(60_100)));
}
