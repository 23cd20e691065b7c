//! The speaker: sockets, clock and files around [`homelab_speaker::speaker::Speaker`].
//!
//! On a thread of its own: peers wait some hundred milliseconds for an answer, and a look at the kernel may take longer.

mod bgp;
mod story;
mod task;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use homelab_kubernetes::KubeNode;
use homelab_kubernetes::metallb::Meaning;
use homelab_model::service::Service;
use homelab_model::{ContainerWord, LABEL_EXCLUDE, NodeSpec, SpeakerSpec, effective_labels, ours};

use super::containers::Heard;
use super::metrics::Metrics;
use super::sayings::Sayings;

/// Services that are not in place for so long are not: one look may fail, because a change met another one.
const UNREADY_AFTER: Duration = Duration::from_secs(5);
/// How long a handover may take before the machine goes down all the same.
const HANDOVER: Duration = Duration::from_millis(500);

/// What the speaker is told of the cluster.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    cluster: String,
    node: String,
    address: IpAddr,
    spec: SpeakerSpec,
    /// Those with addresses.
    services: Vec<Service>,
}

/// What the agent says to the speaker.
enum Command {
    /// Another configuration; None: no addresses are announced.
    Configure(Option<Box<Told>>),
    Ready(bool),
    Cordon(bool),
    /// Where this node's containers are that services name.
    Containers(Vec<ContainerWord>),
    /// Hand over, and end.
    Leave(Sender<()>),
}

/// The agent's end.
pub(super) struct Handle {
    commands: Sender<Command>,
    /// Wakes the thread.
    bell: UnixStream,
    errors: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
    bgp: bgp::Handle,
    ready: Option<bool>,
    unready_since: Option<Instant>,
}

impl Handle {
    /// Starts the threads. They have nothing to do before [`Handle::configure`].
    pub(super) fn start(
        metrics: Arc<Metrics>,
        sayings: &Arc<Sayings>,
        heard: &Arc<Heard>,
    ) -> Result<Handle, String> {
        let (commands, receiver) = channel();
        let (bell, rings) = UnixStream::pair().map_err(|e| e.to_string())?;
        for end in [&bell, &rings] {
            end.set_nonblocking(true).map_err(|e| e.to_string())?;
        }
        let errors = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&errors);
        let bgp = bgp::Handle::start(Arc::clone(&metrics), Arc::clone(sayings))?;
        let said = bgp.said();
        let (sayings, heard) = (Arc::clone(sayings), Arc::clone(heard));
        let work = move || {
            let ears = task::Ears {
                metrics: &metrics,
                errors: &shared,
                bgp: &said,
                sayings: &sayings,
                heard: &heard,
            };
            task::run(&receiver, &rings, ears);
        };
        let thread =
            std::thread::Builder::new().name("speaker".to_owned()).spawn(work).map_err(|e| e.to_string())?;
        Ok(Handle { commands, bell, errors, thread: Some(thread), bgp, ready: None, unready_since: None })
    }

    fn say(&self, command: Command) {
        // Without a thread there is nobody to hear; `errors` says so. A bell that is full rings already.
        let _ = self.commands.send(command);
        let _ = (&self.bell).write(&[1]);
    }

    /// Another configuration, or other services; `services` are those whose addresses are announced.
    pub(super) fn configure(
        &self,
        spec: &NodeSpec,
        services: Vec<Service>,
        nodes: &BTreeMap<String, KubeNode>,
        metallb: &Meaning,
    ) {
        let told = spec.speaker.clone().map(|mut speaker| {
            metallb.add_to(&mut speaker);
            Box::new(Told {
                cluster: spec.cluster.clone(),
                node: spec.node.clone(),
                address: spec.address,
                spec: labelled(speaker, nodes),
                services,
            })
        });
        self.bgp.configure(told.clone());
        self.say(Command::Configure(told));
        self.cordon();
    }

    /// Reads whether the node is cordoned.
    pub(super) fn cordon(&self) {
        let cordoned = Path::new(ours::CORDONED).exists();
        self.bgp.cordon(cordoned);
        self.say(Command::Cordon(cordoned));
    }

    /// Where this node's containers are that services name.
    pub(super) fn containers(&self, words: Vec<ContainerWord>) {
        self.say(Command::Containers(words));
    }

    /// Whether services are in place.
    pub(super) fn ready(&mut self, ready: bool) {
        let now = Instant::now();
        let since = *self.unready_since.get_or_insert(now);
        if ready {
            self.unready_since = None;
        } else if self.ready == Some(true) && now < since + UNREADY_AFTER {
            return;
        }
        if self.ready != Some(ready) {
            self.ready = Some(ready);
            self.bgp.ready(ready);
            self.say(Command::Ready(ready));
        }
    }

    /// What does not work now.
    pub(super) fn errors(&self) -> Vec<String> {
        let ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        errors.extend(ended.then(|| "the speaker has ended: no addresses are announced".to_owned()));
        errors.extend(self.bgp.errors());
        errors
    }

    /// Hands all addresses over before the machine goes down.
    pub(super) fn leave(&self) {
        let (done, wait): (Sender<()>, Receiver<()>) = channel();
        self.say(Command::Leave(done));
        let withdrawn = self.bgp.leave();
        for wait in [wait, withdrawn] {
            let _ = wait.recv_timeout(HANDOVER);
        }
    }
}

/// With the labels that nodes have in Kubernetes, where they are known there. As MetalLB's speaker, ours leaves out nodes
/// whose network is said to be unavailable.
fn labelled(mut spec: SpeakerSpec, nodes: &BTreeMap<String, KubeNode>) -> SpeakerSpec {
    for node in &mut spec.nodes {
        let Some(known) = nodes.get(&node.name) else { continue };
        node.labels = effective_labels(&known.labels, &node.name, known.zone());
        if known.network_unavailable {
            node.labels.insert(LABEL_EXCLUDE.to_owned(), "network-unavailable".to_owned());
        }
    }
    spec
}
