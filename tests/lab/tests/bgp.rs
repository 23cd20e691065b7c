//! The router's BGP programs with an FRR that is configured by hand on two nodes.
#![allow(clippy::unwrap_used, reason = "a test fails by panic, also in its helpers")]

use homelab_lab::{BgpNeighbor, BgpPaths, BgpProgram, BgpRouter, LabGuard, LabOptions};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// What a user would type: FRR from the image's repository, without the service of its package.
fn by_hand(node: &str) -> String {
    let id = node.strip_prefix("node").unwrap();
    format!(
        r#"set -e
systemctl mask --runtime --quiet frr
DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends frr
install -d -o frr -g frr /run/frr
cat >/tmp/bgpd.conf <<END
route-map all permit 10
 set community 64512:100 no-export
 set large-community 64512:1:2
router bgp 64512
 bgp router-id 192.168.50.1{id}
 no bgp ebgp-requires-policy
 neighbor 192.168.50.1 remote-as 64513
 neighbor 192.168.50.1 timers connect 1
 neighbor 192.168.50.1 password right
 neighbor fd00:50::1 remote-as 64513
 neighbor fd00:50::1 timers connect 1
 address-family ipv4 unicast
  network 203.0.113.1/32
  neighbor 192.168.50.1 route-map all out
  no neighbor fd00:50::1 activate
 address-family ipv6 unicast
  network 2001:db8:113::1/128
  neighbor fd00:50::1 activate
  neighbor fd00:50::1 route-map all out
END
chown frr /tmp/bgpd.conf
/usr/lib/frr/bgpd -d -Z -P 0 -p 0 -f /tmp/bgpd.conf
ip address add 203.0.113.1/32 dev lo
ip address add 2001:db8:113::1/128 dev lo
"#
    )
}

fn wait<T: std::fmt::Debug>(what: &str, mut ask: impl FnMut() -> T, met: impl Fn(&T) -> bool) -> T {
    let start = Instant::now();
    loop {
        let answer = ask();
        if met(&answer) {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: {answer:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_router_speaks_bgp_with_each_of_three_programs() {
    let lab = LabGuard::up(LabOptions::unique("lt").nodes(2)).unwrap();
    let nodes = ["node1", "node2"];
    let mut neighbors = Vec::new();
    for node in nodes {
        let mut v4 = BgpNeighbor::new(lab.address(node).unwrap(), 64512);
        v4.password = Some("right".into());
        neighbors.extend([v4, BgpNeighbor::new(lab.address6(node).unwrap(), 64512)]);
        lab.sh(node, &by_hand(node)).unwrap().ok().unwrap();
    }
    let addresses: Vec<IpAddr> = neighbors.iter().map(|neighbor| neighbor.address).collect();
    for program in BgpProgram::ALL {
        let mut router = BgpRouter { program, asn: 64513, neighbors: neighbors.clone() };
        lab.bgp_start(&router).unwrap();
        let sessions = || lab.bgp_sessions(program).unwrap();
        let up = wait(&format!("{program:?}: sessions"), sessions, |all| all.values().all(Option::is_some));
        assert!(up.keys().eq(BTreeSet::from_iter(&addresses)), "{up:?}");
        let both = |paths: &BgpPaths| paths.len() == 2 && paths.values().all(|list| list.len() == 2);
        let paths = wait(&format!("{program:?}: routes"), || lab.bgp_paths(program).unwrap(), both);
        for (prefix, first) in [("203.0.113.1/32", 0), ("2001:db8:113::1/128", 1)] {
            for (index, path) in paths[prefix].iter().enumerate() {
                let node = addresses[first + 2 * index];
                assert_eq!((path.from, path.next_hop, &path.as_path[..]), (node, node, &[64512][..]));
                assert_eq!(
                    path.communities,
                    ["64512:100", "64512:1:2", "65535:65281"].map(String::from).into()
                );
            }
        }
        assert_eq!(sessions(), up, "{program:?}: nothing came and went");
        let reach = |address: &str| lab.exec("wan", &["ping", "-c1", "-W1", address]).unwrap().success();
        if program != BgpProgram::Gobgp {
            for address in ["203.0.113.1", "2001:db8:113::1"] {
                wait(&format!("{program:?}: {address}"), || reach(address), |answer| *answer);
                let family = if address.contains(':') { "-6" } else { "-4" };
                let route =
                    lab.exec("router", &["ip", family, "route", "show", address]).unwrap().ok().unwrap();
                assert_eq!(route.stdout.matches("via").count(), 2, "{program:?}: {route:?}");
            }
        }
        // One who does not know the password is kept out, and nobody else.
        router.neighbors[0].password = Some("wrong".into());
        lab.bgp_start(&router).unwrap();
        wait(&format!("{program:?}: others"), sessions, |all| all.values().flatten().count() == 3);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(sessions()[&addresses[0]], None, "{program:?}");
    }
    lab.bgp_stop().unwrap();
    let routes = lab.exec("router", &["ip", "route", "show", "203.0.113.1"]).unwrap().ok().unwrap();
    assert_eq!(routes.stdout, "", "routes go with their program");
}
