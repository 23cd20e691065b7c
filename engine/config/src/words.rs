//! Words for what the YAML parser and people's typing get wrong.

use granit_parser::{ErrorKind, ScanError};

use crate::problem::{Fault, Span};

/// A syntax error in plain words.
pub(crate) fn syntax(source: usize, text: &str, error: &ScanError) -> Fault {
    use ErrorKind as K;
    let start = error.marker().byte_offset().unwrap_or_else(|| byte_offset(text, error.marker().index()));
    let start = start.min(text.len());
    let at = text.get(start..).and_then(|t| t.chars().next());
    let length = at.filter(|c| *c != '\n' && *c != '\r').map_or(0, char::len_utf8);
    let (message, help): (String, &str) = match error.kind() {
        K::TabNotAllowed
        | K::TabInBlockIndentation
        | K::TabInIndentation
        | K::TabAtBlockScalarStart
        | K::TabInPlainScalar => ("a tab stands where YAML wants spaces".into(), "indent with spaces"),
        K::UnknownAnchor => (
            "this alias has no anchor above it".into(),
            "mark the value with `&name` first, or put the text in quotes",
        ),
        K::UnclosedQuotedScalar | K::DocumentIndicatorInQuotedScalar | K::InvalidQuotedScalarIndent => {
            ("a quote is opened and never closed".into(), "close the text with the same quote")
        }
        K::InvalidTrailingSingleQuotedScalar | K::InvalidTrailingDoubleQuotedScalar => {
            ("text follows a closing quote".into(), "put all of the value inside the quotes")
        }
        K::UnclosedFlowCollection { open } => {
            (format!("`{open}` is opened and never closed"), "add the closing bracket")
        }
        K::UnexpectedEofFlowSequence => ("`[` is opened and never closed".into(), "add `]`"),
        K::UnexpectedEofFlowMapping | K::UnexpectedEofImplicitFlowMapping => {
            ("`{` is opened and never closed".into(), "add `}`")
        }
        K::MismatchedFlowCollectionEnd { open, close } => {
            (format!("`{open}` is closed by `{close}`"), "use the bracket that fits")
        }
        K::MisplacedFlowCollectionEnd => {
            ("a bracket is closed that was never opened".into(), "remove it, or put the text in quotes")
        }
        K::ExpectedFlowMappingSeparator => {
            ("`,` or `}` is missing here".into(), "separate entries by commas")
        }
        K::ExpectedFlowSequenceSeparator => ("`,` or `]` is missing here".into(), "separate items by commas"),
        K::UnexpectedCharacter { character } => {
            (format!("a value cannot begin with `{}`", character.escape_default()), "put the text in quotes")
        }
        K::MappingValueNotAllowed | K::InvalidColonPlacement | K::MappingKeyNotAllowed => (
            "a `key: value` cannot stand here".into(),
            "check the indentation, and put a text that contains `: ` in quotes",
        ),
        K::SimpleKeyExpected | K::InvalidSimpleKey | K::ExpectedBlockMappingKey => (
            "a key with `:` is expected here".into(),
            "write `key: value`, with a space after the colon, indented like its neighbours",
        ),
        K::InvalidIndentation | K::ExpectedBlockSequenceEntry | K::BlockSequenceEntryNotAllowed => (
            "this line's indentation fits nothing above it".into(),
            "indent it like its neighbours; a list item begins with `- `",
        ),
        K::RecursionLimitExceeded => ("nested too deeply".into(), "homelab.yaml needs only a few levels"),
        K::UnknownQuotedScalarEscape => (
            "an unknown escape in a text in double quotes".into(),
            "use single quotes, or double the backslash",
        ),
        kind => (format!("this is not YAML: {kind}"), "see https://yaml.org/spec/1.2.2 or quote the text"),
    };
    if let K::MappingValueNotAllowed | K::SimpleKeyExpected | K::InvalidSimpleKey = error.kind()
        && let Some((start, key)) = glued(text, start)
    {
        let span = Span { source, start, length: key.len() + 1 };
        return Fault::new("syntax", span, "a space is missing after the colon")
            .help(format!("write `{key}: ...`"));
    }
    Fault::new("syntax", Span { source, start, length }, message).help(help)
}

/// A bracket that is not closed in its line makes strange faults in later ones: tell the bracket then.
pub(crate) fn unclosed(text: &str, open: Span, fault: Fault, kind: &ErrorKind) -> Fault {
    use ErrorKind as K;
    let layout = matches!(
        kind,
        K::MappingValueNotAllowed
            | K::MappingKeyNotAllowed
            | K::InvalidColonPlacement
            | K::InvalidIndentation
            | K::InvalidFlowScalarIndent
            | K::BlockSequenceEntryNotAllowed
            | K::BlockEntryInFlowCollection
            | K::ExpectedFlowMappingSeparator
            | K::ExpectedFlowSequenceSeparator
    );
    let between = text.get(open.start..fault.span.start).unwrap_or("");
    let bracket = between.chars().next().unwrap_or('[');
    if !layout || !between.contains('\n') {
        return fault;
    }
    let closing = if bracket == '{' { '}' } else { ']' };
    Fault::new("syntax", open, format!("`{bracket}` is opened and never closed"))
        .help(format!("add `{closing}`"))
        .also(fault.span, "this does not fit inside it")
}

/// `key:value` in the line at `at` or the one before it: where it begins, and its key.
fn glued(text: &str, at: usize) -> Option<(usize, &str)> {
    let end = text[at..].find('\n').map_or(text.len(), |n| at + n);
    for line in text[..end].rsplit('\n').take(2) {
        let bare = line.trim_start_matches([' ', '-']);
        let key = bare.split_once(':').map(|(key, _)| key)?;
        let good = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric());
        if good && bare[key.len() + 1..].starts_with(|c: char| !c.is_whitespace()) {
            return Some((bare.as_ptr() as usize - text.as_ptr() as usize, key));
        }
    }
    None
}

fn byte_offset(text: &str, chars: usize) -> usize {
    text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at)
}

/// The candidate nearest to `typed`, if it is near enough to be a slip.
pub(crate) fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    let limit = (typed.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|c| {
            let lower = c.to_lowercase();
            // Also `node` for `nodes`, `addr` for `address`.
            let plural = lower.trim_end_matches('s') == typed.trim_end_matches('s');
            // Other spellings: pod_cidr, pod-cidr.
            let bare = typed.replace(['_', '-', ' '], "");
            let distance = distance(&typed, &lower).min(distance(&bare, &lower));
            let cut = typed.len() >= 3 && lower.starts_with(&typed);
            ((if plural || cut { 0 } else { distance }, typed != lower && bare != lower), c)
        })
        .min_by_key(|(d, _)| *d)
        .filter(|((d, _), _)| *d <= limit)
        .map(|(_, c)| c)
}

/// Edits (insert, delete, replace, swap of neighbours) between two words; long words are far from everything.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().max(b.len()) > 64 {
        return usize::MAX;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// `a`, `b` and `c`.
pub(crate) fn list<S: AsRef<str>>(items: &[S], last: &str) -> String {
    let quoted: Vec<String> = items.iter().map(|i| format!("`{}`", i.as_ref())).collect();
    match quoted.split_last() {
        Some((end, rest)) if !rest.is_empty() => format!("{} {last} {end}", rest.join(", ")),
        Some((end, _)) => end.clone(),
        None => String::new(),
    }
}
