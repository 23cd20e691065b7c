//! What is wrong with a file, and where.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use miette::{
    Diagnostic, LabeledSpan, MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents,
};
use serde_json::json;

use crate::Source;

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but probably does not say what was meant.
    Warning,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// A second place that belongs to a [`Problem`], in the same file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Byte offset in the file.
    pub offset: usize,
    /// Length in bytes.
    pub length: usize,
    /// What is there.
    pub text: String,
}

/// One thing that is wrong, at its place.
#[derive(Debug, Clone)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Stable short name, e.g. `unknown-key`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// The file as it was given to [`crate::load`].
    pub file: String,
    /// Byte offset of the offending text.
    pub offset: usize,
    /// Its length in bytes; 0 where something is missing.
    pub length: usize,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// A few words under the offending text; may be empty.
    pub label: String,
    /// Other places that belong to it.
    pub labels: Vec<Label>,
    text: Option<Arc<Text>>,
}

/// A file for miette. Columns are characters; miette's own sources count bytes.
#[derive(Debug)]
struct Text {
    name: String,
    text: String,
}

impl SourceCode for Text {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let inner = self.text.read_span(span, before, after)?;
        let (_, column) = place(&self.text, inner.span().offset());
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            inner.data(),
            *inner.span(),
            inner.line(),
            column - 1,
            inner.line_count(),
        )))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|h| Box::new(h) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.text.as_deref().map(|t| t as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let text = if self.label.is_empty() { "here".to_owned() } else { self.label.clone() };
        let first = LabeledSpan::new_primary_with_span(Some(text), (self.offset, self.length));
        let more = self.labels.iter().map(|l| LabeledSpan::new(Some(l.text.clone()), l.offset, l.length));
        Some(Box::new(std::iter::once(first).chain(more)))
    }
}

impl Problem {
    /// A workflow command that GitHub Actions shows at the line: `::error file=..,line=..,col=..,title=..::..`.
    pub fn github(&self) -> String {
        let property = |s: &str| data(s).replace(':', "%3A").replace(',', "%2C");
        let mut text = self.message.clone();
        if let Some(help) = &self.help {
            text.push('\n');
            text.push_str(help);
        }
        format!(
            "::{} file={},line={},col={},title={}::{}",
            self.severity.word(),
            property(&self.file),
            self.line,
            self.column,
            property(self.code),
            data(&text)
        )
    }

    /// The problem as JSON: `severity`, `code`, `message`, `help`, `file`, `line`, `column`, `offset`, `length`,
    /// `labels`.
    pub fn json(&self) -> serde_json::Value {
        let labels: Vec<_> = self
            .labels
            .iter()
            .map(|l| json!({"offset": l.offset, "length": l.length, "text": l.text}))
            .collect();
        json!({
            "severity": self.severity.word(),
            "code": self.code,
            "message": self.message,
            "help": self.help,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "offset": self.offset,
            "length": self.length,
            "label": self.label,
            "labels": labels,
        })
    }
}

/// Escapes the message of a workflow command.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// All problems of a run, in the order of the files and of the text.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics(pub Vec<Problem>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, p) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_char('\n')?;
            }
            write!(f, "{}:{}:{}: {}", p.file, p.line, p.column, p.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl IntoIterator for Diagnostics {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Diagnostics {
    /// The problems.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

/// A stretch of one of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Span {
    pub(crate) source: usize,
    pub(crate) start: usize,
    pub(crate) length: usize,
}

/// A problem that is not yet joined with the text of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) severity: Severity,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) help: String,
    pub(crate) span: Span,
    pub(crate) label: String,
    pub(crate) more: Vec<(Span, String)>,
}

impl Fault {
    pub(crate) fn new(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Fault {
            severity: Severity::Error,
            code,
            message: message.into(),
            help: String::new(),
            span,
            label: String::new(),
            more: Vec::new(),
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    pub(crate) fn also(mut self, span: Span, text: impl Into<String>) -> Self {
        self.more.push((span, text.into()));
        self
    }

    pub(crate) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }
}

/// More problems than this are counted only.
pub(crate) const MAX_PROBLEMS: usize = 100;
/// Places that are more lines apart are named, not shown: everything between them would be shown too.
const MAX_APART: usize = 20;
/// Longer lines are not shown.
const MAX_LINE: usize = 2000;

/// Joins faults with their files, sorts them and drops repetitions (an anchor used twice is read twice).
pub(crate) fn finish(sources: &[Source], faults: Vec<Fault>) -> Vec<Problem> {
    let mut faults = faults;
    faults.sort_by(|a, b| (a.span, a.severity, a.code).cmp(&(b.span, b.severity, b.code)));
    faults.dedup_by(|a, b| a.span == b.span && a.message == b.message);
    let texts: Vec<Arc<Text>> =
        sources.iter().map(|s| Arc::new(Text { name: s.name.clone(), text: s.text.clone() })).collect();
    let nowhere = Arc::new(Text { name: "homelab.yaml".into(), text: String::new() });
    let hidden = faults.split_off(faults.len().min(MAX_PROBLEMS));
    if let (Some(last), Some(severity)) = (faults.last(), hidden.iter().map(|f| f.severity).min()) {
        let message = format!("{} more problems are not shown", hidden.len());
        let more = Fault { severity, ..Fault::new("more", last.span, message) };
        faults.push(more.help("mend these first"));
    }
    faults.into_iter().map(|f| join(sources, texts.get(f.span.source).unwrap_or(&nowhere), f)).collect()
}

fn join(sources: &[Source], named: &Arc<Text>, fault: Fault) -> Problem {
    let text = &named.text;
    let (offset, length) = fit(text, fault.span);
    let (line, column) = place(text, offset);
    let mut labels = Vec::new();
    let mut help = fault.help;
    for (span, words) in fault.more {
        let Some(other) = sources.get(span.source) else { continue };
        let (offset, length) = fit(&other.text, span);
        let near =
            span.source == fault.span.source && place(&other.text, offset).0.abs_diff(line) <= MAX_APART;
        if near && !crowded(&other.text, offset) {
            labels.push(Label { offset, length, text: words });
        } else {
            let (line, column) = place(&other.text, offset);
            if !help.is_empty() {
                help.push('\n');
            }
            let _ = write!(help, "{}:{line}:{column}: {words}", other.name);
        }
    }
    let shown = !crowded(text, offset);
    if !shown {
        let _ = write!(help, "{}at {}:{line}:{column}", if help.is_empty() { "" } else { "\n" }, named.name);
        labels.clear();
    }
    Problem {
        severity: fault.severity,
        code: fault.code,
        message: fault.message,
        help: (!help.is_empty()).then_some(help),
        file: named.name.clone(),
        offset,
        length,
        line,
        column,
        label: fault.label,
        labels,
        text: shown.then(|| Arc::clone(named)),
    }
}

/// Whether the line at `offset` or one beside it is too long to be shown.
fn crowded(text: &str, offset: usize) -> bool {
    let mut before = text[..offset].rsplit('\n').take(2).map(str::len);
    let mut after = text[offset..].split('\n').take(2).map(str::len);
    let line = before.next().unwrap_or(0) + after.next().unwrap_or(0);
    before.chain(after).chain([line]).any(|l| l > MAX_LINE)
}

/// The span as offset and length inside the text, on character boundaries.
fn fit(text: &str, span: Span) -> (usize, usize) {
    let down = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = down(span.start);
    let end = down(span.start.saturating_add(span.length)).max(start);
    (start, end - start)
}

/// Line and column, both from 1, the column in characters.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(name: &str, text: &str, fault: Fault) -> Problem {
        let source = Source { name: name.into(), text: text.into() };
        finish(&[source], vec![fault]).remove(0)
    }

    #[test]
    fn github_commands_escape_what_github_would_split_at() {
        let span = Span { source: 0, start: 6, length: 4 };
        let fault = Fault::new("name", span, "100% wrong:\r\nsee, here").help("write `x`");
        let problem = problem("a,b:c%.yaml", "name: Home\n", fault);
        assert_eq!(
            problem.github(),
            "::error file=a%2Cb%3Ac%25.yaml,line=1,col=7,title=name::100%25 wrong:%0D%0Asee, here%0Awrite `x`"
        );
    }

    #[test]
    fn json_has_the_place() {
        let span = Span { source: 0, start: 6, length: 4 };
        let json = problem("f", "name: Home\n", Fault::new("name", span, "no").warning()).json();
        assert_eq!((&json["line"], &json["column"], &json["offset"]), (&1.into(), &7.into(), &6.into()));
        assert_eq!(json["severity"], "warning");
    }

    #[test]
    fn columns_are_characters_and_spans_stay_inside() {
        let text = "a: é☕x\n";
        for start in 0..20 {
            for length in 0..20 {
                let problem = problem("f", text, Fault::new("x", Span { source: 0, start, length }, "m"));
                assert!(text.get(problem.offset..problem.offset + problem.length).is_some());
            }
        }
        let problem = problem("f", text, Fault::new("x", Span { source: 0, start: 8, length: 1 }, "m"));
        assert_eq!((problem.line, problem.column), (1, 6));
    }

    #[test]
    fn a_long_line_is_named_and_not_shown() {
        let text = "x".repeat(5000);
        let problem = problem("f", &text, Fault::new("x", Span { source: 0, start: 4000, length: 1 }, "m"));
        assert!(problem.source_code().is_none());
        assert_eq!(problem.help.as_deref(), Some("at f:1:4001"));
    }

    #[test]
    fn a_second_place_far_away_is_named() {
        let text = "x\n".repeat(50);
        for (line, labels, help) in [(20, 1, None), (21, 0, Some("f:22:1: first here"))] {
            let fault = Fault::new("x", Span { source: 0, start: 0, length: 1 }, "m")
                .also(Span { source: 0, start: line * 2, length: 1 }, "first here");
            let problem = problem("f", &text, fault);
            assert_eq!((problem.labels.len(), problem.help.as_deref()), (labels, help));
        }
    }

    #[test]
    fn more_problems_than_a_reader_reads_are_counted() {
        let faults =
            (0..150).map(|n| Fault::new("x", Span { source: 0, start: n, length: 1 }, "m")).collect();
        let source = Source { name: "f".into(), text: "x".repeat(200) };
        let problems = finish(&[source], faults);
        assert_eq!(problems.len(), 101);
        assert_eq!(problems[100].message, "50 more problems are not shown");
        assert_eq!(problems[100].severity, Severity::Error);
        let warnings = (0..150)
            .map(|n| Fault::new("x", Span { source: 0, start: n, length: 1 }, "m").warning())
            .collect();
        assert!(finish(&[], warnings).iter().all(|p| p.severity == Severity::Warning));
    }
}
