//! The messages of `runtime.v1` that we need, with the fields that we need
//! (<https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto>). Others are passed over.

use std::collections::HashMap;

/// `PodSandboxMetadata`: what makes a sandbox one of a kind.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Metadata {
    /// Name of the pod.
    #[prost(string, tag = "1")]
    pub name: String,
    /// UID of the pod.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Namespace of the pod.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// How often a sandbox of this pod was made before.
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// `PortMapping`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PortMapping {
    /// 0 TCP, 1 UDP, 2 SCTP.
    #[prost(int32, tag = "1")]
    pub protocol: i32,
    /// Port in the pod.
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    /// Port of the node.
    #[prost(int32, tag = "3")]
    pub host_port: i32,
    /// Address of the node; empty: any.
    #[prost(string, tag = "4")]
    pub host_ip: String,
}

/// `LinuxPodSandboxConfig`, of which nothing is set.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Linux {}

/// `PodSandboxConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Config {
    /// Who it is.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Metadata>,
    /// Host name inside.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// Directory of the containers' logs.
    #[prost(string, tag = "3")]
    pub log_directory: String,
    /// Ports of the node.
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
    /// For queries.
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
    /// The pod's.
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    /// containerd takes no sandbox without.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<Linux>,
}

/// `PodSandbox`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Listed {
    /// Container id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Who it is.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<Metadata>,
    /// 0 ready, 1 not ready.
    #[prost(int32, tag = "3")]
    pub state: i32,
}

/// `PodIP`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PodIp {
    /// The address.
    #[prost(string, tag = "1")]
    pub ip: String,
}

/// `PodSandboxNetworkStatus`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NetworkStatus {
    /// First address.
    #[prost(string, tag = "1")]
    pub ip: String,
    /// Further ones.
    #[prost(message, repeated, tag = "2")]
    pub additional_ips: Vec<PodIp>,
}

/// `PodSandboxStatus`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Status {
    /// Container id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// 0 ready, 1 not ready.
    #[prost(int32, tag = "3")]
    pub state: i32,
    /// Its addresses.
    #[prost(message, optional, tag = "5")]
    pub network: Option<NetworkStatus>,
}

/// `PodSandboxStatusResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StatusResponse {
    /// The status.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// What the runtime says beyond it, `info` as JSON.
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

/// A request or answer without fields that we need.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Nothing {}

/// `ListPodSandboxResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct List {
    #[prost(message, repeated, tag = "1")]
    pub(crate) items: Vec<Listed>,
}

/// `RunPodSandboxRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Run {
    #[prost(message, optional, tag = "1")]
    pub(crate) config: Option<Config>,
}

/// `StopPodSandboxRequest`, `RemovePodSandboxRequest`, `PodSandboxStatusRequest` (which alone has the second field) and
/// `RunPodSandboxResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Id {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(bool, tag = "2")]
    pub(crate) verbose: bool,
}
