//! Any bytes as a frame of the LAN: refused, or read whole; and an announcer that goes on.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use homelab_speaker::announce::{Announcer, Wanted};
use homelab_speaker::arp::{Arp, LENGTH};
use homelab_speaker::mac::Mac;
use homelab_speaker::ndp::Ndp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(arp) = Arp::parse(bytes) {
        assert_eq!(arp.build(), bytes[..LENGTH]);
    }
    if let Ok(ndp) = Ndp::parse(bytes) {
        assert_eq!(Ndp::parse(&ndp.build()), Ok(ndp));
    }
    let mut announcer = Announcer::new();
    let mut now = Duration::ZERO;
    let _ = announcer.interface("eth0", Some(Mac([2, 0, 0, 0, 0, 0x11])), now);
    let wanted =
        |address, takeover| (address, Wanted { interfaces: BTreeSet::from(["eth0".to_owned()]), takeover });
    let addresses = BTreeMap::from([
        wanted(IpAddr::V4(Ipv4Addr::new(192, 168, 50, 240)), true),
        wanted(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 0xf0)), false),
    ]);
    let _ = announcer.set(&addresses, now);
    for _ in 0..3 {
        let _ = announcer.frame("eth0", bytes, now);
        now += Duration::from_millis(400);
        let _ = announcer.tick(now);
        assert!(announcer.next_deadline().is_some_and(|at| at > now));
    }
});
