//! The pure core of homelab: addresses, the cluster, node objects, diff and plan.
//!
//! Nothing here has an effect or reads a clock. A module describes what a node should hold as keyed
//! [`Object`]s; [`diff`] turns what a node holds and what it should hold into [`Change`]s; a plan is those
//! changes as data, and apply, verify, destroy, drift repair and rollback all consume that same data.

mod adoption;
mod alloc;
pub mod api_object;
mod assign;
mod bgp;
mod cluster;
mod containers;
mod declared;
mod keys;
pub mod kubernetes;
mod lb;
mod lb_report;
mod mac;
mod node;
mod object;
mod observed;
pub mod ours;
mod plan;
mod pod_marks;
mod report;
mod secrets;
pub mod service;
mod slices;
mod spec;
mod transaction;

pub use adoption::{HeldAddress, adoption_notes};
pub use alloc::{AllocError, Memory, allocate, subnet_at};
pub use api_object::{
    ApiChange, ApiEndpoint, ApiError, ApiKey, ApiKind, ApiNode, ApiObject, ApiService, ApiState, plan_api,
    planned,
};
pub use assign::{
    Assigned, BalanceNote, BalanceTrouble, Balanced, Ranges, Refusal, assign, balance_addresses,
};
pub use bgp::{BfdProfile, BgpAdvertisement, BgpCommunity, BgpPeer, BgpSpec, LbBgp, LbRoute, LbSession};
pub use cluster::{
    AgentSettings, BgpSettings, Cluster, LoadBalancer, Mtu, Network, Node, Pool, PoolRange,
    ServiceAllocation, SshSettings, Vxlan,
};
pub use containers::{
    Absence, ContainerName, ContainerWord, KnownContainer, KnownContainers, ServiceContainer, found,
    without_containers,
};
pub use declared::{ContainerEndpoint, Declared, Family, Request};
pub use keys::{KeyError, KeyRing, generation_of};
pub use kubernetes::{KubernetesAccess, KubernetesSettings, KubernetesSpec, NodesFrom, Token, TokenError};
pub use lb::{
    L2Advertisement, LABEL_EXCLUDE, LABEL_HOSTNAME, LABEL_ZONE, Labels, Operator, PreferredNode, Requirement,
    Selector, SpeakerNode, SpeakerSpec, effective_labels,
};
pub use lb_report::{
    LbAddress, LbInterface, LbMember, LbNode, LbReport, LbStanding, LbState, LbUnfit, LbWhere, Scanned,
};
pub use mac::stable_mac;
pub use node::{
    Address, Binary, Content, Fdb, File, Hook, Key, Link, LinkKind, Module, Neighbour, NftChain, NftTable,
    NodeObject, Package, Route, ServiceElements, Spec, Symlink, Sysctl, Unit,
};
pub use object::{Backend, Change, Impact, Object, diff, invert};
pub use observed::{
    AddressFact, AgentFact, AttachmentFact, Balancer, CniRuntime, Facts, ForwardDrop, FrrFact,
    KubernetesFact, LinkFact, Observed, Problem, Rival, RouteFact, Scope, conflicts,
};
pub use plan::{Action, NodePlan, PlannedChange, Summary, plan_node};
pub use pod_marks::{ALIAS_MAX, OwnAddresses, PodMarks};
pub use report::{
    AbsentContainer, EndpointReport, FrontendKind, FrontendReport, FrontendState, ServiceReport, ToldPort,
    ToldService, TraceEndpoint, TraceOutcome, TracePacket, TraceReport, TraceStep,
};
pub use secrets::{PasswordFile, PasswordFileError, Passwords, secret_summary};
pub use slices::{EndpointGroup, GroupPort, join_endpoints};
pub use spec::{LivePeers, NodeSpec, PeerSpec, PodOptions, ProxySpec, VtepSpec};
pub use transaction::{Confirmed, History, Holder, OpenTransaction, Phase, Previous, Reverted};

/// SHA-256 as lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    sha256_hex_of([bytes])
}

/// The same of pieces one after the other.
pub fn sha256_hex_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
    use sha2::{Digest, Sha256};
    let mut digest = Sha256::new();
    pieces.into_iter().for_each(|piece| digest.update(piece));
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
