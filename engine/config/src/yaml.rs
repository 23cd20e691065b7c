//! YAML text to a small tree in which every key and value knows its place.
//!
//! YAML 1.2 core schema: `yes`, `on` and `1:30` are text, `0x1f` and `0o17` are numbers. Anchors, aliases and merge
//! keys (`<<`) are resolved; size, depth and expansion are bounded. A key that stands twice, a number with a leading
//! zero, a tag and a second document are errors.

use std::collections::HashMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, StrInput};
use serde_json::Number;

use crate::problem::{Fault, Span};
use crate::words;

/// Largest file, bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting.
pub(crate) const MAX_DEPTH: usize = 24;
/// Most memory of a tree, bytes: so much for each value and its text, each use of an anchor counted.
const MAX_WEIGHT: usize = 8 << 20;
/// What a value weighs beside its text.
const NODE_WEIGHT: usize = 32;
/// No more problems than this are listed for one file.
pub(crate) const MAX_FAULTS: usize = 100;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Something that has made a problem already; later steps leave it out.
    Bad,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) span: Span,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Node,
}

impl Node {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key),
            _ => None,
        }
    }

    /// For the schema: what is null or bad is left out of maps.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null | Value::Bad => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Number(n) => n.clone().into(),
            Value::Text(t) => t.clone().into(),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .filter(|e| !matches!(e.value.value, Value::Null | Value::Bad))
                .map(|e| (e.key.clone(), e.value.to_json()))
                .collect(),
        }
    }

    fn weight(&self) -> usize {
        NODE_WEIGHT
            + match &self.value {
                Value::Text(text) => text.len(),
                Value::List(items) => items.iter().map(Node::weight).sum(),
                Value::Map(entries) => {
                    entries.iter().map(|e| NODE_WEIGHT + e.key.len() + e.value.weight()).sum()
                }
                _ => 0,
            }
    }
}

/// Reads one file. None: there is no tree, and the faults say why.
pub(crate) fn parse(source: usize, text: &str, faults: &mut Vec<Fault>) -> Option<Node> {
    if text.len() > MAX_BYTES {
        let span = Span { source, start: 0, length: 0 };
        faults.push(
            Fault::new("too-large", span, format!("the file is larger than {} KiB", MAX_BYTES >> 10))
                .help("homelab.yaml is a few kilobytes; is this the right file?"),
        );
        return None;
    }
    let mut options = Options::default();
    options.emit_comments = false;
    // More than ours, so that ours speaks first.
    options.flow_nesting_limit = MAX_DEPTH + 8;
    options.block_nesting_limit = MAX_DEPTH + 8;
    let mut builder = Builder {
        parser: Parser::new_from_str_with_options(text, options),
        source,
        text,
        anchors: HashMap::new(),
        budget: MAX_WEIGHT,
        faults: Vec::new(),
    };
    let result = builder.document();
    let mut found = builder.faults;
    found.truncate(MAX_FAULTS);
    faults.append(&mut found);
    match result {
        Ok(node) => Some(node),
        Err(fault) => {
            faults.push(*fault);
            None
        }
    }
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    source: usize,
    text: &'a str,
    anchors: HashMap<usize, (Node, usize)>,
    budget: usize,
    faults: Vec<Fault>,
}

type Read<T> = Result<T, Box<Fault>>;

impl<'a> Builder<'a> {
    fn next(&mut self) -> Read<(Event<'a>, Span)> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let range = span.byte_range().unwrap_or(0..0);
                let length = range.end.saturating_sub(range.start);
                Ok((event, Span { source: self.source, start: range.start, length }))
            }
            Some(Err(error)) => Err(Box::new(words::syntax(self.source, self.text, &error))),
            None => Ok((Event::StreamEnd, Span { source: self.source, start: self.text.len(), length: 0 })),
        }
    }

    fn document(&mut self) -> Read<Node> {
        let mut root = Node { value: Value::Null, span: Span { source: self.source, start: 0, length: 0 } };
        let mut documents = 0;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::DocumentStart(..) => {
                    documents += 1;
                    if documents > 1 {
                        return Err(Box::new(
                            Fault::new("second-document", span, "a second YAML document begins here")
                                .help("keep one document per file; several files can be given with -f"),
                        ));
                    }
                }
                Event::StreamStart | Event::DocumentEnd => {}
                other => root = self.node(other, span, 0)?,
            }
        }
    }

    fn spend(&mut self, weight: usize, span: Span) -> Read<()> {
        match self.budget.checked_sub(weight) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err(Box::new(
                Fault::new("too-large", span, "the file holds too many values")
                    .help("each use of an anchor counts as if it were written out"),
            )),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Read<Node> {
        if depth > MAX_DEPTH {
            return Err(Box::new(Fault::new(
                "too-deep",
                span,
                format!("nested deeper than {MAX_DEPTH} levels"),
            )));
        }
        self.spend(NODE_WEIGHT, span)?;
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = match &tag {
                    Some(tag) if tag.core_suffix() == Some("str") => true,
                    Some(tag) => {
                        self.tag(tag.original(), span);
                        false
                    }
                    None => style != ScalarStyle::Plain,
                };
                self.spend(text.len(), span)?;
                let value = if quoted { Value::Text(text.into_owned()) } else { self.plain(&text, span) };
                (Node { value, span }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                if let Some(tag) = tag.filter(|t| t.core_suffix() != Some("seq")) {
                    self.tag(tag.original(), span);
                }
                let mut items = Vec::new();
                let end = loop {
                    let (event, at) = self.next()?;
                    if event == Event::SequenceEnd {
                        break at;
                    }
                    items.push(self.node(event, at, depth + 1)?);
                };
                (Node { value: Value::List(items), span: self.first_line(span, end) }, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                if let Some(tag) = tag.filter(|t| t.core_suffix() != Some("map")) {
                    self.tag(tag.original(), span);
                }
                let (entries, end) = self.mapping(depth)?;
                (Node { value: Value::Map(entries), span: self.first_line(span, end) }, anchor)
            }
            Event::Alias(id) => {
                let Some((node, weight)) = self.anchors.get(&id) else {
                    return Err(Box::new(
                        Fault::new("anchor", span, "this alias stands inside its own anchor")
                            .help("an anchor can be used only after the value that it names"),
                    ));
                };
                let weight = *weight;
                let node = node.clone();
                self.spend(weight, span)?;
                (node, 0)
            }
            _ => return Err(Box::new(Fault::new("syntax", span, "a value is expected here"))),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), node.weight()));
        }
        Ok(node)
    }

    fn mapping(&mut self, depth: usize) -> Read<(Vec<Entry>, Span)> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: HashMap<String, Span> = HashMap::new();
        let mut merged: Vec<Entry> = Vec::new();
        let end = loop {
            let (event, key_span) = self.next()?;
            if event == Event::MappingEnd {
                break key_span;
            }
            let key = match event {
                Event::Scalar(text, style, ..) => {
                    self.spend(NODE_WEIGHT + text.len(), key_span)?;
                    Some((text.into_owned(), style == ScalarStyle::Plain))
                }
                other => {
                    let span = self.node(other, key_span, depth + 1)?.span;
                    self.faults.push(
                        Fault::new("key", span, "a key must be plain text")
                            .help("braces that are part of a text need quotes; templates are not expanded"),
                    );
                    None
                }
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            let Some((key, plain)) = key else { continue };
            if plain && key == "<<" {
                self.merge_key(value, &mut merged);
            } else if let Some(&first) = seen.get(&key) {
                self.faults.push(
                    Fault::new("duplicate-key", key_span, format!("the key `{key}` stands twice"))
                        .label("again here")
                        .also(first, "first here")
                        .help("keep one of them"),
                );
            } else {
                seen.insert(key.clone(), key_span);
                entries.push(Entry { key, key_span, value });
            }
        };
        for entry in merged {
            if !seen.contains_key(&entry.key) {
                seen.insert(entry.key.clone(), entry.key_span);
                entries.push(entry);
            }
        }
        Ok((entries, end))
    }

    /// `<<: *anchor` or `<<: [*one, *two]`; of several the first wins.
    fn merge_key(&mut self, value: Node, merged: &mut Vec<Entry>) {
        match value.value {
            Value::Map(entries) => merged.extend(entries),
            Value::List(items) if items.iter().all(|i| matches!(i.value, Value::Map(_))) => {
                for item in items {
                    self.merge_key(item, merged);
                }
            }
            _ => self.faults.push(
                Fault::new("merge-key", value.span, "`<<` needs a block of keys or a list of them")
                    .help("write `<<: *name`, where `&name` marks a block of keys"),
            ),
        }
    }

    fn tag(&mut self, tag: String, span: Span) {
        self.faults.push(
            Fault::new("tag", span, format!("the YAML tag `{tag}` is not supported"))
                .help("write the value itself; only `!!str` is understood"),
        );
    }

    /// A collection is underlined in its first line only.
    fn first_line(&self, start: Span, end: Span) -> Span {
        let stop = end.start.saturating_add(end.length).max(start.start);
        let text = self.text.get(start.start..stop).unwrap_or("");
        let length = text.lines().next().unwrap_or("").trim_end().len();
        Span { length, ..start }
    }

    /// A plain scalar by the YAML 1.2 core schema.
    fn plain(&mut self, text: &str, span: Span) -> Value {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
            "true" | "True" | "TRUE" => return Value::Bool(true),
            "false" | "False" | "FALSE" => return Value::Bool(false),
            _ => {}
        }
        let digits = text.trim_start_matches(['-', '+']);
        let all = |t: &str, f: fn(&char) -> bool| !t.is_empty() && t.chars().all(|c| f(&c));
        if text.len() - digits.len() > 1 {
            return Value::Text(text.to_owned());
        }
        if all(digits, char::is_ascii_digit) {
            if digits.len() > 1 && digits.starts_with('0') {
                let decimal = digits.trim_start_matches('0');
                self.faults.push(
                    Fault::new("leading-zero", span, format!("`{text}` begins with a zero"))
                        .label("decimal or octal?")
                        .help(format!(
                            "write `{}`, or quotes around a text",
                            if decimal.is_empty() { "0" } else { decimal }
                        )),
                );
                return Value::Bad;
            }
            let number = text.trim_start_matches('+');
            if let Ok(n) = number.parse::<u64>() {
                return Value::Number(n.into());
            }
            return match number.parse::<i64>() {
                Ok(n) => Value::Number(n.into()),
                Err(_) => float(number).unwrap_or(Value::Text(text.to_owned())),
            };
        }
        let radix = |prefix: &str, radix: u32| {
            text.strip_prefix(prefix).and_then(|t| u64::from_str_radix(t, radix).ok())
        };
        if let Some(n) = radix("0x", 16).or_else(|| radix("0o", 8)) {
            return Value::Number(n.into());
        }
        // Only what begins like a number and has nothing but a number's signs: `1e3`, `1.5`, not `1.2.3.4`.
        let begins = digits.trim_start_matches('.').starts_with(|c: char| c.is_ascii_digit());
        if begins
            && all(digits, |c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'))
            && let Some(value) = float(text)
        {
            return value;
        }
        Value::Text(text.to_owned())
    }
}

fn float(text: &str) -> Option<Value> {
    Number::from_f64(text.parse().ok()?).map(Value::Number)
}
