//! Plan files: a plan with all that it depends on, so that it can be told whether it still holds.
//!
//! A plan file is never trusted. `apply FILE` makes the plan anew, and goes on only if both are the same: what is
//! then carried out is what the file says, whoever wrote it.

use std::collections::{BTreeMap, BTreeSet};

use homelab_model::{Cluster, NodeSpec, Observed, sha256_hex};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::CliError;

/// Version of homelab that a plan file names.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Version of the plan's JSON form.
const FORMAT: u64 = homelab_driver::Plan::FORMAT as u64;
/// Most names in one sentence.
const NAMES: usize = 8;

/// What a plan depends on beside its changes.
pub(crate) struct Basis<'a> {
    /// The cluster file, resolved.
    pub(crate) cluster: &'a Cluster,
    /// The names of `--nodes`.
    pub(crate) chosen: &'a [String],
    /// Digests of the node binaries by architecture.
    pub(crate) binaries: BTreeMap<String, String>,
    /// What was seen on the nodes that were reached.
    pub(crate) observed: BTreeMap<String, &'a Observed>,
    /// What these nodes are to be told.
    pub(crate) specs: &'a BTreeMap<String, NodeSpec>,
    /// `user@host`.
    pub(crate) by: String,
    /// Seconds since 1970.
    pub(crate) at: u64,
}

/// The plan as JSON, bound to its basis. There are no secrets in it: objects only name theirs.
pub(crate) fn bind(mut plan: Value, basis: &Basis<'_>) -> Value {
    for node in plan.get_mut("nodes").and_then(Value::as_array_mut).into_iter().flatten() {
        let name = text(node, "name").to_owned();
        let observed = basis.observed.get(&name).map(|o| objects(o));
        let spec = basis.specs.get(&name).map(digest);
        if let Some(fields) = node.as_object_mut() {
            fields.insert("observed".into(), json!(observed));
            fields.insert("spec_digest".into(), json!(spec));
        }
    }
    if let Some(fields) = plan.as_object_mut() {
        fields.insert("homelab_version".into(), json!(VERSION));
        fields.insert("created_by".into(), json!(basis.by));
        fields.insert("created_at".into(), json!(utc(basis.at)));
        fields.insert("config_digest".into(), json!(digest(basis.cluster)));
        fields.insert("chosen".into(), json!(basis.chosen));
        fields.insert("binaries".into(), json!(basis.binaries));
    }
    plan
}

/// Every object that was seen, with a short digest of what it looked like.
fn objects(observed: &Observed) -> BTreeMap<String, String> {
    observed.objects.iter().map(|o| (o.spec.key().to_string(), digest(o)[..16].to_owned())).collect()
}

/// SHA-256 of a value's JSON, its keys in order.
fn digest(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    sha256_hex(value.to_string().as_bytes())
}

/// Reads the text of a plan file.
pub(crate) fn read(path: &str, bytes: &[u8]) -> Result<Value, CliError> {
    let again = "make a new one: homelab plan --out FILE";
    let file: Value = serde_json::from_slice(bytes)
        .map_err(|e| CliError::new(format!("{path} is no plan file: {e}")).hint(again))?;
    let format = file.get("format_version").and_then(Value::as_u64);
    let is_plan = file.get("summary").is_some_and(Value::is_object)
        && file.get("nodes").and_then(Value::as_array).is_some();
    match format {
        Some(format) if format > FORMAT => Err(CliError::new(format!(
            "{path} was written by a newer homelab: its format is {format}, this version knows {FORMAT}"
        ))
        .hint("use the newer homelab, or make a new plan file with this one")),
        Some(FORMAT) if is_plan => {
            if file.get("destroy") != Some(&Value::Bool(false)) {
                return Err(CliError::new(format!("{path} is the plan of a destroy"))
                    .hint("run homelab destroy: it shows what it takes away, and asks"));
            }
            if !file.get("config_digest").is_some_and(Value::is_string) {
                return Err(CliError::new(format!(
                    "{path} is a plan to read: it does not say what it depends on"
                ))
                .hint("make a plan file: homelab plan --out FILE"));
            }
            Ok(file)
        }
        _ => Err(CliError::new(format!("{path} is no plan file of homelab")).hint(again)),
    }
}

/// Why the plan file is not to be carried out: `fresh` is the plan as it would be made now.
pub(crate) fn compare(path: &str, file: &Value, fresh: &Value) -> Result<(), CliError> {
    let stale = |why: String| {
        CliError::new(format!("{path} cannot be applied: {why}; nothing was changed"))
            .hint("make a new plan file, and look at it: homelab plan --out FILE")
    };
    let same = |name: &str| file.get(name) == fresh.get(name);
    if !same("cluster") {
        let (theirs, ours) = (text(file, "cluster"), text(fresh, "cluster"));
        return Err(stale(format!(
            "it is a plan for the cluster {theirs:?}, and the cluster file says {ours:?}"
        )));
    }
    let (theirs, ours) = (by_name(file), by_name(fresh));
    if let Some(only) = theirs.keys().find(|n| !ours.contains_key(*n)) {
        return Err(stale(format!("it is a plan for other nodes: {only} is not among those of this run")));
    }
    if let Some(only) = ours.keys().find(|n| !theirs.contains_key(*n)) {
        return Err(stale(format!("it is a plan for other nodes: {only} is not in it")));
    }
    let version = text(file, "homelab_version");
    if version != VERSION {
        return Err(stale(format!("it was made by homelab {version}, and this is {VERSION}")));
    }
    if !same("config_digest") {
        return Err(stale("the cluster file has changed since the plan was made".to_owned()));
    }
    if !same("chosen") {
        return Err(stale("it was made with other --nodes".to_owned()));
    }
    if !same("binaries") {
        return Err(stale("it was made with other node binaries".to_owned()));
    }
    let seen: Vec<String> =
        ours.iter().filter_map(|(name, node)| observation(name, theirs.get(name)?, node)).collect();
    if !seen.is_empty() {
        return Err(stale(format!("the nodes have changed since the plan was made: {}", seen.join("; "))));
    }
    if !same("kubernetes") {
        return Err(stale("what is to be done in the Kubernetes API is no longer the same".to_owned()));
    }
    for (name, node) in &ours {
        if theirs.get(name).and_then(|n| n.get("spec_digest")) != node.get("spec_digest") {
            return Err(stale(format!(
                "what {name} is to be told depends on its surroundings (MTU, pod ranges, runtimes), and those have changed"
            )));
        }
    }
    match tampering(file, fresh, &theirs, &ours) {
        Some(what) => Err(CliError::new(format!(
            "{path} was altered: it is not the plan that its own configuration and these nodes give; {what}; nothing was changed"
        ))
        .hint("find out who altered it; then make a new one: homelab plan --out FILE")),
        None => Ok(()),
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn by_name(plan: &Value) -> BTreeMap<&str, &Value> {
    let nodes = plan.get("nodes").and_then(Value::as_array).into_iter().flatten();
    nodes.map(|n| (text(n, "name"), n)).collect()
}

/// How what was seen on a node differs from what is there now.
fn observation(name: &str, then: &Value, now: &Value) -> Option<String> {
    let objects = |node: &Value| node.get("observed").and_then(Value::as_object).cloned();
    match (objects(then), objects(now)) {
        (None, None) => None,
        (None, Some(_)) => Some(format!("{name} could not be asked then, and answers now")),
        (Some(_), None) => {
            let error = now.pointer("/error/message").and_then(Value::as_str).unwrap_or("it is missing");
            Some(format!("{name} cannot be asked now: {error}"))
        }
        (Some(then), Some(now)) => {
            let parts = [
                ("changed", names(&now, |k, v| then.get(k).is_some_and(|old| old != v))),
                ("appeared", names(&now, |k, _| !then.contains_key(k))),
                ("went", names(&then, |k, _| !now.contains_key(k))),
            ];
            let words: Vec<String> = parts
                .iter()
                .filter(|(_, names)| !names.is_empty())
                .map(|(verb, names)| format!("{} {verb}", list(names)))
                .collect();
            (!words.is_empty()).then(|| format!("on {name} {}", words.join(", ")))
        }
    }
}

fn names(objects: &Map<String, Value>, keep: impl Fn(&str, &Value) -> bool) -> Vec<&str> {
    objects.iter().filter(|(k, v)| keep(k, v)).map(|(k, _)| k.as_str()).collect()
}

fn list(names: &[&str]) -> String {
    let mut text = names.iter().take(NAMES).copied().collect::<Vec<_>>().join(", ");
    if names.len() > NAMES {
        text.push_str(&format!(" and {} more", names.len() - NAMES));
    }
    text
}

/// The first thing that the file says of the changes and that is not so.
fn tampering(
    file: &Value,
    fresh: &Value,
    theirs: &BTreeMap<&str, &Value>,
    ours: &BTreeMap<&str, &Value>,
) -> Option<String> {
    for (name, node) in ours {
        if let Some(what) = theirs.get(name).and_then(|their| changes(their, node)) {
            return Some(format!("{name}: {what}"));
        }
        for field in ["address", "changes"] {
            if theirs.get(name).and_then(|n| n.get(field)) != node.get(field) {
                return Some(format!("{name}: its {field} are others"));
            }
        }
    }
    let count = |plan: &Value| plan.get("nodes").and_then(Value::as_array).map(Vec::len);
    if count(file) != count(fresh) {
        return Some("a node stands in it twice".to_owned());
    }
    ["summary", "departed"]
        .into_iter()
        .find(|field| file.get(field) != fresh.get(field))
        .map(|field| format!("its {field} is another"))
}

/// The first change of a node that is not the same on both sides.
fn changes(theirs: &Value, ours: &Value) -> Option<String> {
    let of = |node: &Value| -> BTreeMap<String, Value> {
        let changes = node.get("changes").and_then(Value::as_array).into_iter().flatten();
        changes.map(|c| (text(c, "object").to_owned(), c.clone())).collect()
    };
    let (theirs, ours) = (of(theirs), of(ours));
    let all: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    for object in all {
        match (theirs.get(object), ours.get(object)) {
            (Some(_), None) => return Some(format!("a change of {object} is only in the file")),
            (None, Some(_)) => return Some(format!("a change of {object} is missing in the file")),
            (Some(theirs), Some(ours)) if theirs != ours => {
                return Some(format!("{object}: {}", difference("", theirs, ours)));
            }
            _ => {}
        }
    }
    None
}

/// Where two values differ first: `after.mtu is 9000 in the file and 1450 in truth`.
fn difference(place: &str, theirs: &Value, ours: &Value) -> String {
    if let (Some(a), Some(b)) = (theirs.as_object(), ours.as_object()) {
        let all: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        let differing = all.into_iter().find(|k| a.get(*k) != b.get(*k));
        if let Some(key) = differing {
            let inner = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
            let none = Value::Null;
            return difference(&inner, a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none));
        }
    }
    let brief = |value: &Value| crate::render::short(&value.to_string());
    format!("{place} is {} in the file and {} in truth", brief(theirs), brief(ours))
}

/// `2026-11-25T19:18:25Z` of seconds since 1970.
pub(crate) fn utc(seconds: u64) -> String {
    utc_ms(seconds.saturating_mul(1000))
}

/// Milliseconds since 1970 as RFC 3339 in UTC.
pub(crate) fn utc_ms(milliseconds: u64) -> String {
    // A time that no calendar has, which a node may claim, is shown as the last one that it has.
    let milliseconds = i64::try_from(milliseconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(milliseconds).unwrap_or(jiff::Timestamp::MAX).to_string()
}

#[cfg(test)]
#[path = "planfile_tests.rs"]
mod tests;
