//! The floor of the CNI benchmark: the kernel operations of an ADD or a DEL in one bare process, without the plugin's
//! own work (request, address decision, records, conflicts, result). Dual stack; `FLOOR_PORTS` ports of the node, from
//! 10000 + 10 x the number in `CNI_CONTAINERID`; `FLOOR_RATE` limits both directions (bytes per second).
//!
//! `pod_floor rules ENDPOINT` loads what the agent loads: the rulesets, with the service 10.96.0.10:80 at the endpoint, and
//! prints the MAC address that the bridge must have.

#[path = "../../../tests/fixtures/mod.rs"]
mod fixtures;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use homelab_cni::hostport::Claim;
use homelab_linux::netlink::Socket;
use homelab_linux::nft::elements::{Batch, Element};
use homelab_linux::pod::{Netns, PodRoute, PodSocket, Veth, write_sysctl};
use homelab_linux::{Bucket, Connections, Node, Root, VethEnd};
use homelab_model::{NodeObject, Spec, diff};
use ipnet::IpNet;
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const BRIDGE: &str = "homelab0";
const TABLE: &str = "homelab-hostport";

fn main() -> Result<()> {
    if let [_, rules, endpoint] = &std::env::args().collect::<Vec<_>>()[..]
        && rules == "rules"
    {
        return load(endpoint.parse()?);
    }
    match std::env::var("CNI_COMMAND")?.as_str() {
        "ADD" => add(),
        "DEL" => del(),
        // As long as a process takes that does nothing.
        _ => Ok(()),
    }
}

fn load(endpoint: SocketAddr) -> Result<()> {
    let spec = fixtures::spec(true);
    let mut objects = homelab_vtep::objects(&spec);
    objects.extend(homelab_cni::objects(&spec));
    objects.extend(homelab_proxy::foundation(&spec));
    let is_nft = |object: &NodeObject| matches!(object.spec, Spec::NftTable(_) | Spec::NftChain(_));
    objects.retain(is_nft);
    objects.sort_by_key(homelab_model::Object::key);
    let root = tempfile::tempdir()?;
    let mut node = Node::open(Root::at(root.path()))?;
    node.apply_all(&diff(&[], &objects), &mut |_| {})?;
    let service = serde_json::from_value(json!({
        "namespace": "default", "name": "bench", "clusterIPs": ["10.96.0.10"], "ports": [{ "name": "", "port": 80 }],
        "endpoints": [{ "address": endpoint.ip(), "node": spec.node, "ports": { "": endpoint.port() } }],
    }))?;
    let (elements, conflicts) = homelab_proxy::compile(&[service], &homelab_proxy::view(&spec));
    if let Some(conflict) = conflicts.first() {
        return Err(format!("{conflict:?}").into());
    }
    node.sync_services(&elements, Connections::OfChange)?;
    std::io::stdout().write_all(homelab_cni::bridge_mac(&spec.cluster, &spec.node).as_bytes())?;
    Ok(())
}

/// Number of the pod.
fn number() -> Result<u16> {
    Ok(std::env::var("CNI_CONTAINERID")?.trim_start_matches(|c: char| !c.is_ascii_digit()).parse()?)
}

fn addresses(number: u16) -> Result<[IpNet; 2]> {
    let host = number + 1;
    Ok([
        format!("10.244.{}.{}/16", host / 256, host % 256).parse()?,
        format!("fd00:10:244::{host:x}/64").parse()?,
    ])
}

/// The elements of the pod's ports.
fn elements(number: u16) -> Result<Vec<(&'static str, Element)>> {
    let count: u16 = std::env::var("FLOOR_PORTS").map_or(Ok(0), |count| count.parse())?;
    let ports: Vec<_> = (0..count)
        .map(|n| json!({ "protocol": "TCP", "host_port": 10_000 + number * 10 + n, "container_port": 80 }))
        .collect();
    let claim: Claim = serde_json::from_value(json!({
        "owner": format!("floor{number}"), "network": "bench", "container": "bench", "bridge": BRIDGE,
        "addresses": addresses(number)?.map(|net| net.addr()), "ports": ports,
    }))?;
    let comment = claim.comment();
    let raw = |e: homelab_cni::hostport::Element| {
        (e.set, Element { key: e.key, data: e.data, comment: comment.clone(), ..Element::default() })
    };
    Ok(claim.elements().into_iter().map(raw).collect())
}

fn add() -> Result<()> {
    let number = number()?;
    let netns = Netns::open(Path::new(&std::env::var("CNI_NETNS")?))?;
    let mut socket = PodSocket::open()?;
    let elements = elements(number)?;
    let mut nft = (!elements.is_empty()).then(Socket::netfilter).transpose()?;
    let bucket = std::env::var("FLOOR_RATE").ok().map(|rate| rate.parse()).transpose()?;
    let bucket = bucket.map(|rate: u64| Bucket { rate, burst: 1 << 20, limit: 1 << 20 });
    let bridge = socket.link(BRIDGE)?.ok_or("no bridge")?;
    let name = format!("floor{number}");
    let [high, low] = number.to_be_bytes();
    let end = |side, name| VethEnd { name, mac: Some([2, 0x5c, side, 0, high, low]) };
    let veth = Veth {
        host: end(1, &name),
        pod: end(2, "eth0"),
        mtu: 1450,
        bridge: bridge.index,
        alias: "floor",
        hairpin: true,
        isolated: false,
    };
    socket.create_veth(&netns, &veth)?;
    if let Some(bucket) = &bucket {
        socket.limit(&name, bucket)?;
    }
    netns.enter()?;
    write_sysctl("net.ipv6.conf.eth0.accept_ra", "0")?;
    write_sysctl("net.ipv6.conf.eth0.accept_dad", "0")?;
    let route = |to: &str, via: &str| -> Result<PodRoute> {
        Ok(PodRoute { destination: to.parse()?, via: Some(via.parse()?), onlink: false, metric: 0 })
    };
    let routes = [route("0.0.0.0/0", "10.244.0.1")?, route("::/0", "fd00:10:244::1")?];
    let mut pod = PodSocket::open()?;
    if let Some(bucket) = &bucket {
        pod.limit("eth0", bucket)?;
    }
    pod.configure("eth0", &addresses(number)?, &routes)?;
    pod.settle("eth0")?;
    socket.settle(&name)?;
    if !bridge.operational {
        socket.settle(BRIDGE)?;
    }
    if let Some(nft) = &mut nft {
        let mut batch = Batch::new(TABLE);
        for (set, element) in &elements {
            batch.add(set, element)?;
        }
        batch.commit(nft)?;
    }
    Ok(())
}

fn del() -> Result<()> {
    let number = number()?;
    let elements = elements(number)?;
    // It is closed last: that waits for the kernel, as to delete the link does.
    let mut nft = (!elements.is_empty()).then(Socket::netfilter).transpose()?;
    if let Some(nft) = &mut nft {
        let mut batch = Batch::new(TABLE);
        for (set, element) in &elements {
            batch.delete(set, element)?;
        }
        batch.commit(nft)?;
    }
    PodSocket::open()?.delete_link(&format!("floor{number}"))?;
    Ok(())
}
