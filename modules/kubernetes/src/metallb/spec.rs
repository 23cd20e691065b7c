//! The resources themselves, as far as they are used: field by field as MetalLB's API types have them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Note;

/// All resources of a cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// IPAddressPool.
    pub pools: Vec<Resource<IpAddressPoolSpec>>,
    /// L2Advertisement.
    pub l2_advertisements: Vec<Resource<L2AdvertisementSpec>>,
    /// BGPAdvertisement.
    pub bgp_advertisements: Vec<Resource<BgpAdvertisementSpec>>,
    /// BGPPeer.
    pub bgp_peers: Vec<Resource<BgpPeerSpec>>,
    /// BFDProfile.
    pub bfd_profiles: Vec<Resource<BfdProfileSpec>>,
    /// Community.
    pub communities: Vec<Resource<CommunitySpec>>,
}

/// One resource. Fields that are not known here are left out.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Resource<S> {
    /// `metadata`.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// `spec`.
    #[serde(default)]
    pub spec: S,
}

impl<S> Resource<S> {
    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
}

impl Resources {
    /// The names of the resources in paths, with their versions: `/apis/metallb.io/VERSION/PLURAL`.
    pub const KINDS: [(&str, &str); 6] = [
        ("v1beta1", "ipaddresspools"),
        ("v1beta1", "l2advertisements"),
        ("v1beta1", "bgpadvertisements"),
        ("v1beta2", "bgppeers"),
        ("v1beta1", "bfdprofiles"),
        ("v1beta1", "communities"),
    ];

    /// Whether the labels of namespaces matter.
    pub fn wants_namespaces(&self) -> bool {
        let by_label = |to: &ServiceAllocationSpec| !to.namespace_selectors.is_empty();
        self.pools.iter().any(|pool| pool.spec.service_allocation.as_ref().is_some_and(by_label))
    }

    /// Adds an object of a list, by the plural of its kind. One that is not as its kind says is left out, and told.
    pub fn add(&mut self, plural: &str, object: Value) -> Option<Note> {
        fn into<S: DeserializeOwned + Default>(
            list: &mut Vec<Resource<S>>,
            plural: &str,
            object: Value,
        ) -> Option<Note> {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            match serde_json::from_value(object) {
                Ok(resource) => {
                    list.push(resource);
                    None
                }
                Err(error) => Some(Note::new(plural, &name, format!("it cannot be understood: {error}"))),
            }
        }
        match plural {
            "ipaddresspools" => into(&mut self.pools, plural, object),
            "l2advertisements" => into(&mut self.l2_advertisements, plural, object),
            "bgpadvertisements" => into(&mut self.bgp_advertisements, plural, object),
            "bgppeers" => into(&mut self.bgp_peers, plural, object),
            "bfdprofiles" => into(&mut self.bfd_profiles, plural, object),
            "communities" => into(&mut self.communities, plural, object),
            _ => None,
        }
    }
}

/// IPAddressPool.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpAddressPoolSpec {
    /// Prefixes, and ranges `first-last`.
    pub addresses: Vec<String>,
    /// None: true.
    pub auto_assign: Option<bool>,
    /// Leaves out .0 and .255.
    #[serde(rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
    /// Services that it is for.
    pub service_allocation: Option<ServiceAllocationSpec>,
}

/// `serviceAllocation` of a pool.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAllocationSpec {
    /// The lowest is asked first; 0 comes last.
    pub priority: u32,
    /// Namespaces.
    pub namespaces: Vec<String>,
    /// Namespaces by their labels.
    pub namespace_selectors: Vec<LabelSelector>,
    /// Services by their labels.
    pub service_selectors: Vec<LabelSelector>,
}

/// L2Advertisement.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L2AdvertisementSpec {
    /// Pools.
    pub ip_address_pools: Vec<String>,
    /// Pools by their labels.
    pub ip_address_pool_selectors: Vec<LabelSelector>,
    /// Nodes.
    pub node_selectors: Vec<LabelSelector>,
    /// Services.
    pub service_selectors: Vec<LabelSelector>,
    /// Interfaces.
    pub interfaces: Vec<String>,
}

/// BGPAdvertisement.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpAdvertisementSpec {
    /// None: 32.
    pub aggregation_length: Option<u8>,
    /// None: 128.
    #[serde(rename = "aggregationLengthV6")]
    pub aggregation_length_v6: Option<u8>,
    /// 0: none.
    pub local_pref: u32,
    /// Numbers, or names of Community resources.
    pub communities: Vec<String>,
    /// Pools.
    pub ip_address_pools: Vec<String>,
    /// Pools by their labels.
    pub ip_address_pool_selectors: Vec<LabelSelector>,
    /// Nodes.
    pub node_selectors: Vec<LabelSelector>,
    /// Services.
    pub service_selectors: Vec<LabelSelector>,
    /// Peers by name.
    pub peers: Vec<String>,
}

/// BGPPeer of v1beta2.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpPeerSpec {
    /// The nodes' number.
    #[serde(rename = "myASN")]
    pub my_asn: u32,
    /// The router's number.
    #[serde(rename = "peerASN")]
    pub peer_asn: u32,
    /// `internal` or `external` in place of a number.
    #[serde(rename = "dynamicASN")]
    pub dynamic_asn: String,
    /// The router.
    pub peer_address: String,
    /// An interface in place of an address.
    pub interface: String,
    /// Address of the node.
    pub source_address: String,
    /// TCP port; 0: 179.
    pub peer_port: u16,
    /// A duration of Go: `90s`.
    pub hold_time: Option<String>,
    /// The same.
    pub keepalive_time: Option<String>,
    /// The same.
    pub connect_time: Option<String>,
    /// BGP identifier.
    #[serde(rename = "routerID")]
    pub router_id: String,
    /// Nodes.
    pub node_selectors: Vec<LabelSelector>,
    /// Whether a password is written in clear. Its text is not read.
    #[serde(rename = "password", deserialize_with = "there", default)]
    pub has_password: bool,
    /// Whether a Secret holds the password.
    #[serde(rename = "passwordSecret", deserialize_with = "there", default)]
    pub has_secret: bool,
    /// BFDProfile.
    pub bfd_profile: String,
    /// RFC 4724.
    pub enable_graceful_restart: bool,
    /// More than one hop away.
    pub ebgp_multi_hop: bool,
    /// VRF of the node.
    pub vrf: String,
}

/// Whether there is a value that is not empty.
fn there<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Object(map) => map.get("name").is_some_and(|name| name != ""),
        _ => true,
    })
}

/// BFDProfile.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BfdProfileSpec {
    /// Milliseconds; None: 300.
    pub receive_interval: Option<u32>,
    /// Milliseconds; None: 300.
    pub transmit_interval: Option<u32>,
    /// None: 3.
    pub detect_multiplier: Option<u8>,
    /// Milliseconds; None: 50.
    pub echo_interval: Option<u32>,
    /// Echo packets are sent.
    pub echo_mode: Option<bool>,
    /// The node does not begin.
    pub passive_mode: Option<bool>,
    /// None: 254.
    pub minimum_ttl: Option<u8>,
}

/// Community.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CommunitySpec {
    /// Names and numbers.
    pub communities: Vec<CommunityValue>,
}

/// A name for a community.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CommunityValue {
    /// Name.
    pub name: String,
    /// `64512:100`, or `large:64512:1:2`.
    pub value: String,
}
