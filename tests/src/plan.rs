//! The plan's JSON form, as far as other programs rely on it.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

/// A plan.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The nodes.
    pub nodes: Vec<PlanNode>,
    /// Everything.
    pub json: Value,
}

/// A node's part of a plan.
#[derive(Debug, Clone)]
pub struct PlanNode {
    /// Name.
    pub name: String,
    /// Its changes.
    pub changes: Vec<Change>,
}

/// A change.
#[derive(Debug, Clone)]
pub struct Change {
    /// Module.
    pub module: String,
    /// The object as plans name it.
    pub object: String,
    /// `create`, `update`, `replace` or `delete`.
    pub action: String,
    /// `none`, `brief` or `disruptive`.
    pub impact: String,
    /// The whole entry.
    pub json: Value,
}

impl Plan {
    /// Reads a plan and checks that it has all fields that are promised.
    pub fn parse(text: &str) -> Result<Plan, String> {
        let json: Value = serde_json::from_str(text).map_err(|e| format!("the plan is no JSON: {e}"))?;
        let missing = |what: &str| format!("the plan has no {what}: {json:#}");
        json["format_version"].as_u64().ok_or_else(|| missing("format_version"))?;
        let summary = json["summary"].as_object().ok_or_else(|| missing("summary"))?;
        for count in ["create", "update", "replace", "delete"] {
            summary.get(count).and_then(Value::as_u64).ok_or_else(|| missing(&format!("summary.{count}")))?;
        }
        let mut nodes = Vec::new();
        for node in json["nodes"].as_array().ok_or_else(|| missing("nodes"))? {
            let name = node["name"].as_str().ok_or_else(|| missing("nodes[].name"))?.to_owned();
            let mut changes = Vec::new();
            for change in node["changes"].as_array().into_iter().flatten() {
                let text = |key: &str| {
                    change[key]
                        .as_str()
                        .map(str::to_owned)
                        .ok_or_else(|| missing(&format!("changes[].{key}")))
                };
                for key in ["before", "after"] {
                    change.get(key).ok_or_else(|| missing(&format!("changes[].{key}")))?;
                }
                changes.push(Change {
                    module: text("module")?,
                    object: text("object")?,
                    action: text("action")?,
                    impact: text("impact")?,
                    json: change.clone(),
                });
            }
            nodes.push(PlanNode { name, changes });
        }
        Ok(Plan { nodes, json })
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.nodes.iter().all(|n| n.changes.is_empty())
    }

    /// A node's changes.
    #[track_caller]
    pub fn node(&self, name: &str) -> &PlanNode {
        self.nodes
            .iter()
            .find(|n| n.name == name)
            .unwrap_or_else(|| panic!("the plan has no {name}:\n{self}"))
    }

    /// All changes of all nodes.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.nodes.iter().flat_map(|n| &n.changes)
    }

    /// The worst impact of all.
    pub fn impact(&self) -> &str {
        let rank = |c: &&Change| ["none", "brief", "disruptive"].iter().position(|i| *i == c.impact);
        self.changes().max_by_key(rank).map_or("none", |c| &c.impact)
    }
}

impl PlanNode {
    /// `action object` of every change. The chains of the proxy's table stand for it where it comes or goes.
    pub fn entries(&self) -> BTreeSet<String> {
        let mut entries: BTreeSet<String> =
            self.changes.iter().map(|c| format!("{} {}", c.action, c.object)).collect();
        for action in ["create", "delete"] {
            if entries.contains(&format!("{action} nft table inet homelab-proxy")) {
                let chains = format!("{action} nft chain inet homelab-proxy ");
                let count = entries.len();
                entries.retain(|entry| !entry.starts_with(&chains));
                assert!(count > entries.len() + 20, "a proxy without chains: {entries:?}");
            }
        }
        entries
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            writeln!(out, "{}:", node.name)?;
            for c in &node.changes {
                writeln!(out, "  {} {} ({})", c.action, c.object, c.impact)?;
                if c.action == "update" {
                    writeln!(out, "    {}\n    {}", c.json["before"], c.json["after"])?;
                }
            }
        }
        if self.is_empty() { writeln!(out, "{:#}", self.json) } else { Ok(()) }
    }
}
