//! What Kubernetes' objects mean for the cluster network: Services with their EndpointSlices, Nodes, and MetalLB's
//! resources, as the model's types. No connection: `homelab-kube` has it.
//!
//! [`World`] keeps what an agent has seen of the API: objects go in as they come, services as the proxy wants them come
//! out, only those that changed.

pub mod conditions;
pub mod controller;
pub mod events;
mod kept;
pub mod lease;
pub mod metallb;
mod node;
pub mod peers;
mod service;
mod slice;
mod world;

pub use kept::{Batch, HEADER, SnapshotError};
pub use node::{Flannel, FlannelVtep, KubeNode, node};
pub use service::{KubeService, service};
pub use slice::{KubeSlice, SLICES, slice};
pub use world::{Kind, Name, World};

use std::net::{IpAddr, Ipv4Addr};

/// The label that another proxy's services have, and their slices.
pub const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The label of headless services, and of their slices: no proxy serves what has it.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// An address as Kubernetes reads it: leading zeros mean nothing, and IPv4 in IPv6 form is IPv4 (`ParseIPSloppy` of
/// k8s.io/utils/net).
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => Some(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)),
        Ok(v4) => Some(v4),
        Err(_) => {
            if !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
                return None;
            }
            let octets: Vec<u8> =
                text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u8>>>()?;
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into())
        }
    }
}
