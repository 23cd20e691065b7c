//! What outsiders can send: garbage, recordings, datagrams under another key. None of it changes anything.

use std::collections::BTreeSet;

use homelab_model::KeyRing;
use proptest::prelude::*;

use super::sim::{Packet, Sim, ms, name};
use crate::membership::{Event, MAX_DATAGRAM, Output, Refused, Settings, Standing};
use crate::membership::{Membership, Table};

/// Everything that a node says of its peers.
fn view(sim: &Sim, node: usize) -> Vec<(String, Standing, Option<Vec<u8>>)> {
    let members = sim.nodes[node].member.as_ref().expect("runs").members();
    members.iter().map(|m| (m.name.to_owned(), m.standing, m.state.map(<[u8]>::to_vec))).collect()
}

fn refusals(sim: &Sim, refused: Refused) -> u64 {
    sim.nodes.iter().filter_map(|node| node.refused.get(&refused)).sum()
}

/// Three nodes with states, and a recording of all that they sent from their start on.
fn recorded(seed: u64) -> (Sim, Vec<Packet>) {
    let mut sim = Sim::new(3, seed);
    sim.recording = Some(Vec::new());
    (0..3).for_each(|node| sim.start(node));
    for round in 0..3u8 {
        sim.run(ms(300));
        for node in 0..3 {
            sim.with(node, |member, now| member.set_state(&[round; 20], now)).expect("a state");
        }
    }
    sim.run(ms(500));
    sim.assert_all_members();
    let recording = sim.recording.take().expect("recorded");
    sim.events.clear();
    (sim, recording)
}

/// Sends a recording again and checks that no node notices.
fn replay(sim: &mut Sim, recording: &[Packet], to: impl Fn(&Packet) -> usize) {
    let before: Vec<_> = (0..3).map(|node| view(sim, node)).collect();
    for packet in recording {
        sim.inject(Packet { to: to(packet), ..packet.clone() });
        sim.run(ms(1));
    }
    sim.run(ms(1000));
    assert_eq!(sim.events, []);
    assert_eq!((0..3).map(|node| view(sim, node)).collect::<Vec<_>>(), before);
}

#[test]
fn recordings_change_nothing() {
    let (mut sim, recording) = recorded(1);
    // What overtook the proof of its session was refused, and so is heard now for the first time.
    let overtook = refusals(&sim, Refused::Unproven);
    replay(&mut sim, &recording, |packet| packet.to);
    assert!(overtook < 10 && refusals(&sim, Refused::Replayed) >= recording.len() as u64 - overtook);
    replay(&mut sim, &recording, |packet| 3 - packet.from - packet.to);
    replay(&mut sim, &recording, |packet| packet.from);
    assert_eq!(
        refusals(&sim, Refused::Forged) + refusals(&sim, Refused::Stranger),
        2 * recording.len() as u64
    );
    // Now and in reverse.
    let reverse: Vec<Packet> = recording.iter().rev().cloned().collect();
    replay(&mut sim, &reverse, |packet| packet.to);
}

#[test]
fn recordings_change_nothing_after_restarts() {
    let (mut sim, recording) = recorded(2);
    // The one that forgets what it saw, and the one whose session ended.
    for node in 0..3 {
        sim.kill(node);
        sim.run(ms(100));
        sim.start(node);
        sim.run(ms(1000));
        sim.with(node, |member, now| member.set_state(b"new", now)).expect("a state");
        sim.run(ms(1000));
        sim.assert_all_members();
        sim.events.clear();
        replay(&mut sim, &recording, |packet| packet.to);
    }
    assert!(refusals(&sim, Refused::Unproven) > 0);
}

#[test]
fn recordings_wake_no_dead_node_and_a_recorded_leave_is_no_leave() {
    let (mut sim, mut recording) = recorded(3);
    sim.recording = Some(Vec::new());
    sim.with(1, |member, now| member.leave(now));
    sim.run(ms(500));
    recording.extend(sim.recording.take().expect("recorded").into_iter().filter(|packet| packet.from == 1));
    sim.kill(1);
    sim.events.clear();
    let from_one = |packet: &&Packet| packet.from == 1;
    let ones: Vec<Packet> = recording.iter().filter(from_one).cloned().collect();
    for packet in &ones {
        sim.inject(packet.clone());
    }
    sim.run(ms(2000));
    assert_eq!(sim.events, []);
    assert_eq!(sim.standing(0, 1), Standing::Left);
    sim.start(1);
    sim.run(ms(1000));
    sim.assert_all_members();
    sim.events.clear();
    for packet in &ones {
        sim.inject(packet.clone());
    }
    sim.run(ms(2000));
    assert_eq!(sim.events, []);
}

#[test]
fn recordings_are_answered_by_few_challenges_and_forgeries_by_nothing() {
    let (mut sim, recording) = recorded(4);
    sim.kill(1);
    sim.run(ms(2000));
    let peers: Table = sim.nodes[0].table.clone();
    let keys = sim.nodes[1].keys.clone();
    let settings =
        Settings { cluster: "home", node: &name(1), boot: 9, seed: [9; 32], peers: &peers, keys: &keys };
    let mut member = Membership::new(&settings, sim.now);
    member.tick(sim.now);
    while member.poll().is_some() {}
    let (mut sent, mut received) = (0, 0);
    for packet in recording.iter().filter(|packet| packet.to == 1) {
        let hello = member.datagram(&packet.bytes, sim.now);
        assert_eq!(hello, Err(Refused::Unproven));
        received += packet.bytes.len();
        while let Some(output) = member.poll() {
            let Output::Send { bytes, .. } = output else { panic!("{output:?}") };
            sent += bytes.len();
        }
    }
    println!("{received} bytes of recordings in an instant are answered with {sent} bytes");
    assert!(sent <= received && received > 10_000 && sent < 1000, "{sent} for {received}");
    for packet in &recording {
        let mut bytes = packet.bytes.clone();
        *bytes.last_mut().expect("bytes") ^= 1;
        let refused = member.datagram(&bytes, sim.now).expect_err("forged");
        assert!(matches!(refused, Refused::Forged | Refused::Stranger));
        assert_eq!(member.poll(), None);
    }
}

#[test]
fn another_key_another_cluster_or_no_place_in_the_table_is_no_member() {
    for case in 0..3 {
        let mut sim = Sim::new(3, 5);
        match case {
            0 => sim.nodes[2].keys = KeyRing::first([2; 32]),
            1 => sim.nodes[2].name = "node3".to_owned(),
            _ => {
                for node in 0..2 {
                    sim.nodes[node].table.remove(&name(2));
                }
            }
        }
        (0..3).for_each(|node| sim.start(node));
        sim.run(ms(5000));
        assert_eq!(sim.standing(0, 1), Standing::Alive);
        assert_eq!(sim.standing(2, 0), Standing::Unknown);
        let refused = if case == 0 { Refused::Key } else { Refused::Stranger };
        assert!(refusals(&sim, refused) > 0, "{case}");
        assert!(sim.events.iter().all(|(_, node, _)| *node != 2), "{:?}", sim.events);
        assert!(!sim.events.iter().any(|(.., event)| *event == Event::Up(name(2))), "{:?}", sim.events);
    }
}

#[test]
fn the_same_key_in_another_cluster_is_another_key() {
    let table: Table = Sim::new(2, 0).nodes[0].table.clone();
    let keys = KeyRing::first([1; 32]);
    let start = |cluster, node| {
        let settings = Settings { cluster, node, boot: 1, seed: [1; 32], peers: &table, keys: &keys };
        let mut member = Membership::new(&settings, ms(0));
        member.tick(ms(0));
        member
    };
    let mut other = start("other", "node0");
    let Some(Output::Send { bytes, .. }) = other.poll() else { panic!("says nothing") };
    // Not even with the sender's tag put right.
    let mut home = start("home", "node0");
    let Some(Output::Send { bytes: ours, .. }) = home.poll() else { panic!("says nothing") };
    let mut receiver = start("home", "node1");
    assert_eq!(receiver.datagram(&bytes, ms(1)), Err(Refused::Stranger));
    let mut moved = bytes.clone();
    moved[5..13].copy_from_slice(&ours[5..13]);
    assert_eq!(receiver.datagram(&moved, ms(1)), Err(Refused::Key));
    assert_eq!(receiver.datagram(&ours, ms(1)), Err(Refused::Unproven));
}

#[test]
fn keys_are_replaced_in_steps_and_no_member_is_lost() {
    let mut sim = Sim::running(3, 6);
    let mut ring = KeyRing::first([1; 32]);
    let steps: [fn(&KeyRing) -> KeyRing; 3] =
        [|ring| ring.adding([2; 32]), KeyRing::switched, KeyRing::trimmed];
    for step in steps {
        ring = step(&ring);
        for node in 0..3 {
            sim.with(node, |member, _| member.set_keys(&ring));
            // Long enough to miss a node that is not understood.
            sim.run(ms(3000));
            sim.assert_all_members();
        }
    }
    assert!(sim.lost().is_empty(), "{:?}", sim.lost());
    assert_eq!(refusals(&sim, Refused::Key), 0);
    // The old key is no key any more.
    sim.nodes[1].keys = KeyRing::first([1; 32]);
    sim.kill(1);
    sim.start(1);
    sim.run(ms(2000));
    assert_eq!(sim.standing(0, 1), Standing::Down);
    assert!(refusals(&sim, Refused::Key) > 0);
}

#[test]
fn every_datagram_has_another_nonce_and_none_shows_what_it_carries() {
    let (_, recording) = recorded(7);
    let nonces: BTreeSet<&[u8]> = recording.iter().map(|packet| &packet.bytes[13..37]).collect();
    assert_eq!(nonces.len(), recording.len());
    let shows = |packet: &&Packet| packet.bytes.windows(20).any(|bytes| (0..3u8).any(|n| bytes == [n; 20]));
    assert_eq!(recording.iter().filter(shows).count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_and_damage_change_nothing(
        seed in 0u64..4,
        garbage in proptest::collection::vec(any::<u8>(), 0..MAX_DATAGRAM + 10),
        damage in proptest::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u8..=255, any::<bool>()), 1..20),
    ) {
        let (mut sim, recording) = recorded(seed);
        let before = view(&sim, 1);
        let mut all = vec![garbage];
        for (which, at, flip, cut) in damage {
            let mut bytes = recording[which.index(recording.len())].bytes.clone();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if cut {
                bytes.truncate(at);
            }
            all.push(bytes);
        }
        for bytes in all {
            let (refused, said) = sim.with(1, |member, now| {
                while member.poll().is_some() {}
                (member.datagram(&bytes, now), member.poll())
            });
            prop_assert!(refused.is_err());
            prop_assert_eq!(said, None);
        }
        prop_assert_eq!(view(&sim, 1), before);
    }
}
