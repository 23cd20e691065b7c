//! The thread that watches.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use homelab_kube::{Duty, Heard, Link, Patience, Told};
use homelab_kubernetes::{Kind, KubeService, World};
use homelab_model::{KubernetesFact, KubernetesSpec, Token, ours};
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::control::Control;
use super::snapshot::{self, Kept};
use super::{Live, Shared};
use crate::agent::metrics::{Metrics, number};

/// What changed is kept on disk this long afterwards, so that a burst is written once.
const KEEP_AFTER: Duration = Duration::from_secs(2);
/// The same after a disk took nothing: then all is written.
const KEEP_AGAIN: Duration = Duration::from_secs(60);

/// How often the age of the token is looked at.
const RENEW_EVERY: Duration = Duration::from_secs(60);

/// Watches until `stop` is dropped.
pub(super) fn run(spec: KubernetesSpec, shared: &Shared, metrics: &Metrics, stop: oneshot::Receiver<()>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let task = Task::new(spec, shared, metrics);
            runtime.block_on(async {
                let mut duty = task.control.duty();
                tokio::select! {
                    () = task.serve(&mut duty) => {}
                    _ = stop => {}
                }
                task.save().await;
                if let Ok((_, client)) = task.link.client() {
                    duty.leave(&client).await;
                }
            });
            metrics.kubernetes_connected.set(0);
        }
        Err(error) => error!("kubernetes: no event loop: {error}"),
    }
}

struct Task<'a> {
    shared: &'a Shared,
    metrics: &'a Metrics,
    spec: KubernetesSpec,
    link: Link,
    world: RefCell<World>,
    /// Something was heard.
    heard: Notify,
    /// All that is known was passed on once.
    passed: Cell<bool>,
    /// What is on disk of it.
    kept: Arc<Mutex<Kept>>,
    /// Watches that are up; the others with what is wrong.
    watches: RefCell<BTreeMap<Kind, Result<(), String>>>,
    control: Control,
}

impl<'a> Task<'a> {
    fn new(spec: KubernetesSpec, shared: &'a Shared, metrics: &'a Metrics) -> Task<'a> {
        let kept = snapshot::load(&spec);
        let known = kept.is_some();
        let world = kept.unwrap_or_else(|| World::new(spec.clone()));
        shared.news().known = known;
        if known {
            info!(services = world.count(Kind::Services), "what an earlier agent knew of Kubernetes counts");
        }
        Task {
            shared,
            metrics,
            control: Control::new(spec.clone()),
            link: Link::new(spec.clone(), ours::KUBERNETES_TOKEN.into(), Patience::default()),
            spec,
            world: RefCell::new(world),
            heard: Notify::new(),
            passed: Cell::new(false),
            kept: Arc::new(Mutex::new(Kept::new(Path::new(ours::KUBERNETES_SNAPSHOT)))),
            watches: RefCell::new(BTreeMap::new()),
        }
    }

    async fn serve(&self, duty: &mut Duty) {
        self.pass_on();
        let voice = duty.voice();
        let control = self.control.serve(duty, &self.link, self.shared);
        let speak = self.control.speak(&voice, &self.link, &self.shared.sayings);
        tokio::join!(self.watch(), self.pass(), self.keep(), self.renew(), control, speak);
    }

    async fn watch(&self) {
        homelab_kube::watch(&self.link, &|heard| self.hear(&heard)).await;
    }

    fn hear(&self, heard: &Heard) {
        let (kind, asks, complete) = match heard {
            Heard::Service(told) => {
                (Kind::Services, matches!(told, Told::Asks), matches!(told, Told::Complete))
            }
            Heard::Slice(told) => (Kind::Slices, matches!(told, Told::Asks), matches!(told, Told::Complete)),
            Heard::Node(told) => (Kind::Nodes, matches!(told, Told::Asks), matches!(told, Told::Complete)),
            Heard::Down(kind, server, why) => {
                let message = format!("{}: {server}: {why}", kind.as_str());
                let before = self.watches.borrow_mut().insert(*kind, Err(message.clone()));
                // What fails again and again is said once.
                if before != Some(Err(message)) {
                    warn!(server, "cannot watch {}: {why}", kind.as_str());
                }
                self.metrics.kubernetes_failures.with_label_values(&[kind.as_str()]).inc();
                self.heard.notify_one();
                return;
            }
        };
        if asks {
            self.metrics.kubernetes_requests.with_label_values(&[kind.as_str()]).inc();
            return;
        }
        heard.tell(&mut self.world.borrow_mut());
        self.control.hear(heard);
        self.metrics.heard_of_kubernetes(kind.as_str());
        if complete && self.watches.borrow_mut().insert(kind, Ok(())) != Some(Ok(())) {
            info!(server = self.link.server(), "{} of Kubernetes are watched", kind.as_str());
        }
        self.heard.notify_one();
    }

    /// Passes on what was heard, as soon as it may be.
    async fn pass(&self) {
        loop {
            self.heard.notified().await;
            self.pass_on();
        }
    }

    fn pass_on(&self) {
        let mut world = self.world.borrow_mut();
        let mut news = self.shared.news();
        // Half a list says nothing of what is not in it yet, unless the rest is known from before.
        news.known |= world.is_complete();
        if news.known {
            news.whole |= !self.passed.replace(true);
            for (name, service) in world.take_changed() {
                let live = service.map(|KubeService { service, proxied, announced }| Live {
                    service: service.into(),
                    proxied,
                    announced,
                });
                news.services.insert(name, live);
            }
            // Half a list would take peers away.
            let lists =
                world.has_listed_nodes() && !std::mem::replace(&mut news.listed, world.has_listed_nodes());
            if lists || (world.knows_nodes() && world.take_nodes_changed()) {
                news.nodes = Some(world.nodes().clone());
            }
        }
        let counts = Kind::ALL.map(|kind| world.count(kind));
        for (kind, count) in Kind::ALL.iter().zip(counts) {
            self.metrics.kubernetes_objects.with_label_values(&[kind.as_str()]).set(number(count));
        }
        let watches = self.watches.borrow();
        let [services, slices, nodes] = counts;
        let fact = KubernetesFact {
            connected: Kind::ALL.iter().all(|kind| watches.get(kind) == Some(&Ok(()))),
            server: self.link.server().to_owned(),
            known: news.known,
            services,
            slices,
            nodes,
            hidden: Vec::new(),
            notes: Vec::new(),
            peers: Vec::new(),
            troubles: watches.values().filter_map(|watch| watch.clone().err()).collect(),
        };
        self.metrics.kubernetes_connected.set(i64::from(fact.connected));
        let mut said = self.shared.fact();
        let state = |fact: &KubernetesFact| (fact.connected, fact.known, fact.troubles.clone());
        // Half a list is no news.
        let tells = !news.services.is_empty() || news.nodes.is_some() || state(&said) != state(&fact);
        *said = fact;
        drop((said, news));
        if tells {
            self.shared.bell.notify_one();
        }
    }

    /// Renews the token when it is time.
    async fn renew(&self) {
        loop {
            if let Err(why) = self.renew_if_due().await {
                // It is not over yet: there is a fifth of the token's life left for other tries.
                warn!("the token for Kubernetes is not renewed: {why}");
            }
            sleep(RENEW_EVERY).await;
        }
    }

    async fn renew_if_due(&self) -> Result<(), String> {
        // What is wrong with the file the watches say.
        let Ok(text) = std::fs::read_to_string(ours::KUBERNETES_TOKEN) else { return Ok(()) };
        let Ok(old) = Token::parse(&text) else { return Ok(()) };
        // One whose time is not known counts as it says itself.
        let written = std::fs::metadata(ours::KUBERNETES_TOKEN).and_then(|file| file.modified()).ok();
        let written = written.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let written = written.map_or(old.issued, |time| time.as_secs());
        if !old.is_due(homelab_linux::unix_seconds(), written) {
            return Ok(());
        }
        let (number, client) = self.link.client().map_err(|error| error.to_string())?;
        let renewed = homelab_kube::renewed(&client, &self.spec, &old);
        let renewed = tokio::time::timeout(self.link.patience().answer, renewed).await;
        let token = renewed.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
        // The laptop may have put another one there meanwhile.
        if std::fs::read_to_string(ours::KUBERNETES_TOKEN).ok() != Some(text) {
            return Ok(());
        }
        snapshot::replace(ours::KUBERNETES_TOKEN, &token.to_text()).map_err(|error| error.to_string())?;
        self.link.renew(number);
        info!(token = token.summary(), "the token for Kubernetes is renewed");
        Ok(())
    }

    /// Keeps what is known on disk.
    async fn keep(&self) {
        let mut pause = KEEP_AFTER;
        loop {
            sleep(pause).await;
            pause = if self.save().await { KEEP_AFTER } else { KEEP_AGAIN };
        }
    }

    /// Writes what changed, on a thread of its own: a change waits for no disk. False if that failed.
    async fn save(&self) -> bool {
        // Before the cluster is known there is nothing that could be started from.
        if !self.shared.news().known {
            return true;
        }
        // An earlier one may still be at it: its task was ended, its thread was not.
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = kept().wants_all();
        let batch = {
            let mut world = self.world.borrow_mut();
            if whole { Some(world.all()) } else { world.take_unkept() }
        };
        let Some(batch) = batch else { return true };
        let kept = Arc::clone(&self.kept);
        let saved = tokio::task::spawn_blocking(move || {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if whole { kept.replace(&batch) } else { kept.add(&batch) }
        });
        let Ok(Err(error)) = saved.await else { return true };
        warn!(%error, "what is known of Kubernetes cannot be kept on disk");
        false
    }
}
