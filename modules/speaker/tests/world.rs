//! Whole clusters on a simulated LAN: who has an address, what a client notices when that changes, and that it always ends
//! with one. Times are simulated: the same on any machine.

#![allow(clippy::print_stdout, reason = "figures")]

#[path = "world/mod.rs"]
mod world;

use std::collections::BTreeSet;

use homelab_model::{ContainerWord, LbState, LbUnfit};
use homelab_speaker::speaker::Event;
use world::{FOREIGN, World, figures, mac, ms, name, vip};

const VIPS: usize = 10;

#[test]
fn a_cluster_starts_with_one_owner_for_each_address_and_nobody_doubles_it() {
    let mut seen = BTreeSet::new();
    for seed in 0..10 {
        let mut world = World::new(3, VIPS, seed);
        let pauses = [0, world.random(1000), world.random(1000)];
        for (node, pause) in pauses.into_iter().enumerate() {
            world.run(pause);
            world.boot(node);
        }
        world.run(5000);
        let owners = world.assert_one_each();
        seen.extend(owners.into_values());
        let doubled = |event: &Event| format!("{event:?}").contains("Doubled");
        assert!(!world.events.iter().any(|(_, _, event)| doubled(event)), "{:?}", world.events);
    }
    assert_eq!(seen, BTreeSet::from([0, 1, 2]), "addresses are spread");
}

/// What a client notices of something that happens to the owner of an address. The others' addresses stay where they are.
fn failover(title: &str, runs: u64, happens: impl Fn(&mut World, usize)) -> (u64, u64) {
    let mut gaps = Vec::new();
    for seed in 0..runs {
        let mut world = World::running(3, VIPS, seed);
        let owners = world.assert_one_each();
        let victim = owners[&vip(0)];
        let pause = 500 + world.random(200);
        world.run(pause);
        world.forget();
        happens(&mut world, victim);
        world.run(3000);
        for (address, gap) in world.gaps() {
            if owners[&address] == victim {
                gaps.push(gap);
            } else {
                assert_eq!(gap, 0, "{title}, seed {seed}: {address} is not the victim's");
            }
        }
        let after = world.assert_one_each();
        for (address, owner) in owners {
            assert_eq!(after[&address] == owner, owner != victim, "{title}, seed {seed}: {address}");
        }
    }
    figures(title, gaps)
}

#[test]
fn power_cut() {
    let (median, max) = failover("owner's power cut", 20, World::power_cut);
    assert!(median < 700 && max < 1500);
}

#[test]
fn power_cut_with_ten_percent_loss() {
    let (median, max) = failover("owner's power cut, 10 % of datagrams lost", 20, |world, victim| {
        world.loss = 0.1;
        world.power_cut(victim);
    });
    assert!(median < 700 && max < 1500);
}

#[test]
fn partition_of_the_owner() {
    let (median, max) = failover("owner parted from everybody", 20, |world, victim| world.part(&[victim]));
    assert!(median < 700 && max < 1500);
}

#[test]
fn cable_of_the_owner_is_pulled() {
    let (median, max) = failover("owner's cable pulled", 20, |world, victim| world.link(victim, false));
    assert!(median < 700 && max < 1500);
}

#[test]
fn agent_of_the_owner_is_killed() {
    // The kernel goes on forwarding.
    assert_eq!(failover("owner's agent killed", 10, World::kill).1, 0);
}

#[test]
fn orderly_shutdown_of_the_owner() {
    let (_, max) = failover("owner shuts down", 20, |world, victim| {
        let now = world.now;
        world.with(victim, |agent| agent.leave(now));
        world.run(100);
        world.power_cut(victim);
    });
    assert!(max < 50);
}

#[test]
fn cordon_of_the_owner() {
    let (_, max) = failover("owner cordoned", 10, |world, victim| {
        let now = world.now;
        world.with(victim, |agent| agent.cordon(true, now));
    });
    assert_eq!(max, 0);
    let mut world = World::running(3, VIPS, 1);
    let owners = world.assert_one_each();
    let now = world.now;
    world.with(0, |agent| agent.cordon(true, now));
    world.run(100);
    assert!(!world.assert_one_each().into_values().any(|owner| owner == 0));
    let report = world.report(1);
    assert!(report.addresses.iter().all(|a| a.unfit == [(name(0), LbUnfit::Cordoned)]));
    let now = world.now;
    world.with(0, |agent| agent.cordon(false, now));
    world.run(100);
    assert_eq!(world.assert_one_each(), owners, "all is as it was");
    assert!(world.gaps().values().all(|gap| *gap == 0));
}

#[test]
fn services_of_the_owner_are_not_in_place() {
    let (_, max) = failover("owner's services not in place", 10, |world, victim| {
        let now = world.now;
        world.with(victim, |agent| agent.ready(false, now));
    });
    assert_eq!(max, 0);
}

#[test]
fn an_agent_that_is_started_again_keeps_its_addresses() {
    for seed in 0..10 {
        let mut world = World::running(3, VIPS, seed);
        let owners = world.assert_one_each();
        let victim = owners[&vip(0)];
        world.forget();
        world.kill(victim);
        world.run(120);
        world.start(victim);
        world.run(3000);
        assert_eq!(world.assert_one_each(), owners);
        assert!(world.gaps().values().all(|gap| *gap == 0));
        let moved =
            |(_, node, event): &&(_, usize, Event)| *node != victim && matches!(event, Event::Moved { .. });
        assert_eq!(world.events.iter().filter(moved).count(), 0, "seed {seed}: {:?}", world.events);
    }
}

#[test]
fn a_node_that_comes_back_takes_its_addresses_without_a_gap() {
    for seed in 0..10 {
        let mut world = World::running(3, VIPS, seed);
        let owners = world.assert_one_each();
        let victim = owners[&vip(0)];
        world.power_cut(victim);
        world.run(3000);
        world.assert_one_each();
        world.forget();
        world.boot(victim);
        world.run(4000);
        assert_eq!(world.assert_one_each(), owners);
        assert!(world.gaps().values().all(|gap| *gap == 0), "{:?}", world.gaps());
    }
}

#[test]
fn a_partition_may_give_two_announcers_and_heals_at_once() {
    let mut wrong = Vec::new();
    for seed in 0..15 {
        let mut world = World::running(4, VIPS, seed);
        let owners = world.assert_one_each();
        // The client is with the second half.
        world.part(&[0, 1]);
        world.run(5000);
        for address in (0..VIPS).map(vip) {
            assert_eq!(world.answered(address).len(), 1, "each half has an owner");
        }
        let pause = world.random(10_000);
        world.run(pause);
        world.heal();
        let mut until = 0;
        // How long the client may still be told of two owners.
        for step in 0..40 {
            world.run(50);
            let answers: Vec<usize> = (0..VIPS).map(|n| world.answered(vip(n)).len()).collect();
            if answers.iter().any(|n| *n != 1) {
                until = (step + 1) * (50 + 10 * VIPS as u64);
            }
        }
        wrong.push(until);
        assert_eq!(world.assert_one_each(), owners, "seed {seed}");
    }
    let (_, max) = figures("two announcers after a partition healed", wrong);
    assert!(max <= 1500);
}

#[test]
fn who_starts_alone_waits_for_the_others_and_then_has_all() {
    let mut world = World::new(3, VIPS, 4);
    world.boot(1);
    world.run(1400);
    assert!((0..VIPS).all(|n| world.answered(vip(n)).is_empty()), "it has not waited for the others");
    world.run(4000);
    assert!(world.assert_one_each().into_values().all(|owner| owner == 1));
    assert_eq!(world.report(1).addresses[0].unfit.len(), 2);
}

#[test]
fn a_foreign_machine_that_has_an_address_keeps_it() {
    let mut world = World::new(3, 1, 5);
    world.foreign.insert(vip(0));
    (0..3).for_each(|node| world.boot(node));
    world.run(30_000);
    assert_eq!(world.answered(vip(0)), [FOREIGN], "nobody else answers");
    for node in 0..3 {
        let address = &world.report(node).addresses[0];
        assert_eq!(address.conflict, Some(FOREIGN.to_string()), "every node knows");
    }
    // It lets go.
    world.foreign.clear();
    world.run(12_000);
    let owner = world.assert_one_each()[&vip(0)];
    assert_eq!(world.report(owner).addresses[0].interfaces[0].state, LbState::Announced);
    assert_eq!(world.report(0).addresses[0].conflict, None);
    // It takes it again: that is answered once, and yielded to when it insists.
    world.takes(vip(0));
    world.run(1000);
    assert!(world.answered(vip(0)).contains(&mac(owner)), "defended once");
    world.takes(vip(0));
    world.run(1000);
    assert_eq!(world.answered(vip(0)), [FOREIGN]);
    // The next owner does not fight either.
    world.power_cut(owner);
    world.run(20_000);
    assert_eq!(world.answered(vip(0)), [FOREIGN]);
}

#[test]
fn nothing_is_stranded_and_nothing_doubled_after_a_hundred_failovers() {
    let mut world = World::running(3, VIPS, 6);
    for round in 0..100 {
        let victim = world.random(3) as usize;
        match round % 4 {
            0 => world.kill(victim),
            1 => world.link(victim, false),
            _ => world.power_cut(victim),
        }
        let pause = 100 + world.random(3000);
        world.run(pause);
        match round % 4 {
            0 => world.start(victim),
            1 => world.link(victim, true),
            _ => world.boot(victim),
        }
        let pause = world.random(4000);
        world.run(pause);
    }
    world.run(6000);
    world.assert_one_each();
    let reports: Vec<_> = (0..3).map(|node| world.report(node)).collect();
    for report in &reports {
        let owners = |of: &homelab_model::LbReport| -> Vec<_> {
            of.addresses.iter().map(|a| (a.address, a.owner.clone())).collect()
        };
        assert_eq!(owners(report), owners(&reports[0]), "all nodes agree");
    }
}

#[test]
fn nothing_moves_in_a_minute_of_ten_percent_loss() {
    let mut world = World::running(3, VIPS, 7);
    world.loss = 0.1;
    world.run(60_000);
    assert_eq!(world.moves(), 0);
    assert!(world.gaps().values().all(|gap| *gap == 0));
    assert!(world.now > ms(60_000));
}

#[test]
fn all_hear_at_once_where_a_nodes_containers_are() {
    let word = |container: &str| ContainerWord {
        container: container.to_owned(),
        interface: "eth0".to_owned(),
        addresses: vec![std::net::Ipv4Addr::new(10, 244, 0, 2).into()],
    };
    // With addresses to announce, and without.
    for vips in [0, VIPS] {
        let mut world = World::running(3, vips, 1);
        for words in [vec![word("web")], vec![word("web"), word("db")], Vec::new()] {
            let now = world.now;
            world.with(1, |speaker| speaker.containers(words.clone(), now));
            world.run(20);
            for node in [0, 2] {
                assert_eq!(world.words[&(node, name(1))], words, "{vips} addresses");
            }
        }
        // What does not fit is left out, and said.
        let many: Vec<ContainerWord> = (0..1000).map(|n| word(&format!("container-{n}"))).collect();
        let now = world.now;
        world.with(1, |speaker| speaker.containers(many.clone(), now));
        world.run(3000);
        let heard = &world.words[&(0, name(1))];
        assert!((100..1000).contains(&heard.len()) && many.starts_with(heard), "{}", heard.len());
        let left = many.len() - heard.len();
        assert!(world.events.iter().any(|(_, node, event)| *node == 1 && *event == Event::Unsaid(left)));
        if vips > 0 {
            world.assert_one_each();
        }
        // One that starts is told.
        world.kill(2);
        world.words.clear();
        world.start(2);
        world.run(5000);
        assert_eq!(world.words[&(2, name(1))].len(), 1000 - left);
    }
}
