//! FRR for BGP: its package, where the node has none of its own, and a unit for each daemon. What they are to do is not
//! here: the agent tells them while they run.

use homelab_model::{BgpPeer, Content, File, NodeObject, NodeSpec, Package, Spec, Unit, ours, sha256_hex};
use minijinja::{Environment, context};

use crate::{ROOT, of_agent};

/// A daemon of FRR as a unit.
struct Daemon {
    unit: &'static str,
    what: &'static str,
    program: &'static str,
    arguments: &'static str,
    /// A file for it alone, in systemd's words; empty: none.
    credential: &'static str,
    capabilities: &'static str,
    /// Its capabilities count for nothing outside.
    private: bool,
}

/// Tells bgpd of interfaces and next hops, and carries messages between it and bfdd. Left alone it would sweep routes of
/// its protocols from the kernel, those of the user's own FRR among them.
const ZEBRA: Daemon = Daemon {
    unit: ours::BGP_ZEBRA_UNIT,
    what: "FRR's zebra, which tells bgpd of interfaces and changes nothing",
    program: "/usr/lib/frr/zebra",
    // What the kernel refuses it says as errors, and that is as it shall be.
    arguments: "-P 0 -f ${CREDENTIALS_DIRECTORY}/zebra.conf --log stdout --log-level emerg",
    // A router may be behind the default route, as those of `ebgpMultiHop` are at home. Else bgpd waits for a next hop.
    credential: r"zebra.conf:ip nht resolve-via-default\nipv6 nht resolve-via-default\n",
    capabilities: "CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN",
    private: true,
};

const BFDD: Daemon = Daemon {
    unit: ours::BGP_BFD_UNIT,
    what: "FRR's bfdd, which watches the routers of BGP sessions",
    program: "/usr/lib/frr/bfdd",
    arguments: "-P 0 --log stdout --log-level notice",
    credential: "",
    capabilities: "CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_SYS_ADMIN",
    private: false,
};

const BGPD: Daemon = Daemon {
    unit: ours::BGP_UNIT,
    what: "FRR's bgpd, which tells routers of load-balancer addresses",
    program: "/usr/lib/frr/bgpd",
    // It connects and does not listen; no route of a router goes to the kernel.
    arguments: "-P 0 -p 0 -n --log stdout --log-level informational",
    credential: "",
    capabilities: "CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_NET_ADMIN CAP_SYS_ADMIN",
    private: false,
};

/// The routers that the node has sessions with.
pub fn peers(spec: &NodeSpec) -> Vec<&BgpPeer> {
    spec.speaker.as_ref().map(|s| homelab_speaker::bgp::peers_of(s, &spec.node)).unwrap_or_default()
}

/// Package and units of a node that has sessions; of others nothing.
pub(crate) fn objects(spec: &NodeSpec) -> Vec<NodeObject> {
    let peers = peers(spec);
    let package = |name: &String| of_agent(Spec::Package(Package { name: name.clone() }));
    let mut objects: Vec<NodeObject> = spec.packages.iter().map(package).collect();
    if peers.is_empty() {
        return objects;
    }
    let bfd = peers.iter().any(|peer| peer.bfd_profile.is_some());
    let mut daemon = |daemon: &Daemon, after: &[&'static str]| {
        let (text, digest) = unit_file(daemon, after);
        objects.push(of_agent(Spec::File(File {
            path: ours::unit_file(daemon.unit),
            mode: 0o644,
            owner: ROOT.to_owned(),
            content: Content::Text(text),
        })));
        objects.push(of_agent(Spec::Unit(Unit {
            name: daemon.unit.to_owned(),
            enabled: true,
            state: "active".to_owned(),
            reload_needed: false,
            running: daemon.program.to_owned(),
            config: digest,
        })));
    };
    daemon(&ZEBRA, &[]);
    if bfd {
        daemon(&BFDD, &[ZEBRA.unit]);
        daemon(&BGPD, &[ZEBRA.unit, BFDD.unit]);
    } else {
        daemon(&BGPD, &[ZEBRA.unit]);
    }
    objects
}

/// A unit file, and the digest by which it knows itself.
fn unit_file(daemon: &Daemon, after: &[&'static str]) -> (String, String) {
    let text = |digest: &str| {
        let text = Environment::new().render_str(
            include_str!("../templates/homelab-bgp.service"),
            context! {
                header => ours::FILE_HEADER,
                what => daemon.what,
                program => daemon.program,
                arguments => daemon.arguments,
                credential => daemon.credential,
                capabilities => daemon.capabilities,
                private => daemon.private,
                after => after.to_vec(),
                pathspace => ours::FRR_PATHSPACE,
                variable => ours::UNIT_DIGEST,
                digest => digest,
            },
        );
        crate::tidy(text)
    };
    let digest = sha256_hex(text("").as_bytes());
    (text(&digest), digest)
}
