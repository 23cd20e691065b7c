//! The CNI plugin: objects, templates and request handling.

use homelab_model::{NodeObject, NodeSpec};

/// Everything of CNI that a node holds.
pub fn objects(_spec: &NodeSpec) -> Vec<NodeObject> {
    Vec::new()
}
