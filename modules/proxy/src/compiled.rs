//! The elements of all services, kept up to date service by service: what one service costs depends on no other.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use homelab_model::service::Service;

use crate::compile::{Conflict, Elements, NodeView, claims, one};
use crate::element::Frontend;

/// Where a service comes from. Of two that want the same address, protocol and port the lower one has it, and of one
/// source the first by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// homelab.yaml.
    File,
    /// The Kubernetes API.
    Kubernetes,
}

/// A source's service.
pub type Sourced = (Source, Arc<Service>);

/// Who wants an address, in the order in which it is given.
type Claim = (Source, Arc<str>);

/// Services, and what the sets of one node hold for them. The same as [`crate::compile`] makes of all of them at once.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    view: NodeView,
    services: BTreeMap<String, Sourced>,
    elements: Elements,
    /// How many these are, and the endpoints of the services.
    count: usize,
    endpoints: usize,
    holders: HashMap<Frontend, Claim>,
    /// Who goes without.
    others: BTreeMap<Frontend, BTreeSet<Claim>>,
}

impl Compiled {
    /// No services, on this node.
    pub fn new(view: NodeView) -> Compiled {
        Compiled { view, ..Compiled::default() }
    }

    /// The node.
    pub fn view(&self) -> &NodeView {
        &self.view
    }

    /// The services by full name.
    pub fn services(&self) -> &BTreeMap<String, Sourced> {
        &self.services
    }

    /// All elements.
    pub fn elements(&self) -> &Elements {
        &self.elements
    }

    /// How many elements there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many endpoints the services have.
    pub fn endpoints(&self) -> usize {
        self.endpoints
    }

    /// Takes over services by full name; None: there is none any more. Gives the elements of every service whose
    /// elements are others now: also of one that another had kept an address from.
    pub fn update(&mut self, changes: impl IntoIterator<Item = (String, Option<Sourced>)>) -> Elements {
        let mut due: BTreeSet<String> = BTreeSet::new();
        let mut changed = Elements::new();
        for (name, after) in changes {
            let before = match &after {
                Some(after) => self.services.insert(name.clone(), after.clone()),
                None => self.services.remove(&name),
            };
            if before == after {
                continue;
            }
            let endpoints = |sourced: &Option<Sourced>| {
                sourced.as_ref().map_or(0, |(_, service)| service.endpoints.len())
            };
            self.endpoints = self.endpoints + endpoints(&after) - endpoints(&before);
            let (old, new) = (wants(before.as_ref(), &self.view), wants(after.as_ref(), &self.view));
            let shared: Arc<str> = name.as_str().into();
            for (frontend, source) in old.difference(&new) {
                due.extend(self.release(*frontend, &(*source, Arc::clone(&shared))));
            }
            for (frontend, source) in new.difference(&old) {
                due.extend(self.claim(*frontend, (*source, Arc::clone(&shared))));
            }
            due.insert(name);
        }
        for name in due {
            let elements = self.compile(&name);
            let before = match &elements {
                Some(elements) => self.elements.insert(name.clone(), elements.clone()),
                None => self.elements.remove(&name),
            };
            let (before, elements) = (before.unwrap_or_default(), elements.unwrap_or_default());
            self.count = self.count + elements.len() - before.len();
            if before != elements {
                changed.insert(name, elements);
            }
        }
        changed
    }

    /// What several services want.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> + '_ {
        self.others.iter().filter(|(frontend, _)| frontend.port != 0).flat_map(|(frontend, others)| {
            let holder = self.holders.get(frontend).map(|(_, name)| name.to_string()).unwrap_or_default();
            others.iter().map(move |(_, other)| Conflict {
                frontend: *frontend,
                holder: holder.clone(),
                other: other.to_string(),
            })
        })
    }

    fn compile(&self, name: &str) -> Option<Vec<crate::element::Element>> {
        let (_, service) = self.services.get(name)?;
        let mut taken = HashSet::new();
        Some(one(service, &self.view, &mut |frontend| {
            self.holders.get(&frontend).is_some_and(|(_, holder)| **holder == *name) && taken.insert(frontend)
        }))
    }

    /// Adds a claim. Gives who had the frontend, if it no longer does.
    fn claim(&mut self, frontend: Frontend, claim: Claim) -> Option<String> {
        let Some(holder) = self.holders.get_mut(&frontend) else {
            self.holders.insert(frontend, claim);
            return None;
        };
        let others = self.others.entry(frontend).or_default();
        if claim > *holder {
            others.insert(claim);
            return None;
        }
        let before = std::mem::replace(holder, claim);
        let name = before.1.to_string();
        others.insert(before);
        Some(name)
    }

    /// Takes a claim away. Gives who has the frontend then, if it had not before.
    fn release(&mut self, frontend: Frontend, claim: &Claim) -> Option<String> {
        let others = self.others.get_mut(&frontend);
        if self.holders.get(&frontend) != Some(claim) {
            let others = others?;
            others.remove(claim);
            if others.is_empty() {
                self.others.remove(&frontend);
            }
            return None;
        }
        let Some(next) = others.and_then(|others| others.pop_first()) else {
            self.holders.remove(&frontend);
            return None;
        };
        if self.others.get(&frontend).is_some_and(BTreeSet::is_empty) {
            self.others.remove(&frontend);
        }
        let name = next.1.to_string();
        self.holders.insert(frontend, next);
        Some(name)
    }
}

/// All that a service claims, and for which source.
fn wants(sourced: Option<&Sourced>, view: &NodeView) -> BTreeSet<(Frontend, Source)> {
    let of = |(source, service): &Sourced| {
        claims(service, view).into_iter().map(|frontend| (frontend, *source)).collect()
    };
    sourced.map(of).unwrap_or_default()
}
