//! Containers that services of the file name: where they are, on this node and on others.
//!
//! This node's own are looked for whenever a link comes or goes, and now and then; the speaker tells the others, and brings
//! what they say. What is known is written to disk before the kernel hears of it, so that whoever looks at the node can tell
//! what its agent has followed from anybody else's work, and an agent that is started again goes on from there.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use homelab_linux::Kinds;
use homelab_model::service::Service;
use homelab_model::{AttachmentFact, ContainerWord, KnownContainers, NodeSpec, ServiceContainer, ours};
use homelab_proxy::follow::{Follow, News};
use tokio::sync::Notify;
use tokio::time::sleep_until;
use tracing::{info, warn};

use super::metrics::number;
use super::{Agent, replace};

/// What the speaker has heard of other nodes, until the agent takes it over.
#[derive(Debug, Default)]
pub(super) struct Heard {
    news: Mutex<Vec<News>>,
    bell: Notify,
}

impl Heard {
    /// What belongs together, in order.
    pub(super) fn push(&self, news: Vec<News>) {
        if !news.is_empty() {
            self.news.lock().unwrap_or_else(PoisonError::into_inner).extend(news);
            self.bell.notify_one();
        }
    }

    fn take(&self) -> Vec<News> {
        std::mem::take(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the agent of this node knows, as it is kept; None: nothing.
pub(crate) fn kept() -> Option<KnownContainers> {
    super::kept_json(ours::CONTAINERS)
}

/// All attachments of this node whose links are there: others ended without a DEL.
fn attachments() -> Vec<AttachmentFact> {
    let is_there = |link: &str| nix::net::if_::if_nametoindex(link).is_ok();
    crate::cni::attachments_with_links(Path::new(ours::IPAM), is_there)
}

/// The containers of all nodes.
pub(super) struct Containers {
    follow: Follow,
    start: Instant,
    heard: Arc<Heard>,
    /// As on disk.
    kept: Option<KnownContainers>,
    node: String,
    /// The services that name containers, as they are told.
    services: Vec<Service>,
    records: Vec<ServiceContainer>,
    /// What this node says of its own.
    own: Vec<ContainerWord>,
}

impl Containers {
    pub(super) fn load(heard: Arc<Heard>) -> Containers {
        let kept = kept();
        Containers {
            follow: Follow::new(kept.clone().unwrap_or_default()),
            start: Instant::now(),
            heard,
            kept,
            node: String::new(),
            services: Vec::new(),
            records: Vec::new(),
            own: Vec::new(),
        }
    }

    /// Takes another configuration, and puts containers in its services where they are.
    pub(super) fn configure(&mut self, spec: &mut NodeSpec) {
        self.node.clone_from(&spec.node);
        self.records.clone_from(&spec.containers);
        let named = |service: &&Service| {
            let name = service.full_name();
            spec.containers.iter().any(|record| record.service == name)
        };
        self.services = match self.records.is_empty() {
            true => Vec::new(),
            false => spec.services.iter().filter(named).cloned().collect(),
        };
        self.follow.configure(&self.records);
        if spec.speaker.is_none() {
            self.follow.alone();
        }
        self.look();
        self.keep();
        if !self.records.is_empty() {
            spec.services = self.follow.known().follow(&spec.services, &self.records);
        }
    }

    /// What this node says of its containers.
    pub(super) fn own(&self) -> Vec<ContainerWord> {
        self.own.clone()
    }

    /// Waits for news of other nodes.
    pub(super) async fn wait(&self) {
        let due = self.follow.next_deadline().map(|due| self.start + due);
        tokio::select! {
            () = self.heard.bell.notified() => {}
            () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
        }
    }

    /// Looks where this node's containers are. True if one is elsewhere than before.
    fn look(&mut self) -> bool {
        let named: Vec<_> = self.follow.named_on(&self.node).cloned().collect();
        let attachments = if named.is_empty() { Vec::new() } else { attachments() };
        let words: Vec<ContainerWord> = named
            .into_iter()
            .map(|name| ContainerWord {
                addresses: name.addresses(&attachments),
                container: name.container,
                interface: name.interface,
            })
            .collect();
        if words == self.own {
            return false;
        }
        self.own.clone_from(&words);
        self.follow.hear(News::Said(self.node.clone(), words), self.start.elapsed());
        true
    }

    /// Takes over what others say.
    fn hear(&mut self) {
        let now = self.start.elapsed();
        for news in self.heard.take() {
            self.follow.hear(news, now);
        }
        self.follow.tick(now);
    }

    /// Writes down what is known. True if it is something else.
    fn keep(&mut self) -> bool {
        let known = self.follow.known();
        let wanted = Some(known).filter(|_| !self.records.is_empty());
        if self.kept == wanted {
            return false;
        }
        let path = ours::CONTAINERS;
        let result = match &wanted {
            Some(known) => replace(path, &serde_json::to_vec(known).unwrap_or_default()),
            None => std::fs::remove_file(path),
        };
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, path, "where containers are cannot be kept on disk");
            }
            _ => self.kept = wanted,
        }
        true
    }

    /// The services that name containers, with them where they are.
    fn followed(&self) -> Vec<Service> {
        self.follow.known().follow(&self.services, &self.records)
    }
}

impl Agent {
    /// Looks for this node's own containers, and has everybody hear of what is new. Gives what else is to be looked at.
    pub(super) fn look_for_containers(&mut self) -> Kinds {
        if !self.containers.look() {
            return Kinds::NONE;
        }
        self.speaker.containers(self.containers.own());
        self.follow_containers()
    }

    /// Takes over what other nodes say of their containers. Gives what else is to be looked at.
    pub(super) fn hear_of_containers(&mut self) -> Kinds {
        self.containers.hear();
        self.follow_containers()
    }

    fn follow_containers(&mut self) -> Kinds {
        if !self.containers.keep() {
            return Kinds::NONE;
        }
        let change = self.services.follow(self.containers.followed());
        if !change.elements.is_empty() {
            let services = change.elements.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
            info!(services, "containers are elsewhere, and their services follow them");
        }
        self.metrics.endpoints.set(number(self.services.endpoints()));
        self.take_over(&change)
    }
}
