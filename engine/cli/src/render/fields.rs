//! A change, field by field. Generic over what objects look like as JSON.

use std::collections::BTreeMap;

use homelab_model::{Action, NodeObject, PlannedChange, Spec};
use serde_json::Value;
use similar::{ChangeTag, TextDiff};

use super::served;

/// Longest value shown in full, characters.
const LONG: usize = 100;
/// Most lines of a difference.
const LINES: usize = 24;
/// Most lines of a new file.
const NEW_LINES: usize = 8;

/// What happens to a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It stays, and shows where we are.
    Same,
    /// It comes.
    Add,
    /// It goes.
    Remove,
    /// It says something about the lines around it.
    Note,
}

/// A line of a longer value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What happens to it.
    pub sign: Sign,
    /// Its text.
    pub text: String,
}

/// A field of an object that a change makes or alters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// A short value.
    Value {
        /// Name.
        name: String,
        /// As it is.
        before: Option<String>,
        /// As it will be.
        after: Option<String>,
    },
    /// A text or a list.
    Lines {
        /// Name.
        name: String,
        /// What happens to its lines.
        lines: Vec<Line>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Leaf {
    Value(String),
    Lines(Vec<String>),
}

/// The fields that `change` makes or alters; of a deleted object none. `full` cuts nothing.
pub fn fields(change: &PlannedChange, full: bool) -> Vec<Field> {
    let whole = matches!(change.action, Action::Create | Action::Delete);
    let leaves = |object: &NodeObject| leaves(object, full, whole);
    let before = change.change.before().map(leaves).unwrap_or_default();
    let after = change.change.after().map(leaves).unwrap_or_default();
    differences(&change.object, change.action, &before, &after, full)
}

/// The same of what stands before and after a change, as JSON.
pub(super) fn fields_of(
    title: &str,
    action: Action,
    before: Option<Value>,
    after: Option<Value>,
    full: bool,
) -> Vec<Field> {
    let leaves = |value: Option<Value>| {
        let mut result = BTreeMap::new();
        if let Some(Value::Object(fields)) = value {
            for (name, value) in fields {
                collect(&name, &value, &mut result);
            }
        }
        result
    };
    differences(title, action, &leaves(before), &leaves(after), full)
}

fn differences(
    title: &str,
    action: Action,
    before: &BTreeMap<String, Leaf>,
    after: &BTreeMap<String, Leaf>,
    full: bool,
) -> Vec<Field> {
    match action {
        Action::Delete if !full => Vec::new(),
        Action::Delete => before
            .iter()
            .filter(|(name, leaf)| !in_title(title, name, leaf))
            .map(|(name, leaf)| one_sided(name, leaf, Sign::Remove, full))
            .collect(),
        Action::Create => after
            .iter()
            .filter(|(name, leaf)| !in_title(title, name, leaf))
            .map(|(name, leaf)| one_sided(name, leaf, Sign::Add, full))
            .collect(),
        Action::Update | Action::Replace => {
            let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
            names.sort();
            names.dedup();
            names.into_iter().filter_map(|n| differing(n, before.get(n), after.get(n), full)).collect()
        }
    }
}

/// A long digest or text in a line of its own is no help: the beginning tells them apart.
pub fn short(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    // Digests first: they stand inside of paths.
    while let Some(start) = find_digest(rest) {
        result.push_str(&rest[..start + 12]);
        result.push('…');
        rest = &rest[start + 64..];
    }
    result.push_str(rest);
    if result.chars().count() > LONG {
        let head: String = result.chars().take(LONG - 20).collect();
        let tail: Vec<char> = result.chars().rev().take(16).collect();
        result = format!("{head}…{}", tail.into_iter().rev().collect::<String>());
    }
    result
}

/// Where a word of exactly 64 hexadecimal digits begins.
fn find_digest(text: &str) -> Option<usize> {
    let mut start = 0;
    for word in text.split(|c: char| !c.is_ascii_alphanumeric()) {
        if word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Some(start);
        }
        start = word.as_ptr() as usize - text.as_ptr() as usize + word.len();
        start += text[start..].chars().next().map_or(0, char::len_utf8);
    }
    None
}

fn leaves(object: &NodeObject, full: bool, whole: bool) -> BTreeMap<String, Leaf> {
    let mut result = BTreeMap::new();
    match &object.spec {
        Spec::Service(service) if !full => {
            result.insert("serves".to_owned(), Leaf::Lines(served::lines(service)));
            return result;
        }
        // Dozens, the same on every node and in every version.
        Spec::NftTable(table) if whole && !full && table.sets.len() > NEW_LINES => {
            result.insert("sets".to_owned(), Leaf::Value(table.sets.len().to_string()));
            return result;
        }
        _ => {}
    }
    if let Ok(Value::Object(fields)) = serde_json::to_value(object) {
        for (name, value) in fields {
            // The title says both.
            if name != "module" && name != "kind" {
                collect(&name, &value, &mut result);
            }
        }
    }
    result
}

fn collect(name: &str, value: &Value, into: &mut BTreeMap<String, Leaf>) {
    let leaf = match value {
        Value::Null => return,
        Value::Object(fields) => {
            for (inner, value) in fields {
                // Whether a content is text is plain to see.
                let hidden = name == "content" && (inner == "text" || inner == "opaque");
                let name = if hidden { name.to_owned() } else { format!("{name}.{inner}") };
                collect(&name, value, into);
            }
            return;
        }
        Value::Array(items) => Leaf::Lines(items.iter().map(text).collect()),
        Value::String(string) if string.contains('\n') => {
            Leaf::Lines(string.lines().map(str::to_owned).collect())
        }
        other => Leaf::Value(text(other)),
    };
    into.insert(name.to_owned(), leaf);
}

fn text(value: &Value) -> String {
    match value {
        Value::String(string) => string.clone(),
        other => other.to_string(),
    }
}

/// Whether the object's title says this already.
fn in_title(title: &str, name: &str, leaf: &Leaf) -> bool {
    match leaf {
        Leaf::Value(value) if matches!(name, "metric") => value == "0",
        Leaf::Value(value) => format!(" {title} ").contains(&format!(" {value} ")),
        Leaf::Lines(_) => false,
    }
}

fn cut(value: &str, full: bool) -> String {
    if full { value.to_owned() } else { short(value) }
}

fn one_sided(name: &str, leaf: &Leaf, sign: Sign, full: bool) -> Field {
    match leaf {
        Leaf::Value(value) => {
            let value = Some(cut(value, full));
            let (before, after) = if sign == Sign::Add { (None, value) } else { (value, None) };
            Field::Value { name: name.to_owned(), before, after }
        }
        Leaf::Lines(lines) => {
            let lines = lines.iter().map(|l| Line { sign, text: l.clone() }).collect();
            Field::Lines { name: name.to_owned(), lines: limited(lines, NEW_LINES, full) }
        }
    }
}

fn differing(name: &str, before: Option<&Leaf>, after: Option<&Leaf>, full: bool) -> Option<Field> {
    if before == after {
        return None;
    }
    let lines = |leaf: Option<&Leaf>| -> Vec<String> {
        match leaf {
            None => Vec::new(),
            Some(Leaf::Value(value)) => vec![value.clone()],
            Some(Leaf::Lines(lines)) => lines.clone(),
        }
    };
    let short = |leaf: Option<&Leaf>| match leaf {
        Some(Leaf::Value(value)) => Some(cut(value, full)),
        _ => None,
    };
    if matches!(before, Some(Leaf::Lines(_))) || matches!(after, Some(Leaf::Lines(_))) {
        let lines = limited(unified(&lines(before), &lines(after)), LINES, full);
        return Some(Field::Lines { name: name.to_owned(), lines });
    }
    Some(Field::Value { name: name.to_owned(), before: short(before), after: short(after) })
}

/// The differing lines with two lines around them.
fn unified(before: &[String], after: &[String]) -> Vec<Line> {
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    let after: Vec<&str> = after.iter().map(String::as_str).collect();
    let diff = TextDiff::from_slices(&before, &after);
    let mut lines = Vec::new();
    for group in diff.grouped_ops(2) {
        if let (Some(first), true) = (group.first(), before.len().max(after.len()) > 8) {
            let text = format!("@@ line {}", first.new_range().start + 1);
            lines.push(Line { sign: Sign::Note, text });
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let sign = match change.tag() {
                ChangeTag::Equal => Sign::Same,
                ChangeTag::Insert => Sign::Add,
                ChangeTag::Delete => Sign::Remove,
            };
            lines.push(Line { sign, text: change.value().to_string() });
        }
    }
    lines
}

/// At most `most` lines. A note is worth its line only if it stands for several.
fn limited(mut lines: Vec<Line>, most: usize, full: bool) -> Vec<Line> {
    if !full && lines.len() > most + 2 {
        let more = lines.len() - most;
        lines.truncate(most);
        lines.push(Line { sign: Sign::Note, text: format!("… {more} more lines (--verbose shows them)") });
    }
    lines
}
