//! The router speaks BGP: by FRR, BIRD or GoBGP, as a user's router does. It listens, takes every route, tells none, and
//! forwards over all equally good paths, by addresses and ports (GoBGP forwards nothing: it only has the routes).

use crate::command::wait_until;
use crate::{Error, Lab, Result, bgp_config, bgp_read};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// Routing program of the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BgpProgram {
    /// FRR: zebra, bfdd and bgpd.
    Frr,
    /// BIRD 2.
    Bird,
    /// GoBGP.
    Gobgp,
}

impl BgpProgram {
    /// All of them.
    pub const ALL: [BgpProgram; 3] = [BgpProgram::Frr, BgpProgram::Bird, BgpProgram::Gobgp];
}

/// What the router is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BgpRouter {
    /// Program.
    pub program: BgpProgram,
    /// Its autonomous system.
    pub asn: u32,
    /// Whom it talks to.
    pub neighbors: Vec<BgpNeighbor>,
}

/// A neighbour of the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BgpNeighbor {
    /// Address.
    pub address: IpAddr,
    /// Its autonomous system.
    pub asn: u32,
    /// TCP MD5 password.
    pub password: Option<String>,
    /// Watched by BFD, a packet each 100 ms, three of which may be missed. GoBGP has none.
    pub bfd: bool,
}

impl BgpNeighbor {
    /// A neighbour without password and BFD.
    pub fn new(address: impl Into<IpAddr>, asn: u32) -> Self {
        BgpNeighbor { address: address.into(), asn, password: None, bfd: false }
    }
}

/// A session as the router sees it: names the very session that is established, so that one which was lost and came back
/// is another; None: not established.
pub type BgpSessions = BTreeMap<IpAddr, Option<String>>;

/// A path to a prefix as the router has heard it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BgpPath {
    /// The neighbour that told it; of BIRD: the next hop.
    pub from: IpAddr,
    /// Next hop.
    pub next_hop: IpAddr,
    /// Autonomous systems.
    pub as_path: Vec<u32>,
    /// LOCAL_PREF, on a session inside one autonomous system.
    pub local_pref: Option<u32>,
    /// Communities as numbers, `64512:100` and `64512:1:2`.
    pub communities: BTreeSet<String>,
}

/// Paths by prefix.
pub type BgpPaths = BTreeMap<String, Vec<BgpPath>>;

/// Ends what runs, by the numbers in its files, and waits for the end. Every program takes its routes away.
const STOP: &str = r#"
for file in /run/lab-bgp/*.pid; do
  [ -e "$file" ] || continue
  pid=$(cat "$file")
  kill "$pid" 2>/dev/null
  for try in $(seq 200); do [ -e "/proc/$pid" ] || break; sleep 0.05; done
  rm -f "$file"
done
"#;

const INSTALL: &str = r"set -e
if ! command -v gobgpd >/dev/null; then
  DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends bird2 frr gobgpd
fi
mkdir -p /run/bird
install -d -o frr -g frr /run/frr /run/lab-bgp
echo 1 >/proc/sys/net/ipv4/fib_multipath_hash_policy
echo 1 >/proc/sys/net/ipv6/fib_multipath_hash_policy
";

impl Lab {
    /// Has the router speak BGP, after it stopped whatever it spoke before. Returns when it listens.
    pub fn bgp_start(&self, router: &BgpRouter) -> Result<()> {
        self.bgp_stop()?;
        self.sh("router", INSTALL)?.ok()?;
        let (path, text) = bgp_config::file(router);
        self.exec_with_input("router", &["sh", "-c", &format!("cat >{path}")], &text)?.ok()?;
        self.sh("router", bgp_config::start(router.program))?.ok()?;
        let limit = Duration::from_secs(20);
        let listens = || self.sh("router", "ss -Hltn 'sport = :179' | grep -q .").is_ok_and(|o| o.success());
        if wait_until(limit, listens) {
            return Ok(());
        }
        let log = self.sh("router", "tail -n 30 /run/lab-bgp/*.log")?;
        let what = format!("router: {:?} listens", router.program);
        Err(Error::Timeout { what, seconds: limit.as_secs(), detail: log.stdout + &log.stderr })
    }

    /// Ends the router's BGP.
    pub fn bgp_stop(&self) -> Result<()> {
        self.sh("router", STOP)?.ok().map(drop)
    }

    /// The router's sessions.
    pub fn bgp_sessions(&self, program: BgpProgram) -> Result<BgpSessions> {
        bgp_read::sessions(program, &self.sh("router", bgp_read::sessions_script(program))?.ok()?.stdout)
    }

    /// The neighbours that are away and whose routes the router keeps, because they said that they would start again
    /// (RFC 4724). GoBGP is not set up to do so.
    pub fn bgp_kept(&self, program: BgpProgram) -> Result<BTreeSet<IpAddr>> {
        bgp_read::kept(program, &self.sh("router", bgp_read::kept_script(program))?.ok()?.stdout)
    }

    /// The routes that the router has heard.
    pub fn bgp_paths(&self, program: BgpProgram) -> Result<BgpPaths> {
        bgp_read::paths(program, &self.sh("router", bgp_read::paths_script(program))?.ok()?.stdout)
    }
}
