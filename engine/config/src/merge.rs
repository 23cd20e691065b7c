//! Several files as one: later files change earlier ones.

use crate::yaml::{Entry, Node, Value};

/// Lists whose entries are joined by their `name`.
const BY_NAME: [&str; 3] = ["nodes", "services", "loadBalancer.pools"];

/// Lays `over` on `base`: blocks of keys are joined, `nodes`, `services` and `loadBalancer.pools` are joined by
/// `name`, everything else is replaced. An empty value takes away what the earlier file says.
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
            for entry in new {
                let path = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                match entries.iter().position(|e| e.key == entry.key) {
                    Some(at) => {
                        let old = std::mem::replace(
                            &mut entries[at].value,
                            Node { value: Value::Null, span: entry.key_span },
                        );
                        entries[at] = Entry {
                            value: join(old, entry.value, &path),
                            ..entry_head(entry.key, entry.key_span)
                        };
                    }
                    None => entries.push(entry),
                }
            }
            Node { value: Value::Map(entries), span: base.span }
        }
        (Value::List(mut items), Value::List(new)) if BY_NAME.contains(&path) => {
            let old = items.len();
            for item in new {
                // Only with entries of earlier files: a name that stands twice in one file is a mistake.
                let same = name(&item).and_then(|n| items[..old].iter().position(|i| name(i) == Some(n)));
                match same {
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

fn entry_head(key: String, key_span: crate::problem::Span) -> Entry {
    Entry { key, key_span, value: Node { value: Value::Null, span: key_span } }
}

fn name(node: &Node) -> Option<&str> {
    match &node.get("name")?.value.value {
        Value::Text(name) => Some(name),
        _ => None,
    }
}
