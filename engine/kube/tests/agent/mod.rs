//! A client as the agent has it, on a thread of its own.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub, dead_code, reason = "tests")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use homelab_kube::{Heard, Link, Patience, Told, watch};
use homelab_kubernetes::{Kind, World};
use homelab_model::KubernetesSpec;

/// What has not happened by then does not.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an agent is told of these servers.
pub(crate) fn spec(servers: Vec<String>) -> KubernetesSpec {
    KubernetesSpec::new(servers, "node1")
}

/// A client that runs until it is dropped.
pub(crate) struct Client {
    pub(crate) seen: Arc<Mutex<Seen>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub(crate) struct Seen {
    pub(crate) world: World,
    pub(crate) troubles: Vec<String>,
    /// Complete lists of services.
    lists: usize,
    /// Complete lists of Nodes.
    node_lists: usize,
}

impl Client {
    pub(crate) fn start(spec: KubernetesSpec, token: &Path) -> Client {
        let seen = Seen { world: World::new(spec.clone()), troubles: Vec::new(), lists: 0, node_lists: 0 };
        let seen = Arc::new(Mutex::new(seen));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let patience = Patience {
            answer: Duration::from_secs(2),
            watch: Duration::from_secs(2),
            grace: Duration::from_secs(2),
            pause: Duration::from_millis(20),
            longest_pause: Duration::from_millis(200),
        };
        let (theirs, token) = (Arc::clone(&seen), token.to_owned());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let link = Link::new(spec, token, patience);
            let tell = |heard: Heard| {
                let mut seen = theirs.lock().unwrap();
                if let Heard::Down(kind, _, why) = &heard {
                    seen.troubles.push(format!("{}: {why}", kind.as_str()));
                }
                seen.lists += usize::from(matches!(heard, Heard::Service(Told::Complete)));
                seen.node_lists += usize::from(matches!(heard, Heard::Node(Told::Complete)));
                heard.tell(&mut seen.world);
            };
            runtime.block_on(async {
                tokio::select! {
                    () = watch(&link, &tell) => {}
                    _ = stopped => {}
                }
            });
        });
        Client { seen, stop: Some(stop), thread: Some(thread) }
    }

    /// Names of the services of the namespace `default` that are known, but for the API's own.
    pub(crate) fn services(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let services = seen.world.services();
        let ours = services.filter(|s| s.namespace() == "default" && s.name() != "kubernetes");
        ours.map(|service| service.name().to_owned()).collect()
    }

    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.seen.lock().unwrap().world.count(kind)
    }

    pub(crate) fn lists(&self) -> usize {
        self.seen.lock().unwrap().lists
    }

    /// Whether everything was listed.
    pub(crate) fn is_complete(&self) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.world.is_complete() && seen.node_lists > 0
    }

    pub(crate) fn troubles(&self) -> Vec<String> {
        self.seen.lock().unwrap().troubles.clone()
    }

    pub(crate) fn troubled(&self, by: &str) -> bool {
        self.troubles().iter().any(|trouble| trouble.contains(by))
    }

    pub(crate) fn forget_troubles(&self) {
        self.seen.lock().unwrap().troubles.clear();
    }

    pub(crate) fn comes_to(&self, names: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        while self.services() != names {
            let (services, troubles) = (self.services(), self.troubles());
            assert!(Instant::now() < deadline, "{services:?}, not {names:?}: {:?}", troubles.last());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.stop.take());
        // One that panicked has said so.
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

pub(crate) fn eventually(what: &str, happens: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happens() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
