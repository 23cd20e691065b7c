//! STATUS: whether pods can be attached, and reach what they should.

use homelab_cni::ipam::{self, Claim, Entry, Pool, Reservation};
use homelab_cni::{Base, CniError, Code, Network};
use homelab_linux::pod::PodSocket;
use homelab_linux::{Kinds, Node, Root};
use homelab_model::{Module, NodeObject, Object, Scope, Spec, diff, ours};

use super::attach::{kernel, links};
use super::bridge;
use super::store::Store;

/// How many things are named that are missing.
const NAMED: usize = 4;

/// STATUS. Where the agent keeps this network, what is missing of the tunnel counts first: pods that are there suffer too.
pub(crate) fn status(base: &Base, network: &Network) -> Result<(), CniError> {
    let unavailable =
        |error: CniError| CniError::with(Code::Unavailable, "no pod can be attached now", error);
    kept(base)?;
    let mut host = PodSocket::open().map_err(kernel)?;
    if let Some(link) = host.link(&network.bridge).map_err(kernel)? {
        bridge::own(&mut host, link).map_err(unavailable)?;
    }
    let entries = Store::of(base)?.entries()?;
    // Entries whose pods are gone do not count: ADD would free them.
    let links = links(&mut host)?;
    let mut held: Vec<Entry> = entries.into_iter().filter(|entry| links.contains(&entry.owner)).collect();
    held.extend(super::store::held_by_others(&network.ranges, || Ok(links))?);
    let pool = Pool { ranges: &network.ranges, exclude: &network.exclude };
    match ipam::reserve(pool, &held, None, Claim::default())? {
        Reservation::Full => Err(unavailable(ipam::exhausted(&network.ranges, held.len()))),
        _ => Ok(()),
    }
}

/// Whether the agent is at work and the tunnel to the peers stands, where a cluster's network is asked for. Nothing is sent
/// to the peers: that another node is down makes this one no less ready.
fn kept(base: &Base) -> Result<(), CniError> {
    let look = |error: homelab_linux::Error| CniError::with(Code::Io, "the node cannot be looked at", error);
    let root = Root::system();
    let mut node = Node::open(root.clone()).map_err(look)?;
    let Some(spec) = node.spec().filter(|spec| spec.cluster == base.name) else { return Ok(()) };
    let of_tunnel = |object: &NodeObject| {
        let in_links = matches!(
            object.spec,
            Spec::Link(_) | Spec::Address(_) | Spec::Fdb(_) | Spec::Neighbour(_) | Spec::Route(_)
        );
        object.module == Module::Vtep && in_links
    };
    let desired: Vec<NodeObject> = homelab_desired::foundation(&spec).into_iter().filter(of_tunnel).collect();
    let kinds = Kinds { links: true, ..Kinds::NONE };
    let observed = node.observe_objects(&Scope::of(&desired, &spec.vtep.device), kinds).map_err(look)?;
    let changes = diff(&observed, &desired);
    let missing: Vec<String> =
        changes.iter().filter_map(|change| Some(change.after()?.key().to_string())).collect();
    if let Some(named) = missing.get(..missing.len().min(NAMED)).filter(|named| !named.is_empty()) {
        let more = if missing.len() > NAMED {
            format!(" and {} more", missing.len() - NAMED)
        } else {
            String::new()
        };
        return Err(CniError::with(
            Code::Limited,
            "the tunnel to the other nodes is not as it should be",
            format!("{}{more}", named.join(", ")),
        ));
    }
    if !homelab_linux::agent_runs(&root) {
        return Err(CniError::with(
            Code::Unavailable,
            "homelab's agent does not run",
            format!("systemctl status {}", ours::UNIT),
        ));
    }
    Ok(())
}
