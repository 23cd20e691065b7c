//! What Kubernetes' objects mean for the cluster network: Services with their EndpointSlices, Nodes, and MetalLB's
//! resources, as the model's types. No connection: `homelab-kube` has it.

pub mod conditions;
pub mod controller;
pub mod events;
pub mod lease;
pub mod metallb;
