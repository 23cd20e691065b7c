//! What has been seen of the API: objects in, changed services out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use homelab_model::service::Service;
use homelab_model::{EndpointGroup, KubernetesSpec, join_endpoints};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde::{Deserialize, Serialize};

use crate::kept::{Batch, Record, SnapshotError, batches};
use crate::{KubeNode, KubeService, KubeSlice};

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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

/// Namespace and name of an object, `namespace/name`. The namespace is empty for what is in none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// A name in a namespace.
    pub fn new(namespace: &str, name: &str) -> Name {
        Name(format!("{namespace}/{name}").into())
    }

    fn split(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or_default()
    }

    /// Namespace.
    pub fn namespace(&self) -> &str {
        self.split().0
    }

    /// Name.
    pub fn name(&self) -> &str {
        self.split().1
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Name {
    fn from(text: String) -> Name {
        Name(text.into())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.to_string()
    }
}

/// All that is known of the API. An object leaves it when the API says so, by an event or by a complete list without
/// it; never because nothing was heard.
///
/// Services and EndpointSlices are kept as they stand on disk: that is a fraction of what they take as values, and they
/// are read when their service changes and at no other time.
#[derive(Debug, Clone)]
pub struct World {
    settings: KubernetesSpec,
    services: BTreeMap<Name, Arc<str>>,
    /// With the service of each.
    slices: HashMap<Name, (Name, Arc<str>)>,
    /// Services with their slices.
    by_service: BTreeSet<(Name, Name)>,
    nodes: BTreeMap<String, KubeNode>,
    /// Services that may be others than they were last told.
    changed: BTreeSet<Name>,
    nodes_changed: bool,
    /// What may be another than it was last kept.
    unkept: BTreeSet<(Kind, Name)>,
    /// Lists that are coming in: what they have held so far.
    coming: BTreeMap<Kind, HashSet<Name>>,
    complete: BTreeSet<Kind>,
    /// It began with what an earlier one knew.
    restored: bool,
}

impl World {
    /// Nothing is known yet.
    pub fn new(settings: KubernetesSpec) -> World {
        World {
            settings,
            services: BTreeMap::new(),
            slices: HashMap::new(),
            by_service: BTreeSet::new(),
            nodes: BTreeMap::new(),
            changed: BTreeSet::new(),
            nodes_changed: false,
            unkept: BTreeSet::new(),
            coming: BTreeMap::new(),
            complete: BTreeSet::new(),
            restored: false,
        }
    }

    /// What was known when the last of [`World::all`] and [`World::take_unkept`] that is whole in the text was taken. All
    /// of it counts as changed, and nothing as complete.
    ///
    /// # Errors
    /// The text has not all of the first one, or is of another version.
    pub fn restore(settings: KubernetesSpec, text: &[u8]) -> Result<World, SnapshotError> {
        let mut world = World::new(settings);
        for line in batches(text)?.into_iter().flatten() {
            match Record::parse(line)? {
                Record::Service(service) => {
                    let name = Name::new(&service.service.namespace, &service.service.name);
                    world.keep_service(name, line.into());
                }
                Record::Slice(name, slice) => {
                    let service = Name::new(name.namespace(), &slice.service);
                    world.keep_slice(name, service, line.into());
                }
                Record::Node(name, node) => world.keep_node(name, node),
                Record::Gone(kind, name) => world.drop(kind, &name),
            }
        }
        world.restored = true;
        Ok(world)
    }

    /// All of it, to be kept.
    pub fn all(&mut self) -> Batch {
        self.unkept.clear();
        let mut slices: Vec<_> = self.slices.iter().collect();
        slices.sort_unstable_by_key(|(name, _)| *name);
        let slices = slices.into_iter().map(|(_, (_, text))| Arc::clone(text));
        let nodes = self.nodes.iter().map(|(name, node)| Record::Node(name.clone(), node.clone()).text());
        Batch::new(self.services.values().cloned().chain(slices).chain(nodes).collect())
    }

    /// What changed since this or [`World::all`] was last asked for, to be added to it; None: nothing.
    pub fn take_unkept(&mut self) -> Option<Batch> {
        let unkept = std::mem::take(&mut self.unkept);
        let record = |(kind, name): (Kind, Name)| {
            let text = match kind {
                Kind::Services => self.services.get(&name).cloned(),
                Kind::Slices => self.slices.get(&name).map(|(_, text)| Arc::clone(text)),
                Kind::Nodes => {
                    let node = self.nodes.get(name.name()).cloned();
                    node.map(|node| Record::Node(name.name().to_owned(), node).text())
                }
            };
            text.unwrap_or_else(|| Record::Gone(kind, name).text())
        };
        let records: Vec<_> = unkept.into_iter().map(record).collect();
        (!records.is_empty()).then(|| Batch::new(records))
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
        self.keep_service(name, Record::Service(service).text());
    }

    /// An EndpointSlice is there, or is another.
    pub fn slice(&mut self, object: &discovery::EndpointSlice) {
        let meta = &object.metadata;
        let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { return };
        let name = Name::new(namespace, name);
        self.seen(Kind::Slices, &name);
        match crate::slice(object) {
            Some(slice) => {
                let service = Name::new(namespace, &slice.service);
                let text = Record::Slice(name.clone(), slice).text();
                self.keep_slice(name, service, text);
            }
            // It may have been a service's before.
            None => self.drop(Kind::Slices, &name),
        }
    }

    /// A Node is there, or is another.
    pub fn node(&mut self, object: &core::Node) {
        let Some(name) = object.metadata.name.clone() else { return };
        self.seen(Kind::Nodes, &Name::new("", &name));
        self.keep_node(name, crate::node(object));
    }

    /// An object is deleted.
    pub fn gone(&mut self, kind: Kind, name: &Name) {
        if let Some(held) = self.coming.get_mut(&kind) {
            held.remove(name);
        }
        self.drop(kind, name);
    }

    /// The services that changed since they were last taken, each as the proxy and the speaker want it: with its
    /// endpoints; None: there is none any more that is of either.
    pub fn take_changed(&mut self) -> BTreeMap<String, Option<KubeService>> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|name| (name.to_string(), self.joined(&name))).collect()
    }

    /// All services of the proxy, as it wants them.
    pub fn all_joined(&self) -> impl Iterator<Item = Service> + '_ {
        let all = self.services.keys().filter_map(|name| self.joined(name));
        all.filter(|service| service.proxied).map(|service| service.service)
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
    pub fn services(&self) -> impl Iterator<Item = &Name> {
        self.services.keys()
    }

    /// A service as the proxy and the speaker want it: with its endpoints. None if it is of neither.
    fn joined(&self, name: &Name) -> Option<KubeService> {
        // What stands there is what was written from values of these very types.
        let Ok(Record::Service(mut joined)) = Record::parse(self.services.get(name)?) else { return None };
        if !joined.proxied && !joined.announced {
            return None;
        }
        let group = |slice: &Name| match Record::parse(&self.slices.get(slice)?.1) {
            Ok(Record::Slice(_, KubeSlice { group, .. })) => Some(group),
            _ => None,
        };
        let groups: Vec<EndpointGroup> = self.slices_of(name).filter_map(group).collect();
        joined.service.endpoints = join_endpoints(&joined.service.ports, &groups);
        // It is held as long as it lasts, and what is read has room for more.
        joined.service.ports.shrink_to_fit();
        joined.service.cluster_ips.shrink_to_fit();
        Some(joined)
    }

    fn slices_of<'a>(&'a self, service: &'a Name) -> impl Iterator<Item = &'a Name> {
        let from = (service.clone(), Name(Arc::default()));
        self.by_service.range(from..).take_while(move |(of, _)| of == service).map(|(_, slice)| slice)
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

    fn keep_service(&mut self, name: Name, text: Arc<str>) {
        if self.services.get(&name) != Some(&text) {
            self.changed.insert(name.clone());
            self.unkept.insert((Kind::Services, name.clone()));
            self.services.insert(name, text);
        }
    }

    fn keep_slice(&mut self, name: Name, service: Name, text: Arc<str>) {
        if self.slices.get(&name).is_some_and(|(_, known)| *known == text) {
            return;
        }
        self.drop(Kind::Slices, &name);
        self.by_service.insert((service.clone(), name.clone()));
        self.changed.insert(service.clone());
        self.unkept.insert((Kind::Slices, name.clone()));
        self.slices.insert(name, (service, text));
    }

    fn keep_node(&mut self, name: String, node: KubeNode) {
        if self.nodes.get(&name) != Some(&node) {
            self.unkept.insert((Kind::Nodes, Name::new("", &name)));
            self.nodes.insert(name, node);
            self.nodes_changed = true;
        }
    }

    fn drop(&mut self, kind: Kind, name: &Name) {
        let had = match kind {
            Kind::Services => {
                let had = self.services.remove(name).is_some();
                if had {
                    self.changed.insert(name.clone());
                }
                had
            }
            Kind::Slices => match self.slices.remove(name) {
                None => false,
                Some((service, _)) => {
                    self.changed.insert(service.clone());
                    self.by_service.remove(&(service, name.clone()))
                }
            },
            Kind::Nodes => {
                let had = self.nodes.remove(name.name()).is_some();
                self.nodes_changed |= had;
                had
            }
        };
        if had {
            self.unkept.insert((kind, name.clone()));
        }
    }
}
