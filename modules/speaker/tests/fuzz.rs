//! Frames of a LAN, mutated by a seeded generator, to the codecs and to an announcer: what is read is built again in the same
//! words, and nothing that comes in makes a node claim what is not its own. The libFuzzer target `lan` feeds the same
//! (tests/fuzz).
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "lan/mod.rs"]
mod lan;
#[path = "../../../tests/fuzz/mutate.rs"]
mod mutate;

use std::net::IpAddr;
use std::time::Instant;

use homelab_speaker::announce::{Announcer, State, Time};
use homelab_speaker::arp::{Arp, LENGTH};
use homelab_speaker::ndp::Ndp;
use lan::{INTERFACE, Said, announcement, foreign_mac, ms, node_mac, probe, question, wanted};
use mutate::{Random, mutate, peak, time};

fn addresses() -> [IpAddr; 4] {
    ["192.168.50.240", "192.168.50.241", "fd00:50::f0", "fd00:50::f1"].map(|text| text.parse().unwrap())
}

/// A node that announces the first address of each family and probes for the second.
fn node(now: Time) -> Announcer {
    let [a, b, c, d] = addresses();
    let mut announcer = Announcer::new();
    let _ = announcer.interface(INTERFACE, Some(node_mac(0)), now);
    let _ = announcer.set(&wanted(&[(a, true), (b, false), (c, true), (d, false)]), now);
    announcer
}

#[test]
fn mutated_frames_are_refused_or_understood() {
    let corpus: Vec<Vec<u8>> = addresses()
        .into_iter()
        .flat_map(|address| [probe, question, announcement].map(|of| of(foreign_mac(0), address)))
        .collect();
    let words: [&[u8]; 5] =
        [&[0x81, 0, 0, 5], &[14, 1, 1, 2, 3, 4, 5, 6], &[0xff; 6], &[0; 8], &[0x86, 0xdd]];
    let mut random = Random::new();
    let (mut arps, mut ndps, mut refused) = (0, 0, 0);
    let start = Instant::now();
    let mut now = ms(0);
    let mut announcer = node(now);
    while start.elapsed() < time() {
        for _ in 0..500 {
            let bytes = mutate(&mut random, &corpus, &words);
            if let Ok(arp) = Arp::parse(&bytes) {
                assert_eq!(arp.build(), bytes[..LENGTH]);
                arps += 1;
            }
            if let Ok(ndp) = Ndp::parse(&bytes) {
                assert_eq!(Ndp::parse(&ndp.build()), Ok(ndp));
                ndps += 1;
            }
            now += ms(random.below(3) as u64);
            let Ok(output) = announcer.frame(INTERFACE, &bytes, now) else {
                refused += 1;
                continue;
            };
            let frames: Vec<_> = output.frames.into_iter().chain(announcer.tick(now).frames).collect();
            let status = if frames.is_empty() { vec![] } else { announcer.status() };
            let ours = |address| status.iter().any(|s| s.address == address && s.state == State::Announced);
            for (_, frame) in frames {
                let (mac, said) = Said::of(&frame);
                assert_eq!(mac, node_mac(0));
                assert!(said.claim().is_none_or(ours), "{said:?}");
            }
            assert!(announcer.next_deadline().is_some_and(|at| at > now));
        }
        // In conflict nothing is tried any more.
        if announcer.status().iter().all(|status| status.state == State::Conflict) {
            announcer = node(now);
        }
    }
    println!("{arps} ARP packets, {ndps} NDP messages, {refused} frames refused, {} MiB", peak());
    assert!(arps > 0 && ndps > 0 && refused > 0);
}
