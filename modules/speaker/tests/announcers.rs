//! What holds on any LAN, whatever happens on it. [`lan`] itself looks at every frame that a node sends: nothing is claimed
//! but what is the node's own and announced, nothing is announced while a foreign machine answers, nobody is fought in a
//! conflict, and no tick leaves a deadline behind that has passed.
#![allow(clippy::unwrap_used)]

mod lan;

use std::net::IpAddr;

use homelab_speaker::announce::State;
use lan::{Lan, Said, foreign_mac, ms, node_mac, probe};
use proptest::prelude::*;

const NODES: usize = 3;
const ADDRESSES: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    /// The election gives an address to another node, or to none. `together`: for a moment two have it.
    Owner { address: usize, node: Option<usize>, together: bool },
    /// Link lost, and back after some time.
    Flap { node: usize, time: u64 },
    /// A foreign machine takes an address or gives it up.
    Foreign { machine: usize, address: usize, held: bool },
    /// A foreign machine wants to know whether it can have an address.
    Probe { machine: usize, address: usize },
    /// A client asks.
    Ask { address: usize },
    /// Time goes by.
    Wait { time: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let address = 0..ADDRESSES;
    prop_oneof![
        4 => (address.clone(), prop::option::weighted(0.8, 0..NODES), any::<bool>())
            .prop_map(|(address, node, together)| Step::Owner { address, node, together }),
        1 => (0..NODES, 0_u64..3000).prop_map(|(node, time)| Step::Flap { node, time }),
        2 => (0_usize..2, address.clone(), any::<bool>())
            .prop_map(|(machine, address, held)| Step::Foreign { machine, address, held }),
        1 => (0_usize..2, address.clone()).prop_map(|(machine, address)| Step::Probe { machine, address }),
        2 => address.prop_map(|address| Step::Ask { address }),
        4 => prop_oneof![Just(0), 1_u64..900, 900_u64..25_000].prop_map(|time| Step::Wait { time }),
    ]
}

fn address(number: usize) -> IpAddr {
    ["192.168.50.240", "192.168.50.241", "fd00:50::f0", "fd00:50::f1"][number].parse().unwrap()
}

/// A LAN and who has which address, as the election says.
struct World {
    lan: Lan,
    owners: [Option<usize>; ADDRESSES],
}

impl World {
    fn tell(&mut self, node: usize, takeover: Option<usize>) {
        let own: Vec<(IpAddr, bool)> = (0..ADDRESSES)
            .filter(|number| self.owners[*number] == Some(node))
            .map(|number| (address(number), takeover == Some(number)))
            .collect();
        self.lan.set(node, &own);
    }

    fn owner(&mut self, number: usize, node: Option<usize>, together: bool) {
        let before = self.owners[number];
        if before == node {
            return;
        }
        // As the agent decides: a peer that announced it leaves it to us.
        let announced = |old: usize| self.lan.state(old, address(number)) == Some(State::Announced);
        let takeover = before.is_some_and(announced).then_some(number);
        self.owners[number] = node;
        let order = if together { [node, before] } else { [before, node] };
        for told in order.into_iter().flatten() {
            self.tell(told, takeover.filter(|_| Some(told) == node));
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Owner { address, node, together } => self.owner(address, node, together),
            Step::Flap { node, time } => {
                let announced: Vec<IpAddr> = (0..ADDRESSES)
                    .map(address)
                    .filter(|a| self.lan.state(node, *a) == Some(State::Announced))
                    .collect();
                self.lan.link(node, false);
                self.lan.run(ms(time));
                let back = self.lan.heard.len();
                self.lan.link(node, true);
                let heard = &self.lan.heard[back..];
                for address in announced {
                    let told = heard.iter().any(|(at, mac, said)| {
                        (*at, *mac, *said) == (self.lan.now, node_mac(node), Said::Announces(address))
                    });
                    assert!(told, "{address} is told as soon as the link is back");
                }
            }
            Step::Foreign { machine, address: number, held } => {
                self.lan.hold(foreign_mac(machine), address(number), held);
            }
            Step::Probe { machine, address: number } => {
                self.lan.say(probe(foreign_mac(machine), address(number)));
            }
            Step::Ask { address: number } => {
                let answers = self.lan.ask(address(number));
                let ours: Vec<_> = answers.iter().filter(|mac| mac.0[0] == 2).collect();
                let owner = self.owners[number];
                let announced =
                    |node: &usize| self.lan.state(*node, address(number)) == Some(State::Announced);
                let expected: Vec<_> = owner.filter(announced).map(node_mac).into_iter().collect();
                assert_eq!(ours, expected.iter().collect::<Vec<_>>(), "the owner answers, nobody else of us");
            }
            Step::Wait { time } => self.lan.run(ms(time)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn one_owner_answers_and_nothing_is_stranded(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World { lan: Lan::of(NODES), owners: [None; ADDRESSES] };
        steps.iter().for_each(|step| world.step(step));

        // The foreign machines go, and all that is owned is announced within one interval of a conflict.
        world.lan.foreign.clear();
        world.lan.run(ms(10_000 + 800));
        for number in 0..ADDRESSES {
            let address = address(number);
            let answers = world.lan.ask(address);
            prop_assert_eq!(answers, world.owners[number].map(node_mac).into_iter().collect::<Vec<_>>());
            for node in 0..NODES {
                let state = (world.owners[number] == Some(node)).then_some(State::Announced);
                prop_assert_eq!(world.lan.state(node, address), state);
            }
        }

        // Upkeep goes on, and nothing else does: no more than one announcement in ten seconds.
        world.lan.run(ms(2000));
        let quiet = world.lan.now + ms(1);
        world.lan.run(ms(60_000));
        for number in 0..ADDRESSES {
            if let Some(node) = world.owners[number] {
                let forms = if address(number).is_ipv4() { 2 } else { 1 };
                prop_assert_eq!(world.lan.said(node, address(number), quiet).len(), 6 * forms);
            }
        }
    }

    /// Whatever comes in, when ticks come: nothing panics, and deadlines lie ahead.
    #[test]
    fn garbage_and_late_ticks(
        steps in prop::collection::vec(
            (0_u64..4000, prop::collection::vec(any::<u8>(), 0..90), 0_usize..90, any::<u8>()),
            0..60,
        ),
    ) {
        let mut lan = Lan::of(1);
        lan.set(0, &[(address(0), true), (address(2), false)]);
        let mut now = lan.now;
        let announcer = &mut lan.nodes[0].announcer;
        for (pause, garbage, at, byte) in steps {
            now += ms(pause);
            let _ = announcer.frame(lan::INTERFACE, &garbage, now);
            let mut like = lan::question(foreign_mac(0), address(if byte & 1 == 0 { 0 } else { 2 }));
            if let Some(place) = like.get_mut(at) {
                *place = byte;
            }
            let _ = announcer.frame(lan::INTERFACE, &like, now);
            let late = announcer.tick(now);
            prop_assert!(late.frames.len() <= 3, "at most one announcement or probe of each address");
            prop_assert!(announcer.next_deadline().is_some_and(|at| at > now));
        }
    }
}
