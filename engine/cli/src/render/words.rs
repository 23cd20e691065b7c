//! What is said of single nodes, one after another.

use super::ErrorText;
use super::markdown::{cell, prose};
use super::page::{Page, Paint, Shown, bold, green, line, red};

/// What is said of a node.
#[derive(Debug)]
pub(crate) struct Words {
    /// Whether it is good.
    pub(crate) good: bool,
    /// What became of it.
    pub(crate) text: String,
    /// What went wrong, and what to do next.
    pub(crate) error: ErrorText,
}

impl Words {
    pub(crate) fn good(text: impl Into<String>) -> Words {
        Words { good: true, text: text.into(), error: ErrorText::default() }
    }

    pub(crate) fn bad(text: impl Into<String>) -> Words {
        Words { good: false, text: text.into(), error: ErrorText::default() }
    }

    pub(crate) fn error(mut self, error: Option<ErrorText>) -> Words {
        if let Some(error) = error {
            self.error.message = error.message;
            self.error.hints.extend(error.hints);
        }
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Words {
        self.error.hints.push(hint.into());
        self
    }
}

/// Nodes and what is said of them.
pub(crate) type Named = Vec<(String, Words)>;

/// A line per node.
pub(super) fn words_human(page: &mut Page, nodes: &Named) {
    let width = nodes.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, words) in nodes {
        let mark = if words.good { green("ok") } else { red("!!") };
        page.paragraph(&[mark, format!(" {name:<width$}  ").into()], &words.text);
        words.error.show(page, 3);
    }
}

/// A table of nodes. What a node said stands in code spans.
pub(super) fn words_markdown(page: &mut Page, nodes: &Named) {
    line!(page, "| node | result |");
    line!(page, "|---|---|");
    for (name, words) in nodes {
        let mut text = prose(&words.text).replace('|', "\\|");
        if !words.error.message.is_empty() {
            text.push_str(&format!(": {}", cell(&words.error.message)));
        }
        line!(page, format!("| {} | {text} |", prose(name).replace('|', "\\|")));
    }
}

/// A line per node and a sentence below.
pub(crate) fn list_human(nodes: &Named, sentence: &str, paint: Paint) -> Shown {
    let mut page = Page::new(paint);
    words_human(&mut page, nodes);
    page.blank();
    line!(page, bold(sentence));
    page.end()
}

/// A sentence and a table of nodes.
pub(crate) fn list_markdown(nodes: &Named, sentence: &str) -> Shown {
    let mut page = Page::new(Paint(false));
    line!(page, format!("**{}**", prose(sentence)));
    page.blank();
    words_markdown(&mut page, nodes);
    page.end()
}
