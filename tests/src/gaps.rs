//! How long a service does not answer while something happens.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lan::bytes_of;
use crate::script::Script;
use crate::{Cluster, Place};

/// A datagram to each of some services every 10 ms: [`Cluster::gaps`].
#[derive(Debug)]
pub struct Gaps(Script);

/// What came of the datagrams to one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Datagrams sent.
    pub sent: u64,
    /// Those without an answer.
    pub lost: u64,
    /// The longest time without an answer.
    pub longest: Duration,
}

impl Cluster {
    /// Starts to send.
    #[track_caller]
    pub fn gaps(&self, from: &Place, to: &[(IpAddr, u16)]) -> Gaps {
        let mut script = self.script(from, &["gaps"]);
        let list: Vec<Value> =
            to.iter().map(|(address, port)| json!({ "to": address.to_string(), "port": port })).collect();
        script.say(&Value::from(list).to_string());
        script.expect("sending");
        Gaps(script)
    }
}

impl Gaps {
    /// What came of the datagrams since the last time, by service.
    #[track_caller]
    pub fn since(&mut self) -> Vec<Gap> {
        self.0.say("");
        let line = self.0.line();
        let all: Value =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{}: {e}: {line}", self.0.name));
        let one = |value: &Value| {
            let number = |key: &str| value[key].as_u64().unwrap_or_default();
            let longest = Duration::from_millis(10 * number("longest"));
            Gap { sent: number("sent"), lost: number("lost"), longest }
        };
        all.as_array().map(|all| all.iter().map(one).collect()).unwrap_or_default()
    }
}

/// ARP and neighbour discovery as a host hears it: [`Cluster::hear`].
#[derive(Debug)]
pub struct Heard(Script);

impl Cluster {
    /// Starts to hear what comes in on a host's `eth0`.
    #[track_caller]
    pub fn hear(&self, at: &Place) -> Heard {
        let mut script = self.script(at, &["hear"]);
        script.expect("listening");
        Heard(script)
    }
}

impl Heard {
    /// The frames since the last time, whole.
    #[track_caller]
    pub fn since(&mut self) -> Vec<Vec<u8>> {
        self.0.say("");
        let line = self.0.line();
        let all: Vec<String> =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{}: {e}: {line}", self.0.name));
        all.iter().map(|text| bytes_of(text)).collect()
    }
}
