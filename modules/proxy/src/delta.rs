//! What to change between two states of the sets.

use crate::compile::Elements;
use crate::element::Element;

/// Elements to delete, then to add, each with its service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta<'a> {
    /// Gone or different: a map's element with a new value is deleted first.
    pub delete: Vec<(&'a str, Element)>,
    /// New.
    pub add: Vec<(&'a str, Element)>,
}

impl Delta<'_> {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }
}

/// The difference. An element that moves from one service to another is deleted and added: its comment changes.
pub fn delta<'a>(before: &'a Elements, after: &'a Elements) -> Delta<'a> {
    Delta { delete: missing(before, after), add: missing(after, before) }
}

/// What `of` holds and `from` does not; both hold sorted lists.
fn missing<'a>(of: &'a Elements, from: &'a Elements) -> Vec<(&'a str, Element)> {
    let nothing = Vec::new();
    let mut missing = Vec::new();
    for (service, elements) in of {
        let others = from.get(service).unwrap_or(&nothing);
        let lacking = elements.iter().filter(|element| others.binary_search(element).is_err());
        missing.extend(lacking.map(|element| (service.as_str(), *element)));
    }
    missing
}
