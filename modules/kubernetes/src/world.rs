//! What has been seen of the API: objects in, changed services out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use homelab_model::service::Service;
use homelab_model::{KubernetesSpec, join_endpoints, sha256_hex};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde::{Deserialize, Serialize};

use crate::{KubeNode, KubeService, KubeSlice};

/// First word of a snapshot, with the version of its format.
const HEADER: &str = "homelab-kubernetes-snapshot 1";

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
    /// Nodes.
    Nodes,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Services, Kind::Slices, Kind::Nodes];

    /// As in paths of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Services => "services",
            Kind::Slices => "endpointslices",
            Kind::Nodes => "nodes",
        }
    }
}

/// Namespace and name of an object. The namespace is empty for what is in none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Name {
    /// A name in a namespace.
    pub fn new(namespace: &str, name: &str) -> Name {
        Name { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// `namespace/name`.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The text is no snapshot that this build reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot of this version: {0}")]
pub struct SnapshotError(String);

/// All that is known of the API. An object leaves it when the API says so, by an event or by a complete list without
/// it; never because nothing was heard.
#[derive(Debug, Clone)]
pub struct World {
    settings: KubernetesSpec,
    services: BTreeMap<Name, KubeService>,
    slices: HashMap<Name, KubeSlice>,
    /// Names of slices by their service.
    by_service: HashMap<Name, BTreeSet<Name>>,
    nodes: BTreeMap<String, KubeNode>,
    /// Services that may be others than they were last told.
    changed: BTreeSet<Name>,
    nodes_changed: bool,
    /// Lists that are coming in: what they have held so far.
    coming: BTreeMap<Kind, HashSet<Name>>,
    complete: BTreeSet<Kind>,
    /// It began with what an earlier one knew.
    restored: bool,
}

#[derive(Deserialize)]
struct Snapshot {
    services: Vec<KubeService>,
    slices: Vec<(Name, KubeSlice)>,
    nodes: BTreeMap<String, KubeNode>,
}

/// The same to be written: it is written often, and a copy of all would cost more than the text.
#[derive(Serialize)]
struct SnapshotOf<'a> {
    services: Vec<&'a KubeService>,
    slices: Vec<(&'a Name, &'a KubeSlice)>,
    nodes: &'a BTreeMap<String, KubeNode>,
}

impl World {
    /// Nothing is known yet.
    pub fn new(settings: KubernetesSpec) -> World {
        World {
            settings,
            services: BTreeMap::new(),
            slices: HashMap::new(),
            by_service: HashMap::new(),
            nodes: BTreeMap::new(),
            changed: BTreeSet::new(),
            nodes_changed: false,
            coming: BTreeMap::new(),
            complete: BTreeSet::new(),
            restored: false,
        }
    }

    /// What was known when [`World::snapshot`] was taken. All of it counts as changed, and nothing as complete.
    ///
    /// # Errors
    /// The text is cut off, or of another version.
    pub fn restore(settings: KubernetesSpec, text: &str) -> Result<World, SnapshotError> {
        let error = |why: &str| SnapshotError(why.to_owned());
        let (head, body) = text.split_once('\n').ok_or_else(|| error("it has no first line"))?;
        let digest = head.strip_prefix(HEADER).ok_or_else(|| error("its first line says otherwise"))?;
        if digest.trim() != sha256_hex(body.as_bytes()) {
            return Err(error("its digest is another"));
        }
        let snapshot: Snapshot = serde_json::from_str(body).map_err(|e| SnapshotError(e.to_string()))?;
        let mut world = World::new(settings);
        for service in snapshot.services {
            let name = Name::new(&service.service.namespace, &service.service.name);
            world.keep_service(name, service);
        }
        for (name, slice) in snapshot.slices {
            world.keep_slice(name, slice);
        }
        world.nodes_changed = !snapshot.nodes.is_empty();
        world.nodes = snapshot.nodes;
        world.restored = true;
        Ok(world)
    }

    /// All of it as text, with a digest of its own.
    pub fn snapshot(&self) -> String {
        let mut slices: Vec<(&Name, &KubeSlice)> = self.slices.iter().collect();
        slices.sort_by_key(|(name, _)| *name);
        let snapshot = SnapshotOf { services: self.services.values().collect(), slices, nodes: &self.nodes };
        let body = serde_json::to_string(&snapshot).unwrap_or_default();
        format!("{HEADER} {}\n{body}", sha256_hex(body.as_bytes()))
    }

    /// A list of this kind begins: what it does not hold when it is complete is gone. One that was coming in is void.
    pub fn begin(&mut self, kind: Kind) {
        self.coming.insert(kind, HashSet::new());
    }

    /// The list is complete.
    pub fn complete(&mut self, kind: Kind) {
        self.complete.insert(kind);
        let Some(held) = self.coming.remove(&kind) else { return };
        let gone: Vec<Name> = match kind {
            Kind::Services => self.services.keys().filter(|name| !held.contains(*name)).cloned().collect(),
            Kind::Slices => self.slices.keys().filter(|name| !held.contains(*name)).cloned().collect(),
            Kind::Nodes => self
                .nodes
                .keys()
                .map(|name| Name::new("", name))
                .filter(|name| !held.contains(name))
                .collect(),
        };
        for name in gone {
            self.drop(kind, &name);
        }
    }

    /// Whether complete lists of all that services are made of were seen.
    pub fn is_complete(&self) -> bool {
        [Kind::Services, Kind::Slices].iter().all(|kind| self.complete.contains(kind))
    }

    /// Whether [`World::nodes`] are all there are, or were when an earlier world was kept.
    pub fn knows_nodes(&self) -> bool {
        self.restored || self.has_listed_nodes()
    }

    /// Whether the API itself has said which Nodes there are.
    pub fn has_listed_nodes(&self) -> bool {
        self.complete.contains(&Kind::Nodes)
    }

    /// A Service is there, or is another.
    pub fn service(&mut self, object: &core::Service) {
        let Some(service) = crate::service(object, &self.settings) else { return };
        let name = Name::new(&service.service.namespace, &service.service.name);
        self.seen(Kind::Services, &name);
        self.keep_service(name, service);
    }

    /// An EndpointSlice is there, or is another.
    pub fn slice(&mut self, object: &discovery::EndpointSlice) {
        let meta = &object.metadata;
        let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { return };
        let name = Name::new(namespace, name);
        self.seen(Kind::Slices, &name);
        match crate::slice(object) {
            Some(slice) => self.keep_slice(name, slice),
            // It may have been a service's before.
            None => self.drop(Kind::Slices, &name),
        }
    }

    /// A Node is there, or is another.
    pub fn node(&mut self, object: &core::Node) {
        let Some(name) = object.metadata.name.clone() else { return };
        self.seen(Kind::Nodes, &Name::new("", &name));
        let node = crate::node(object);
        if self.nodes.get(&name) != Some(&node) {
            self.nodes.insert(name, node);
            self.nodes_changed = true;
        }
    }

    /// An object is deleted.
    pub fn gone(&mut self, kind: Kind, name: &Name) {
        if let Some(held) = self.coming.get_mut(&kind) {
            held.remove(name);
        }
        self.drop(kind, name);
    }

    /// The services that changed since they were last taken, each as the proxy and the speaker want it, see
    /// [`World::proxies`] and [`World::announces`]; None: there is none any more that is of either.
    pub fn take_changed(&mut self) -> BTreeMap<String, Option<Service>> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|name| (name.to_string(), self.joined(&name))).collect()
    }

    /// All services of the proxy, as it wants them.
    pub fn all_joined(&self) -> impl Iterator<Item = Service> + '_ {
        let proxied = self.services.iter().filter(|(_, service)| service.proxied);
        proxied.filter_map(|(name, _)| self.joined(name))
    }

    /// Whether the proxy serves a service (`namespace/name`): not another proxy's, for one.
    pub fn proxies(&self, full_name: &str) -> bool {
        self.of_full_name(full_name).is_some_and(|service| service.proxied)
    }

    /// Whether the load-balancer addresses of a service (`namespace/name`) are announced: not another controller's, and
    /// not of one that is about to go.
    pub fn announces(&self, full_name: &str) -> bool {
        self.of_full_name(full_name).is_some_and(|service| service.announced)
    }

    fn of_full_name(&self, full_name: &str) -> Option<&KubeService> {
        let (namespace, name) = full_name.split_once('/')?;
        self.services.get(&Name::new(namespace, name))
    }

    /// Whether [`World::take_changed`] would give something.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Whether Nodes changed since this was last asked.
    pub fn take_nodes_changed(&mut self) -> bool {
        std::mem::take(&mut self.nodes_changed)
    }

    /// All Services, also those that the proxy does not serve.
    pub fn services(&self) -> impl Iterator<Item = &KubeService> {
        self.services.values()
    }

    /// A service as the proxy and the speaker want it: with its endpoints. None if it is of neither.
    pub fn joined(&self, name: &Name) -> Option<Service> {
        let service = self.services.get(name).filter(|service| service.proxied || service.announced)?;
        let slices = self.by_service.get(name).into_iter().flatten();
        let groups = slices.filter_map(|slice| Some(&self.slices.get(slice)?.group));
        let service = &service.service;
        Some(Service { endpoints: join_endpoints(&service.ports, groups), ..service.clone() })
    }

    /// The Nodes by name.
    pub fn nodes(&self) -> &BTreeMap<String, KubeNode> {
        &self.nodes
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Services => self.services.len(),
            Kind::Slices => self.slices.len(),
            Kind::Nodes => self.nodes.len(),
        }
    }

    fn seen(&mut self, kind: Kind, name: &Name) {
        if let Some(held) = self.coming.get_mut(&kind) {
            held.insert(name.clone());
        }
    }

    fn keep_service(&mut self, name: Name, service: KubeService) {
        if self.services.get(&name) != Some(&service) {
            self.changed.insert(name.clone());
            self.services.insert(name, service);
        }
    }

    fn keep_slice(&mut self, name: Name, slice: KubeSlice) {
        if self.slices.get(&name) == Some(&slice) {
            return;
        }
        self.drop(Kind::Slices, &name);
        let service = Name::new(&name.namespace, &slice.service);
        self.by_service.entry(service.clone()).or_default().insert(name.clone());
        self.slices.insert(name, slice);
        self.changed.insert(service);
    }

    fn drop(&mut self, kind: Kind, name: &Name) {
        match kind {
            Kind::Services => {
                if self.services.remove(name).is_some() {
                    self.changed.insert(name.clone());
                }
            }
            Kind::Slices => {
                let Some(slice) = self.slices.remove(name) else { return };
                let service = Name::new(&name.namespace, &slice.service);
                if let Some(slices) = self.by_service.get_mut(&service) {
                    slices.remove(name);
                    if slices.is_empty() {
                        self.by_service.remove(&service);
                    }
                }
                self.changed.insert(service);
            }
            Kind::Nodes => self.nodes_changed |= self.nodes.remove(&name.name).is_some(),
        }
    }
}
