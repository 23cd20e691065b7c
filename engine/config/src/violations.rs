//! Unknown keys and violations of the schema, in plain words.

use std::collections::HashSet;

use jsonschema::error::{ValidationError, ValidationErrorKind as Kind};
use serde_json::Value as Json;

use crate::problem::{Fault, MAX_PROBLEMS, Span};
use crate::schema::{strict, validator};
use crate::words::{list, nearest};
use crate::yaml::{Entry, Node, Value};

/// Marks what violates the schema as bad and says why. Texts that violate a pattern come back apart: the checks of
/// meaning have better words, and the fault counts only where they have none.
pub(crate) fn violations(root: &mut Node, faults: &mut Vec<Fault>) -> Vec<Fault> {
    unknown_keys(root, strict(), faults);
    let json = root.to_json();
    let mut found = Found { faults: Vec::new(), patterns: Vec::new(), bad: Vec::new() };
    match validator() {
        Some(validator) => {
            for error in validator.iter_errors(&json) {
                found.add(root, &error);
            }
        }
        None => found.faults.push(Fault::new("internal", root.span, "homelab's own schema is broken")),
    }
    for path in found.bad {
        if let Some(node) = find_mut(root, &path) {
            node.value = Value::Bad;
        }
    }
    faults.append(&mut found.faults);
    found.patterns
}

struct Found {
    faults: Vec<Fault>,
    patterns: Vec<Fault>,
    bad: Vec<Vec<String>>,
}

impl Found {
    fn add(&mut self, root: &Node, error: &ValidationError<'_>) {
        let path = segments(error.instance_path().as_str());
        let Some(target) = Target::find(root, path) else { return };
        if target.node.value == Value::Bad {
            return;
        }
        let pointer = error.schema_path().as_str();
        let schema =
            pointer.rsplit_once('/').and_then(|(parent, _)| strict().pointer(parent)).unwrap_or(&Json::Null);
        match error.kind() {
            Kind::AnyOf { .. } if has_bad(target.node) => {}
            Kind::AnyOf { context } => {
                // The variant that fits by its kind has the better words.
                let here = error.instance_path().as_str();
                let fits = |branch: &&Vec<ValidationError<'_>>| {
                    !branch.iter().any(|e| {
                        e.instance_path().as_str() == here
                            && matches!(e.kind(), Kind::Type { .. } | Kind::Enum { .. })
                    })
                };
                match context.iter().find(fits) {
                    Some(branch) => branch.iter().for_each(|e| self.add(root, e)),
                    None => self.refuse(&target, mismatch(&target, schema)),
                }
            }
            Kind::Type { .. } => self.refuse(&target, mismatch(&target, schema)),
            Kind::Enum { .. } => self.refuse(&target, not_listed(&target, schema)),
            Kind::Minimum { .. } | Kind::Maximum { .. } => {
                let message =
                    format!("{} must be {}, not {}", target.subject(), expected(schema), found(target.node));
                let fault = Fault::new("range", target.node.span, message).label("out of range");
                self.refuse(&target, fault.help(example(schema)));
            }
            Kind::Required { property } => {
                let key = property.as_str().unwrap_or_default();
                let known = schema.pointer(&format!("/properties/{key}")).unwrap_or(&Json::Null);
                let (span, message, label) = match target.node.get(key) {
                    Some(entry) if entry.value.value == Value::Bad => return,
                    Some(entry) => {
                        (entry.key_span, format!("`{key}` has no value"), "a value is missing".to_owned())
                    }
                    None => (
                        target.start(),
                        format!("{} needs `{key}`", target.owner()),
                        format!("`{key}` is missing"),
                    ),
                };
                let say = known.get("description").and_then(Json::as_str).and_then(|d| d.split('.').next());
                let help = match (key, sample(known), say) {
                    ("nodes", ..) => {
                        "list your servers, e.g. `nodes: [{name: node1, address: 192.168.50.11}]`".into()
                    }
                    ("ports", ..) => "add its ports, e.g. `ports: [{port: 80}]`".into(),
                    ("addresses", ..) => {
                        "add free addresses of your LAN, e.g. `addresses: [192.168.50.200-192.168.50.220]`"
                            .into()
                    }
                    (_, Some(example), _) => format!("add it, e.g. `{key}: {example}`"),
                    (_, _, Some(say)) => say.to_owned(),
                    _ => String::new(),
                };
                self.faults.push(Fault::new("missing-key", span, message).label(label).help(help));
            }
            Kind::MinItems { .. } => {
                let help = "add at least one entry";
                let fault =
                    Fault::new("empty-list", target.key_span(), format!("{} is empty", target.subject()));
                self.faults.push(fault.label("no entry").help(help));
            }
            Kind::MaxItems { limit } => {
                let message = format!("{} has more than {limit} entries", target.subject());
                let help = if *limit == 2 { "one, or one per address family: IPv4 and IPv6" } else { "" };
                self.refuse(&target, Fault::new("too-many", target.key_span(), message).help(help));
            }
            Kind::Pattern { .. } => {
                let message = format!("{} cannot be {}", target.subject(), found(target.node));
                let help = example(schema);
                self.patterns.push(Fault::new("format", target.node.span, message).help(help));
            }
            _ => {
                let message = format!("{} cannot be {}", target.subject(), found(target.node));
                self.refuse(&target, Fault::new("value", target.node.span, message));
            }
        }
    }

    fn refuse(&mut self, target: &Target<'_>, fault: Fault) {
        self.faults.push(fault);
        self.bad.push(target.path.clone());
    }
}

/// A node of the tree with the way to it.
struct Target<'a> {
    path: Vec<String>,
    node: &'a Node,
    key: Option<Span>,
}

impl<'a> Target<'a> {
    fn find(root: &'a Node, path: Vec<String>) -> Option<Self> {
        let (mut node, mut key) = (root, None);
        for segment in &path {
            match &node.value {
                Value::Map(_) => {
                    let entry = node.get(segment)?;
                    (node, key) = (&entry.value, Some(entry.key_span));
                }
                Value::List(items) => (node, key) = (items.get(segment.parse::<usize>().ok()?)?, None),
                _ => return None,
            }
        }
        Some(Target { path, node, key })
    }

    /// What a message calls it.
    fn subject(&self) -> String {
        match self.path.as_slice() {
            [] => "the file".into(),
            [.., parent, last] if last.parse::<usize>().is_ok() => format!("each entry of `{parent}`"),
            [.., last] => format!("`{last}`"),
        }
    }

    /// What a message calls it when something is missing in it.
    fn owner(&self) -> String {
        let name = match self.node.get("name").map(|e| &e.value.value) {
            Some(Value::Text(name)) if !name.is_empty() => Some(short(name)),
            _ => None,
        };
        let what = match self.path.iter().rev().find(|s| s.parse::<usize>().is_err()).map(String::as_str) {
            None => return "the file".into(),
            Some("nodes") => "node",
            Some("pools") => "pool",
            Some("l2Advertisements" | "advertisements") => "advertisement",
            Some("peers") => "peer",
            Some("bfdProfiles") => "BFD profile",
            Some("communities") => "community",
            Some("services") => "service",
            Some("ports") => "port",
            Some("endpoints") => "endpoint",
            Some(other) => return format!("`{other}`"),
        };
        let article = if what.starts_with(['a', 'e']) { "an" } else { "a" };
        name.map_or_else(|| format!("{article} {what}"), |name| format!("{what} `{name}`"))
    }

    fn key_span(&self) -> Span {
        self.key.unwrap_or(self.node.span)
    }

    /// Where something that is missing in it would stand.
    fn start(&self) -> Span {
        if let Value::Map(entries) = &self.node.value
            && self.key.is_none()
            && let Some(entry) = entries.first()
        {
            return entry.key_span;
        }
        self.key_span()
    }
}

fn segments(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|s| s.replace("~1", "/").replace("~0", "~")).collect()
}

fn find_mut<'a>(root: &'a mut Node, path: &[String]) -> Option<&'a mut Node> {
    let mut node = root;
    for segment in path {
        node = match &mut node.value {
            Value::Map(entries) => &mut entries.iter_mut().find(|e| e.key == *segment)?.value,
            Value::List(items) => items.get_mut(segment.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(node)
}

fn has_bad(node: &Node) -> bool {
    match &node.value {
        Value::Bad => true,
        Value::List(items) => items.iter().any(has_bad),
        Value::Map(entries) => entries.iter().any(|e| has_bad(&e.value)),
        _ => false,
    }
}

/// The first example of the schema.
fn sample(schema: &Json) -> Option<String> {
    let first = schema.pointer("/examples/0").or_else(|| schema.pointer("/anyOf/0/examples/0"));
    let first = first.or_else(|| schema.pointer("/items/examples/0"))?;
    Some(first.as_str().map_or_else(|| first.to_string(), str::to_owned))
}

/// A help text with the default or an example; may be empty.
fn example(schema: &Json) -> String {
    match (sample(schema), schema.get("default")) {
        (Some(sample), _) => format!("for example `{sample}`"),
        (_, Some(Json::String(default))) => format!("the default is `{default}`"),
        (_, Some(default)) => format!("the default is {default}"),
        _ => String::new(),
    }
}

/// What the schema wants, in words.
fn expected(schema: &Json) -> String {
    if let Some(Json::Array(values)) = schema.get("enum") {
        return choice(values);
    }
    if let Some(Json::Array(variants)) = schema.get("anyOf") {
        let words: Vec<String> = variants.iter().map(expected).collect();
        return words.join(" or ");
    }
    let bound = |key: &str| schema.get(key).and_then(Json::as_u64);
    match schema.get("type").and_then(Json::as_str) {
        Some("integer") => match (bound("minimum"), bound("maximum")) {
            (Some(low), Some(high)) => format!("a whole number from {low} to {high}"),
            _ => "a whole number".into(),
        },
        Some("string") => "text".into(),
        Some("boolean") => "true or false".into(),
        Some("array") => "a list".into(),
        Some("object") => "a block of keys".into(),
        _ => "something else".into(),
    }
}

fn choice(values: &[Json]) -> String {
    let words: Vec<String> =
        values.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
    list(&words, "or")
}

fn short(text: &str) -> String {
    let mut short: String = text.chars().take(40).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() > 40 {
        short.push_str("...");
    }
    short
}

/// What stands in the file, in words.
fn found(node: &Node) -> String {
    match &node.value {
        Value::Null | Value::Bad => "empty".into(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) if n.is_f64() => format!("the number {n}"),
        Value::Number(n) => n.to_string(),
        Value::Text(t) if t.trim().is_empty() => "an empty text".into(),
        Value::Text(t) => format!("the text `{}`", short(t)),
        Value::List(_) => "a list".into(),
        Value::Map(_) => "a block of keys".into(),
    }
}

fn mismatch(target: &Target<'_>, schema: &Json) -> Fault {
    let wanted = schema.get("type").and_then(Json::as_str).unwrap_or_default();
    let help = match (&target.node.value, wanted) {
        (Value::Text(t), "integer")
            if target.path.last().is_some_and(|p| p == "targetPort") && t.parse::<u64>().is_err() =>
        {
            "only pods have ports with names, and there are none here: write the number that the endpoints listen on"
                .into()
        }
        // An address is never meant where a number stands; a name may be.
        (Value::Number(_) | Value::Bool(_), "string")
            if !sample(schema).is_some_and(|s| s.contains(['.', ':']) || s == "90s") =>
        {
            "put it in quotes if it is meant as text".into()
        }
        (Value::Text(t), "boolean") if ["yes", "on", "y"].contains(&t.to_lowercase().as_str()) => {
            "write `true`".into()
        }
        (Value::Text(t), "boolean") if ["no", "off", "n"].contains(&t.to_lowercase().as_str()) => {
            "write `false`".into()
        }
        (_, "boolean") => "write `true` or `false`, without quotes".into(),
        (Value::Text(t), "integer") if t.trim().parse::<u64>().is_ok() => {
            format!("write the number without quotes: {}", t.trim())
        }
        (found, "array") => match (target.path.last().map(String::as_str), found) {
            (Some("nodes" | "pools" | "l2Advertisements" | "services"), _) => {
                "begin each entry with `- `, e.g. `- name: ...`".into()
            }
            (Some("peers" | "advertisements" | "bfdProfiles" | "communities"), Value::Map(_)) => {
                "begin each entry with `- `, e.g. `- name: ...`".into()
            }
            (Some("ports"), _) => "write a list, e.g. `[{port: 80}]`".into(),
            (Some("endpoints"), Value::Map(_)) => "write a list, e.g. `[{address: 192.168.50.11}]`".into(),
            (_, Value::Text(t)) => format!("write a list: `[{}]`", short(t)),
            _ => "write a list: `[first, second]`".into(),
        },
        (_, "object") if target.path.is_empty() => {
            "a homelab.yaml begins with `name: ...` and `nodes:`".into()
        }
        (_, "object") if target.path.iter().any(|p| p == "ports") => "for example `{port: 80}`".into(),
        (Value::Text(_), "object")
            if target.path.first().is_some_and(|p| p == "nodes") && target.path.len() == 2 =>
        {
            "for example `{name: node1, address: 192.168.50.11}`".into()
        }
        (_, "object") => match schema.get("properties").and_then(Json::as_object) {
            Some(properties) => {
                format!("known keys: {}", list(&properties.keys().collect::<Vec<_>>(), "and"))
            }
            None => String::new(),
        },
        _ => example(schema),
    };
    let message = match target.node.value {
        Value::Null => format!("{} must be {}; this one is empty", target.subject(), expected(schema)),
        _ => format!("{} must be {}, not {}", target.subject(), expected(schema), found(target.node)),
    };
    let span = match target.node.value {
        Value::Null => target.key_span(),
        _ => target.node.span,
    };
    Fault::new("type", span, message).help(help)
}

fn not_listed(target: &Target<'_>, schema: &Json) -> Fault {
    let values = schema.get("enum").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    let message = format!("{} must be {}, not {}", target.subject(), choice(values), found(target.node));
    let help = match (target.path.last().map(String::as_str), &target.node.value) {
        (Some("version"), _) => "this homelab reads version 1; a newer file needs a newer homelab".into(),
        (Some("type"), Value::Text(t)) if t == "ExternalName" => {
            "ExternalName is only a DNS alias, and homelab serves no DNS; point your DNS at the other name"
                .into()
        }
        (Some("type"), Value::Text(t)) if t.eq_ignore_ascii_case("headless") || t == "None" => {
            "a headless service has no address, so there is nothing to program; use the endpoints directly"
                .into()
        }
        (_, Value::Text(t)) => match nearest(t, values.iter().filter_map(Json::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => example(schema),
        },
        _ => example(schema),
    };
    Fault::new("value", target.node.span, message).help(help)
}

/// Tells unknown keys. One that is near a known key is read as that one, so that its value is checked too and the known
/// key is not missed; any other is taken out.
fn unknown_keys(node: &mut Node, schema: &Json, faults: &mut Vec<Fault>) {
    let variants = schema.get("anyOf").and_then(Json::as_array);
    let fits = |s: &&Json| s.get("items").is_some() || s.get("properties").is_some();
    let schema = variants.and_then(|v| v.iter().find(fits)).unwrap_or(schema);
    match &mut node.value {
        Value::List(items) => {
            if let Some(inner) = schema.get("items") {
                items.iter_mut().for_each(|i| unknown_keys(i, inner, faults));
            }
        }
        Value::Map(entries) => {
            let Some(known) = schema.get("properties").and_then(Json::as_object) else {
                if schema.get("additionalProperties").is_some_and(Json::is_object) {
                    without_value(entries, faults);
                }
                return;
            };
            let mut used: HashSet<String> =
                entries.iter().filter(|e| known.contains_key(&e.key)).map(|e| e.key.clone()).collect();
            for entry in entries.iter_mut().filter(|e| !known.contains_key(&e.key)) {
                // Guesses for problems that are counted only would be waste.
                if faults.len() > MAX_PROBLEMS {
                    faults.push(Fault::new("unknown-key", entry.key_span, "unknown key"));
                    continue;
                }
                // What MetalLB has and this file has not is no slip.
                let near = of_metallb(&entry.key)
                    .is_none()
                    .then(|| nearest(&entry.key, known.keys().map(String::as_str)))
                    .flatten();
                let taken = near.is_some_and(|n| used.contains(n));
                faults.push(unknown_key(entry, near, taken, known));
                if let Some(near) = near.filter(|_| !taken) {
                    used.insert(near.to_owned());
                    entry.key = near.to_owned();
                }
            }
            entries.retain(|e| known.contains_key(&e.key));
            for entry in entries {
                unknown_keys(&mut entry.value, known.get(&entry.key).unwrap_or(&Json::Null), faults);
            }
        }
        _ => {}
    }
}

/// Warns of keys of the user's own that have no value: elsewhere that is the same as leaving the key out.
fn without_value(entries: &[Entry], faults: &mut Vec<Fault>) {
    for entry in entries.iter().filter(|e| e.value.value == Value::Null) {
        let message = format!("`{}` has no value and is left out", short(&entry.key));
        let fault = Fault::new("no-value", entry.key_span, message).warning();
        faults.push(fault.help("write `\"\"` for an empty one"));
    }
}

fn unknown_key(
    entry: &Entry,
    near: Option<&str>,
    taken: bool,
    known: &serde_json::Map<String, Json>,
) -> Fault {
    let key = short(&entry.key);
    let fault = Fault::new("unknown-key", entry.key_span, format!("unknown key `{key}`")).label("unknown");
    match near {
        Some(near) if taken => return fault.help(format!("`{near}` is there already; remove `{key}`")),
        Some(near) => return fault.help(format!("did you mean `{near}`?")),
        None => {}
    }
    if entry.key == "selector" && known.contains_key("endpoints") {
        return fault
            .help("a selector chooses pods of Kubernetes by their labels; list what answers in `endpoints`");
    }
    if let Some(why) = of_metallb(&entry.key) {
        return fault.help(why);
    }
    let mut elsewhere = Vec::new();
    homes(strict(), &entry.key, &mut String::new(), &mut elsewhere);
    let keys = format!("known keys here: {}", list(&known.keys().collect::<Vec<_>>(), "and"));
    fault.help(match elsewhere.as_slice() {
        [home] if home.is_empty() => format!("it belongs to the top level of the file; {keys}"),
        [_] | [_, _] => format!("it belongs to {}; {keys}", list(&elsewhere, "or")),
        _ => keys,
    })
}

/// Why a key of MetalLB's resources is none here.
fn of_metallb(key: &str) -> Option<&'static str> {
    Some(match key {
        "namespaceSelectors" => {
            "there are no labels of namespaces here; list their names in `namespaces`, or choose services by \
             `serviceSelectors`"
        }
        "ipAddressPoolSelectors" => "pools have no labels here; list their names in `ipAddressPools`",
        "l2" => {
            "it became `l2Advertisements`: a list of blocks with `name`, `nodeSelectors` and `interfaces`"
        }
        "password" | "passwordSecret" => {
            "passwords do not belong here: write it into a file of its own and name that in `passwordFile`"
        }
        "dualStackAddressFamily" | "disableMP" => {
            "a router is told of addresses of the family of its `peerAddress`; for the other family add it as a second peer"
        }
        "dynamicASN" | "localASN" | "vrf" => "it is not there; `peerASN` and `myASN` are all",
        _ => return None,
    })
}

/// All places of the schema that know `key`.
fn homes(schema: &Json, key: &str, at: &mut String, out: &mut Vec<String>) {
    if let Some(properties) = schema.get("properties").and_then(Json::as_object) {
        if properties.contains_key(key) {
            out.push(at.clone());
        }
        for (name, inner) in properties {
            let length = at.len();
            if !at.is_empty() {
                at.push('.');
            }
            at.push_str(name);
            homes(inner, key, at, out);
            at.truncate(length);
        }
    }
    if let Some(items) = schema.get("items") {
        let length = at.len();
        at.push_str("[]");
        homes(items, key, at, out);
        at.truncate(length);
    }
    for variant in schema.get("anyOf").and_then(Json::as_array).into_iter().flatten() {
        homes(variant, key, at, out);
    }
}
