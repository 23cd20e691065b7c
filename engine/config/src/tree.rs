//! The tree of a file: every key and value knows its place.

use serde_json::Number;

use crate::problem::Span;

/// What a value weighs beside its text.
pub(crate) const NODE_WEIGHT: usize = 32;

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

    /// Moves the places of the whole tree.
    pub(crate) fn shift(&mut self, by: usize) {
        self.span.start += by;
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|i| i.shift(by)),
            Value::Map(entries) => {
                for entry in entries {
                    entry.key_span.start += by;
                    entry.value.shift(by);
                }
            }
            _ => {}
        }
    }

    /// Memory, nearly.
    pub(crate) fn weight(&self) -> usize {
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
