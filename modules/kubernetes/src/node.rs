//! `v1 Node`: what the tunnel and the speaker want of it.

use std::net::IpAddr;

use homelab_model::{LABEL_ZONE, Labels};
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};

use crate::address;

/// The taint of a Node that cluster-autoscaler is about to delete (kube-proxy's `pkg/proxy/healthcheck`).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// A Node of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeNode {
    /// Addresses of type InternalIP, in order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`; empty where the controller manager allocates none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<IpNet>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Condition Ready; None: nobody says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// Condition NetworkUnavailable is true: MetalLB announces nothing there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub network_unavailable: bool,
    /// It is being deleted, or cluster-autoscaler is about to: load balancers are to leave it out (KEP-3836).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// `spec.unschedulable`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unschedulable: bool,
    /// What flannel says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flannel: Option<Flannel>,
}

impl KubeNode {
    /// The zone that it is in.
    pub fn zone(&self) -> Option<&str> {
        self.labels.get(LABEL_ZONE).map(String::as_str)
    }
}

/// What flannel's annotations say of a node (flannel's pkg/subnet/kube/annotations.go and pkg/backend/vxlan). Homelab writes
/// them, too, while others read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flannel {
    /// `backend-type`: `vxlan`, `host-gw`, `wireguard`.
    pub backend: String,
    /// Its tunnel over IPv4, `flannel.1`, which carries IPv4: `public-ip` and `backend-data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<FlannelVtep>,
    /// Its tunnel over IPv6, `flannel-v6.1`, which carries IPv6: `public-ipv6` and `backend-v6-data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<FlannelVtep>,
}

/// An end of flannel's tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlannelVtep {
    /// Where it listens.
    pub public_ip: IpAddr,
    /// VXLAN network identifier.
    pub vni: u32,
    /// MAC address, lower-case.
    pub mac: String,
}

impl Flannel {
    /// Its tunnel over IPv4 or IPv6.
    pub fn over(&self, v4: bool) -> Option<&FlannelVtep> {
        if v4 { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

/// Reads a Node. Heartbeats change nothing of what is read.
pub fn node(object: &core::Node) -> KubeNode {
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    let listed = spec.and_then(|spec| spec.pod_cidrs.as_ref()).into_iter().flatten();
    let mut pod_cidrs: Vec<IpNet> = listed.filter_map(|text| text.parse().ok()).collect();
    if pod_cidrs.is_empty() {
        pod_cidrs
            .extend(spec.and_then(|spec| spec.pod_cidr.as_ref()).and_then(|text| text.parse::<IpNet>().ok()));
    }
    let internal = |item: &&core::NodeAddress| item.type_ == "InternalIP";
    let addresses = status.and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    let condition = |kind: &str| {
        let all = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        all.clone().find(|condition| condition.type_ == kind).map(|condition| condition.status == "True")
    };
    let mut taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    KubeNode {
        addresses: addresses.filter(internal).filter_map(|item| address(&item.address)).collect(),
        pod_cidrs,
        labels: object.metadata.labels.clone().unwrap_or_default(),
        ready: condition("Ready"),
        network_unavailable: condition("NetworkUnavailable") == Some(true),
        leaving: object.metadata.deletion_timestamp.is_some()
            || taints.any(|taint| taint.key == TO_BE_DELETED),
        unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
        flannel: flannel(object),
    }
}

fn flannel(object: &core::Node) -> Option<Flannel> {
    let annotations = object.metadata.annotations.as_ref()?;
    let get = |name: &str| annotations.get(&format!("{FLANNEL}{name}")).map(String::as_str);
    // Without this word flannel does not look at the others, either.
    if get("kube-subnet-manager")? != "true" {
        return None;
    }
    let vtep = |address_key: &str, overwrite: &str, data: &str, v4: bool| {
        // Flannel itself copies what `-overwrite` says to where its peers read.
        let public_ip = get(address_key).or_else(|| get(overwrite)).and_then(address)?;
        let data: FlannelData = serde_json::from_str(get(data)?).ok()?;
        let vtep = FlannelVtep { public_ip, vni: data.vni, mac: data.mac.to_lowercase() };
        Some(vtep).filter(|vtep| vtep.public_ip.is_ipv4() == v4)
    };
    Some(Flannel {
        backend: get("backend-type")?.to_owned(),
        v4: vtep("public-ip", "public-ip-overwrite", "backend-data", true),
        v6: vtep("public-ipv6", "public-ipv6-overwrite", "backend-v6-data", false),
    })
}

/// Prefix of flannel's annotations, unless it was told otherwise.
pub(crate) const FLANNEL: &str = "flannel.alpha.coreos.com/";

/// `backend-data` and `backend-v6-data` of the backend vxlan.
#[derive(Serialize, Deserialize)]
pub(crate) struct FlannelData {
    #[serde(rename = "VNI")]
    pub(crate) vni: u32,
    #[serde(rename = "VtepMAC")]
    pub(crate) mac: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_that_is_about_to_go_is_known_by_its_taint_or_its_deletion() {
        let leaving = |value: serde_json::Value| node(&serde_json::from_value(value).unwrap()).leaving;
        let taints = |key: &str| json!({ "spec": { "taints": [{ "key": key, "effect": "NoSchedule" }] } });
        assert!(leaving(taints("ToBeDeletedByClusterAutoscaler")));
        assert!(!leaving(taints("node.kubernetes.io/not-ready")));
        assert!(leaving(json!({ "metadata": { "deletionTimestamp": "2027-01-15T08:00:00Z" } })));
        assert!(!leaving(json!({})));
    }
}
