//! How soon deaths are known, and that the living are not taken for dead. Times are simulated: the same on any machine.

use super::sim::{Sim, figures, ms};
use crate::membership::Standing;
use rand::RngExt;

/// Kills a node at a random moment; how long until the first and until the last of the others know.
fn death(sim: &mut Sim, victim: usize) -> (u128, u128) {
    let pause = sim.rng.random_range(1000..1100);
    sim.run(ms(pause));
    sim.kill(victim);
    let start = sim.now;
    sim.run(ms(1500));
    let others = (0..sim.nodes.len()).filter(|i| *i != victim);
    let known: Vec<u128> = others
        .map(|i| sim.down(i, victim).unwrap_or_else(|| panic!("{i} has not missed {victim}")))
        .map(|at| (at - start).as_millis())
        .collect();
    let lost = sim.lost();
    assert_eq!(lost.len(), known.len(), "others are missed, too: {lost:?}");
    (*known.iter().min().expect("others"), *known.iter().max().expect("others"))
}

fn deaths(title: &str, nodes: usize, runs: u64, shape: impl Fn(&mut Sim)) -> (u128, u128, u128) {
    let mut last = Vec::new();
    for seed in 0..runs {
        let mut sim = Sim::running(nodes, seed);
        shape(&mut sim);
        let victim = (seed as usize) % nodes;
        last.push(death(&mut sim, victim).1);
    }
    figures(title, last)
}

#[test]
fn a_sudden_death_is_known_to_all_within_half_a_second() {
    for (nodes, runs) in [(2, 60), (3, 120), (5, 40), (30, 10)] {
        let title = format!("sudden death, {nodes} nodes, known to all");
        let (_, median, max) = deaths(&title, nodes, runs, |_| {});
        assert!(median <= 500 && max <= 600, "{title}");
    }
}

#[test]
fn a_sudden_death_is_known_in_time_in_spite_of_loss_and_starvation() {
    for (nodes, runs) in [(3, 120), (30, 5)] {
        let (_, median, max) =
            deaths(&format!("sudden death, {nodes} nodes, 10 % loss"), nodes, runs, |sim| sim.loss = 0.1);
        assert!(median <= 500 && max <= 1000);
    }
    let (_, _, max) = deaths("sudden death, 3 nodes, one starved", 3, 60, |sim| {
        sim.nodes[0].starved = true;
        sim.run(ms(5000));
    });
    assert!(max <= 1000);
}

/// Ten minutes in which nobody dies: nobody may be missed, not by anybody and not for a moment.
fn nobody_is_missed(title: &str, nodes: usize, minutes: u64, seeds: u64, shape: impl Fn(&mut Sim)) {
    let mut suspicions = 0;
    let mut rate = (0, 0);
    for seed in 0..seeds {
        let mut sim = Sim::running(nodes, 1000 + seed);
        shape(&mut sim);
        let sent = |sim: &Sim| sim.nodes.iter().map(|node| node.sent).sum::<u64>();
        let bytes = |sim: &Sim| sim.nodes.iter().map(|node| node.sent_bytes).sum::<u64>();
        let before = (sent(&sim), bytes(&sim));
        let start = sim.now;
        let mut suspect = false;
        while sim.now < start + ms(minutes * 60_000) {
            sim.run(ms(50));
            let now = (1..nodes).any(|i| sim.standing(0, i) == Standing::Suspect);
            suspicions += usize::from(now && !suspect);
            suspect = now;
            assert!(sim.lost().is_empty(), "{title}, seed {seed}: {:?}", sim.lost());
        }
        sim.assert_all_members();
        let share = minutes * 60 * nodes as u64;
        rate = ((sent(&sim) - before.0) / share, (bytes(&sim) - before.1) / share);
        // Four pings each way and their answers, twenty times a second, and some more.
        assert!(rate.0 <= 400, "{title}: {rate:?}");
    }
    let (datagrams, bytes) = rate;
    println!(
        "{title}: node 0 had {suspicions} suspicions; {datagrams} datagrams/s, {bytes} bytes/s per node"
    );
}

#[test]
fn nobody_is_missed_in_ten_minutes_of_ten_percent_loss() {
    nobody_is_missed("3 nodes, no loss", 3, 1, 1, |_| {});
    nobody_is_missed("3 nodes, 10 % loss", 3, 10, 4, |sim| sim.loss = 0.1);
}

#[test]
fn nobody_is_missed_in_ten_minutes_of_starvation() {
    nobody_is_missed("3 nodes, one starved", 3, 10, 2, |sim| sim.nodes[1].starved = true);
    nobody_is_missed("3 nodes, all starved, 10 % loss", 3, 10, 2, |sim| {
        sim.loss = 0.1;
        sim.nodes.iter_mut().for_each(|node| node.starved = true);
    });
    nobody_is_missed("2 nodes, both starved, 10 % loss", 2, 10, 2, |sim| {
        sim.loss = 0.1;
        sim.nodes.iter_mut().for_each(|node| node.starved = true);
    });
}

#[test]
fn nobody_is_missed_in_a_large_cluster() {
    nobody_is_missed("30 nodes, no loss", 30, 1, 1, |_| {});
    nobody_is_missed("30 nodes, three starved, 10 % loss", 30, 1, 1, |sim| {
        sim.loss = 0.1;
        sim.nodes[..3].iter_mut().for_each(|node| node.starved = true);
    });
}
