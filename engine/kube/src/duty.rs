//! The controller at work: holds the Lease, reads the ledger, and carries out what `homelab_kubernetes::controller`
//! decides.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use homelab_kubernetes::controller::{Board, Controller, LEDGER, Ledger, Settings, StatusWrite, View, Write};
use homelab_kubernetes::lease::{Attempt, CONTROLLER, Election, RETRY};
use homelab_model::{KubernetesSpec, Pool};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::link::reasons;
use crate::voice::Voice;

/// What has not been answered by then has failed. It is shorter than the time between a holder's last write and the
/// earliest one of another, so that no request of ours is still under way then.
const ANSWER: Duration = Duration::from_secs(4);

/// Pause after a round of which all came too late.
const AGAIN: Duration = Duration::from_millis(200);

/// A request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DutyError {
    /// The server does not know who we are.
    #[error("the token is refused: {0}")]
    Unauthorized(String),
    /// The server says no.
    #[error("{0}")]
    Refused(String),
    /// No answer, or no good one.
    #[error("{0}")]
    Broken(String),
}

/// What a round came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Round {
    /// Whether this is the active controller.
    pub active: bool,
    /// Who is, as far as is known.
    pub holder: Option<String>,
    /// How many writes were carried out.
    pub written: usize,
    /// Writes that were refused, other than because something had changed: what, and why.
    pub refused: Vec<String>,
    /// When to go on at the latest.
    pub wait: Duration,
}

/// A controller of one process.
pub struct Duty {
    namespace: String,
    class: String,
    election: Election,
    controller: Controller,
    voice: Rc<Voice>,
    board: Rc<RefCell<Board>>,
    /// As last read or written; None: it is to be read.
    ledger: Option<Ledger>,
    gone: BTreeSet<String>,
    start: Instant,
    /// When the Lease was last seen to.
    elected: Option<Instant>,
}

/// What became of a write.
enum Done {
    /// It was carried out.
    Yes,
    /// Something has changed meanwhile: it is decided anew.
    Stale,
}

impl Duty {
    /// A candidate: `node` in Events and in the Lease, which is in the namespace of `settings` as the ledger is. Who watches
    /// tells the board.
    pub fn new(node: &str, settings: &KubernetesSpec, board: Rc<RefCell<Board>>) -> Duty {
        Duty {
            namespace: settings.namespace.clone(),
            class: settings.load_balancer_class.clone(),
            election: Election::new(node, &settings.namespace),
            controller: Controller::default(),
            voice: Rc::new(Voice::new(node)),
            board,
            ledger: None,
            gone: BTreeSet::new(),
            start: Instant::now(),
            elected: None,
        }
    }

    /// What it says by, for others who have something to say: who says too much is cut off whoever it is.
    pub fn voice(&self) -> Rc<Voice> {
        Rc::clone(&self.voice)
    }

    /// Whether it is the active one at this moment.
    pub fn is_active(&self) -> bool {
        self.election.is_active(self.start.elapsed())
    }

    /// Sees to the Lease, and, if it is ours, to everything else.
    ///
    /// # Errors
    /// The server could not be asked. What is known stays.
    pub async fn round(
        &mut self,
        client: &Client,
        pools: &[Pool],
        taken: &BTreeMap<IpAddr, String>,
    ) -> Result<Round, DutyError> {
        if self.elected.is_none_or(|at| at.elapsed() >= RETRY) {
            self.elect(client).await?;
        }
        let mut round = Round {
            active: self.is_active(),
            holder: self.election.holder().map(str::to_owned),
            wait: RETRY,
            ..Round::default()
        };
        if !round.active {
            // Another writes it meanwhile.
            self.ledger = None;
            self.controller = Controller::default();
            return Ok(round);
        }
        if !self.board.borrow().is_complete() {
            return Ok(round);
        }
        if self.ledger.is_none() {
            self.ledger = Some(self.read_ledger(client).await?);
            self.gone.clear();
        }
        let Some(ledger) = &self.ledger else { return Ok(round) };
        let now = self.start.elapsed();
        let settings = Settings { class: &self.class, pools, taken };
        let decision = {
            let board = self.board.borrow();
            let view = View { services: board.services(), ledger, gone: &self.gone };
            self.controller.decide(settings, view, now)
        };
        let asked = decision.writes.iter().filter(|write| !matches!(write, Write::Event(_))).count();
        for write in &decision.writes {
            if !self.is_active() {
                break;
            }
            match self.carry_out(client, write).await {
                Ok(Done::Yes) => round.written += 1,
                Ok(Done::Stale) => {}
                Err(DutyError::Refused(why)) => round.refused.push(why),
                Err(error) => return Err(error),
            }
        }
        self.forget();
        // What was written leads to the next step.
        round.wait = if asked > 0 && round.refused.is_empty() {
            if round.written > 0 { Duration::ZERO } else { AGAIN }
        } else {
            decision.again.map_or(RETRY, |at| at.saturating_sub(now)).min(RETRY)
        };
        Ok(round)
    }

    /// Gives the Lease up, so that another takes over at once.
    pub async fn leave(&mut self, client: &Client) {
        if let Some(lease) = self.election.release(Timestamp::now()) {
            let leases: Api<Lease> = Api::namespaced(client.clone(), &self.namespace);
            // If it fails, it runs out.
            let _ = ask(leases.replace(CONTROLLER, &PostParams::default(), &lease)).await;
        }
    }

    /// Uids that are in no entry are of no use.
    fn forget(&mut self) {
        let entries = self.ledger.iter().flat_map(|ledger| ledger.entries.values());
        let uids: BTreeSet<&String> = entries.map(|entry| &entry.uid).collect();
        self.gone.retain(|uid| uids.contains(uid));
    }

    async fn elect(&mut self, client: &Client) -> Result<(), DutyError> {
        let leases: Api<Lease> = Api::namespaced(client.clone(), &self.namespace);
        self.elected = Some(Instant::now());
        let lease = ask(leases.get_opt(CONTROLLER)).await?.map_err(refusal)?;
        self.election.observe(lease, self.start.elapsed());
        let sent = self.start.elapsed();
        let answer = match self.election.attempt(sent, Timestamp::now()) {
            Attempt::Wait => return Ok(()),
            Attempt::Create(lease) => ask(leases.create(&PostParams::default(), &lease)).await?,
            Attempt::Replace(lease) => {
                ask(leases.replace(CONTROLLER, &PostParams::default(), &lease)).await?
            }
        };
        match answer {
            Ok(lease) => self.election.succeeded(lease, sent),
            // Another was faster.
            Err(error) if is_stale(&error) => {}
            Err(error) => return Err(refusal(error)),
        }
        Ok(())
    }

    async fn read_ledger(&self, client: &Client) -> Result<Ledger, DutyError> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &self.namespace);
        let map = ask(maps.get_opt(LEDGER)).await?.map_err(refusal)?;
        Ok(map.map_or_else(Ledger::default, |map| ledger(&map)))
    }

    async fn carry_out(&mut self, client: &Client, write: &Write) -> Result<Done, DutyError> {
        match write {
            Write::Ledger { version, changes } => {
                let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &self.namespace);
                let body = Write::ledger_body(&self.namespace, version.as_deref(), changes);
                // Whatever comes of it: what was read before counts no more.
                self.ledger = None;
                let answer = if version.is_some() {
                    ask(maps.patch(LEDGER, &PatchParams::default(), &Patch::Merge(body))).await?
                } else {
                    let map = serde_json::from_value(body).map_err(|e| DutyError::Refused(e.to_string()))?;
                    ask(maps.create(&PostParams::default(), &map)).await?
                };
                match answer {
                    Ok(map) => self.ledger = Some(ledger(&map)),
                    Err(error) if is_stale(&error) => return Ok(Done::Stale),
                    Err(error) => return Err(refusal(error)),
                }
            }
            Write::Status(status) => return self.write_status(client, status).await,
            Write::Inquire { service, uid } => {
                let Some((namespace, name)) = service.split_once('/') else { return Ok(Done::Stale) };
                let services: Api<Service> = Api::namespaced(client.clone(), namespace);
                match ask(services.get_opt(name)).await?.map_err(refusal)? {
                    Some(found) if found.metadata.uid.as_ref() == Some(uid) => {
                        self.board.borrow_mut().answer(&found)
                    }
                    found => {
                        self.gone.insert(uid.clone());
                        found.iter().for_each(|found| self.board.borrow_mut().answer(found));
                    }
                }
            }
            Write::Event(said) => self.voice.say(client, said.clone()).await?,
        }
        Ok(Done::Yes)
    }

    async fn write_status(&mut self, client: &Client, status: &StatusWrite) -> Result<Done, DutyError> {
        let Some((namespace, name)) = status.service.split_once('/') else { return Ok(Done::Stale) };
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        let patch = Patch::Merge(status.patch());
        match ask(services.patch_status(name, &PatchParams::default(), &patch)).await? {
            Ok(service) => {
                // The answer to the last finalizer's going is what is gone.
                if service.metadata.deletion_timestamp.is_some() && service.metadata.finalizers.is_none() {
                    self.board.borrow_mut().gone(namespace, name);
                } else {
                    self.board.borrow_mut().answer(&service);
                }
            }
            Err(error) if is_stale(&error) => {
                // The watch may be far behind: this is what is there now.
                match ask(services.get_opt(name)).await?.map_err(refusal)? {
                    Some(service) => self.board.borrow_mut().answer(&service),
                    None => self.board.borrow_mut().gone(namespace, name),
                }
                return Ok(Done::Stale);
            }
            Err(error) => return Err(refusal(error)),
        }
        if let Some(said) = status.then.clone() {
            self.voice.say(client, said).await?;
        }
        Ok(Done::Yes)
    }
}

/// Says on a Node that its network is there, unless it says so already. Gives whether it was written.
///
/// # Errors
/// The server could not be asked, or refuses.
pub async fn network_is_there(client: &Client, node: &Node) -> Result<bool, DutyError> {
    let Some(patch) = homelab_kubernetes::conditions::network_is_there(node, Timestamp::now()) else {
        return Ok(false);
    };
    let nodes: Api<Node> = Api::all(client.clone());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    ask(nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)))
        .await?
        .map_err(refusal)?;
    Ok(true)
}

/// Carries out a merge patch of a Node's annotations, by way of its status as flannel does: nothing else of it can be
/// written then.
///
/// # Errors
/// The server could not be asked, or refuses.
pub async fn annotate(client: &Client, node: &str, patch: &Value) -> Result<(), DutyError> {
    let nodes: Api<Node> = Api::all(client.clone());
    ask(nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(patch)))
        .await?
        .map(drop)
        .map_err(refusal)
}

fn ledger(map: &ConfigMap) -> Ledger {
    Ledger::read(map.metadata.resource_version.clone(), map.data.iter().flatten())
}

/// Waits for an answer: a good one, or one of the API.
pub(crate) async fn ask<T>(
    request: impl Future<Output = kube::Result<T>>,
) -> Result<kube::Result<T>, DutyError> {
    match timeout(ANSWER, request).await {
        Ok(Err(error)) if !matches!(error, kube::Error::Api(_)) => Err(refusal(error)),
        Ok(answer) => Ok(answer),
        Err(_) => Err(DutyError::Broken(format!("no answer within {} s", ANSWER.as_secs()))),
    }
}

/// Whether a request came too late: another has written, the object is gone, or it exists already. A uid that is another is
/// "invalid" to the API, as a finalizer is that is added while the object is being deleted.
fn is_stale(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409 | 422))
}

pub(crate) fn refusal(error: kube::Error) -> DutyError {
    match error {
        kube::Error::Api(status) if status.code == 401 => DutyError::Unauthorized(status.message),
        kube::Error::Api(status) if (400..500).contains(&status.code) => DutyError::Refused(status.message),
        kube::Error::Api(status) => DutyError::Broken(status.message),
        error => DutyError::Broken(reasons(&error)),
    }
}
