//! What to change between two states of the sets.

use std::cmp::Ordering;

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

/// The services that differ, as they are in the one state and in the other. No elements are as good as no service.
pub fn differing(before: &Elements, after: &Elements) -> (Elements, Elements) {
    let mut differing = (Elements::new(), Elements::new());
    let some = |entry: &(&String, &Vec<Element>)| !entry.1.is_empty();
    let (mut old, mut new) = (before.iter().filter(some).peekable(), after.iter().filter(some).peekable());
    // Both are sorted by name, so one walk through both compares them: this is done for every change.
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return differing,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let old = old.next_if(|_| order.is_le());
        let new = new.next_if(|_| order.is_ge());
        if old.map(|(_, elements)| elements) != new.map(|(_, elements)| elements) {
            let copy = |(name, elements): (&String, &Vec<Element>)| (name.clone(), elements.clone());
            differing.0.extend(old.map(copy));
            differing.1.extend(new.map(copy));
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn state(services: &[(&str, u8)]) -> Elements {
        let element = |host: &u8| Element::ClusterAddress([10, 96, 0, *host].into());
        services
            .iter()
            .map(|(name, host)| {
                ((*name).to_owned(), Some(host).filter(|h| **h > 0).map(element).into_iter().collect())
            })
            .collect()
    }

    #[test]
    fn what_differs_is_picked_from_both_states() {
        let before = state(&[("a", 1), ("b", 2), ("d", 4), ("e", 0), ("g", 7)]);
        let after = state(&[("a", 1), ("b", 3), ("c", 5), ("f", 0), ("g", 0)]);
        let picked = differing(&before, &after);
        assert_eq!(picked, (state(&[("b", 2), ("d", 4), ("g", 7)]), state(&[("b", 3), ("c", 5)])));
        assert_eq!(delta(&picked.0, &picked.1), delta(&before, &after));
    }

    #[test]
    fn equal_states_do_not_differ() {
        let one = state(&[("a", 1), ("b", 0)]);
        assert_eq!(differing(&one, &state(&[("a", 1), ("c", 0)])), (Elements::new(), Elements::new()));
    }
}
