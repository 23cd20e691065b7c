//! Fields of one object: by Kubernetes' types, with all that is wrong collected.

use std::fmt::Display;

use crate::problem::{Fault, Span};
use crate::words::list;
use crate::yaml::{Node, Value};

use super::values::{Parsed, quote};

/// A value and its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// Reads the fields of one object. Null and missing are the same, as in Kubernetes; unknown fields are nobody's.
pub(super) struct Reader {
    /// Kind and name, for messages.
    pub(super) title: String,
    /// What refuses the object.
    pub(super) faults: Vec<Fault>,
    /// A value that YAML itself refused.
    unread: Option<Span>,
}

impl Reader {
    pub(super) fn new(title: impl Into<String>, faults: Vec<Fault>) -> Self {
        let mut reader = Reader { title: title.into(), faults: Vec::new(), unread: None };
        for fault in faults {
            let message = reader.refused(&fault.message);
            reader.faults.push(Fault { message, ..fault }.warning());
        }
        reader
    }

    fn refused(&self, why: impl Display) -> String {
        format!("{} is left out: {why}", self.title)
    }

    /// Refuses the object.
    pub(super) fn refuse(&mut self, code: &'static str, span: Span, why: impl Display) -> &mut Fault {
        let fault = Fault::new(code, span, self.refused(why)).warning();
        let at = self.faults.len();
        self.faults.push(fault);
        &mut self.faults[at]
    }

    /// Whether nothing refuses the object.
    pub(super) fn is_good(&self) -> bool {
        self.faults.is_empty() && self.unread.is_none()
    }

    /// What refuses the object; empty: nothing.
    pub(super) fn finish(mut self) -> Vec<Fault> {
        if let Some(span) = self.unread.filter(|_| self.faults.is_empty()) {
            self.refuse("value", span, "this value cannot be read").help =
                "write it out, without an alias".into();
        }
        self.faults
    }

    /// The field, unless it is null.
    pub(super) fn field<'a>(&mut self, parent: &'a Node, key: &str) -> Option<&'a Node> {
        let node = &parent.get(key)?.value;
        match node.value {
            Value::Null => None,
            Value::Bad => {
                self.unread = Some(node.span);
                None
            }
            _ => Some(node),
        }
    }

    fn type_fault(&mut self, key: &str, node: &Node, wanted: &str) {
        if node.value == Value::Bad {
            self.unread = Some(node.span);
            return;
        }
        let help = match (&node.value, wanted) {
            (Value::Text(t), "a whole number") if t.parse::<u32>().is_ok() => {
                format!("write `{t}` without quotes")
            }
            (Value::Text(t), "true or false") if matches!(t.as_str(), "yes" | "on" | "True" | "true") => {
                "write `true`".into()
            }
            (Value::Text(t), "true or false") if matches!(t.as_str(), "no" | "off" | "False" | "false") => {
                "write `false`".into()
            }
            (Value::Number(_) | Value::Bool(_), "text") => "put it in quotes".into(),
            _ => String::new(),
        };
        self.refuse("type", node.span, format!("`{key}` wants {wanted}")).help = help;
    }

    /// A block of fields.
    pub(super) fn map<'a>(&mut self, parent: &'a Node, key: &str) -> Option<&'a Node> {
        let node = self.field(parent, key)?;
        self.is_map(key, node)
    }

    /// An item that must be a block of fields.
    pub(super) fn is_map<'a>(&mut self, key: &str, node: &'a Node) -> Option<&'a Node> {
        if matches!(node.value, Value::Map(_)) {
            return Some(node);
        }
        self.type_fault(key, node, "a block of fields");
        None
    }

    /// A list; empty where there is none.
    pub(super) fn list<'a>(&mut self, parent: &'a Node, key: &str) -> &'a [Node] {
        match self.field(parent, key) {
            Some(Node { value: Value::List(items), .. }) => items,
            Some(node) => {
                self.type_fault(key, node, "a list");
                &[]
            }
            None => &[],
        }
    }

    /// A list of blocks of fields.
    pub(super) fn maps<'a>(&mut self, parent: &'a Node, key: &str) -> Vec<&'a Node> {
        self.list(parent, key).iter().filter_map(|n| self.is_map(key, n)).collect()
    }

    /// A text.
    pub(super) fn text<'a>(&mut self, parent: &'a Node, key: &str) -> Option<At<&'a str>> {
        let node = self.field(parent, key)?;
        self.is_text(key, node)
    }

    /// A text of a field where Kubernetes cannot tell empty from missing.
    pub(super) fn word<'a>(&mut self, parent: &'a Node, key: &str) -> Option<At<&'a str>> {
        self.text(parent, key).filter(|t| !t.value.is_empty())
    }

    /// An item that must be a text.
    pub(super) fn is_text<'a>(&mut self, key: &str, node: &'a Node) -> Option<At<&'a str>> {
        if let Value::Text(text) = &node.value {
            return Some(At { value: text, span: node.span });
        }
        self.type_fault(key, node, "text");
        None
    }

    /// A list of texts, each parsed.
    pub(super) fn texts<T>(
        &mut self,
        parent: &Node,
        key: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Vec<At<T>> {
        let items = self.list(parent, key).iter();
        items
            .filter_map(|node| {
                let text = self.is_text(key, node)?;
                self.parse(text, &parse)
            })
            .collect()
    }

    /// A text parsed.
    pub(super) fn parse<T>(&mut self, text: At<&str>, parse: impl Fn(&str) -> Parsed<T>) -> Option<At<T>> {
        match parse(text.value) {
            Ok(value) => Some(At { value, span: text.span }),
            Err(words) => {
                self.refuse(words.code, text.span, words.message).help = words.help;
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        text: At<&str>,
        words: &[(&str, T)],
    ) -> Option<At<T>> {
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(At { value: *value, span: text.span });
        }
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let help = match crate::words::nearest(text.value, all.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("write {}", list(&all, "or")),
        };
        self.refuse("value", text.span, format!("{} is no `{key}`", quote(text.value))).help = help;
        None
    }

    /// true or false.
    pub(super) fn flag(&mut self, parent: &Node, key: &str) -> Option<At<bool>> {
        let node = self.field(parent, key)?;
        if let Value::Bool(value) = node.value {
            return Some(At { value, span: node.span });
        }
        self.type_fault(key, node, "true or false");
        None
    }

    /// A whole number within bounds.
    pub(super) fn number(&mut self, parent: &Node, key: &str, least: u32, most: u32) -> Option<At<u32>> {
        let node = self.field(parent, key)?;
        self.is_number(key, node, least, most)
    }

    fn is_number(&mut self, key: &str, node: &Node, least: u32, most: u32) -> Option<At<u32>> {
        let Value::Number(number) = &node.value else {
            self.type_fault(key, node, "a whole number");
            return None;
        };
        if !number.is_u64() && !number.is_i64() {
            self.type_fault(key, node, "a whole number");
            return None;
        }
        let value =
            number.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (least..=most).contains(n));
        if value.is_none() {
            self.refuse("range", node.span, format!("`{key}` is {number}")).help =
                format!("write a number from {least} to {most}");
        }
        value.map(|value| At { value, span: node.span })
    }

    /// A port, 1 to 65535.
    pub(super) fn port(&mut self, parent: &Node, key: &str) -> Option<At<u16>> {
        let At { value, span } = self.number(parent, key, 1, u16::MAX.into())?;
        u16::try_from(value).ok().map(|value| At { value, span })
    }

    /// A port of every node; 0 is one that is to be chosen.
    pub(super) fn node_port(&mut self, parent: &Node, key: &str) -> Option<At<u16>> {
        let node = self.field(parent, key)?;
        if matches!(&node.value, Value::Number(n) if n.as_u64() == Some(0)) {
            return None;
        }
        let At { value, span } = self.is_number(key, node, 30000, 32767)?;
        u16::try_from(value).ok().map(|value| At { value, span })
    }

    /// A port or the name of one, which decides nothing here: endpoints say their numbers.
    pub(super) fn target_port(&mut self, parent: &Node, key: &str) {
        match self.field(parent, key) {
            Some(Node { value: Value::Text(text), span }) if !text.is_empty() => {
                self.parse(At { value: text, span: *span }, super::values::port_name);
            }
            Some(node) if !matches!(&node.value, Value::Text(_)) => {
                self.is_number(key, node, 0, u16::MAX.into());
            }
            _ => {}
        }
    }

    /// The text of a label or annotation.
    pub(super) fn note<'a>(&mut self, metadata: &'a Node, of: &str, key: &str) -> Option<At<&'a str>> {
        let notes = self.map(metadata, of)?;
        self.text(notes, key)
    }
}

/// Whether a field is missing.
pub(super) fn absent(parent: &Node, key: &str) -> bool {
    parent.get(key).is_none_or(|e| e.value.value == Value::Null)
}

/// Whether a field is missing or empty, where Kubernetes cannot tell one from the other.
pub(super) fn lacks(parent: &Node, key: &str) -> bool {
    absent(parent, key) || parent.get(key).is_some_and(|e| e.value.value == Value::Text(String::new()))
}

/// The place where a missing field is told: the nearest thing that is there.
pub(super) fn place(parent: &Node, key: &str) -> Span {
    match parent.get(key) {
        Some(entry) => entry.key_span,
        None => parent.span,
    }
}
