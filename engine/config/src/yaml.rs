//! YAML text to a small tree in which every key and value knows its place.
//!
//! YAML 1.2 core schema: `yes`, `on` and `1:30` are text, `0x1f` and `0o17` are numbers. Anchors, aliases and merge
//! keys (`<<`) are resolved; size, depth and expansion are bounded. A key that stands twice, a number with a leading
//! zero, a tag and a second document are errors. Files of several documents: [`crate::documents`].

use std::collections::HashMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, StrInput, StructureStyle};
use serde_json::Number;

use crate::problem::{Fault, Span};
use crate::tree::NODE_WEIGHT;
pub(crate) use crate::tree::{Entry, Node, Value};
use crate::words;

/// Largest file, bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting.
pub(crate) const MAX_DEPTH: usize = 24;
/// Most memory of a tree, bytes: so much for each value and its text, each use of an anchor counted.
const MAX_WEIGHT: usize = 8 << 20;
/// No more problems than this are listed for one file.
pub(crate) const MAX_FAULTS: usize = 100;

/// What bounds a tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Deepest nesting.
    pub(crate) depth: usize,
    /// Memory that is left, as [`MAX_WEIGHT`] counts it.
    pub(crate) weight: usize,
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
    let mut bounds = Bounds { depth: MAX_DEPTH, weight: MAX_WEIGHT };
    let (node, mut found) = document(source, text, &mut bounds);
    faults.append(&mut found);
    node
}

/// Reads the one document of a text. None: there is no tree, and the last fault says why.
pub(crate) fn document(source: usize, text: &str, bounds: &mut Bounds) -> (Option<Node>, Vec<Fault>) {
    let mut options = Options::default();
    options.emit_comments = false;
    // More than ours, so that ours speaks first.
    options.flow_nesting_limit = bounds.depth + 8;
    options.block_nesting_limit = bounds.depth + 8;
    let mut builder = Builder {
        parser: Parser::new_from_str_with_options(text, options),
        source,
        text,
        anchors: HashMap::new(),
        budget: bounds.weight,
        depth: bounds.depth,
        open: Vec::new(),
        tag_span: None,
        faults: Vec::new(),
    };
    let result = builder.document();
    bounds.weight = builder.budget;
    let mut faults = builder.faults;
    match result {
        Ok(node) => (Some(node), faults),
        Err(fault) => {
            faults.push(*fault);
            (None, faults)
        }
    }
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    source: usize,
    text: &'a str,
    anchors: HashMap<usize, (Node, usize)>,
    budget: usize,
    depth: usize,
    /// Where the open brackets and braces are.
    open: Vec<Span>,
    /// The tag of the newest event.
    tag_span: Option<Span>,
    faults: Vec<Fault>,
}

type Read<T> = Result<T, Box<Fault>>;

impl<'a> Builder<'a> {
    fn next(&mut self) -> Read<(Event<'a>, Span)> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                self.tag_span = span.tag_span().map(|tag| self.span(&tag));
                let span = self.span(&span);
                Ok((event, span))
            }
            Some(Err(error)) => {
                let fault = words::syntax(self.source, self.text, &error);
                Err(Box::new(match self.open.pop() {
                    Some(open) => words::unclosed(self.text, open, fault, error.kind()),
                    None => fault,
                }))
            }
            None => Ok((Event::StreamEnd, Span { source: self.source, start: self.text.len(), length: 0 })),
        }
    }

    fn span(&self, span: &granit_parser::Span) -> Span {
        let range = span.byte_range().unwrap_or(0..0);
        Span { source: self.source, start: range.start, length: range.end.saturating_sub(range.start) }
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

    /// A fault that leaves a tree.
    fn blame(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
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
        if depth > self.depth {
            return Err(Box::new(Fault::new(
                "too-deep",
                span,
                format!("nested deeper than {} levels", self.depth),
            )));
        }
        self.spend(NODE_WEIGHT, span)?;
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.spend(text.len(), span)?;
                let value = match &tag {
                    Some(tag) if tag.core_suffix() == Some("str") => Value::Text(text.into_owned()),
                    Some(tag) => {
                        self.tag(tag.original(), span);
                        Value::Bad
                    }
                    None if style == ScalarStyle::Plain => self.plain(&text, span),
                    None => Value::Text(text.into_owned()),
                };
                (Node { value, span }, anchor)
            }
            Event::SequenceStart(style, anchor, tag) => {
                let open = self.open.len();
                self.open.extend((style == StructureStyle::Flow).then_some(Span { length: 1, ..span }));
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
                self.open.truncate(open);
                (Node { value: Value::List(items), span: self.first_line(span, end) }, anchor)
            }
            Event::MappingStart(style, anchor, tag) => {
                let open = self.open.len();
                self.open.extend((style == StructureStyle::Flow).then_some(Span { length: 1, ..span }));
                if let Some(tag) = tag.filter(|t| t.core_suffix() != Some("map")) {
                    self.tag(tag.original(), span);
                }
                let (value, end) = self.mapping(depth)?;
                self.open.truncate(open);
                (Node { value, span: self.first_line(span, end) }, anchor)
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
            let weight = node.weight();
            self.spend(weight, span)?;
            self.anchors.insert(anchor, (node.clone(), weight));
        }
        Ok(node)
    }

    fn mapping(&mut self, depth: usize) -> Read<(Value, Span)> {
        let mut bad = false;
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
                    self.blame(
                        Fault::new("key", span, "a key must be plain text")
                            .help("braces that are part of a text need quotes; templates are not expanded"),
                    );
                    bad = true;
                    None
                }
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            let Some((key, plain)) = key else { continue };
            if plain && key == "<<" {
                self.merge_key(value, &mut merged);
            } else if let Some(&first) = seen.get(&key) {
                self.blame(
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
        Ok((if bad { Value::Bad } else { Value::Map(entries) }, end))
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
            _ => self.blame(
                Fault::new("merge-key", value.span, "`<<` needs a block of keys or a list of them")
                    .help("write `<<: *name`, where `&name` marks a block of keys"),
            ),
        }
    }

    fn tag(&mut self, tag: String, span: Span) {
        let span = self.tag_span.unwrap_or(span);
        self.blame(
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
                self.blame(
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

/// A float; one without a fraction is a whole number, as JSON Schema sees it.
fn float(text: &str) -> Option<Value> {
    let float: f64 = text.parse().ok()?;
    if float.fract() == 0.0 && float.abs() < 9e15 {
        return Some(Value::Number((float as i64).into()));
    }
    Number::from_f64(float).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<Node>, Vec<Fault>) {
        let mut faults = Vec::new();
        (parse(0, text, &mut faults), faults)
    }

    /// serde-saphyr reads YAML on its own terms; where the core schema is plain, both agree.
    #[test]
    fn values_are_those_of_another_reader() {
        let texts = [
            "a: 1",
            "a: -7",
            "a: +7",
            "a: 0x1f",
            "a: 0o17",
            "a: 1.5",
            "a: 1e3",
            "a: .5",
            "a: 1:30",
            "a: 1.2.3.4",
            "a: 1-2",
            "a: yes",
            "a: on",
            "a: no",
            "a: true",
            "a: FALSE",
            "a: ~",
            "a:",
            "a: null",
            "a: ''",
            "a: \"x\\u00e9\"",
            "a: 'it''s'",
            "a: |\n  x\n  y\n",
            "a: >-\n  x\n  y\n",
            "a: [1, [2, {b: c}], ]",
            "a: {b: 1, c: [x]}",
            "- a\n- b: 1\n  c: 2\n-\n  - d\n",
            "a: &x {b: 1}\nc: *x\n",
            "a: &x {b: 1}\nc: {<<: *x, d: 2}\n",
            "a: &x {b: 1}\ne: &y {b: 2, f: 3}\nc: {<<: [*x, *y], d: 2}\n",
            "\"a b\": 1",
            "? a\n: 1",
            "a: b # c",
            "a: b#c",
            "%YAML 1.2\n---\na: 1\n...\n",
            "a: 2001-12-14",
            "a: 12e",
            "a: --1",
            "a: 0",
            "a: -0",
            "a: http://x:1/y",
        ];
        for text in texts {
            let (node, faults) = read(text);
            assert_eq!(faults, [], "{text}");
            let mut other: serde_json::Value =
                serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
                    .unwrap();
            drop_nulls(&mut other);
            let ours = node.unwrap().to_json();
            assert!(equal(&ours, &other), "{text}: {ours} and {other}");
        }
    }

    /// As [`Node::to_json`] does.
    fn drop_nulls(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Array(items) => items.iter_mut().for_each(drop_nulls),
            serde_json::Value::Object(map) => {
                map.retain(|_, v| !v.is_null());
                map.values_mut().for_each(drop_nulls);
            }
            _ => {}
        }
    }

    /// A whole number is one, whether written as a float or not.
    fn equal(a: &serde_json::Value, b: &serde_json::Value) -> bool {
        match (a, b) {
            (serde_json::Value::Number(a), serde_json::Value::Number(b)) => a.as_f64() == b.as_f64(),
            (serde_json::Value::Array(a), serde_json::Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
            }
            (serde_json::Value::Object(a), serde_json::Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| equal(v, w)))
            }
            _ => a == b,
        }
    }

    #[test]
    fn spans_are_the_text() {
        let text = "näme: \"x y\" # c\nlist:\n  - {a: 1, b: [é, ☕]}\n  - z\n";
        let node = read(text).0.unwrap();
        let of = |span: Span| &text[span.start..span.start + span.length];
        let name = node.get("näme").unwrap();
        assert_eq!((of(name.key_span), of(name.value.span)), ("näme", "\"x y\""));
        let Value::List(items) = &node.get("list").unwrap().value.value else { panic!("a list") };
        assert_eq!(of(items[0].span), "{a: 1, b: [é, ☕]}");
        assert_eq!(of(items[1].span), "z");
        let Value::List(inner) = &items[0].get("b").unwrap().value.value else { panic!("a list") };
        assert_eq!(of(inner[1].span), "☕");
    }

    #[test]
    fn growth_is_bounded() {
        let wide = format!("a: [{}]", "x,".repeat(MAX_BYTES / 2 - 8));
        let nested = format!("a: {}x", "&a [".repeat(20));
        let text = format!("a: &a {}\nb: [{}]", "x".repeat(900_000), "*a,".repeat(1000));
        let large = "#".repeat(MAX_BYTES + 1);
        for text in [wide, nested, text, large] {
            let (node, faults) = read(&text);
            assert!(node.is_none(), "{:.40}", text);
            assert_eq!(faults.len(), 1, "{:.40}", text);
        }
    }
}
