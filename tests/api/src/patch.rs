//! Patches.

use serde_json::{Map, Value};

/// How a patch is meant: by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// RFC 7386.
    Merge,
    /// Kubernetes' own: lists with a merge key are merged. Here it is `conditions`, by `type`.
    Strategic,
    /// Server-side apply: [`crate::apply`].
    Apply,
}

impl Kind {
    /// None: a patch that this server does not know.
    pub(crate) fn of(media: &[u8]) -> Option<Kind> {
        let media = media.split(|byte| *byte == b';').next().unwrap_or_default();
        match media {
            b"application/merge-patch+json" => Some(Kind::Merge),
            b"application/strategic-merge-patch+json" => Some(Kind::Strategic),
            // Any JSON is YAML, and no other YAML is read here.
            b"application/apply-patch+yaml" => Some(Kind::Apply),
            _ => None,
        }
    }
}

/// Changes a value.
pub(crate) fn apply(kind: Kind, value: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *value = patch;
        return;
    };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Value::Object(map) = value else { return };
    for (key, patch) in patch {
        match patch {
            Value::Null => {
                map.remove(&key);
            }
            Value::Array(items) if kind == Kind::Strategic && key == "conditions" => {
                let list = map.entry(key).or_insert_with(|| Value::Array(Vec::new()));
                conditions(list, items);
            }
            patch => apply(kind, map.entry(key).or_insert(Value::Null), patch),
        }
    }
}

fn conditions(list: &mut Value, patches: Vec<Value>) {
    let Value::Array(list) = list else { return };
    for patch in patches {
        match list.iter_mut().find(|item| item["type"] == patch["type"]) {
            Some(item) => apply(Kind::Strategic, item, patch),
            None => list.push(patch),
        }
    }
}
