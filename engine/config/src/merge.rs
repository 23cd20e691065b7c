//! Several files as one: later files change earlier ones.

use std::collections::HashMap;

use crate::yaml::{Entry, Node, Value};

/// Namespace of services that say none, as in Kubernetes.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// Lists whose entries are joined by their `name`; services by `namespace` and `name`.
const BY_NAME: [&str; 8] = [
    "nodes",
    "services",
    "loadBalancer.pools",
    "loadBalancer.l2Advertisements",
    "loadBalancer.bgp.peers",
    "loadBalancer.bgp.advertisements",
    "loadBalancer.bgp.bfdProfiles",
    "loadBalancer.bgp.communities",
];

/// Lays `over` on `base`: blocks of keys are joined, the lists of [`BY_NAME`] are joined by `name` (services by
/// `namespace` too), everything else is replaced. An empty value takes away what the earlier file says.
pub(crate) fn merge(base: Node, over: Node) -> Node {
    // An empty file changes nothing.
    if over.value == Value::Null {
        return base;
    }
    join(base, over, "")
}

fn join(base: Node, over: Node, path: &str) -> Node {
    match (base.value, over.value) {
        (Value::Map(mut entries), Value::Map(new)) => {
            let index: HashMap<String, usize> = entries.iter().map(|e| e.key.clone()).zip(0..).collect();
            for entry in new {
                let path = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                match index.get(&entry.key).copied() {
                    Some(at) => {
                        let value = join(entries[at].value.clone(), entry.value, &path);
                        entries[at] = Entry { value, key: entry.key, key_span: entry.key_span };
                    }
                    None => entries.push(entry),
                }
            }
            Node { value: Value::Map(entries), span: base.span }
        }
        (Value::List(mut items), Value::List(new)) if BY_NAME.contains(&path) => {
            // Only with entries of earlier files: a name that stands twice in one file is a mistake.
            let mut names: HashMap<(String, String), usize> = HashMap::new();
            for (at, item) in items.iter().enumerate() {
                if let Some(name) = name(item) {
                    names.entry(name).or_insert(at);
                }
            }
            for item in new {
                match name(&item).and_then(|n| names.get(&n)).copied() {
                    Some(at) => {
                        let before = items[at].clone();
                        items[at] = join(before, item, &format!("{path}[]"));
                    }
                    None => items.push(item),
                }
            }
            Node { value: Value::List(items), span: over.span }
        }
        (_, value) => Node { value, span: over.span },
    }
}

/// Namespace and name; only services have a namespace.
fn name(node: &Node) -> Option<(String, String)> {
    let text = |key: &str| match &node.get(key)?.value.value {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    };
    Some((text("namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.into()), text("name")?))
}
