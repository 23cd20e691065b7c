//! Services of homelab.yaml and of the Kubernetes API as one: of two with one name that of the file is served.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use homelab_kubernetes::KubeNode;
use homelab_kubernetes::metallb::Meaning;
use homelab_kubernetes::peers::Annotations;
use homelab_linux::{Error, Kinds, Root};
use homelab_model::service::{Service, Type};
use homelab_model::{KubernetesFact, NodeSpec};
use homelab_proxy::{Compiled, Conflict, Elements, HealthCheck, NodeView, Source, Sourced, health_checks};
use tracing::warn;

use super::Agent;
use super::kubernetes::{File, Handle, Live};
use super::metrics::{Metrics, number};
use super::sayings::Sayings;

/// All services of this node.
pub(super) struct Services {
    kubernetes: Handle,
    file: BTreeMap<String, Arc<Service>>,
    live: BTreeMap<String, Live>,
    /// Names of the load balancers among these: nobody else is told of the others.
    balancers: BTreeSet<String>,
    nodes: BTreeMap<String, KubeNode>,
    /// The API itself has said so.
    listed: bool,
    known: bool,
    compiled: Compiled,
}

/// What news of Kubernetes came to.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Services whose elements are others.
    pub(super) elements: Elements,
    /// Not these alone: all are to be looked at.
    pub(super) all: bool,
    /// Nodes of the API are others.
    pub(super) nodes: bool,
    /// What others than the kernel are told changed, too.
    pub(super) outside: bool,
}

impl Services {
    pub(super) fn new(metrics: Arc<Metrics>, sayings: Arc<Sayings>) -> Services {
        Services {
            kubernetes: Handle::new(metrics, sayings),
            file: BTreeMap::new(),
            live: BTreeMap::new(),
            balancers: BTreeSet::new(),
            nodes: BTreeMap::new(),
            listed: false,
            known: false,
            compiled: Compiled::default(),
        }
    }

    /// Takes the services of a configuration out of it. Gives how many there are now.
    pub(super) fn configure(&mut self, spec: &mut NodeSpec) -> Result<usize, String> {
        self.kubernetes.configure(spec.kubernetes.as_ref())?;
        if !self.kubernetes.is_on() {
            self.live.clear();
            self.balancers.clear();
            self.nodes.clear();
            self.listed = false;
            self.known = false;
        }
        let services = std::mem::take(&mut spec.services);
        let balanced = services
            .iter()
            .flat_map(|service| service.load_balancer.iter().map(|one| (one.ip, service.full_name())));
        self.kubernetes.file(File { taken: balanced.collect(), speaker: spec.speaker.clone() });
        self.file = services.into_iter().map(|service| (service.full_name(), Arc::new(service))).collect();
        self.compile(self.view(spec));
        Ok(self.count())
    }

    /// Ends in order what watches Kubernetes.
    pub(super) fn leave(&mut self) {
        self.kubernetes.leave();
    }

    /// Waits for news of Kubernetes.
    pub(super) async fn wait(&self) {
        self.kubernetes.wait().await;
    }

    /// A check has found or made this node's network as it should be.
    pub(super) fn network_is_there(&self) {
        self.kubernetes.network_is_there();
    }

    /// Takes over news of Kubernetes.
    pub(super) fn hear(&mut self, spec: &NodeSpec) -> Change {
        let news = self.kubernetes.news();
        let mut change = Change { all: news.known && !self.known, ..Change::default() };
        self.known = news.known;
        change.outside = news.metallb;
        let mut names: BTreeSet<String> = BTreeSet::new();
        if news.whole {
            let gone = self.live.keys().filter(|name| !news.services.contains_key(*name));
            names.extend(gone.cloned());
        }
        let mut after: BTreeMap<String, Option<Live>> =
            names.iter().map(|name| (name.clone(), None)).collect();
        after.extend(news.services);
        let told = |live: Option<&Live>| live.is_some_and(|live| live.service.r#type == Type::LoadBalancer);
        for (name, live) in after {
            if self.live.get(&name) == live.as_ref() {
                continue;
            }
            change.outside |= told(self.live.get(&name)) || told(live.as_ref());
            match told(live.as_ref()) {
                true => self.balancers.insert(name.clone()),
                false => self.balancers.remove(&name),
            };
            match live {
                Some(live) => self.live.insert(name.clone(), live),
                None => self.live.remove(&name),
            };
            names.insert(name);
        }
        if let Some(nodes) = news.nodes {
            change.outside |= self.nodes != nodes;
            change.nodes = self.nodes != nodes || self.listed != news.listed;
            self.listed = news.listed;
            self.nodes = nodes;
            let view = self.view(spec);
            if view != *self.compiled.view() {
                change.all = true;
                self.compile(view);
                return change;
            }
        }
        let changes: Vec<_> = names.into_iter().map(|name| (self.sourced(&name), name)).collect();
        change.elements = self.compiled.update(changes.into_iter().map(|(sourced, name)| (name, sourced)));
        change
    }

    /// Takes over services of the file whose containers are elsewhere.
    pub(super) fn follow(&mut self, services: Vec<Service>) -> Change {
        let mut change = Change::default();
        let mut names = Vec::new();
        for service in services {
            let name = service.full_name();
            if self.file.get(&name).is_none_or(|before| **before != service) {
                change.outside |= service.r#type == Type::LoadBalancer;
                self.file.insert(name.clone(), Arc::new(service));
                names.push(name);
            }
        }
        let changes: Vec<_> = names.into_iter().map(|name| (self.sourced(&name), name)).collect();
        change.elements = self.compiled.update(changes.into_iter().map(|(sourced, name)| (name, sourced)));
        change
    }

    /// Whether all services are known that the kernel may hold.
    pub(super) fn known(&self) -> bool {
        self.known || !self.kubernetes.is_on()
    }

    /// What the proxy's sets are to hold.
    pub(super) fn elements(&self) -> &Elements {
        self.compiled.elements()
    }

    /// How many these are.
    pub(super) fn element_count(&self) -> usize {
        self.compiled.count()
    }

    pub(super) fn count(&self) -> usize {
        self.compiled.services().len()
    }

    /// Endpoints of all services.
    pub(super) fn endpoints(&self) -> usize {
        self.compiled.endpoints()
    }

    /// What several services want.
    pub(super) fn conflicts(&self) -> Vec<Conflict> {
        self.compiled.conflicts().collect()
    }

    /// What load balancers are answered.
    pub(super) fn checks(&self) -> (BTreeMap<SocketAddr, HealthCheck>, Vec<Conflict>) {
        let names = self.file.keys().chain(&self.balancers).collect::<BTreeSet<_>>().into_iter();
        let services = names.filter_map(|name| self.compiled.services().get(name));
        let checked = services.filter(|(_, service)| service.health_check_node_port.is_some());
        let checked: Vec<Service> = checked.map(|(_, service)| Service::clone(service)).collect();
        health_checks(&checked, self.compiled.view())
    }

    /// Services whose load-balancer addresses are announced.
    pub(super) fn announced(&self) -> Vec<Service> {
        let live = self.balancers.iter().filter(|name| !self.file.contains_key(*name));
        let live = live.filter_map(|name| self.live.get(name)).filter(|live| live.announced);
        let all = self.file.values().chain(live.map(|live| &live.service));
        all.filter(|service| service.r#type == Type::LoadBalancer).map(|one| Service::clone(one)).collect()
    }

    /// What MetalLB's resources add to what the speakers are told.
    pub(super) fn metallb(&self) -> Meaning {
        self.kubernetes.metallb()
    }

    /// Nodes of the Kubernetes API by name.
    pub(super) fn nodes(&self) -> &BTreeMap<String, KubeNode> {
        &self.nodes
    }

    /// The same, once the API itself has said which they are.
    pub(super) fn listed_nodes(&self) -> Option<&BTreeMap<String, KubeNode>> {
        Some(&self.nodes).filter(|_| self.listed)
    }

    /// What flannel's annotations of the own Node are to be.
    pub(super) fn annotate(&self, annotations: Annotations) {
        self.kubernetes.annotate(annotations);
    }

    /// How it stands with the Kubernetes API.
    pub(super) fn fact(&self) -> Option<KubernetesFact> {
        let mut fact = self.kubernetes.fact()?;
        fact.hidden = self.file.keys().filter(|name| self.live.contains_key(*name)).cloned().collect();
        Some(fact)
    }

    fn sourced(&self, name: &str) -> Option<Sourced> {
        let file = self.file.get(name).map(|service| (Source::File, Arc::clone(service)));
        let live = || self.live.get(name).filter(|live| live.proxied);
        file.or_else(|| Some((Source::Kubernetes, Arc::clone(&live()?.service))))
    }

    /// What the proxy knows of this node: its zone is the one of its Node, where that says one.
    fn view(&self, spec: &NodeSpec) -> NodeView {
        let mut view = homelab_proxy::view(spec);
        let zone = self.nodes.get(&spec.node).and_then(KubeNode::zone);
        view.zone = zone.map(str::to_owned).or(view.zone);
        view
    }

    /// Computes what is not computed yet, or all of it for another view.
    fn compile(&mut self, view: NodeView) {
        let before: Vec<String> = self.compiled.services().keys().cloned().collect();
        if *self.compiled.view() != view {
            self.compiled = Compiled::new(view);
        }
        let names: BTreeSet<&String> =
            before.iter().chain(self.file.keys()).chain(self.live.keys()).collect();
        let changes: Vec<(String, Option<Sourced>)> =
            names.into_iter().map(|name| (name.clone(), self.sourced(name))).collect();
        self.compiled.update(changes);
    }
}

impl Agent {
    /// Tells the speaker, load balancers and Prometheus of the services.
    pub(super) fn tell(&mut self) {
        let Some(spec) = &self.spec else { return };
        let (checks, conflicts) = self.services.checks();
        let conflicts = self.services.conflicts().into_iter().chain(conflicts);
        let conflicts: BTreeSet<(String, String)> = conflicts
            .map(|c| (c.other, format!("{} belongs to the service {}", c.frontend, c.holder)))
            .collect();
        for (service, why) in conflicts.difference(&self.conflicts) {
            warn!(service, "{why}");
        }
        self.conflicts = conflicts;
        let proxy = spec.kubernetes.as_ref().map(|told| told.metrics_port).filter(|port| *port != 0);
        let proxy = proxy.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        self.http.want(spec.proxy.agent, proxy, checks);
        self.http.leaving(self.services.nodes().get(&spec.node).is_some_and(|node| node.leaving));
        let metallb = self.services.metallb();
        if metallb.notes != self.noted {
            for note in &metallb.notes {
                warn!(resource = note.resource, "{}", note.text);
            }
            self.noted.clone_from(&metallb.notes);
        }
        self.speaker.containers(self.containers.own());
        self.speaker.configure(spec, self.services.announced(), self.services.nodes(), &metallb);
        self.metrics.services.set(number(self.services.count()));
        self.metrics.endpoints.set(number(self.services.endpoints()));
    }

    /// Takes over what Kubernetes says, and has the kernel do so for services that changed. Gives what else is to be looked
    /// at.
    pub(super) fn hear(&mut self) -> Kinds {
        let Some(spec) = self.spec.clone() else { return Kinds::NONE };
        let heard = self.services.hear(&spec);
        let links = heard.nodes && self.take_peers(&spec);
        Kinds { links, ..self.take_over(&heard) }
    }

    /// Has everybody hear of services that changed. Gives what else is to be looked at.
    pub(super) fn take_over(&mut self, heard: &Change) -> Kinds {
        if heard.outside {
            self.tell();
        }
        self.settled &= !heard.all;
        if self.settled && !heard.elements.is_empty() {
            // An apply holds the lock: what it is about may be these very sets.
            match homelab_linux::lock(&Root::system(), Duration::ZERO) {
                Err(Error::Locked(_)) => self.settled = false,
                Err(error) => warn!(%error, "cannot take the lock"),
                Ok(_lock) => self.serve(Some(&heard.elements)),
            }
        }
        self.sum_up();
        Kinds { services: !self.settled, ..Kinds::NONE }
    }
}
