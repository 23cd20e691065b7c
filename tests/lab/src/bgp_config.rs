//! Configuration of the router's three BGP programs.

use crate::bgp::{BgpProgram, BgpRouter};
use std::fmt::Write as _;

/// Path of the configuration file on the router, and its text.
pub(crate) fn file(router: &BgpRouter) -> (&'static str, String) {
    match router.program {
        BgpProgram::Frr => ("/run/lab-bgp/frr.conf", frr(router)),
        BgpProgram::Bird => ("/run/lab-bgp/bird.conf", bird(router)),
        BgpProgram::Gobgp => ("/run/lab-bgp/gobgp.toml", gobgp(router)),
    }
}

/// Starts a program with that file.
pub(crate) fn start(program: BgpProgram) -> &'static str {
    match program {
        BgpProgram::Frr => {
            r"set -e
cd /run/lab-bgp
: >none.conf
printf 'bfd\n profile lab\n  receive-interval 100\n  transmit-interval 100\n' >bfdd.conf
/usr/lib/frr/zebra -d -P 0 -i $PWD/c.pid -f $PWD/none.conf --log file:$PWD/zebra.log
/usr/lib/frr/bfdd -d -P 0 -i $PWD/b.pid -f $PWD/bfdd.conf --log file:$PWD/bfdd.log
/usr/lib/frr/bgpd -d -P 0 -i $PWD/a.pid -f $PWD/frr.conf --log file:$PWD/bgpd.log
"
        }
        BgpProgram::Bird => "bird -c /run/lab-bgp/bird.conf -P /run/lab-bgp/bird.pid",
        BgpProgram::Gobgp => {
            r"cd /run/lab-bgp
setsid gobgpd -f gobgp.toml --api-hosts 127.0.0.1:50051 >gobgpd.log 2>&1 </dev/null &
echo $! >gobgpd.pid
"
        }
    }
}

fn frr(router: &BgpRouter) -> String {
    let mut text = format!(
        "router bgp {}\n bgp router-id 192.168.50.1\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n",
        router.asn
    );
    for neighbor in &router.neighbors {
        let head = format!(" neighbor {}", neighbor.address);
        let _ = writeln!(text, "{head} remote-as {}\n{head} passive", neighbor.asn);
        if let Some(password) = &neighbor.password {
            let _ = writeln!(text, "{head} password {password}");
        }
        if neighbor.bfd {
            let _ = writeln!(text, "{head} bfd\n{head} bfd profile lab");
        }
    }
    for family in ["ipv4", "ipv6"] {
        let _ = writeln!(text, " address-family {family} unicast\n  maximum-paths 8\n  maximum-paths ibgp 8");
        for neighbor in &router.neighbors {
            let _ = writeln!(text, "  neighbor {} activate", neighbor.address);
        }
        text.push_str(" exit-address-family\n");
    }
    text
}

fn bird(router: &BgpRouter) -> String {
    let mut text = format!(
        r#"log "/run/lab-bgp/bird.log" all;
router id 192.168.50.1;
protocol device {{ }}
protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; merge paths on; }}
protocol kernel {{ ipv6 {{ import none; export where source = RTS_BGP; }}; merge paths on; }}
protocol bfd {{ interface "*" {{ interval 100 ms; multiplier 3; }}; }}
template bgp lab {{
  local as {};
  passive on;
  error wait time 1, 2;
  ipv4 {{ import all; export none; }};
  ipv6 {{ import all; export none; }};
}}
"#,
        router.asn
    );
    for neighbor in &router.neighbors {
        let password =
            neighbor.password.as_ref().map(|text| format!(" password {text:?};")).unwrap_or_default();
        let bfd = if neighbor.bfd { " bfd on;" } else { "" };
        let (address, asn) = (neighbor.address, neighbor.asn);
        let _ = writeln!(text, "protocol bgp from lab {{ neighbor {address} as {asn};{password}{bfd} }}");
    }
    text
}

fn gobgp(router: &BgpRouter) -> String {
    let mut text = format!("[global.config]\nas = {}\nrouter-id = \"192.168.50.1\"\n", router.asn);
    for neighbor in &router.neighbors {
        let _ = writeln!(
            text,
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{}\"\npeer-as = {}\nauth-password = \"{}\"\n\
             [neighbors.transport.config]\npassive-mode = true",
            neighbor.address,
            neighbor.asn,
            neighbor.password.as_deref().unwrap_or_default()
        );
        for family in ["ipv4-unicast", "ipv6-unicast"] {
            let _ = writeln!(
                text,
                "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{family}\""
            );
        }
    }
    text
}
