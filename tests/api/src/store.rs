//! The objects and what has happened to them. No I/O: what time it is, is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::select::Selector;
use crate::{Failure, Resource, apply, patch};

/// So many changes are remembered; a watch that is further behind has expired.
const HISTORY: usize = 20_000;

/// Namespace, empty for what is in none, and name.
type Key = (String, String);

/// All objects under one counter of resource versions.
#[derive(Clone)]
pub(crate) struct Store {
    objects: BTreeMap<Resource, BTreeMap<Key, Arc<Value>>>,
    /// The last resource version that was given.
    version: u64,
    history: VecDeque<Event>,
    /// The history begins after this version.
    forgotten: u64,
    /// What was applied last, by uid of the object and manager.
    applied: BTreeMap<(String, String), Value>,
}

/// A change of an object.
#[derive(Clone)]
struct Event {
    version: u64,
    resource: Resource,
    namespace: String,
    before: Option<Arc<Value>>,
    after: Option<Arc<Value>>,
}

/// What a list or a watch is about.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    pub(crate) resource: Resource,
    /// None: all.
    pub(crate) namespace: Option<String>,
    pub(crate) selector: Selector,
}

/// Where an object is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) resource: &'a Resource,
    /// None for a cluster-wide resource.
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: &'a str,
}

impl Place<'_> {
    fn key(&self) -> Key {
        (self.namespace.unwrap_or_default().to_owned(), self.name.to_owned())
    }

    fn not_found(&self) -> Failure {
        Failure::NotFound(self.resource.plural, self.name.to_owned())
    }

    fn conflict(&self) -> Failure {
        Failure::Conflict(self.resource.plural, self.name.to_owned())
    }
}

impl Store {
    pub(crate) fn new() -> Store {
        // 0 has a meaning of its own in requests.
        Store {
            objects: BTreeMap::new(),
            version: 1,
            history: VecDeque::new(),
            forgotten: 1,
            applied: BTreeMap::new(),
        }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Forgets all that has happened, as etcd does when it is compacted.
    pub(crate) fn compact(&mut self) {
        self.history.clear();
        self.forgotten = self.version;
    }

    /// Adds an object. `now` is its creation time in RFC 3339.
    pub(crate) fn create(
        &mut self,
        resource: &Resource,
        namespace: Option<&str>,
        object: Value,
        now: &str,
    ) -> Result<Arc<Value>, Failure> {
        let mut object = typed(resource, namespace, object)?;
        let number = self.version + 1;
        let metadata = metadata(&mut object)?;
        if metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|version| !version.is_empty())
        {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(Failure::BadRequest(why.to_owned()));
        }
        let name = match (text(metadata, "name"), text(metadata, "generateName")) {
            (Some(name), _) => name.to_owned(),
            (None, Some(prefix)) => format!("{prefix}{number:05x}"),
            (None, None) => {
                let why = format!(
                    "{} \"\" is invalid: metadata.name: Required value: name or generateName is required",
                    resource.kind
                );
                return Err(Failure::Invalid(why));
            }
        };
        metadata.insert("name".to_owned(), json!(name));
        metadata.insert("uid".to_owned(), json!(format!("00000000-0000-4000-8000-{number:012x}")));
        metadata.insert("creationTimestamp".to_owned(), json!(now));
        // A kubelet registers its node together with the status.
        if resource.status && *resource != Resource::NODES {
            object.remove("status");
        }
        let place = Place { resource, namespace, name: &name };
        if self.find(place).is_some() {
            return Err(Failure::AlreadyExists(resource.plural, name));
        }
        Ok(self.put(place, object))
    }

    pub(crate) fn get(&self, place: Place<'_>) -> Result<Arc<Value>, Failure> {
        self.find(place).cloned().ok_or_else(|| place.not_found())
    }

    /// Replaces an object, all but its status or that alone. One that stays as it is keeps its resource version.
    pub(crate) fn update(
        &mut self,
        place: Place<'_>,
        object: Value,
        status: bool,
    ) -> Result<Arc<Value>, Failure> {
        let mut object = typed(place.resource, place.namespace, object)?;
        let own = metadata(&mut object)?;
        if text(own, "name").is_some_and(|name| name != place.name) {
            let why = "the name of the object does not match the name on the URL";
            return Err(Failure::BadRequest(why.to_owned()));
        }
        let before = self.get(place)?;
        for key in ["resourceVersion", "uid"] {
            if text(own, key).is_some_and(|mine| mine != before["metadata"][key]) {
                return Err(place.conflict());
            }
        }
        for key in ["name", "uid", "creationTimestamp", "resourceVersion", "deletionTimestamp"] {
            match &before["metadata"][key] {
                Value::Null => own.remove(key),
                value => own.insert(key.to_owned(), value.clone()),
            };
        }
        if own.get("finalizers").is_some_and(|list| *list == json!([])) {
            own.remove("finalizers");
        }
        let held = map(&before);
        let is_deleted = own.contains_key("deletionTimestamp");
        let new = finalizers(&object).find(|one| finalizers(&held).all(|other| other != *one));
        if let Some(new) = new.filter(|_| is_deleted) {
            let why = "no new finalizers can be added if the object is being deleted, found new finalizers";
            let kind = place.resource.kind;
            return Err(Failure::Invalid(format!(
                "{kind} {:?} is invalid: metadata.finalizers: Forbidden: {why} []string{{{new:?}}}",
                place.name
            )));
        }
        if place.resource.status {
            // The metadata go by both paths.
            let metadata = object.get("metadata").cloned();
            let (from, to) = if status { (object, map(&before)) } else { (map(&before), object) };
            object = to;
            object.extend(metadata.map(|metadata| ("metadata".to_owned(), metadata)));
            match from.get("status") {
                Some(value) => object.insert("status".to_owned(), value.clone()),
                None => object.remove("status"),
            };
        }
        if object
            .get("roleRef")
            .is_some_and(|role| !before["roleRef"].is_null() && *role != before["roleRef"])
        {
            let (kind, name) = (place.resource.kind, place.name);
            return Err(Failure::Invalid(format!(
                "{kind} {name:?} is invalid: roleRef: cannot change roleRef"
            )));
        }
        if *place.resource == Resource::SERVICES {
            balancer(place, &mut object, status)?;
        }
        if before.as_object() == Some(&object) {
            return Ok(before);
        }
        if is_deleted && finalizers(&object).next().is_none() {
            let mut last = before;
            if let Some(all) = self.objects.get_mut(place.resource) {
                all.remove(&place.key());
                self.version += 1;
                self.remember(place, Some(Arc::clone(&last)), None);
                last = Arc::new(Value::Object(object));
            }
            return Ok(last);
        }
        Ok(self.put(place, object))
    }

    /// Changes an object, all but its status or that alone.
    pub(crate) fn patch(
        &mut self,
        place: Place<'_>,
        kind: patch::Kind,
        patch: Value,
        status: bool,
    ) -> Result<Arc<Value>, Failure> {
        let before = self.get(place)?;
        let mut object = Value::clone(&before);
        patch::apply(kind, &mut object, patch);
        let uid = &object["metadata"]["uid"];
        if *uid != before["metadata"]["uid"] {
            let (kind, name) = (place.resource.kind, place.name);
            return Err(Failure::Invalid(format!(
                "{kind} {name:?} is invalid: metadata.uid: Invalid value: {uid}: field is immutable"
            )));
        }
        self.update(place, object, status)
    }

    /// Applies a manifest: the object as it is then, and whether it is new.
    pub(crate) fn apply(
        &mut self,
        place: Place<'_>,
        manifest: Value,
        (manager, force): (&str, bool),
        now: &str,
    ) -> Result<(Arc<Value>, bool), Failure> {
        if manager.is_empty() {
            let why = "fieldManager: Required value: is required for apply patch";
            return Err(Failure::Invalid(format!("PatchOptions.meta.k8s.io \"\" is invalid: {why}")));
        }
        let mut named = typed(place.resource, place.namespace, manifest)?;
        let own = metadata(&mut named)?;
        if text(own, "name").is_some_and(|name| name != place.name) {
            let why = "the name of the object does not match the name on the URL";
            return Err(Failure::BadRequest(why.to_owned()));
        }
        own.insert("name".to_owned(), json!(place.name));
        let manifest = Value::Object(named);
        let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let (after, new) = match self.find(place).cloned() {
            None => (self.create(place.resource, place.namespace, manifest.clone(), now)?, true),
            Some(before) => {
                let last = self.applied.get(&(uid(&before), manager.to_owned()));
                let after = apply::apply(&before, last, &manifest, force).map_err(|fields| {
                    Failure::Managed(place.resource.plural, place.name.to_owned(), fields)
                })?;
                (self.update(place, after, false)?, false)
            }
        };
        self.applied.insert((uid(&after), manager.to_owned()), manifest);
        Ok((after, new))
    }

    /// Takes an object away; gives it as it last was. One with finalizers stays, and is marked.
    pub(crate) fn delete(&mut self, place: Place<'_>, now: &str) -> Result<Arc<Value>, Failure> {
        let before = self.get(place)?;
        if has_finalizers(&before) {
            if !before["metadata"]["deletionTimestamp"].is_null() {
                return Ok(before);
            }
            let mut object = map(&before);
            metadata(&mut object)?.insert("deletionTimestamp".to_owned(), json!(now));
            return Ok(self.put(place, object));
        }
        let all = self.objects.entry(*place.resource).or_default();
        let before = all.remove(&place.key()).ok_or_else(|| place.not_found())?;
        self.version += 1;
        self.remember(place, Some(Arc::clone(&before)), None);
        Ok(before)
    }

    /// The objects in order of namespace and name.
    pub(crate) fn list<'a>(&'a self, scope: &'a Scope) -> impl Iterator<Item = &'a Arc<Value>> {
        let all = self.objects.get(&scope.resource).into_iter().flatten();
        all.filter(|((namespace, _), object)| {
            scope.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
                && scope.selector.matches(object)
        })
        .map(|(_, object)| object)
    }

    /// What has happened after a version: `ADDED`, `MODIFIED` or `DELETED`, and the object.
    ///
    /// An object that the selector no longer matches is deleted for who watches, and one that it now matches added.
    pub(crate) fn since<'a>(
        &'a self,
        version: u64,
        scope: &'a Scope,
    ) -> Result<impl Iterator<Item = (&'static str, Arc<Value>)> + 'a, Failure> {
        if version < self.forgotten {
            return Err(Failure::Expired(version, self.forgotten));
        }
        let first = self.history.partition_point(|event| event.version <= version);
        let concerned = |event: &&Event| {
            event.resource == scope.resource
                && scope.namespace.as_ref().is_none_or(|wanted| *wanted == event.namespace)
        };
        let seen =
            |object: &'a Option<Arc<Value>>| object.as_ref().filter(|object| scope.selector.matches(object));
        Ok(self.history.range(first..).filter(concerned).filter_map(move |event| {
            match (seen(&event.before), seen(&event.after)) {
                (None, None) => None,
                (None, Some(after)) => Some(("ADDED", Arc::clone(after))),
                (Some(_), Some(after)) => Some(("MODIFIED", Arc::clone(after))),
                (Some(before), None) => {
                    let mut last = Value::clone(before);
                    last["metadata"]["resourceVersion"] = json!(event.version.to_string());
                    Some(("DELETED", Arc::new(last)))
                }
            }
        }))
    }

    fn find(&self, place: Place<'_>) -> Option<&Arc<Value>> {
        self.objects.get(place.resource)?.get(&place.key())
    }

    fn put(&mut self, place: Place<'_>, mut object: Map<String, Value>) -> Arc<Value> {
        self.version += 1;
        if let Some(metadata) = object.get_mut("metadata") {
            metadata["resourceVersion"] = json!(self.version.to_string());
        }
        let after = Arc::new(Value::Object(object));
        let all = self.objects.entry(*place.resource).or_default();
        let before = all.insert(place.key(), Arc::clone(&after));
        self.remember(place, before, Some(Arc::clone(&after)));
        after
    }

    fn remember(&mut self, place: Place<'_>, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        let (namespace, _) = place.key();
        self.history.push_back(Event {
            version: self.version,
            resource: *place.resource,
            namespace,
            before,
            after,
        });
        while self.history.len() > HISTORY {
            self.forgotten = self.history.pop_front().map_or(self.version, |event| event.version);
        }
    }
}

/// The object with kind and namespace, which must not be others.
fn typed(resource: &Resource, namespace: Option<&str>, object: Value) -> Result<Map<String, Value>, Failure> {
    let Value::Object(mut object) = object else {
        return Err(Failure::BadRequest("the body is no JSON object".to_owned()));
    };
    for (key, expected) in [("kind", resource.kind.to_owned()), ("apiVersion", resource.api_version())] {
        let given = object.entry(key).or_insert_with(|| json!(expected));
        if *given != json!(expected) {
            return Err(Failure::BadRequest(format!("{key} is {given}, not {expected:?}")));
        }
    }
    let metadata = metadata(&mut object)?;
    if let Some(namespace) = namespace {
        let given = metadata.entry("namespace").or_insert_with(|| json!(namespace));
        if *given != json!(namespace) {
            let why = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Failure::BadRequest(why.to_owned()));
        }
    }
    Ok(object)
}

fn metadata(object: &mut Map<String, Value>) -> Result<&mut Map<String, Value>, Failure> {
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    metadata.as_object_mut().ok_or_else(|| Failure::BadRequest("metadata is no object".to_owned()))
}

/// A text that is there and not empty.
fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn map(object: &Value) -> Map<String, Value> {
    object.as_object().cloned().unwrap_or_default()
}

/// Whether an object stays for a while when it is deleted.
pub(crate) fn has_finalizers(object: &Value) -> bool {
    object.as_object().is_some_and(|object| finalizers(object).next().is_some())
}

fn finalizers(object: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let list = object.get("metadata").and_then(|metadata| metadata["finalizers"].as_array());
    list.into_iter().flatten().filter_map(Value::as_str)
}

/// Addresses of load balancers: only a Service of that type has them.
fn balancer(place: Place<'_>, object: &mut Map<String, Value>, status: bool) -> Result<(), Failure> {
    let is_balancer = object.get("spec").is_some_and(|spec| spec["type"] == "LoadBalancer");
    let Some(ingress) =
        object.get_mut("status").and_then(|status| status.pointer_mut("/loadBalancer/ingress"))
    else {
        return Ok(());
    };
    if is_balancer {
        for one in ingress.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            if one.contains_key("ip") {
                one.entry("ipMode").or_insert_with(|| json!("VIP"));
            }
        }
        return Ok(());
    }
    if status {
        return Err(Failure::Invalid(format!(
            "Service {:?} is invalid: status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is \
             'LoadBalancer'",
            place.name
        )));
    }
    object.insert("status".to_owned(), json!({ "loadBalancer": {} }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn scope() -> Scope {
        Scope { resource: Resource::CONFIG_MAPS, namespace: None, selector: Selector::default() }
    }

    fn create(store: &mut Store, name: &str) -> Arc<Value> {
        let object = json!({ "metadata": { "name": name } });
        store.create(&Resource::CONFIG_MAPS, Some("default"), object, NOW).unwrap()
    }

    #[test]
    fn history_is_bounded_and_says_what_it_has_forgotten() {
        let mut store = Store::new();
        let first: u64 =
            create(&mut store, "a")["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        for number in 0..HISTORY {
            create(&mut store, &format!("b{number}"));
        }
        let scope = scope();
        assert_eq!(store.since(first, &scope).unwrap().count(), HISTORY);
        assert_eq!(store.since(first - 1, &scope).err(), Some(Failure::Expired(first - 1, first)));
        store.compact();
        assert_eq!(store.since(store.version(), &scope).unwrap().count(), 0);
        assert_eq!(store.since(first, &scope).err(), Some(Failure::Expired(first, store.version())));
        assert_eq!(store.list(&scope).count(), HISTORY + 1);
    }

    #[test]
    fn versions_of_all_resources_come_from_one_counter() {
        let mut store = Store::new();
        let before = store.version();
        create(&mut store, "a");
        let node = json!({ "metadata": { "name": "node1" }, "status": { "phase": "Running" } });
        let node = store.create(&Resource::NODES, None, node, NOW).unwrap();
        assert_eq!(node["metadata"]["resourceVersion"], (before + 2).to_string());
        assert_eq!(node["status"]["phase"], "Running");
        assert_eq!(store.since(before, &scope()).unwrap().count(), 1);
    }

    #[test]
    fn objects_that_contradict_the_request_are_refused() {
        let mut store = Store::new();
        for object in [
            json!([]),
            json!({ "kind": "Secret", "metadata": { "name": "a" } }),
            json!({ "apiVersion": "v2", "metadata": { "name": "a" } }),
            json!({ "metadata": { "name": "a", "namespace": "other" } }),
            json!({ "metadata": { "name": "a", "resourceVersion": "1" } }),
            json!({ "metadata": "a" }),
        ] {
            let refused = store.create(&Resource::CONFIG_MAPS, Some("default"), object, NOW).unwrap_err();
            assert_eq!(refused.code(), 400, "{refused}");
        }
        let nameless = store.create(&Resource::CONFIG_MAPS, Some("default"), json!({}), NOW).unwrap_err();
        assert_eq!(nameless.code(), 422, "{nameless}");
    }
}
