//! A file of several YAML documents. Each is read on its own, so that one that is no YAML hides no other.

use crate::problem::{Fault, Span};
use crate::yaml::{self, Bounds, Node};

/// Largest file of manifests, bytes.
pub const MAX_MANIFEST_BYTES: usize = 8 << 20;
/// Most memory of the trees of a file, as the YAML reader counts it.
const MAX_WEIGHT: usize = 64 << 20;
/// Deepest nesting. Schemas in CustomResourceDefinitions are deep, and stand in the same files.
const MAX_DEPTH: usize = 96;

/// One document.
#[derive(Debug)]
pub(crate) struct Document {
    /// Its tree. None: it is no YAML, and the last fault says why.
    pub(crate) root: Option<Node>,
    /// What is wrong with it.
    pub(crate) faults: Vec<Fault>,
    /// Where it begins in the file.
    pub(crate) start: usize,
    /// Where it ends.
    pub(crate) end: usize,
}

/// Reads all documents of a file.
pub(crate) fn documents(source: usize, text: &str) -> Vec<Document> {
    if text.len() > MAX_MANIFEST_BYTES {
        let span = Span { source, start: 0, length: 0 };
        let message = format!("the file is larger than {} MiB", MAX_MANIFEST_BYTES >> 20);
        let fault = Fault::new("too-large", span, message)
            .help("export only services and endpointslices, or one file per namespace");
        return vec![Document { root: None, faults: vec![fault], start: 0, end: 0 }];
    }
    let mut bounds = Bounds { depth: MAX_DEPTH, weight: MAX_WEIGHT };
    let mut documents = Vec::new();
    for (start, end) in split(text) {
        let (mut root, mut faults) = yaml::document(source, &text[start..end], &mut bounds);
        if let Some(node) = &mut root {
            node.shift(start);
        }
        for fault in &mut faults {
            fault.span.start += start;
            fault.more.iter_mut().for_each(|(span, _)| span.start += start);
        }
        let spent = root.is_none() && faults.last().is_some_and(|f| f.code == "too-large");
        documents.push(Document { root, faults, start, end });
        if spent {
            break;
        }
    }
    documents
}

/// Where documents begin and end. `---` and `...` at the beginning of a line are markers wherever they stand.
fn split(text: &str) -> Vec<(usize, usize)> {
    let mut parts = Vec::new();
    let (mut start, mut at, mut begun) = (0, 0, false);
    for line in text.split_inclusive('\n') {
        let end = at + line.len();
        let marks = |m: &str| {
            line.strip_prefix(m).is_some_and(|r| r.is_empty() || r.starts_with(char::is_whitespace))
        };
        if marks("---") {
            if begun {
                parts.push((start, at));
                start = at;
            }
            begun = true;
        } else if marks("...") {
            parts.push((start, end));
            (start, begun) = (end, false);
        } else if !begun {
            // Comments and directives (`%YAML 1.2`) belong to the document after them.
            begun = !line.trim_start_matches('\u{feff}').trim().is_empty() && !line.starts_with(['#', '%']);
        }
        at = end;
    }
    if begun || parts.is_empty() {
        parts.push((start, text.len()));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<&str> {
        split(text).into_iter().map(|(start, end)| &text[start..end]).collect()
    }

    #[test]
    fn documents_are_split_where_yaml_splits_them() {
        assert_eq!(parts("a: 1"), ["a: 1"]);
        assert_eq!(parts("a: 1\n---\nb: 2\n"), ["a: 1\n", "---\nb: 2\n"]);
        assert_eq!(parts("---\na: 1\n--- # x\r\nb: 2\n---\n"), ["---\na: 1\n", "--- # x\r\nb: 2\n", "---\n"]);
        assert_eq!(parts("# x\n%YAML 1.2\n---\na: 1\n"), ["# x\n%YAML 1.2\n---\na: 1\n"]);
        assert_eq!(parts("a: 1\n...\n%YAML 1.2\n---\nb: 2"), ["a: 1\n...\n", "%YAML 1.2\n---\nb: 2"]);
        assert_eq!(parts("a: |\n  ---\n  x\n---x: 1\n"), ["a: |\n  ---\n  x\n---x: 1\n"]);
        assert_eq!(parts(""), [""]);
        assert_eq!(parts("\u{feff}\n---\na: 1\n"), ["\u{feff}\n---\na: 1\n"]);
    }

    #[test]
    fn places_are_those_of_the_file() {
        let text = "a: 1\n---\nb: {c: ü}\n---\nd: [\n---\ne: 01\nf: x\n";
        let documents = documents(0, text);
        assert_eq!(documents.len(), 4);
        let c = documents[1].root.as_ref().unwrap().get("b").unwrap().value.get("c").unwrap();
        assert_eq!(&text[c.value.span.start..][..c.value.span.length], "ü");
        assert!(documents[2].root.is_none());
        assert_eq!(documents[2].faults[0].span.start, text.find('[').unwrap());
        let zero = documents[3].faults[0].span;
        assert_eq!(&text[zero.start..][..zero.length], "01");
        assert!(documents[3].root.as_ref().unwrap().get("f").is_some());
    }

    #[test]
    fn growth_is_bounded() {
        let nested = "[".repeat(5000);
        let wide = format!("a: &a {}\nb: [{}]\n---\nc: 1\n", "x".repeat(900_000), "*a,".repeat(1000));
        let large = "#".repeat(MAX_MANIFEST_BYTES + 1);
        for text in [nested, wide, large] {
            let documents = documents(0, &text);
            assert_eq!(documents.len(), 1, "{text:.40}");
            assert!(documents[0].root.is_none(), "{text:.40}");
        }
    }
}
