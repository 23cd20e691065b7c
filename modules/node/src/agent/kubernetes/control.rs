//! The controller of load-balancer addresses: every agent is a candidate, one is active.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use homelab_kube::{Duty, DutyError, Heard, Link, Round, Told, metallb, network_is_there};
use homelab_kubernetes::controller::Board;
use homelab_model::{KubernetesSpec, SpeakerSpec};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::Shared;

/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(2);
/// How often the condition of the own Node is looked at, and MetalLB's resources.
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
    told: Notify,
}

impl Control {
    pub(super) fn new(spec: KubernetesSpec) -> Control {
        let account = &spec.service_account;
        let node = account.strip_prefix("homelab-").unwrap_or(account).to_owned();
        let board = Rc::new(RefCell::new(Board::new(spec.clone())));
        Control { spec, node, board, told: Notify::new() }
    }

    /// A candidate.
    pub(super) fn duty(&self) -> Duty {
        Duty::new(&self.node, &self.spec, Rc::clone(&self.board))
    }

    pub(super) fn hear(&self, heard: &Heard) {
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
        if looked.is_none_or(|at| at.elapsed() >= LOOK) {
            if network_is_there(&client, &self.node).await.map_err(failed)? {
                info!(node = self.node, "its Node no longer says that the network is unavailable");
            }
            let metallb = metallb(&client).await.map_err(failed)?;
            shared.metallb_is(metallb);
            *looked = Some(Instant::now());
        }
        let File { taken, speaker } = shared.file().clone();
        let Some(mut speaker) = speaker else {
            return Ok(Round { wait: PAUSE, ..Round::default() });
        };
        shared.metallb().add_to(&mut speaker);
        duty.round(&client, &speaker.pools, &taken).await.map_err(failed)
    }
}
