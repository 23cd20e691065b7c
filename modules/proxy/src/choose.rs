//! Which endpoints of a service take its packets on one node: readiness, topology, termination.

use homelab_model::service::Endpoint;

/// Where the deciding node is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Node name.
    pub node: &'a str,
    /// Zone, if it is in one.
    pub zone: Option<&'a str>,
}

impl Place<'_> {
    fn holds(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_deref() == Some(self.node)
    }
}

/// The endpoints for each policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen<'a> {
    /// For policy Cluster.
    pub cluster: Vec<&'a Endpoint>,
    /// For policy Local.
    pub local: Vec<&'a Endpoint>,
    /// Whether there is any on any node: without, packets are rejected; with, a Local policy drops them.
    pub any: bool,
}

/// Chooses among the endpoints of one port and one family, as `CategorizeEndpoints` of kube-proxy's
/// pkg/proxy/topology.go does.
///
/// While no endpoint is ready, those that terminate and still serve take over (KEP-1669), for each policy on its own.
/// Hints (KEP-2433, KEP-4444) count for policy Cluster alone, and only when every ready endpoint carries them and one
/// of them names this node or its zone.
pub fn choose<'a>(endpoints: &[&'a Endpoint], place: Place<'_>) -> Chosen<'a> {
    let ready: Vec<&Endpoint> = endpoints.iter().copied().filter(|e| e.ready).collect();
    let leaving: Vec<&Endpoint> =
        endpoints.iter().copied().filter(|e| !e.ready && e.serving && e.terminating).collect();
    let near = hinted(&ready, place);
    let local = |among: &[&'a Endpoint]| -> Vec<&'a Endpoint> {
        among.iter().copied().filter(|e| place.holds(e)).collect()
    };
    let mut chosen =
        Chosen { cluster: near, local: local(&ready), any: !ready.is_empty() || !leaving.is_empty() };
    if chosen.local.is_empty() {
        chosen.local = local(&leaving);
    }
    if chosen.cluster.is_empty() {
        chosen.cluster = leaving;
    }
    chosen
}

fn hinted<'a>(ready: &[&'a Endpoint], place: Place<'_>) -> Vec<&'a Endpoint> {
    let by = |all: bool, names: &dyn Fn(&Endpoint) -> bool| -> Option<Vec<&'a Endpoint>> {
        let near: Vec<&Endpoint> = ready.iter().copied().filter(|e| names(e)).collect();
        (all && !near.is_empty()).then_some(near)
    };
    let all_nodes = ready.iter().all(|e| !e.for_nodes.is_empty());
    let all_zones = ready.iter().all(|e| !e.for_zones.is_empty());
    by(all_nodes, &|e| e.for_nodes.iter().any(|node| node == place.node))
        .or_else(|| by(all_zones, &|e| e.for_zones.iter().any(|zone| Some(zone.as_str()) == place.zone)))
        .unwrap_or_else(|| ready.to_vec())
}
