//! Traffic policies, session affinity, and keys that only some types of services have.

use homelab_model::service::{Affinity, Policy, Protocol, Type};

use super::{Taken, ports, type_name};
use crate::check::node_ports::NodePorts;
use crate::problem::Fault;
use crate::raw;
use crate::spanned::Spanned;

/// How traffic is to be handled.
pub(super) struct Policies {
    pub(super) external: Policy,
    pub(super) internal: Policy,
    pub(super) affinity: Affinity,
    /// Seconds.
    pub(super) timeout: u32,
}

/// Default of `timeoutSeconds`: three hours.
const TIMEOUT: u32 = 10800;

pub(super) fn policies(raw: &raw::Service, r#type: Type, faults: &mut Vec<Fault>) -> Policies {
    let outside = r#type != Type::ClusterIp || raw.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    if let Some(policy) = raw.external_traffic_policy.as_ref().filter(|_| !outside) {
        faults.push(
            Fault::new("service-type", policy.span, "a ClusterIP service has no traffic from outside")
                .help("write `type: NodePort` or `type: LoadBalancer`, or take `externalTrafficPolicy` away"),
        );
    }
    let policy = |text: Option<&Spanned<String>>| match text.map(|t| t.value.as_str()) {
        Some("Local") => Policy::Local,
        _ => Policy::Cluster,
    };
    let affinity = match raw.session_affinity.as_ref().map(|a| a.value.as_str()) {
        Some("ClientIP") => Affinity::ClientIp,
        _ => Affinity::None,
    };
    let config = raw.session_affinity_config.as_ref();
    if let Some(config) = config.filter(|_| affinity == Affinity::None) {
        faults.push(
            Fault::new("session-affinity", config.span, "there is no session affinity to configure")
                .help("write `sessionAffinity: ClientIP`, or take `sessionAffinityConfig` away"),
        );
    }
    let client = config.and_then(|c| c.value.client_ip.as_ref());
    Policies {
        external: policy(raw.external_traffic_policy.as_ref()),
        internal: policy(raw.internal_traffic_policy.as_ref()),
        affinity,
        timeout: client.and_then(|c| c.timeout_seconds.as_ref()).map_or(TIMEOUT, |t| t.value),
    }
}

/// `healthCheckNodePort`.
pub(super) fn health_check(
    raw: &raw::Service,
    r#type: Type,
    external: Policy,
    range: &NodePorts,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) -> Option<u16> {
    let number = raw.health_check_node_port.as_ref()?;
    if r#type != Type::LoadBalancer || external != Policy::Local {
        let message = "only a LoadBalancer service with `externalTrafficPolicy: Local` has a health check";
        faults.push(
            Fault::new("service-type", number.span, message)
                .help("take `healthCheckNodePort` away, or set the type and the policy"),
        );
        return None;
    }
    ports::claim(number, Protocol::Tcp, "healthCheckNodePort", range, taken, faults)
}

/// Whether its ports are to have node ports.
pub(super) fn allocate_node_ports(raw: &raw::Service, r#type: Type, faults: &mut Vec<Fault>) -> bool {
    let written = raw.allocate_load_balancer_node_ports.as_ref();
    if let Some(written) = written.filter(|_| r#type != Type::LoadBalancer) {
        let message =
            format!("`allocateLoadBalancerNodePorts` means nothing for a {} service", type_name(r#type));
        faults.push(
            Fault::new("service-type", written.span, message)
                .help("write `type: LoadBalancer`, or take it away"),
        );
    }
    match r#type {
        Type::ClusterIp => false,
        Type::NodePort => true,
        Type::LoadBalancer => written.is_none_or(|w| w.value),
    }
}
