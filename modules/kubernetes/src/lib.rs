//! What Kubernetes' objects mean for the cluster network: Services with their EndpointSlices, Nodes, and MetalLB's
//! resources, as the model's types. No connection: `homelab-kube` has it.
