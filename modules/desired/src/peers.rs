//! Peers of the tunnel that the agent takes from the Nodes of the Kubernetes API, beside those of the file.
//!
//! The laptop plans the file's peers alone: what else the tunnel holds for the agent's peers is left out of what a node
//! says that it holds, so that nobody plans to take it away, or to put it back.

use std::collections::{BTreeMap, HashMap, HashSet};

use homelab_model::{Key, LivePeers, NodeObject, NodeSpec, Object, PeerSpec};
use homelab_vtep::peer_objects;

/// Adds the entries of these peers to what a node shall hold. One that has the place of another counts: the machine that
/// flannel runs on has a MAC address of its own, whatever the file makes of its name.
pub fn with_peers(objects: &mut Vec<NodeObject>, device: &str, peers: &[PeerSpec]) {
    let mut places: BTreeMap<Key, usize> =
        objects.iter().enumerate().map(|(place, object)| (object.key(), place)).collect();
    for object in peer_objects(device, peers) {
        match places.get(&object.key()) {
            Some(place) => objects[*place] = object,
            None => {
                places.insert(object.key(), objects.len());
                objects.push(object);
            }
        }
    }
}

/// What a node holds without the entries of the agent's peers. Where one has the place of what the node's record says, the
/// record's is shown.
pub fn without_peers(objects: &mut Vec<NodeObject>, record: Option<&NodeSpec>, live: &LivePeers) {
    let entries = peer_objects(&live.device, &live.peers);
    let mut by_key: HashMap<Key, Vec<&NodeObject>> = HashMap::new();
    for entry in &entries {
        by_key.entry(entry.key()).or_default().push(entry);
    }
    let is_entry = |object: &NodeObject| {
        by_key.get(&object.key()).is_some_and(|all| all.iter().any(|entry| entry.spec == object.spec))
    };
    let told = record.map(|spec| peer_objects(&spec.vtep.device, &spec.peers)).unwrap_or_default();
    let told: BTreeMap<Key, NodeObject> = told.into_iter().map(|object| (object.key(), object)).collect();
    objects.retain_mut(|object| {
        if !is_entry(object) {
            return true;
        }
        match told.get(&object.key()) {
            Some(one) => {
                object.clone_from(one);
                true
            }
            None => false,
        }
    });
}

/// Keys of the entries that `after` has and `before` has not, or that are others.
pub fn changed_entries(device: &str, before: &[PeerSpec], after: &[PeerSpec]) -> HashSet<Key> {
    let (old, new) = (peer_objects(device, before), peer_objects(device, after));
    let differs = |one: &[NodeObject], other: &[NodeObject]| -> Vec<Key> {
        one.iter().filter(|object| !other.contains(object)).map(Object::key).collect()
    };
    differs(&old, &new).into_iter().chain(differs(&new, &old)).collect()
}
