//! Requests of the laptop and responses of the node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use homelab_model::{
    Change, Holder, LbNode, NodeObject, Observed, PoolRange, Previous, Scanned, Scope, ServiceReport,
    TracePacket, TraceReport,
};
use serde::{Deserialize, Serialize};

/// Version of this protocol. It changes when an older peer would misunderstand.
pub const PROTOCOL: u32 = 3;

/// Without a word from the laptop for this long, a session's lock is free again, seconds.
pub const LOCK_PATIENCE: u64 = 30;

/// What the laptop asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "request")]
pub enum Request {
    /// First message of a session.
    Hello(Hello),
    /// Look at the node; changes nothing.
    Observe {
        /// Where to look.
        scope: Scope,
    },
    /// Take the node's lock for this session: until its end, or until nothing was heard of the laptop for
    /// [`LOCK_PATIENCE`].
    Lock {
        /// Who asks.
        holder: Holder,
        /// How long to wait for another holder, milliseconds.
        wait_ms: u64,
    },
    /// Take the lock away from whoever holds it.
    Unlock,
    /// The laptop is still there. There is no response.
    Beat,
    /// Install a package before the transaction that needs it, if it is not there; its service stays off. It stays when
    /// the transaction is taken back.
    Install {
        /// Its name.
        package: String,
    },
    /// Write a transaction down and arm its undo. Changes nothing of ours yet.
    Begin(Box<Transaction>),
    /// Carry out the changes of the transaction that this session began; undo them if one fails.
    Run,
    /// All is well, as seen over a fresh connection: the changes stay. May be said twice.
    Confirm {
        /// The transaction.
        id: String,
    },
    /// All is well, as seen over a fresh connection, and the user wants to try the change for a while.
    Hold {
        /// The transaction.
        id: String,
        /// Time until the node takes it back by itself, seconds.
        seconds: u64,
    },
    /// Take the open transaction back now.
    Rollback {
        /// The transaction.
        id: String,
        /// Why, as a part of a sentence.
        reason: String,
    },
    /// The state before the last confirmed transaction.
    Previous,
    /// Which of these addresses answer through the tunnel. Takes a second at most.
    Probe {
        /// Addresses of other nodes' VTEPs.
        targets: Vec<IpAddr>,
    },
    /// The text of a secret file of ours, for a node that lacks it.
    Secret {
        /// Path: [`homelab_model::ours::KEYS`], [`homelab_model::ours::BGP_PASSWORDS`] or
        /// [`homelab_model::ours::KUBERNETES_TOKEN`].
        path: String,
    },
    /// What this node holds of each service. Changes nothing.
    Services,
    /// What this node does with a packet. Changes nothing, and sends nothing.
    Trace(TracePacket),
    /// What this node's agent says of load-balancer addresses. Changes nothing.
    LoadBalancers,
    /// Which machines of its LANs answer for these addresses: at most [`Request::SCAN`] of them. Asks by ARP and neighbour
    /// discovery; takes some seconds.
    Scan {
        /// The addresses.
        ranges: Vec<PoolRange>,
    },
    /// The node is to have no load-balancer addresses, or may have some again. May be said twice. It is a word to the
    /// agent and no part of what the cluster file says: no transaction, no lock.
    Cordon {
        /// Cordoned, or not.
        on: bool,
        /// Who says so.
        by: Holder,
    },
    /// End of the session.
    Bye,
}

/// A change of a node that is undone unless it is confirmed.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transaction {
    /// Name, chosen by the laptop: lower-case hex digits.
    pub id: String,
    /// Whose it is.
    pub by: Holder,
    /// The changes of the plan, in order.
    pub changes: Vec<Change<NodeObject>>,
    /// Where to look before and afterwards.
    pub scope: Scope,
    /// Nothing of homelab shall remain: once it is confirmed the node's own records go too.
    pub farewell: bool,
    /// The node takes the changes back if it hears nothing for so long after the last of them, seconds.
    pub timeout: u64,
    /// Texts of the secrets among the objects, by what the objects say of them
    /// ([`homelab_model::Content::Secret`]).
    pub secrets: BTreeMap<String, String>,
}

/// Secrets are never printed.
impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Transaction { id, by, changes, scope, farewell, timeout, secrets } = self;
        f.debug_struct("Transaction")
            .field("id", id)
            .field("by", by)
            .field("changes", changes)
            .field("scope", scope)
            .field("farewell", farewell)
            .field("timeout", timeout)
            .field("secrets", &secrets.keys())
            .finish()
    }
}

/// What the node answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "response")]
pub enum Response {
    /// Answer to [`Request::Hello`].
    Hello(Hello),
    /// Answer to [`Request::Observe`].
    Observed(Box<Observed>),
    /// Answer to [`Request::Lock`]: this session has it.
    Locked {
        /// Whether another holder had to be waited for: what was seen before may be out of date.
        waited: bool,
    },
    /// Answer to [`Request::Lock`]: somebody else has it.
    Busy(Holder),
    /// Answer to [`Request::Unlock`]: who lost the lock, if anybody had it.
    Unlocked {
        /// The displaced holder.
        holder: Option<Holder>,
    },
    /// Answer to [`Request::Install`]: it is there.
    Installed,
    /// Answer to [`Request::Begin`]: written down and armed.
    Armed,
    /// Progress of [`Request::Run`]: this many changes are done.
    Progress {
        /// Changes done.
        done: usize,
    },
    /// End of a [`Request::Run`] that went well. The changes wait for [`Request::Confirm`].
    Applied(Box<Applied>),
    /// Answer to [`Request::Confirm`] and [`Request::Hold`].
    Confirmed,
    /// Answer to [`Request::Rollback`].
    RolledBack {
        /// Objects, as plans name them, that are not as before; empty if the node was verified to be as before.
        left: Vec<String>,
    },
    /// Answer to [`Request::Previous`].
    Previous(#[serde(with = "optional")] Option<Box<Previous>>),
    /// Answer to [`Request::Probe`], in the order of the targets.
    Reached {
        /// Whether each answers.
        reached: Vec<bool>,
    },
    /// Answer to [`Request::Secret`].
    Secret(Secret),
    /// Answer to [`Request::Services`], by name.
    Services {
        /// The services.
        services: Vec<ServiceReport>,
    },
    /// Answer to [`Request::Trace`].
    Traced(Box<TraceReport>),
    /// Answer to [`Request::LoadBalancers`].
    LoadBalancers(Box<LbNode>),
    /// Answer to [`Request::Cordon`], once the agent shows it, or if none runs.
    Cordoned {
        /// Whether it was otherwise before.
        changed: bool,
        /// The node afterwards.
        node: Box<LbNode>,
    },
    /// Answer to [`Request::Scan`], sorted.
    Scanned {
        /// Machines that answer.
        found: Vec<Scanned>,
    },
    /// A request failed.
    Failed(Failure),
}

impl Request {
    /// Most addresses of one [`Request::Scan`].
    pub const SCAN: u128 = 4096;
}

/// A message has its name among its fields: what may be absent has to be a field, too.
mod optional {
    use homelab_model::Previous;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize)]
    struct Said<'a> {
        previous: Option<&'a Previous>,
    }

    #[derive(Deserialize)]
    struct Heard {
        previous: Option<Box<Previous>>,
    }

    #[allow(clippy::ref_option)] // serde's signature
    pub(super) fn serialize<S: Serializer>(value: &Option<Box<Previous>>, to: S) -> Result<S::Ok, S::Error> {
        Said { previous: value.as_deref() }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<Previous>>, D::Error> {
        Heard::deserialize(from).map(|heard| heard.previous)
    }
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// [`PROTOCOL`] of the speaker.
    pub protocol: u32,
    /// Version of the speaker's package.
    pub version: String,
    /// SHA-256 of the node binary: the one that speaks, or the one that the laptop expects.
    pub sha256: String,
}

/// All changes are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The node after the changes.
    pub observed: Observed,
}

/// A secret on its way.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// What objects say of it.
    pub summary: String,
    /// Its text.
    pub text: String,
}

/// Secrets are never printed.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("summary", &self.summary).finish_non_exhaustive()
    }
}

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Something went wrong.
    #[default]
    Error,
    /// The node is not what the changes were made for; nothing was changed.
    Stale,
    /// Something among the changes could not be taken back; nothing was changed.
    Irreversible,
    /// Another transaction is open; nothing was changed.
    Open,
    /// There is no such transaction: it was taken back, or never was.
    NoTransaction,
    /// The session does not hold the lock (any more); nothing was changed.
    NotLocked,
}

/// A request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// What kind of failure it was.
    #[serde(default)]
    pub fault: Fault,
    /// The object at fault as plans name it, empty if none is.
    pub object: String,
    /// What went wrong.
    pub message: String,
    /// Whether the changes made before the failure were undone, and the node verified to be as before.
    pub undone: bool,
    /// What could not be undone.
    pub left: Vec<String>,
}

#[cfg(test)]
mod tests {
    use homelab_model::service::{Policy, Protocol};
    use homelab_model::{
        Confirmed, EndpointReport, FrontendKind, FrontendReport, FrontendState, LbAddress, LbInterface,
        LbMember, LbReport, LbStanding, LbState, LbUnfit, TraceEndpoint, TraceOutcome,
    };

    use super::*;

    fn service() -> ServiceReport {
        let endpoint =
            EndpointReport { address: "10.244.1.5:8080".parse().unwrap(), internal: false, connections: 3 };
        let frontend = FrontendReport {
            address: "10.96.0.1".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
            kind: Some(FrontendKind::Cluster),
            state: FrontendState::Served,
            policy: Policy::Local,
            affinity: Some(10800),
            endpoints: vec![endpoint],
        };
        ServiceReport {
            name: "default/web".into(),
            told: None,
            frontends: vec![frontend],
            absent: vec![homelab_model::AbsentContainer {
                node: "a".into(),
                container: "a".into(),
                why: homelab_model::Absence::NotRunning,
            }],
            missing: vec!["a".into()],
            extra: vec![],
        }
    }

    fn traced() -> TraceReport {
        let address = "10.244.1.5:8080".parse().unwrap();
        TraceReport {
            service: Some("default/web".into()),
            outcome: TraceOutcome::Translated {
                endpoints: vec![TraceEndpoint { address, masqueraded: true }],
            },
            remembered: Some(address),
            steps: vec![],
            warnings: vec![],
        }
    }

    fn load_balancers() -> LbNode {
        let member = LbMember {
            name: "node1".into(),
            standing: LbStanding::Itself,
            since_unix_ms: None,
            ready: true,
            cordoned: true,
            interfaces: vec![("eth0".into(), "02:00:00:00:00:01".into())],
        };
        let interface = LbInterface {
            name: "eth0".into(),
            mac: Some("02:00:00:00:00:01".into()),
            state: LbState::Conflict,
            since_unix_ms: 5,
            answered: 1,
            announcements: 2,
            claims: 3,
        };
        let address = LbAddress {
            address: "fd00::200".parse().unwrap(),
            services: vec!["default/web".into()],
            pool: None,
            owner: Some("node1".into()),
            since_unix_ms: Some(5),
            moves: 1,
            conflict: Some("02:00:00:00:00:99".into()),
            interfaces: vec![interface],
            unfit: vec![("node2".into(), LbUnfit::NoLocalEndpoint)],
        };
        let report = LbReport {
            bgp: None,
            node: "node1".into(),
            time_unix_ms: 6,
            settled: true,
            members: vec![member],
            addresses: vec![address],
        };
        let cordoned = Some(Holder { who: "me@laptop".into(), pid: 7, command: "cordon".into(), since: 9 });
        LbNode { time_unix_ms: 7, cordoned, told: true, agent: true, report: Some(report) }
    }

    #[test]
    fn a_node_shows_whether_it_is_cordoned() {
        assert_eq!(load_balancers().shows_cordoned(), Some(true));
        assert_eq!(LbNode::default().shows_cordoned(), None);
    }

    #[test]
    fn requests_about_load_balancers_survive_the_wire() {
        for request in [Request::LoadBalancers, Request::Cordon { on: true, by: Holder::default() }] {
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request, "{text}");
        }
    }

    #[test]
    fn every_response_survives_the_wire() {
        let holder = Holder { who: "me@laptop".into(), pid: 7, command: "apply".into(), since: 9 };
        let confirmed =
            Confirmed { id: "0a".into(), by: holder.clone(), at: 9, spec: None, revertible: true };
        let failure = Failure {
            fault: Fault::Stale,
            object: "link a".into(),
            message: "gone".into(),
            undone: false,
            left: vec!["link a".into()],
        };
        let hello = Hello { protocol: PROTOCOL, version: "1".into(), sha256: "00".into() };
        let all = [
            Response::Hello(hello),
            Response::Observed(Box::default()),
            Response::Locked { waited: true },
            Response::Busy(holder.clone()),
            Response::Unlocked { holder: Some(holder) },
            Response::Unlocked { holder: None },
            Response::Installed,
            Response::Armed,
            Response::Progress { done: 3 },
            Response::Applied(Box::new(Applied { observed: Observed::default() })),
            Response::Confirmed,
            Response::RolledBack { left: vec!["link a".into()] },
            Response::Previous(None),
            Response::Previous(Some(Box::new(Previous { confirmed, before: Vec::new() }))),
            Response::Reached { reached: vec![true, false] },
            Response::Secret(Secret { summary: "s".into(), text: "t".into() }),
            Response::Services { services: vec![service()] },
            Response::Traced(Box::new(traced())),
            Response::LoadBalancers(Box::default()),
            Response::LoadBalancers(Box::new(load_balancers())),
            Response::Cordoned { changed: true, node: Box::new(load_balancers()) },
            Response::Failed(failure),
        ];
        for response in all {
            let text = serde_json::to_string(&response).unwrap();
            assert_eq!(serde_json::from_str::<Response>(&text).unwrap(), response, "{text}");
        }
    }
}
