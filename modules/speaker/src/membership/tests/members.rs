//! Joining, leaving, cuts, restarts, tables that change, and what nodes say of themselves.

use std::time::Duration;

use rand::RngExt;

use super::sim::{Sim, figures, ms, name};
use crate::membership::{Event, MAX_STATE, Standing, StateTooLong};

/// Sets a state and returns when all other running nodes have it.
fn tell(sim: &mut Sim, node: usize, state: &[u8]) -> Duration {
    sim.with(node, |member, now| member.set_state(state, now)).expect("a state");
    let others: Vec<usize> =
        (0..sim.nodes.len()).filter(|i| *i != node && sim.nodes[*i].member.is_some()).collect();
    sim.run_while(ms(3000), |sim| others.iter().any(|i| sim.state(*i, node).as_deref() != Some(state)))
}

#[test]
fn nodes_that_start_are_members_within_a_few_round_trips() {
    for count in [2, 3, 30] {
        let mut sim = Sim::new(count, 1);
        (0..count).for_each(|node| sim.start(node));
        let took = sim.run_while(ms(1000), |sim| !sim.all_members());
        println!("{count} nodes: all members after {took:?}");
        assert!(took <= ms(30));
        // Later ones join at once; nobody was lost meanwhile.
        sim.kill(1);
        sim.run(ms(5000));
        sim.events.clear();
        sim.start(1);
        assert!(sim.run_while(ms(1000), |sim| !sim.all_members()) <= ms(30));
        assert!(sim.lost().is_empty());
    }
}

#[test]
fn nodes_join_in_spite_of_loss() {
    let mut times = Vec::new();
    for seed in 0..40 {
        let mut sim = Sim::new(3, seed);
        sim.loss = 0.1;
        (0..3).for_each(|node| sim.start(node));
        times.push(sim.run_while(ms(2000), |sim| !sim.all_members()).as_millis());
    }
    assert!(figures("3 nodes start, 10 % loss, until all are members", times).2 <= 600);
}

#[test]
fn leaving_in_order_is_known_within_two_round_trips() {
    for count in [3, 30] {
        let mut sim = Sim::running(count, 2);
        let round_trip = Duration::from_micros(2 * sim.latency.end);
        sim.with(1, |member, now| member.leave(now));
        let start = sim.now;
        sim.run_until(start + 2 * round_trip);
        let left: Vec<usize> = sim
            .lost()
            .iter()
            .map(|(_, node, event)| {
                assert_eq!(*event, Event::Left(name(1)));
                *node
            })
            .collect();
        assert_eq!(left.len(), count - 1, "once each: {left:?}");
        assert_eq!(sim.standing(0, 1), Standing::Left);
        // It has nothing more to do soon, and stays away.
        sim.run(ms(3000));
        assert_eq!(sim.nodes[1].member.as_ref().expect("runs").next_deadline(), None);
        assert_eq!(sim.lost().len(), count - 1);
        assert_eq!(sim.standing(0, 1), Standing::Left);
    }
}

#[test]
fn leaving_is_known_in_spite_of_loss_and_of_a_cut() {
    let mut times = Vec::new();
    for seed in 0..60 {
        let mut sim = Sim::running(3, seed);
        sim.loss = 0.1;
        if seed % 2 == 0 {
            // Node 0 hears of it from node 2 only.
            sim.cut(0, 1);
            sim.run(ms(500));
        }
        sim.with(1, |member, now| member.leave(now));
        let took =
            sim.run_while(ms(3000), |sim| [0, 2].iter().any(|i| sim.standing(*i, 1) != Standing::Left));
        times.push(took.as_millis());
        assert_eq!(sim.lost().len(), 2);
    }
    figures("leaving, 10 % loss, half of the runs with a cut, until all know", times);
}

#[test]
fn a_restarted_node_is_a_member_at_once_and_its_old_state_is_gone() {
    let mut sim = Sim::running(3, 3);
    tell(&mut sim, 1, b"before");
    sim.kill(1);
    sim.run(ms(50));
    sim.events.clear();
    sim.start(1);
    let up = |sim: &Sim, node| sim.events.iter().any(|(_, i, e)| *i == node && *e == Event::Up(name(1)));
    let took = sim.run_while(ms(1000), |sim| !(up(sim, 0) && up(sim, 2) && sim.all_members()));
    println!("restart of one of 3: a member again after {took:?}");
    assert!(took <= ms(100));
    for node in [0, 2] {
        let events: Vec<&Event> = sim.events.iter().filter(|e| e.1 == node).map(|e| &e.2).collect();
        assert_eq!(events, [&Event::Down(name(1)), &Event::Up(name(1))], "node {node}");
    }
    assert!(tell(&mut sim, 1, b"after") <= ms(5));
    // Its first states of the new start win over the last ones of the old.
    sim.run(ms(2000));
    assert_eq!(sim.state(0, 1).as_deref(), Some(&b"after"[..]));
}

#[test]
fn many_restarts_in_a_row() {
    let mut sim = Sim::running(3, 4);
    sim.loss = 0.1;
    for round in 0..30 {
        sim.kill(1);
        sim.run(ms(20 * (round % 30)));
        sim.start(1);
        sim.run(ms(600));
    }
    sim.run(ms(1000));
    sim.assert_all_members();
    tell(&mut sim, 1, b"still here");
}

#[test]
fn partitions_part_and_heal() {
    let mut heal = Vec::new();
    for (seed, seconds) in [(0, 1), (1, 5), (2, 60), (3, 3), (4, 2), (5, 1), (6, 4)] {
        let mut sim = Sim::running(3, seed);
        tell(&mut sim, 0, b"zero");
        sim.cut(0, 1);
        sim.cut(0, 2);
        sim.run(ms(1000));
        assert_eq!(sim.standing(1, 2), Standing::Alive);
        for (a, b) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
            assert_eq!(sim.standing(a, b), Standing::Down, "{a} of {b}");
        }
        let news = if seed == 3 { b"news".as_slice() } else { b"zero" };
        sim.with(0, |member, now| member.set_state(news, now)).expect("a state");
        let more = sim.rng.random_range(0..500);
        sim.run(ms(seconds * 1000 + more));
        sim.events.clear();
        sim.cuts.clear();
        heal.push(sim.run_while(ms(1500), |sim| !sim.all_members()).as_millis());
        sim.run(ms(500));
        for node in [1, 2] {
            assert_eq!(sim.state(node, 0).as_deref(), Some(news));
            // Whoever comes back is told of with a state: listeners may have forgotten it.
            let told = Event::State(name(0), news.to_vec());
            assert!(sim.events.iter().any(|(_, i, e)| *i == node && *e == told), "{:?}", sim.events);
        }
        assert!(sim.lost().is_empty(), "healing loses nobody: {:?}", sim.lost());
    }
    assert!(figures("partition of one of 3 heals", heal).2 <= 1000);
}

#[test]
fn halves_of_a_large_cluster_heal() {
    let mut sim = Sim::running(20, 5);
    for a in 0..10 {
        (10..20).for_each(|b| sim.cut(a, b));
    }
    sim.run(ms(5000));
    assert_eq!(sim.standing(0, 15), Standing::Down);
    assert_eq!(sim.standing(0, 5), Standing::Alive);
    sim.cuts.clear();
    let took = sim.run_while(ms(2000), |sim| !sim.all_members());
    println!("halves of 20 nodes heal in {took:?}");
    assert!(took <= ms(1000));
}

#[test]
fn a_cut_between_two_nodes_costs_nobody_the_membership() {
    for one_way in [false, true] {
        let mut sim = Sim::running(3, 6);
        sim.cuts.insert((0, 1));
        if !one_way {
            sim.cuts.insert((1, 0));
        }
        sim.run(ms(60_000));
        assert!(sim.lost().is_empty(), "one way: {one_way}: {:?}", sim.lost());
        sim.assert_all_members();
        // And what one says reaches the other by the third.
        assert!(tell(&mut sim, 1, b"by the third") <= ms(1500));
        // A death is missed all the same.
        sim.kill(1);
        sim.run(ms(1000));
        assert_eq!(sim.lost().len(), 2, "{:?}", sim.lost());
    }
}

#[test]
fn a_node_that_hears_nobody_takes_nobody_with_it() {
    let mut sim = Sim::running(3, 7);
    sim.cuts.extend([(1, 0), (2, 0)]);
    sim.run(ms(5000));
    assert_eq!(sim.standing(0, 1), Standing::Down);
    // What it says of the others is not believed by them; they miss it, for it does not answer.
    let missed = |event: &Event| *event == Event::Down(name(0));
    assert!(sim.lost().iter().all(|(_, node, event)| *node == 0 || missed(event)), "{:?}", sim.lost());
    assert_eq!((sim.standing(1, 2), sim.standing(2, 1)), (Standing::Alive, Standing::Alive));
    sim.cuts.clear();
    assert!(sim.run_while(ms(2000), |sim| !sim.all_members()) <= ms(1000));
}

#[test]
fn a_node_that_slept_a_minute_blames_nobody() {
    let mut sim = Sim::running(3, 8);
    // As a machine whose lid was closed: others go on, it does nothing, and its clock jumps.
    let slept = sim.nodes[0].member.take();
    sim.run(ms(60_000));
    assert_eq!(sim.lost().len(), 2);
    sim.events.clear();
    sim.nodes[0].member = slept;
    sim.with(0, |member, now| member.tick(now));
    assert!(sim.run_while(ms(2000), |sim| !sim.all_members()) <= ms(1000));
    assert!(sim.lost().is_empty(), "{:?}", sim.lost());
}

#[test]
fn states_reach_all_and_losses_are_repaired() {
    let mut times = Vec::new();
    let sizes = [0, 1, 1000, 1400, 6000, MAX_STATE];
    for seed in 0..30 {
        let mut sim = Sim::running(3, seed);
        sim.loss = 0.1;
        for size in sizes {
            times.push(tell(&mut sim, 1, &vec![seed as u8 + 1; size]).as_millis());
        }
    }
    let (_, median, max) = figures("a state of up to 16 KiB, 10 % loss, until all have it", times);
    assert!(median <= 50 && max <= 1000);
    let mut sim = Sim::running(30, 1);
    assert!(tell(&mut sim, 7, &[7; 3000]) <= ms(5));
    let too_long = sim.with(7, |member, now| member.set_state(&[0; MAX_STATE + 1], now));
    assert_eq!(too_long, Err(StateTooLong));
}

#[test]
fn a_state_is_told_once_and_after_its_node() {
    let mut sim = Sim::new(2, 9);
    sim.start(0);
    sim.with(0, |member, now| member.set_state(b"zero", now)).expect("a state");
    sim.run(ms(1000));
    sim.start(1);
    sim.run(ms(2000));
    // The same again is no news.
    sim.with(0, |member, now| member.set_state(b"zero", now)).expect("a state");
    sim.run(ms(2000));
    let events: Vec<&Event> = sim.events.iter().filter(|e| e.1 == 1).map(|e| &e.2).collect();
    assert_eq!(events, [&Event::Up(name(0)), &Event::State(name(0), b"zero".to_vec())]);
}

#[test]
fn the_table_says_who_may_be_a_member() {
    let mut sim = Sim::running(3, 10);
    // Node 2 goes from the tables of the others; it does not know it yet.
    let full = sim.nodes[0].table.clone();
    let mut less = full.clone();
    less.remove(&name(2));
    for node in [0, 1] {
        sim.with(node, |member, now| member.set_peers(&less, now));
    }
    assert_eq!(sim.lost().len(), 2);
    assert!(sim.lost().iter().all(|(_, _, event)| *event == Event::Left(name(2))));
    sim.run(ms(5000));
    let members = |sim: &Sim| sim.nodes[0].member.as_ref().expect("runs").members().len();
    assert_eq!(members(&sim), 1);
    // Only node 2 misses anybody else.
    let others =
        sim.lost().iter().filter(|(_, node, event)| *node != 2 && *event != Event::Left(name(2))).count();
    assert_eq!(others, 0);
    assert_eq!((sim.standing(0, 1), sim.standing(1, 0)), (Standing::Alive, Standing::Alive));
    // And comes back with the table.
    for node in [0, 1] {
        sim.with(node, |member, now| member.set_peers(&full, now));
    }
    assert!(sim.run_while(ms(2000), |sim| !sim.all_members()) <= ms(1000));
}
