//! The thread that watches.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use homelab_kube::{Heard, Link, Patience, Told};
use homelab_kubernetes::{Kind, World};
use homelab_model::{KubernetesSpec, ours};
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::{Live, Shared, snapshot};
use crate::agent::metrics::{Metrics, number};

/// What changed is kept on disk this long afterwards, so that a burst is written once.
const KEEP_AFTER: Duration = Duration::from_secs(2);

/// Watches until `stop` is dropped.
pub(super) fn run(spec: KubernetesSpec, shared: &Shared, metrics: &Metrics, stop: oneshot::Receiver<()>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let task = Task::new(spec, shared, metrics);
            runtime.block_on(async {
                tokio::select! {
                    () = task.serve() => {}
                    _ = stop => {}
                }
            });
        }
        Err(error) => error!("kubernetes: no event loop: {error}"),
    }
}

struct Task<'a> {
    shared: &'a Shared,
    metrics: &'a Metrics,
    link: Link,
    world: RefCell<World>,
    /// Something was heard.
    heard: Notify,
    /// All that is known was passed on once.
    passed: Cell<bool>,
    /// The world is another than the one on disk.
    unsaved: Cell<bool>,
    /// Watches that are up; the others with what is wrong.
    watches: RefCell<BTreeMap<Kind, Result<(), String>>>,
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
            link: Link::new(spec, ours::KUBERNETES_TOKEN.into(), Patience::default()),
            world: RefCell::new(world),
            heard: Notify::new(),
            passed: Cell::new(false),
            unsaved: Cell::new(false),
            watches: RefCell::new(BTreeMap::new()),
        }
    }

    async fn serve(&self) {
        self.pass_on();
        tokio::join!(self.watch(), self.pass(), self.keep());
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
                let announced = world.announces(&name);
                let live = service.map(|service| Live { service: service.into(), announced });
                news.services.insert(name, live);
                self.unsaved.set(true);
            }
            if world.take_nodes_changed() {
                news.nodes = Some(world.nodes().clone());
                self.unsaved.set(true);
            }
        }
        let watches = self.watches.borrow();
        let mut fact = self.shared.fact();
        fact.connected = Kind::ALL.iter().all(|kind| watches.get(kind) == Some(&Ok(())));
        fact.server = self.link.server().to_owned();
        fact.known = news.known;
        fact.troubles = watches.values().filter_map(|watch| watch.clone().err()).collect();
        let counts = Kind::ALL.map(|kind| world.count(kind));
        [fact.services, fact.slices, fact.nodes] = counts;
        for (kind, count) in Kind::ALL.iter().zip(counts) {
            self.metrics.kubernetes_objects.with_label_values(&[kind.as_str()]).set(number(count));
        }
        self.metrics.kubernetes_connected.set(i64::from(fact.connected));
        drop((fact, news));
        self.shared.bell.notify_one();
    }

    /// Keeps what is known on disk.
    async fn keep(&self) {
        loop {
            sleep(KEEP_AFTER).await;
            if self.unsaved.replace(false) {
                let text = self.world.borrow().snapshot();
                let saved = tokio::task::spawn_blocking(move || snapshot::save(&text)).await;
                if let Ok(Err(error)) = saved {
                    warn!(%error, "what is known of Kubernetes cannot be kept on disk");
                }
            }
        }
    }
}
