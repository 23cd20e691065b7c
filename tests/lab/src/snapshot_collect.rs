//! Asking a node for its [`NodeSnapshot`], in one process there.

use crate::{Lab, NodeSnapshot, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Begins a section in the output of the script.
const MARK: &str = "\u{1e}";

/// Keys of `ip -json` that differ without anybody having changed anything.
const VOLATILE: [&str; 14] = [
    "ifindex",
    "link_index",
    "link_netnsid",
    "operstate",
    // What a bridge takes from its ports, and keeps.
    "tso_max_size",
    "tso_max_segs",
    "stats64",
    "stats",
    "valid_life_time",
    "preferred_life_time",
    "tentative",
    "used",
    "cache_info",
    "expires",
];

/// Counters and secrets among the sysctls.
const VOLATILE_SYSCTL: [&str; 3] =
    ["net.netfilter.nf_conntrack_count", "net.ipv4.tcp_fastopen_key", "net.ipv6.route.flush"];

fn script() -> String {
    let mut text = format!("section() {{ printf '\\n{MARK}%s\\n' \"$1\"; }}\n");
    // While an address is checked for duplicates its routes are not there yet.
    text +=
        "for try in $(seq 60); do [ -z \"$(ip -6 address show tentative)\" ] && break; sleep 0.05; done\n";
    for (name, command) in [
        ("link", "ip -json -details link show"),
        ("address", "ip -json address show"),
        ("route", "ip -json -4 route show table all"),
        ("route6", "ip -json -6 route show table all"),
        ("rule", "ip -json -4 rule show"),
        ("rule6", "ip -json -6 rule show"),
        ("neighbour", "ip -json neighbour show nud permanent"),
        ("neighbour-proxy", "ip -json neighbour show proxy"),
        ("fdb", "bridge -json fdb show"),
        ("netns", "ls /run/netns 2>/dev/null"),
        ("nftables", "nft --stateless list ruleset"),
        ("sysctl", "sysctl --all --pattern '^net\\.' 2>/dev/null"),
        // A login that is just ending has a scope for some moments more.
        (
            "unit-file",
            "systemctl list-unit-files --no-legend --no-pager --full | grep --invert-match '^session-[^ ]*\\.scope '",
        ),
        (
            "unit",
            "systemctl list-units --all --no-legend --no-pager --full --plain --type=service,timer,socket,mount",
        ),
    ] {
        let _ = write!(text, "section {name}\n{command}\n");
    }
    let pruned: Vec<String> = NodeSnapshot::LEFT_OUT.iter().map(|path| format!("-path {path}")).collect();
    let find =
        format!("find {} \\( {} \\) -prune -o", NodeSnapshot::DIRECTORIES.join(" "), pruned.join(" -o "));
    let _ = write!(
        text,
        "section file\n{find} -printf '%y\\t%m\\t%U:%G\\t%s\\t%T@\\t%l\\t%p\\0' 2>/dev/null\n\
         section sha256\n{find} -type f -print0 2>/dev/null | xargs -0 --no-run-if-empty sha256sum --zero\n"
    );
    text
}

impl Lab {
    /// Takes a snapshot of a node, once its init has nothing more to start.
    pub fn snapshot(&self, node: &str) -> Result<NodeSnapshot> {
        self.wait_settled(node)?;
        // The last command that fails is a `find` for /run/homelab: what it found is still right.
        let output = self.exec_with_input(node, &["sh", "-s"], &script())?;
        let mut raw: BTreeMap<&str, &str> = BTreeMap::new();
        for part in output.stdout.split(MARK).skip(1) {
            if let Some((name, body)) = part.split_once('\n') {
                raw.insert(name, body.strip_suffix('\n').unwrap_or(body));
            }
        }
        let get = |name: &str| raw.get(name).copied().unwrap_or_default();
        let mut sections = BTreeMap::new();
        sections.insert("link".into(), objects(get("link"), |item| text(item, "ifname")));
        sections.insert("address".into(), addresses(get("address")));
        for name in ["route", "route6", "rule", "rule6", "neighbour", "neighbour-proxy"] {
            sections.insert(name.into(), objects(get(name), |item| item.to_string()));
        }
        sections.insert("fdb".into(), fdb(get("fdb")));
        sections
            .insert("netns".into(), get("netns").lines().map(|line| (line.into(), String::new())).collect());
        sections.insert("nftables".into(), tables(get("nftables")));
        sections.insert("sysctl".into(), sysctls(get("sysctl")));
        sections.insert("unit-file".into(), columns(get("unit-file"), 1));
        sections.insert("unit".into(), units(get("unit")));
        let (files, times) = files(get("file"), get("sha256"));
        sections.insert("file".into(), files);
        sections.insert("mtime".into(), times);
        Ok(NodeSnapshot { sections })
    }
}

fn text(item: &Value, key: &str) -> String {
    item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn array(json: &str) -> Vec<Value> {
    let mut items: Vec<Value> = serde_json::from_str(json.trim()).unwrap_or_default();
    items.iter_mut().for_each(strip);
    // `ip -details -json` prints empty objects for what it filters out.
    items.retain(|item| item.as_object().is_some_and(|fields| !fields.is_empty()));
    items
}

/// Takes out what changes by itself, at every depth.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, _| !VOLATILE.contains(&key.as_str()) && !key.ends_with("_timer"));
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => {
            // What follows from `operstate`.
            items.retain(|item| !matches!(item.as_str(), Some("linkdown" | "NO-CARRIER" | "LOWER_UP")));
            items.iter_mut().for_each(strip);
        }
        _ => {}
    }
}

fn objects(json: &str, key: impl Fn(&Value) -> String) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for item in array(json) {
        let name = key(&item);
        // Entries that say it all in their name need no value; equal ones are counted.
        let value = if name.starts_with('{') { String::new() } else { item.to_string() };
        let mut unique = name.clone();
        for count in 2.. {
            if !map.contains_key(&unique) {
                break;
            }
            unique = format!("{name} ({count})");
        }
        map.insert(unique, value);
    }
    map
}

fn addresses(json: &str) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for link in array(json) {
        for address in link.get("addr_info").and_then(Value::as_array).into_iter().flatten() {
            let length = address.get("prefixlen").cloned().unwrap_or_default();
            map.insert(
                format!("{} {}/{length}", text(&link, "ifname"), text(address, "local")),
                address.to_string(),
            );
        }
    }
    map
}

/// What somebody set: learned entries come and go.
fn fdb(json: &str) -> BTreeMap<String, String> {
    let mut map = objects(json, Value::to_string);
    map.retain(|entry, _| {
        let item: Value = serde_json::from_str(entry).unwrap_or_default();
        item.get("dst").is_some() || matches!(text(&item, "state").as_str(), "permanent" | "static")
    });
    map
}

/// Splits `nft list ruleset` at its tables.
fn tables(ruleset: &str) -> BTreeMap<String, String> {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    let mut name = String::new();
    for line in ruleset.lines() {
        if let Some(head) = line.strip_prefix("table ") {
            name = head.trim_end_matches(" {").to_owned();
        }
        let body = map.entry(name.clone()).or_default();
        body.push_str(line);
        body.push('\n');
    }
    map
}

fn sysctls(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(" = ").or_else(|| line.split_once(" =")))
        .filter(|(name, _)| !VOLATILE_SYSCTL.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The first column as key, then the next `count` ones.
fn columns(text: &str, count: usize) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            Some((name.to_owned(), words.take(count).collect::<Vec<_>>().join(" ")))
        })
        .collect()
}

/// Units but for those of logins, helpers that start when asked and end by themselves, and the mounts of network
/// namespaces, which have a section of their own (the first of them leaves a mount for good).
fn units(text: &str) -> BTreeMap<String, String> {
    const PASSING: [&str; 8] = [
        "run-netns",
        "run-user-",
        "systemd-hostnamed.",
        "systemd-localed.",
        "systemd-timedated.",
        "systemd-tmpfiles-clean.service",
        "user-runtime-dir@",
        "user@",
    ];
    let mut map = columns(text, 3);
    map.retain(|name, state| {
        !PASSING.iter().any(|start| name.starts_with(start)) && !state.starts_with("not-found")
    });
    map
}

type Entries = BTreeMap<String, String>;

fn files(list: &str, sums: &str) -> (Entries, Entries) {
    let sums: BTreeMap<&str, &str> =
        sums.split('\0').filter_map(|line| line.split_once("  ")).map(|(sum, path)| (path, sum)).collect();
    let (mut files, mut times) = (BTreeMap::new(), BTreeMap::new());
    for line in list.split('\0') {
        let fields: Vec<&str> = line.trim_start_matches('\n').splitn(7, '\t').collect();
        let [kind, mode, owner, size, time, target, path] = fields.as_slice() else { continue };
        let what = match *kind {
            "f" => format!("file {mode} {owner} {size} B {}", sums.get(path).unwrap_or(&"unread")),
            "l" => format!("link {owner} -> {target}"),
            "d" => format!("directory {mode} {owner}"),
            other => format!("{other} {mode} {owner}"),
        };
        files.insert((*path).to_owned(), what);
        times.insert((*path).to_owned(), (*time).to_owned());
    }
    (files, times)
}
