//! What machines of the LAN that are no nodes ask, hear and send, frame by frame.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::script::Script;
use crate::{Cluster, Place};

/// Who claims an address, by MAC address.
pub type Claims = BTreeMap<IpAddr, BTreeSet<String>>;

/// Asks by ARP and neighbour discovery: [`Cluster::resolver`].
#[derive(Debug)]
pub struct Resolver(Script);

/// A flood of questions: [`Cluster::flood`].
#[derive(Debug)]
pub struct Flood(Script);

/// Hears datagrams: [`Cluster::record`].
#[derive(Debug)]
pub struct Record(Script);

/// Sends frames: [`Cluster::sender`].
#[derive(Debug)]
pub struct Sender(Script);

impl Cluster {
    /// Lays a second LAN, 192.168.60.0/24 and fd00:60::/64: a switch more, with a cable to `eth1` of each node and of the
    /// client. Lasts until a node boots.
    #[track_caller]
    pub fn second_lan(&self) {
        let mut script =
            "set -e; ip link delete br1 2>/dev/null || true; ip link add br1 type bridge; ip link set br1 up\n".to_owned();
        let nodes = self.nodes();
        let hosts = (11..).zip(nodes.iter().map(String::as_str)).chain([(100, "client")]);
        for (number, host) in hosts {
            let (lab, port) = (self.lab.name(), format!("{host}-2"));
            script += &format!(
                "ip link delete {port} 2>/dev/null || true
ip link add {port} type veth peer name eth1 netns {lab}-{host}
ip link set {port} master br1 up
ip -n {lab}-{host} link set eth1 up
ip -n {lab}-{host} address add 192.168.60.{number}/24 dev eth1
ip -n {lab}-{host} address add fd00:60::{number}/64 dev eth1 nodad
"
            );
        }
        self.sh("lan", &script);
    }

    /// Somebody who asks on this interface of a host, past the kernel's own tables.
    #[track_caller]
    pub fn resolver(&self, host: &str, interface: &str) -> Resolver {
        let mut script = self.script(&Place::host(host), &["resolve", interface]);
        script.expect("listening");
        Resolver(script)
    }

    /// Starts to ask for addresses on an interface of a host, so many times a second if the machine can, as many other
    /// machines.
    #[track_caller]
    pub fn flood(&self, host: &str, interface: &str, rate: u32, addresses: &[IpAddr]) -> Flood {
        let (rate, addresses) = (rate.to_string(), addresses.iter().map(IpAddr::to_string));
        let addresses: Vec<String> = addresses.collect();
        let mut args = vec!["flood", interface, &rate];
        args.extend(addresses.iter().map(String::as_str));
        let mut script = self.script(&Place::host(host), &args);
        script.expect("flooding");
        Flood(script)
    }

    /// How long each of `count` answers to an ARP request for an address takes, microseconds; None: there was none
    /// within a second.
    #[track_caller]
    pub fn arp_latency(&self, host: &str, address: IpAddr, count: u32) -> Vec<Option<u32>> {
        let mut script =
            self.script(&Place::host(host), &["latency", "eth0", &address.to_string(), &count.to_string()]);
        let all: Vec<i64> = serde_json::from_str(&script.line()).expect("latencies");
        all.into_iter().map(|took| u32::try_from(took).ok()).collect()
    }

    /// Starts to hear datagrams to a port that come in on an interface of a host.
    #[track_caller]
    pub fn record(&self, host: &str, interface: &str, port: u16) -> Record {
        let mut script = self.script(&Place::host(host), &["record", interface, &port.to_string()]);
        script.expect("listening");
        Record(script)
    }

    /// Somebody who sends frames on a host's `eth0`.
    #[track_caller]
    pub fn sender(&self, host: &str) -> Sender {
        let mut script = self.script(&Place::host(host), &["send", "eth0"]);
        script.expect("ready");
        Sender(script)
    }
}

impl Resolver {
    /// Asks for all of them, and gives who answers within half a second.
    #[track_caller]
    pub fn ask(&mut self, addresses: &[IpAddr]) -> Claims {
        self.0.say(&serde_json::json!(addresses).to_string());
        serde_json::from_str(&self.0.line()).expect("claims")
    }
}

impl Flood {
    /// Ends it; gives how many questions were sent, and in how many seconds.
    #[track_caller]
    pub fn end(mut self) -> (u64, f64) {
        self.0.say("stop");
        let said: serde_json::Value = serde_json::from_str(&self.0.line()).expect("counts");
        (said["sent"].as_u64().unwrap_or_default(), said["seconds"].as_f64().unwrap_or_default())
    }
}

impl Record {
    /// The payloads of the datagrams since the last time, with their senders and receivers (IPv4).
    #[track_caller]
    pub fn since(&mut self) -> Vec<(IpAddr, IpAddr, Vec<u8>)> {
        self.0.say("");
        let all: Vec<String> = serde_json::from_str(&self.0.line()).expect("frames");
        let address = |bytes: &[u8]| IpAddr::from(<[u8; 4]>::try_from(bytes).expect("four bytes"));
        all.iter()
            .map(|text| {
                let frame = bytes_of(text);
                (address(&frame[26..30]), address(&frame[30..34]), frame[42..].to_vec())
            })
            .collect()
    }
}

impl Sender {
    /// Sends frames, with the host's MAC address for sender.
    #[track_caller]
    pub fn send(&mut self, frames: &[Vec<u8>]) {
        let texts: Vec<String> =
            frames.iter().map(|frame| frame.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
        self.0.say(&serde_json::json!(texts).to_string());
        self.0.expect(&frames.len().to_string());
    }
}

/// Bytes from hex digits.
pub(crate) fn bytes_of(text: &str) -> Vec<u8> {
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).unwrap_or_default();
        u8::from_str_radix(pair, 16).expect("hex")
    };
    text.as_bytes().chunks(2).map(byte).collect()
}
