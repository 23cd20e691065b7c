//! Routers and what they are told, as it is written: names are those of MetalLB's resources (`metallb.io/v1beta2` BGPPeer,
//! `v1beta1` BGPAdvertisement, BFDProfile and Community).

use schemars::JsonSchema;
use serde::Deserialize;

use super::balancer::Selector;
use super::{Community, CommunityName, Duration, Filled, Ip, Label};
use crate::spanned::Spanned;

/// Routers that are told of the addresses.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Bgp {
    /// AS number of the nodes.
    #[serde(rename = "myASN")]
    #[schemars(required, range(min = 1, max = 4294967294_u32), extend("examples" = [64512]))]
    pub(crate) my_asn: Option<Spanned<u32>>,
    /// The routers.
    #[schemars(required, with = "Vec<BgpPeer>", length(min = 1, max = 100))]
    pub(crate) peers: Option<Vec<Spanned<BgpPeer>>>,
    /// Which addresses are told to which routers, and how. Default: those of all pools, by all nodes, to all routers.
    #[schemars(with = "Option<Vec<BgpAdvertisement>>", length(max = 100))]
    pub(crate) advertisements: Option<Vec<Spanned<BgpAdvertisement>>>,
    /// How sessions are watched by BFD, for `bfdProfile` of a router.
    #[schemars(with = "Option<Vec<BfdProfile>>", length(max = 100))]
    pub(crate) bfd_profiles: Option<Vec<Spanned<BfdProfile>>>,
    /// Names for communities, for `communities` of an advertisement.
    #[schemars(with = "Option<Vec<NamedCommunity>>", length(max = 1000))]
    pub(crate) communities: Option<Vec<Spanned<NamedCommunity>>>,
}

/// A router.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct BgpPeer {
    /// Name of the router.
    #[schemars(required, with = "Label", extend("examples" = ["router"]))]
    pub(crate) name: Option<Spanned<String>>,
    /// Its address. It is told of addresses of the same family.
    #[schemars(required, with = "Ip", extend("examples" = ["192.168.50.1"]))]
    pub(crate) peer_address: Option<Spanned<String>>,
    /// Its AS number; the same as `myASN` for iBGP.
    #[serde(rename = "peerASN")]
    #[schemars(required, range(min = 1, max = 4294967294_u32), extend("examples" = [64513]))]
    pub(crate) peer_asn: Option<Spanned<u32>>,
    /// Its TCP port.
    #[schemars(range(min = 1, max = 65535), extend("default" = 179))]
    pub(crate) peer_port: Option<Spanned<u16>>,
    /// Address that the node connects from. Default: the one that the node's routes choose.
    #[schemars(with = "Option<Ip>")]
    pub(crate) source_address: Option<Spanned<String>>,
    /// BGP identifier of the node. Default: its IPv4 address.
    #[serde(rename = "routerID")]
    #[schemars(with = "Option<Ip>")]
    pub(crate) router_id: Option<Spanned<String>>,
    /// How long the router may be silent until the session counts as lost: `0s` or at least `3s`. Default: three times
    /// `keepaliveTime`, else `90s`.
    #[schemars(with = "Option<Duration>", extend("default" = "90s"))]
    pub(crate) hold_time: Option<Spanned<String>>,
    /// Time between signs of life. Default: a third of `holdTime`.
    #[schemars(with = "Option<Duration>", extend("default" = "30s"))]
    pub(crate) keepalive_time: Option<Spanned<String>>,
    /// Time between attempts to connect.
    #[schemars(with = "Option<Duration>", extend("default" = "10s"))]
    pub(crate) connect_time: Option<Spanned<String>>,
    /// File with the session's password (TCP MD5), relative to this file.
    #[schemars(with = "Option<Filled>", extend("examples" = ["bgp.password"]))]
    pub(crate) password_file: Option<Spanned<String>>,
    /// Name of one of `bfdProfiles`. Default: no BFD.
    #[schemars(with = "Option<Label>", extend("examples" = ["fast"]))]
    pub(crate) bfd_profile: Option<Spanned<String>>,
    /// Whether the router is more than one hop away, for a router of another AS.
    #[schemars(extend("default" = false))]
    pub(crate) ebgp_multi_hop: Option<Spanned<bool>>,
    /// Whether the router keeps the routes while the node's bgpd starts again.
    #[schemars(extend("default" = false))]
    pub(crate) enable_graceful_restart: Option<Spanned<bool>>,
    /// Nodes with a session, by their labels: those that any of the selectors chooses. Default: all.
    #[schemars(with = "Option<Vec<Selector>>", length(max = 100))]
    pub(crate) node_selectors: Option<Vec<Spanned<Selector>>>,
}

/// Which addresses are told to which routers, and how.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct BgpAdvertisement {
    /// Name of the advertisement.
    #[schemars(required, with = "Label", extend("examples" = ["default"]))]
    pub(crate) name: Option<Spanned<String>>,
    /// Names of the pools that it is for. Default: all.
    #[schemars(with = "Option<Vec<Label>>", length(max = 100), extend("examples" = [["default"]]))]
    pub(crate) ip_address_pools: Option<Vec<Spanned<String>>>,
    /// Length of the prefix that is told for an IPv4 address.
    #[schemars(range(min = 1, max = 32), extend("default" = 32))]
    pub(crate) aggregation_length: Option<Spanned<u8>>,
    /// Length of the prefix that is told for an IPv6 address.
    #[schemars(range(min = 1, max = 128), extend("default" = 128))]
    pub(crate) aggregation_length_v6: Option<Spanned<u8>>,
    /// LOCAL_PREF, for routers of the same AS: the highest wins.
    #[schemars(range(min = 0, max = 4294967295_u32), extend("examples" = [100]))]
    pub(crate) local_pref: Option<Spanned<u32>>,
    /// Communities: `64512:100`, large ones `64512:1:2`, names of `communities`, and `no-export` and other well-known ones.
    #[schemars(with = "Option<Vec<Community>>", length(max = 100))]
    pub(crate) communities: Option<Vec<Spanned<String>>>,
    /// Nodes that tell it, by their labels: those that any of the selectors chooses. Default: all.
    #[schemars(with = "Option<Vec<Selector>>", length(max = 100))]
    pub(crate) node_selectors: Option<Vec<Spanned<Selector>>>,
    /// Services that it is for, by their labels: those that any of the selectors chooses. Default: all.
    #[schemars(with = "Option<Vec<Selector>>", length(max = 100))]
    pub(crate) service_selectors: Option<Vec<Spanned<Selector>>>,
    /// Names of the routers that are told. Default: all.
    #[schemars(with = "Option<Vec<Label>>", length(max = 100), extend("examples" = [["router"]]))]
    pub(crate) peers: Option<Vec<Spanned<String>>>,
}

/// How a session is watched by BFD.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct BfdProfile {
    /// Name of the profile.
    #[schemars(required, with = "Label", extend("examples" = ["fast"]))]
    pub(crate) name: Option<Spanned<String>>,
    /// Shortest time between packets that the node takes, in milliseconds.
    #[schemars(range(min = 10, max = 60000), extend("default" = 300))]
    pub(crate) receive_interval: Option<Spanned<u32>>,
    /// Time between packets that the node sends, in milliseconds.
    #[schemars(range(min = 10, max = 60000), extend("default" = 300))]
    pub(crate) transmit_interval: Option<Spanned<u32>>,
    /// How many packets may be missed until the session counts as lost.
    #[schemars(range(min = 2, max = 255), extend("default" = 3))]
    pub(crate) detect_multiplier: Option<Spanned<u8>>,
    /// Time between echo packets, in milliseconds.
    #[schemars(range(min = 10, max = 60000), extend("default" = 50))]
    pub(crate) echo_interval: Option<Spanned<u32>>,
    /// Whether echo packets are sent: to IPv4 routers that are one hop away.
    #[schemars(extend("default" = false))]
    pub(crate) echo_mode: Option<Spanned<bool>>,
    /// Whether the node waits for the router to begin.
    #[schemars(extend("default" = false))]
    pub(crate) passive_mode: Option<Spanned<bool>>,
    /// Lowest TTL of packets of a router that is more than one hop away.
    #[schemars(range(min = 1, max = 254), extend("default" = 254))]
    pub(crate) minimum_ttl: Option<Spanned<u8>>,
}

/// A community with a name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct NamedCommunity {
    /// Name of the community.
    #[schemars(required, with = "CommunityName", extend("examples" = ["vip"]))]
    pub(crate) name: Option<Spanned<String>>,
    /// `64512:100`, or `64512:1:2` for a large one.
    #[schemars(required, with = "Community")]
    pub(crate) value: Option<Spanned<String>>,
}
