//! What the scenarios share: three nodes, a router that they talk to, a service whose endpoint is no node, and on one node
//! an FRR of the user's own.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use homelab_lab::{BgpNeighbor, BgpPath, BgpProgram, BgpRouter, BgpSessions, NodeSnapshot};
use homelab_model::LbBgp;
use homelab_tests::{Cluster, Gap, Gaps, Place, SERVER, To};
use serde_json::{Value, json};

pub(crate) const NODES: [&str; 3] = ["node1", "node2", "node3"];

/// AS numbers of the nodes and of the router.
pub(crate) const NODES_ASN: u32 = 64512;
/// See [`NODES_ASN`].
pub(crate) const ROUTER_ASN: u32 = 64513;

/// The node with an FRR of the user's own.
pub(crate) const OWN_FRR: &str = "node2";

/// The user's FRR: a route into the kernel, and a bgpd that listens.
const INSTALL_OWN: &str = r#"set -e
DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends frr
sed -i s/bgpd=no/bgpd=yes/ /etc/frr/daemons
cat >/etc/frr/frr.conf <<END
ip route 198.51.100.0/24 192.168.50.100
router bgp 65001
 bgp router-id 192.0.2.77
 neighbor 192.168.50.100 remote-as 65002
 address-family ipv4 unicast
  network 198.51.100.0/24
END
systemctl restart frr
for try in $(seq 100); do ip route show 198.51.100.0/24 | grep -q proto && exit 0; sleep 0.1; done
exit 1
"#;

/// All that matters of it: processes, files, routes, unit.
const SHOW_OWN: &str = "cat /run/frr/*.pid; sha256sum /etc/frr/*; ip route show 198.51.100.0/24; vtysh -c 'show running-config' | grep -v forwarding; \
                        systemctl is-enabled frr; systemctl is-active frr; ss -Hltnp 'sport = :179'";

pub(crate) struct Stage {
    pub(crate) gaps: Gaps,
    /// The service's addresses.
    pub(crate) web: [IpAddr; 2],
    /// The nodes before anything was applied.
    pub(crate) before: Vec<NodeSnapshot>,
    /// The user's own FRR before that.
    own: String,
    /// What the router runs.
    router: Option<BgpRouter>,
}

/// A service with an address of each family.
pub(crate) fn service(name: &str, addresses: &str, endpoints: &Value) -> Value {
    json!({
        "name": name, "type": "LoadBalancer", "ipFamilyPolicy": "PreferDualStack",
        "annotations": { "metallb.io/loadBalancerIPs": addresses },
        "ports": [
            { "name": "udp", "port": 53, "protocol": "UDP", "targetPort": SERVER },
            { "name": "tcp", "port": 80, "targetPort": SERVER },
        ],
        "endpoints": endpoints,
    })
}

/// The one that is always there.
pub(crate) fn web() -> Value {
    service("web", "192.168.60.1,fd00:60::1", &json!(["192.168.50.100", "fd00:50::100"]))
}

pub(crate) fn set(cluster: &mut Cluster) -> Stage {
    cluster.sh(OWN_FRR, INSTALL_OWN);
    let before = cluster.snapshots();
    let own = cluster.sh(OWN_FRR, SHOW_OWN);
    cluster.file.dual_stack(&cluster.lab);
    cluster.file.set(
        "loadBalancer",
        json!({
            "pools": [{ "name": "routed", "addresses": ["192.168.60.0/28", "fd00:60::/124"] }],
            "bgp": {
                "myASN": NODES_ASN,
                "peers": [
                    { "name": "router", "peerAddress": "192.168.50.1", "peerASN": ROUTER_ASN, "connectTime": "1s" },
                    { "name": "router6", "peerAddress": "fd00:50::1", "peerASN": ROUTER_ASN, "connectTime": "1s" },
                ],
            },
        }),
    );
    cluster.file.set("services", json!([web()]));
    let web = ["192.168.60.1", "fd00:60::1"].map(|text| text.parse().expect("an address"));
    // FRR comes with the first of this, from nothing.
    cluster.apply();
    let gaps = cluster.gaps(&Place::host("wan"), &web.map(|address| (address, 53)));
    Stage { gaps, web, before, own, router: None }
}

/// Asks until the answer is as it should be.
#[track_caller]
pub(crate) fn until<T: Debug>(what: &str, mut ask: impl FnMut() -> T, met: impl Fn(&T) -> bool) -> T {
    let start = Instant::now();
    loop {
        let answer = ask();
        if met(&answer) {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: {answer:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The router as a user sets it up: all nodes by both families.
pub(crate) fn router(cluster: &Cluster, program: BgpProgram) -> BgpRouter {
    let neighbors = NODES.iter().flat_map(|node| cluster.on_lan(node));
    let neighbors = neighbors.map(|address| BgpNeighbor::new(address, NODES_ASN)).collect();
    BgpRouter { program, asn: ROUTER_ASN, neighbors }
}

/// A node's own word on BGP.
pub(crate) fn report(cluster: &Cluster, node: &str) -> Option<LbBgp> {
    cluster.lb(node)?.bgp
}

impl Stage {
    /// Has the router do this from now on.
    pub(crate) fn route(&mut self, cluster: &Cluster, router: BgpRouter) {
        if self.router.as_ref() != Some(&router) {
            cluster.lab.bgp_start(&router).expect("the router speaks BGP");
            self.router = Some(router);
        }
    }

    /// Has the router be silent. One that refuses its neighbours' AS number is left alone by them for up to a minute.
    pub(crate) fn quiet(&mut self, cluster: &Cluster) {
        cluster.lab.bgp_stop().expect("the router's BGP ends");
        self.router = None;
    }

    fn program(&self) -> BgpProgram {
        self.router.as_ref().expect("the router runs").program
    }

    pub(crate) fn sessions(&self, cluster: &Cluster) -> BgpSessions {
        cluster.lab.bgp_sessions(self.program()).expect("the router answers")
    }

    /// Waits until all of the router's sessions are established.
    #[track_caller]
    pub(crate) fn all_up(&self, cluster: &Cluster) -> BgpSessions {
        until("sessions", || self.sessions(cluster), |all| all.values().all(Option::is_some))
    }

    /// The paths to a prefix that the router knows.
    pub(crate) fn paths(&self, cluster: &Cluster, prefix: &str) -> Vec<BgpPath> {
        let mut all = cluster.lab.bgp_paths(self.program()).expect("the router answers");
        all.remove(prefix).unwrap_or_default()
    }

    /// Waits until the router has exactly these nodes as next hops to a prefix.
    #[track_caller]
    pub(crate) fn told(&self, cluster: &Cluster, prefix: &str, by: &[&str]) -> Vec<BgpPath> {
        let family = usize::from(prefix.contains(':'));
        let nodes: BTreeSet<IpAddr> = by.iter().map(|node| cluster.on_lan(node)[family]).collect();
        let hops = |paths: &Vec<BgpPath>| paths.iter().map(|path| path.next_hop).collect::<BTreeSet<_>>();
        let what = format!("{prefix} is told by {by:?}");
        until(
            &what,
            || self.paths(cluster, prefix),
            |paths| hops(paths) == nodes && paths.len() == nodes.len(),
        )
    }

    /// Waits until these nodes tell both addresses of the service.
    #[track_caller]
    pub(crate) fn web_told(&self, cluster: &Cluster, by: &[&str]) {
        self.told(cluster, "192.168.60.1/32", by);
        self.told(cluster, "fd00:60::1/128", by);
    }

    /// Starts the endpoint, which ended with the scenario before, and waits until all is as at first. Gives the sessions.
    #[track_caller]
    pub(crate) fn begin(&mut self, cluster: &mut Cluster) -> BgpSessions {
        cluster.serve(&Place::host("client"));
        self.as_at_first(cluster)
    }

    /// Sessions, routes and traffic are as at first, with an ordinary router. Gives the sessions.
    #[track_caller]
    pub(crate) fn as_at_first(&mut self, cluster: &Cluster) -> BgpSessions {
        let router = router(cluster, BgpProgram::Frr);
        self.route(cluster, router);
        self.all_well(cluster)
    }

    /// The same with the router as it is.
    #[track_caller]
    pub(crate) fn all_well(&mut self, cluster: &Cluster) -> BgpSessions {
        let sessions = self.all_up(cluster);
        self.web_told(cluster, &NODES);
        self.flows();
        sessions
    }

    /// Waits until nothing is lost.
    #[track_caller]
    pub(crate) fn flows(&mut self) {
        self.gaps.since();
        let ask = || {
            std::thread::sleep(Duration::from_millis(300));
            self.gaps.since()
        };
        until("traffic", ask, |gaps| gaps.iter().all(|gap| gap.sent > 10 && gap.lost == 0));
    }

    /// Nothing was lost since the last look.
    #[track_caller]
    pub(crate) fn nobody_noticed(&mut self) {
        let gaps = self.gaps.since();
        assert!(gaps.iter().all(|gap| gap.sent > 20 && gap.lost == 0), "{gaps:?}");
    }

    /// What was lost since the last look, of one datagram each 10 ms to either address. A node has about a third of them.
    pub(crate) fn outage(&mut self) -> String {
        let lost = self.gaps.since().iter().map(|gap: &Gap| gap.lost).max().unwrap_or_default();
        format!("{lost} datagrams without an answer, a third of the traffic for about {} ms", lost * 30)
    }

    /// The router spreads connections over these nodes, and over no others: the endpoint sees the node's address.
    #[track_caller]
    pub(crate) fn spread(&self, cluster: &Cluster, over: &[&str]) {
        for (family, address) in self.web.into_iter().enumerate() {
            let nodes: BTreeSet<IpAddr> = over.iter().map(|node| cluster.on_lan(node)[family]).collect();
            let mut seen = BTreeSet::new();
            // By chance, one of three is left out in one of forty rounds.
            for _ in 0..8 {
                for answer in cluster.ask(&Place::host("wan"), "tcp", &To::new(address, 80, &["client"])) {
                    assert_eq!((answer.error.as_str(), answer.name.as_str()), ("", "client"), "{address}");
                    seen.insert(answer.peer.parse::<IpAddr>().expect("an address"));
                }
                if seen == nodes {
                    break;
                }
            }
            assert_eq!(seen, nodes, "{address}");
        }
    }

    /// The user's own FRR is as it was.
    #[track_caller]
    pub(crate) fn own_untouched(&self, cluster: &Cluster) {
        assert_eq!(cluster.sh(OWN_FRR, SHOW_OWN), self.own);
    }
}

/// Sessions with these nodes.
pub(crate) fn of(cluster: &Cluster, sessions: &BgpSessions, nodes: &[&str]) -> BgpSessions {
    let addresses: Vec<IpAddr> = nodes.iter().flat_map(|node| cluster.on_lan(node)).collect();
    sessions.iter().filter(|(address, _)| addresses.contains(address)).map(|(a, s)| (*a, s.clone())).collect()
}
