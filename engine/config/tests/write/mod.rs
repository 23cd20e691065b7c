//! A cluster as the file that describes it.

use std::collections::BTreeMap;

use homelab_model::service::{Affinity, Endpoint, Policy, Port, Type};
use homelab_model::{
    BgpAdvertisement, BgpCommunity, BgpPeer, BgpSettings, Cluster, ContainerEndpoint, Declared, Mtu, Node,
    Pool, SshSettings,
};
use serde_json::{Value, json};

/// What the file says in JSON, with every key written out.
pub(crate) fn write(cluster: &Cluster) -> Value {
    let ssh = |s: &SshSettings| json!({"host": s.host, "user": s.user, "port": s.port, "identity": s.identity, "jump": s.jump, "become": s.r#become});
    let node = |n: &Node| {
        let addresses: Vec<_> = [Some(n.address), n.address6].into_iter().flatten().collect();
        json!({
            "name": n.name, "address": addresses, "role": n.role, "interface": n.interface, "zone": n.zone, "labels": n.labels,
            "podCIDR": (!n.pod_cidrs.is_empty()).then_some(&n.pod_cidrs), "ssh": ssh(&n.ssh),
        })
    };
    let vxlan = &cluster.network.vxlan;
    let mtu = match vxlan.mtu {
        Mtu::Auto => json!("auto"),
        Mtu::Bytes(bytes) => json!(bytes),
    };
    let pool = |p: &Pool| {
        let ranges: Vec<_> = p.addresses.iter().map(|r| format!("{}-{}", r.first, r.last)).collect();
        json!({
            "name": p.name, "addresses": ranges, "autoAssign": p.auto_assign, "avoidBuggyIPs": p.avoid_buggy_ips,
            "serviceAllocation": p.service_allocation,
        })
    };
    json!({
        "name": cluster.name,
        "nodes": cluster.nodes.iter().map(node).collect::<Vec<_>>(),
        "network": {
            "podCIDR": cluster.network.pod_cidrs,
            "nodePrefix": cluster.network.node_prefixes,
            "serviceCIDR": cluster.network.service_cidrs,
            "nodePortRange": format!("{}-{}", cluster.network.node_port_range.0, cluster.network.node_port_range.1),
            "nodePortAddresses": cluster.network.node_port_addresses,
            "masqueradeAll": cluster.network.masquerade_all,
            "pods": cluster.network.pods,
            "vxlan": {
                "vni": vxlan.vni, "port": vxlan.port, "mtu": mtu, "device": vxlan.device,
                "checksumOffload": vxlan.checksum_offload.map_or(json!("auto"), Value::Bool),
            },
        },
        "loadBalancer": {
            "pools": cluster.load_balancer.pools.iter().map(pool).collect::<Vec<_>>(),
            "l2Advertisements": cluster.load_balancer.l2_advertisements,
            "port": cluster.load_balancer.port,
            "bgp": cluster.load_balancer.bgp.as_ref().map(write_bgp),
        },
        "services": cluster.services.iter().map(write_service).collect::<Vec<_>>(),
        "manifests": cluster.manifests,
        "agent": {"address": cluster.agent.address, "port": cluster.agent.port},
    })
}

fn write_bgp(bgp: &BgpSettings) -> Value {
    let spec = &bgp.spec;
    let minutes = |seconds: u16| match (seconds / 60, seconds % 60) {
        (0, rest) => format!("{rest}s"),
        (minutes, rest) => format!("{minutes}m{rest}s"),
    };
    let peer = |p: &BgpPeer| {
        json!({
            "name": p.name, "peerAddress": p.peer_address, "peerASN": p.peer_asn, "peerPort": p.peer_port,
            "sourceAddress": p.source_address, "routerID": p.router_id, "holdTime": minutes(p.hold_time),
            "keepaliveTime": minutes(p.keepalive_time), "connectTime": minutes(p.connect_time),
            "passwordFile": bgp.password_files.get(&p.name), "bfdProfile": p.bfd_profile, "ebgpMultiHop": p.ebgp_multi_hop,
            "enableGracefulRestart": p.enable_graceful_restart, "nodeSelectors": p.node_selectors,
        })
    };
    // Every second community by a name.
    let named = |c: &BgpCommunity| format!("C{}", c.to_string().replace(':', "-"));
    let all = spec.advertisements.iter().flat_map(|one| &one.communities);
    let names: BTreeMap<String, String> = all.map(|c| (named(c), c.to_string())).collect();
    let community = |(at, c): (usize, &BgpCommunity)| if at % 2 == 0 { named(c) } else { c.to_string() };
    let advertisement = |one: &BgpAdvertisement| {
        let mut block = json!(one);
        block["communities"] = one.communities.iter().enumerate().map(community).collect();
        block
    };
    json!({
        "myASN": spec.my_asn,
        "peers": spec.peers.iter().map(peer).collect::<Vec<_>>(),
        "advertisements": spec.advertisements.iter().map(advertisement).collect::<Vec<_>>(),
        "bfdProfiles": spec.bfd_profiles,
        "communities": names.iter().map(|(name, value)| json!({"name": name, "value": value})).collect::<Vec<_>>(),
    })
}

fn write_service(declared: &Declared) -> Value {
    let service = &declared.service;
    let local = |policy: Policy| if policy == Policy::Local { "Local" } else { "Cluster" };
    let endpoint = |e: &Endpoint| {
        json!({
            "address": e.address, "node": e.node, "zone": e.zone, "ready": e.ready, "serving": e.serving,
            "terminating": e.terminating,
        })
    };
    let container = |c: &ContainerEndpoint| {
        let mut block = endpoint(&c.endpoint);
        block["address"] = Value::Null;
        block["container"] = json!(c.container);
        block["interface"] = json!(c.interface);
        block
    };
    let target = |port: &Port| {
        let endpoint = service.endpoints.first().or(declared.containers.first().map(|c| &c.endpoint));
        endpoint.and_then(|e| e.ports.get(&port.name))
    };
    let port = |p: &Port| {
        json!({
            "name": (!p.name.is_empty()).then_some(&p.name), "protocol": p.protocol, "port": p.port, "targetPort": target(p), "nodePort": p.node_port,
        })
    };
    let balanced = service.r#type == Type::LoadBalancer;
    let affine = service.session_affinity == Affinity::ClientIp;
    let request = &declared.request;
    let addresses: Vec<String> = service.load_balancer.iter().map(|i| i.ip.to_string()).collect();
    let annotations = balanced.then(|| {
        json!({
            "metallb.io/loadBalancerIPs": addresses.join(", "), "metallb.universe.tf/address-pool": request.pool,
            "metallb.io/allow-shared-ip": request.sharing_key, "example.org/other": "ignored",
        })
    });
    let timeout = json!({"clientIP": {"timeoutSeconds": service.session_affinity_timeout_seconds}});
    json!({
        "name": service.name,
        "namespace": service.namespace,
        "type": service.r#type,
        "clusterIPs": (!service.cluster_ips.is_empty()).then_some(&service.cluster_ips),
        "ipFamilies": declared.families,
        "ipFamilyPolicy": match (declared.families.len(), request.require_dual_stack) {
            (2, true) => "RequireDualStack",
            (2, false) => "PreferDualStack",
            _ => "SingleStack",
        },
        "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
        "endpoints":
            service.endpoints.iter().map(endpoint).chain(declared.containers.iter().map(container)).collect::<Vec<_>>(),
        "externalIPs": service.external_ips,
        "labels": service.labels,
        "annotations": annotations,
        "loadBalancerSourceRanges": service.load_balancer_source_ranges,
        "externalTrafficPolicy":
            (service.r#type != Type::ClusterIp).then_some(local(service.external_traffic_policy)),
        "internalTrafficPolicy": local(service.internal_traffic_policy),
        "sessionAffinity": service.session_affinity,
        "sessionAffinityConfig": affine.then_some(timeout),
        "healthCheckNodePort": service.health_check_node_port,
        "allocateLoadBalancerNodePorts": balanced.then_some(declared.node_ports),
        "trafficDistribution": service.traffic_distribution,
    })
}
