//! The controller of load-balancer addresses: every agent is a candidate, one is active.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use homelab_kube::{
    Duty, DutyError, Heard, Link, Node, Round, Told, Voice, annotate, metallb, network_is_there,
};
use homelab_kubernetes::controller::{Board, Watched};
use homelab_kubernetes::events::Said;
use homelab_model::{KubernetesSpec, SpeakerSpec};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::Shared;
use crate::agent::sayings::{Saying, Sayings, What};

/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(2);
/// How often something is tried to be said, as in client-go (`maxTriesPerEvent`), and the pause in between.
const TRIES: u32 = 12;
const BREATH: Duration = Duration::from_secs(10);
/// How often MetalLB's resources are read.
const LOOK: Duration = Duration::from_secs(30);

/// What the file says of addresses.
#[derive(Debug, Default, Clone)]
pub(in crate::agent) struct File {
    /// Addresses of its services, with their names: nobody else gets them.
    pub(in crate::agent) taken: BTreeMap<IpAddr, String>,
    /// Its pools and advertisements; None: this node announces nothing, and then nothing is given, too.
    pub(in crate::agent) speaker: Option<SpeakerSpec>,
}

/// What the watches tell the controller.
pub(super) struct Control {
    spec: KubernetesSpec,
    /// The Node's name.
    node: String,
    board: Rc<RefCell<Board>>,
    /// The own Node, if it is to say that its network is there.
    unavailable: RefCell<Option<Node>>,
    /// The own Node, unless something was written to it since it was last heard of.
    own: RefCell<Option<Node>>,
    told: Notify,
}

impl Control {
    pub(super) fn new(spec: KubernetesSpec) -> Control {
        let account = &spec.service_account;
        let node = account.strip_prefix("homelab-").unwrap_or(account).to_owned();
        let board = Rc::new(RefCell::new(Board::new(spec.clone())));
        Control {
            spec,
            node,
            board,
            unavailable: RefCell::default(),
            own: RefCell::default(),
            told: Notify::new(),
        }
    }

    /// A candidate.
    pub(super) fn duty(&self) -> Duty {
        Duty::new(&self.node, &self.spec, Rc::clone(&self.board))
    }

    pub(super) fn hear(&self, heard: &Heard) {
        if let Heard::Node(Told::Object(node)) = heard
            && node.metadata.name.as_ref() == Some(&self.node)
        {
            *self.unavailable.borrow_mut() = Some(Node::clone(node));
            *self.own.borrow_mut() = Some(Node::clone(node));
        }
        let Heard::Service(told) = heard else { return };
        let mut board = self.board.borrow_mut();
        match told {
            Told::Begin => board.begin(),
            Told::Object(service) => board.object(service),
            Told::Gone(service) => {
                let meta = &service.metadata;
                board.gone(
                    meta.namespace.as_deref().unwrap_or_default(),
                    meta.name.as_deref().unwrap_or_default(),
                );
            }
            Told::Complete => board.complete(),
            Told::Asks | Told::UpToDate => {}
        }
        drop(board);
        self.told.notify_one();
    }

    /// Is a candidate for ever.
    pub(super) async fn serve(&self, duty: &mut Duty, link: &Link, shared: &Shared) {
        let (mut active, mut said) = (false, String::new());
        let mut looked: Option<Instant> = None;
        loop {
            let wait = match self.step(duty, link, shared, &mut looked).await {
                Ok(round) => {
                    if round.active != active {
                        active = round.active;
                        let holder = round.holder.unwrap_or_default();
                        info!(active, holder, "controller of load-balancer addresses");
                    }
                    let refused = round.refused.join("; ");
                    if refused != said {
                        if !refused.is_empty() {
                            warn!("the API refuses what the controller writes: {refused}");
                        }
                        said = refused;
                    }
                    round.wait
                }
                // The watches say it, too.
                Err(why) => {
                    if why != said {
                        warn!("controller: {why}");
                        said = why;
                    }
                    PAUSE
                }
            };
            // News are taken up at once by the active one; the others only see to the Lease.
            if active {
                let _ = timeout(wait, self.told.notified()).await;
            } else {
                sleep(wait).await;
            }
        }
    }

    /// Says what speakers have to say of addresses, by Events on their Services.
    pub(super) async fn speak(&self, voice: &Voice, link: &Link, sayings: &Sayings) {
        loop {
            let saying = sayings.next().await;
            // The addresses are in Services that were listed before, but maybe by an earlier agent.
            while !self.board.borrow().is_complete() {
                sleep(PAUSE).await;
            }
            for said in self.about(&saying) {
                for attempt in 1..=TRIES {
                    let Ok((number, client)) = link.client() else { break };
                    match voice.say(&client, said.clone()).await {
                        Ok(()) => break,
                        Err(DutyError::Refused(why)) => {
                            warn!("an Event is not written: {why}");
                            break;
                        }
                        Err(DutyError::Unauthorized(_)) => drop(link.renew(number)),
                        Err(DutyError::Broken(_)) => link.failed(number),
                    }
                    if attempt < TRIES {
                        sleep(BREATH).await;
                    }
                }
            }
        }
    }

    /// What is to be said, for each Service that has the address.
    fn about(&self, saying: &Saying) -> Vec<Said> {
        let board = self.board.borrow();
        let has = |(_, service): &(_, &Watched)| service.status.contains(&saying.address);
        let all = board.services().iter().filter(has);
        let said = all.map(|(name, service)| match &saying.what {
            What::Announced { before, protocol } => {
                Said::announced(name, &service.uid, &self.node, before.as_deref(), protocol)
            }
            What::Conflict(mac) => Said::conflict(name, &service.uid, saying.address, mac),
        });
        said.collect()
    }

    async fn step(
        &self,
        duty: &mut Duty,
        link: &Link,
        shared: &Shared,
        looked: &mut Option<Instant>,
    ) -> Result<Round, String> {
        let (number, client) = link.client().map_err(|error| error.to_string())?;
        let failed = |error: DutyError| {
            match &error {
                DutyError::Unauthorized(_) => drop(link.renew(number)),
                DutyError::Refused(_) => {}
                DutyError::Broken(_) => link.failed(number),
            }
            error.to_string()
        };
        let there = shared.network.load(Ordering::Relaxed);
        if let Some(node) = there.then(|| self.unavailable.take()).flatten() {
            match network_is_there(&client, &node).await {
                Ok(true) => {
                    info!(node = self.node, "its Node no longer says that the network is unavailable")
                }
                Ok(false) => {}
                // Addresses do not depend on it.
                Err(DutyError::Refused(why)) => warn!("the condition of the Node is not written: {why}"),
                Err(error) => {
                    self.unavailable.borrow_mut().get_or_insert(node);
                    return Err(failed(error));
                }
            }
        }
        let wish = shared.annotations().clone();
        let patch = self.own.borrow().as_ref().and_then(|own| {
            let none = BTreeMap::new();
            wish.patch(own.metadata.annotations.as_ref().unwrap_or(&none))
        });
        if let Some(patch) = patch {
            // It is heard of again, perhaps before this is answered.
            let own = self.own.take();
            match annotate(&client, &self.node, &patch).await {
                Ok(()) => info!(node = self.node, "flannel's annotations of its Node are as they should be"),
                Err(DutyError::Refused(why)) => {
                    warn!("flannel's annotations of the Node are not written: {why}")
                }
                Err(error) => {
                    let mut known = self.own.borrow_mut();
                    *known = known.take().or(own);
                    return Err(failed(error));
                }
            }
        }
        if looked.is_none_or(|at| at.elapsed() >= LOOK) {
            *looked = Some(Instant::now());
            match metallb(&client).await {
                Ok(read) => shared.metallb_is(read),
                Err(DutyError::Refused(why)) => warn!("MetalLB's resources are not read: {why}"),
                Err(error) => return Err(failed(error)),
            }
        }
        let File { taken, speaker } = shared.file().clone();
        let Some(mut speaker) = speaker else {
            return Ok(Round { wait: PAUSE, ..Round::default() });
        };
        shared.metallb().add_to(&mut speaker);
        duty.round(&client, &speaker.pools, &taken).await.map_err(failed)
    }
}
