//! Services and Nodes of the Kubernetes API, watched on a thread of its own.
//!
//! What is known stays until the API says otherwise: no server, a slow one, or an error empties nothing. It is kept on
//! disk, so that an agent that starts without an API goes on where an earlier one stopped.

mod control;
mod snapshot;
mod task;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use homelab_kube::MetalLb;
use homelab_kubernetes::KubeNode;
use homelab_kubernetes::metallb::{Meaning, meaning};
use homelab_kubernetes::peers::Annotations;
use homelab_model::service::Service;
use homelab_model::{KubernetesFact, KubernetesSpec, ours};
use tokio::sync::{Notify, oneshot};

pub(super) use control::File;
pub(crate) use snapshot::known;
pub(super) use snapshot::replace;

use super::metrics::Metrics;
use super::sayings::Sayings;

/// A service of the API.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Live {
    pub(super) service: Arc<Service>,
    /// The proxy serves it.
    pub(super) proxied: bool,
    /// Its load-balancer addresses are announced, whichever proxy serves it.
    pub(super) announced: bool,
}

/// What happened since the agent last looked.
#[derive(Debug, Default)]
pub(super) struct News {
    /// By full name; None: there is none any more.
    pub(super) services: BTreeMap<String, Option<Live>>,
    /// All Nodes, if they changed.
    pub(super) nodes: Option<BTreeMap<String, KubeNode>>,
    /// Whether the API itself has said which Nodes there are: what was kept may be older than other records are.
    pub(super) listed: bool,
    /// Whether `services` are all there are.
    pub(super) whole: bool,
    /// Whether MetalLB's resources are others.
    pub(super) metallb: bool,
    /// Whether the cluster is known: before that the kernel may hold services that nobody has spoken of yet.
    pub(super) known: bool,
}

/// What the thread and the agent share.
#[derive(Default)]
struct Shared {
    news: Mutex<News>,
    fact: Mutex<KubernetesFact>,
    /// What the file says of addresses.
    file: Mutex<File>,
    /// MetalLB's resources, as last read.
    metallb: Mutex<MetalLb>,
    /// What flannel's annotations of the own Node are to be.
    annotations: Mutex<Annotations>,
    bell: Notify,
    /// This node's network was as it should be once.
    network: AtomicBool,
    /// What speakers have to say.
    sayings: Arc<Sayings>,
}

impl Shared {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fact(&self) -> MutexGuard<'_, KubernetesFact> {
        self.fact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn annotations(&self) -> MutexGuard<'_, Annotations> {
        self.annotations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// MetalLB's resources were read.
    fn metallb_is(&self, read: MetalLb) {
        let mut known = self.metallb.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != read {
            *known = read;
            drop(known);
            self.news().metallb = true;
            self.bell.notify_one();
        }
    }

    /// What MetalLB's resources add to the file.
    fn metallb(&self) -> Meaning {
        let known = self.metallb.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.file().speaker.clone().unwrap_or_default();
        let mut meaning = meaning(&known.resources, &file, &known.namespaces);
        meaning.notes.extend(known.notes.iter().cloned());
        meaning
    }
}

/// A thread that watches.
struct Running {
    told: KubernetesSpec,
    shared: Arc<Shared>,
    /// Ends the thread when it is dropped.
    stop: oneshot::Sender<()>,
    /// Ends with the thread.
    ended: mpsc::Receiver<()>,
}

/// How long an agent that stops waits for its last words: what was heard is kept, and the Lease given up.
const LEAVE: Duration = Duration::from_secs(2);

/// The agent's end.
pub(super) struct Handle {
    running: Option<Running>,
    metrics: Arc<Metrics>,
    sayings: Arc<Sayings>,
}

impl Handle {
    pub(super) fn new(metrics: Arc<Metrics>, sayings: Arc<Sayings>) -> Handle {
        Handle { running: None, metrics, sayings }
    }

    /// Watches what `told` says; None: nothing, and what is kept on disk goes.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn configure(&mut self, told: Option<&KubernetesSpec>) -> Result<(), String> {
        if self.running.as_ref().map(|running| &running.told) == told {
            return Ok(());
        }
        // The earlier one keeps what it knows: not after that is to be gone, nor after its successor has read it.
        self.leave();
        let Some(told) = told else {
            // It may never have been written.
            let _ = std::fs::remove_file(ours::KUBERNETES_SNAPSHOT);
            return Ok(());
        };
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::new(Shared { sayings: Arc::clone(&self.sayings), ..Shared::default() });
        let (ends, ended) = mpsc::channel();
        let (spec, theirs, metrics) = (told.clone(), Arc::clone(&shared), Arc::clone(&self.metrics));
        std::thread::Builder::new()
            .name("kubernetes".to_owned())
            .spawn(move || {
                task::run(spec, &theirs, &metrics, stopped);
                drop(ends);
            })
            .map_err(|error| format!("kubernetes: {error}"))?;
        self.running = Some(Running { told: told.clone(), shared, stop, ended });
        Ok(())
    }

    /// Ends the thread in order.
    pub(super) fn leave(&mut self) {
        if let Some(Running { stop, ended, .. }) = self.running.take() {
            drop(stop);
            // However it ends: this agent is over.
            let _ = ended.recv_timeout(LEAVE);
        }
    }

    /// What the file says of addresses.
    pub(super) fn file(&self, file: File) {
        if let Some(running) = &self.running {
            *running.shared.file() = file;
        }
    }

    /// A check has found or made this node's network as it should be.
    pub(super) fn network_is_there(&self) {
        if let Some(running) = &self.running {
            running.shared.network.store(true, Ordering::Relaxed);
        }
    }

    /// What flannel's annotations of the own Node are to be.
    pub(super) fn annotate(&self, annotations: Annotations) {
        if let Some(running) = &self.running {
            *running.shared.annotations() = annotations;
        }
    }

    /// What MetalLB's resources add to the file.
    pub(super) fn metallb(&self) -> Meaning {
        self.running.as_ref().map(|running| running.shared.metallb()).unwrap_or_default()
    }

    /// Whether the agent is to watch an API.
    pub(super) fn is_on(&self) -> bool {
        self.running.is_some()
    }

    /// Waits until there are news.
    pub(super) async fn wait(&self) {
        match &self.running {
            Some(running) => running.shared.bell.notified().await,
            None => std::future::pending().await,
        }
    }

    /// What happened since this was last asked.
    pub(super) fn news(&self) -> News {
        let Some(running) = &self.running else { return News::default() };
        let mut news = running.shared.news();
        let (known, listed) = (news.known, news.listed);
        std::mem::replace(&mut *news, News { known, listed, ..News::default() })
    }

    /// How it stands with the API.
    pub(super) fn fact(&self) -> Option<KubernetesFact> {
        self.running.as_ref().map(|running| running.shared.fact().clone())
    }
}
