//! The Services that the controller keeps in sight, from lists and watches.

use std::collections::{BTreeMap, BTreeSet};

use homelab_model::KubernetesSpec;
use k8s_openapi::api::core::v1::Service;

use super::watched::{Class, Watched};

/// Services by full name: load balancers, those that hold addresses otherwise, and those that once did.
#[derive(Debug, Clone)]
pub struct Board {
    settings: KubernetesSpec,
    services: BTreeMap<String, Watched>,
    /// What a list that is under way has told so far.
    listed: Option<BTreeSet<String>>,
    complete: bool,
}

impl Board {
    /// Nothing is in sight so far.
    pub fn new(settings: KubernetesSpec) -> Board {
        Board { settings, services: BTreeMap::new(), listed: None, complete: false }
    }

    /// A complete list begins: what it does not tell is gone at its end.
    pub fn begin(&mut self) {
        self.listed = Some(BTreeSet::new());
    }

    /// The list is complete.
    pub fn complete(&mut self) {
        self.complete = true;
        if let Some(listed) = self.listed.take() {
            self.services.retain(|name, _| listed.contains(name));
        }
    }

    /// Whether there was a complete list. Nothing is decided before.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// A Service is there, or is another.
    pub fn object(&mut self, service: &Service) {
        let Some(watched) = Watched::of(service, &self.settings) else { return };
        let name = watched.full_name();
        if let Some(listed) = &mut self.listed {
            // Its version may be older than what was known: the server has forgotten something.
            listed.insert(name.clone());
        } else if self.is_older(&name, &watched) {
            return;
        }
        let matters = watched.class != Class::None
            || watched.is_held()
            || !watched.declared.service.external_ips.is_empty();
        if matters || self.services.contains_key(&name) {
            self.services.insert(name, watched);
        }
    }

    /// An answer to a request of our own: it may come before the watch tells of it, or after.
    pub fn answer(&mut self, service: &Service) {
        let Some(watched) = Watched::of(service, &self.settings) else { return };
        let name = watched.full_name();
        if self.is_older(&name, &watched) {
            return;
        }
        if let Some(listed) = &mut self.listed {
            listed.insert(name.clone());
        }
        self.services.insert(name, watched);
    }

    /// A Service is deleted.
    pub fn gone(&mut self, namespace: &str, name: &str) {
        self.services.remove(&format!("{namespace}/{name}"));
    }

    /// All of them.
    pub fn services(&self) -> &BTreeMap<String, Watched> {
        &self.services
    }

    /// Whether what is known of this very Service is newer.
    fn is_older(&self, name: &str, watched: &Watched) -> bool {
        self.services.get(name).is_some_and(|has| has.uid == watched.uid && has.version > watched.version)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, version: u64, kind: &str) -> Service {
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "default", "name": name, "uid": format!("u-{name}"),
                "resourceVersion": version.to_string(),
            },
            "spec": { "type": kind },
        }))
        .unwrap()
    }

    fn seen(board: &Board) -> Vec<String> {
        board.services().iter().map(|(name, one)| format!("{name} {}", one.version)).collect()
    }

    #[test]
    fn what_matters_is_kept_until_it_is_gone() {
        let mut board = Board::new(super::super::tests::settings());
        board.begin();
        board.object(&service("a", 1, "LoadBalancer"));
        board.object(&service("b", 2, "ClusterIP"));
        assert!(!board.is_complete());
        board.complete();
        assert!(board.is_complete());
        assert_eq!(seen(&board), ["default/a 1"]);
        // It was a load balancer once.
        board.object(&service("a", 3, "ClusterIP"));
        assert_eq!(seen(&board), ["default/a 3"]);
        // An answer comes before the watch tells of what was before it.
        board.answer(&service("a", 9, "LoadBalancer"));
        board.object(&service("a", 8, "LoadBalancer"));
        assert_eq!(seen(&board), ["default/a 9"]);
        board.answer(&service("b", 2, "ClusterIP"));
        assert_eq!(seen(&board), ["default/a 9", "default/b 2"]);
        board.gone("default", "b");
        // An older state of the server counts all the same, if it is listed.
        board.begin();
        board.object(&service("a", 4, "LoadBalancer"));
        board.object(&service("c", 5, "LoadBalancer"));
        board.complete();
        assert_eq!(seen(&board), ["default/a 4", "default/c 5"]);
        board.begin();
        board.complete();
        assert!(board.services().is_empty());
    }
}
