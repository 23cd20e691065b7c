//! Server-side apply, as far as objects go whose lists are of one piece: those of homelab are.
//!
//! What a manager applied last is remembered beside the object and not shown as `managedFields`. Of a field that is not
//! among that, or has been changed since, somebody else is the manager.

use serde_json::{Map, Value};

/// Fields that the server writes, or that name the object: nobody manages them.
const NOBODYS: [&str; 8] = [
    "apiVersion",
    "kind",
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "managedFields",
];

/// The object as it is after `manifest` was applied; `last` is what the same manager applied before. Paths of fields
/// that somebody else manages and that would be others, if they are not to be taken: what would be a conflict.
pub(crate) fn apply(
    object: &Value,
    last: Option<&Value>,
    manifest: &Value,
    force: bool,
) -> Result<Value, Vec<String>> {
    let mut after = object.clone();
    let mut conflicts = Vec::new();
    merge(&mut after, last.unwrap_or(&Value::Null), manifest, "", &mut conflicts);
    if conflicts.is_empty() || force { Ok(after) } else { Err(conflicts) }
}

fn merge(live: &mut Value, last: &Value, manifest: &Value, at: &str, conflicts: &mut Vec<String>) {
    let (Value::Object(wanted), true) = (manifest, live.is_object() || live.is_null()) else {
        let own = live == last || live.is_null() || live == manifest;
        if !own {
            conflicts.push(at.to_owned());
        }
        *live = manifest.clone();
        return;
    };
    if live.is_null() {
        *live = Value::Object(Map::new());
    }
    let Value::Object(map) = live else { return };
    for key in last.as_object().into_iter().flat_map(Map::keys) {
        // What somebody else has made of it is his.
        if !wanted.contains_key(key) && !NOBODYS.contains(&key.as_str()) {
            let mut rest = map.remove(key).unwrap_or_default();
            prune(&mut rest, &last[key]);
            if !rest.is_null() {
                map.insert(key.clone(), rest);
            }
        }
    }
    for (key, wanted) in wanted {
        let live = map.entry(key).or_insert(Value::Null);
        if at.is_empty() && matches!(key.as_str(), "apiVersion" | "kind") {
            continue;
        }
        merge(live, &last[key.as_str()], wanted, &format!("{at}.{key}"), conflicts);
    }
}

/// Takes away what was applied and is as it was applied; Null if nothing is left.
fn prune(live: &mut Value, last: &Value) {
    match (&mut *live, last) {
        (Value::Object(map), Value::Object(last)) => {
            for (key, last) in last {
                let Some(value) = map.get_mut(key) else { continue };
                prune(value, last);
                if value.is_null() {
                    map.remove(key);
                }
            }
            if map.is_empty() {
                *live = Value::Null;
            }
        }
        (one, other) if one == other => *one = Value::Null,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_no_longer_applied_goes_and_what_others_wrote_stays() {
        let last = json!({ "metadata": { "labels": { "a": "1", "b": "1" } }, "rules": [1, 2] });
        let live = json!({ "metadata": { "name": "x", "labels": { "a": "1", "b": "2", "c": "3" } }, "rules": [1, 2] });
        let now = json!({ "metadata": { "labels": {} }, "rules": [1] });
        let after = apply(&live, Some(&last), &now, false).unwrap();
        let expected = json!({ "metadata": { "name": "x", "labels": { "b": "2", "c": "3" } }, "rules": [1] });
        assert_eq!(after, expected);
        let now = json!({ "metadata": { "labels": { "b": "3" } } });
        assert_eq!(apply(&live, Some(&last), &now, false).unwrap_err(), [".metadata.labels.b"]);
        let expected = json!({ "metadata": { "name": "x", "labels": { "b": "3", "c": "3" } } });
        assert_eq!(apply(&live, Some(&last), &now, true).unwrap(), expected);
    }
}
