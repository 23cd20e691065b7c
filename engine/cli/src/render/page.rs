//! The boundary to terminals, logs and comments: all text passes here, and only here it is made harmless.
//!
//! Much of what is printed was said by a node: error texts, host names, names of objects, contents of files. A node
//! may be broken or hostile. So renderers give bare text, and [`Page`] shows whatever could steer a terminal, turn
//! the order of letters, hide letters, feign further lines or command a CI runner as a visible escape.

use std::fmt;
use std::ops::Deref;

use serde_json::Value;

/// ANSI colours, or none.
#[derive(Debug, Clone, Copy)]
pub struct Paint(pub bool);

/// Text that may be printed: it was made by a [`Page`], as JSON, or is homelab's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    /// Text that homelab made itself, e.g. a completion script.
    pub(crate) fn own(text: String) -> Shown {
        Shown(text)
    }

    /// Text of a library that colours it by SGR sequences. Those stay; all else is made harmless.
    pub(crate) fn colored(text: &str) -> Shown {
        let mut out = String::with_capacity(text.len());
        for line in text.lines() {
            let mut rest = line;
            let mut shown = String::new();
            while let Some(start) = rest.find("\x1b[") {
                let after = &rest[start + 2..];
                let length = after.bytes().take_while(|b| b.is_ascii_digit() || *b == b';').count();
                let is_sgr = after.as_bytes().get(length) == Some(&b'm');
                let end = start + 2 + if is_sgr { length + 1 } else { 0 };
                shown.push_str(&clean(&rest[..start]));
                if is_sgr {
                    shown.push_str(&rest[start..end]);
                } else {
                    shown.push_str(&clean(&rest[start..end]));
                }
                rest = &rest[end..];
            }
            shown.push_str(&clean(rest));
            out.push_str(&uncommanding(shown));
            out.push('\n');
        }
        Shown(out)
    }

    /// JSON on many lines.
    pub fn json(value: &Value) -> Shown {
        Shown(format!("{}\n", escaped_json(&format!("{value:#}"))))
    }

    /// JSON on one line.
    pub fn json_line(value: &Value) -> Shown {
        Shown(format!("{}\n", escaped_json(&value.to_string())))
    }
}

impl Deref for Shown {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// As all text.
    Plain,
    /// Headings.
    Bold,
    /// Side remarks.
    Dim,
    /// What goes, errors.
    Red,
    /// What comes.
    Green,
    /// What changes, warnings.
    Yellow,
}

/// A piece of a line. It may hold anything.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    text: String,
    style: Style,
}

impl Span {
    pub(crate) fn new(style: Style, text: impl Into<String>) -> Span {
        Span { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Span {
    fn from(text: T) -> Span {
        Span::new(Style::Plain, text)
    }
}

pub(crate) fn bold(text: impl Into<String>) -> Span {
    Span::new(Style::Bold, text)
}

pub(crate) fn dim(text: impl Into<String>) -> Span {
    Span::new(Style::Dim, text)
}

pub(crate) fn red(text: impl Into<String>) -> Span {
    Span::new(Style::Red, text)
}

pub(crate) fn green(text: impl Into<String>) -> Span {
    Span::new(Style::Green, text)
}

pub(crate) fn yellow(text: impl Into<String>) -> Span {
    Span::new(Style::Yellow, text)
}

/// Lines of text on their way to a person.
pub(crate) struct Page {
    paint: Paint,
    text: String,
}

/// Puts a line of spans, or of what becomes one, on a page.
macro_rules! line {
    ($page:expr $(, $span:expr)* $(,)?) => {
        $page.line(&[$($crate::render::page::Span::from($span)),*])
    };
}
pub(crate) use line;

impl Page {
    pub(crate) fn new(paint: Paint) -> Page {
        Page { paint, text: String::new() }
    }

    /// One line, whatever the spans hold.
    pub(crate) fn line(&mut self, spans: &[Span]) {
        let mut line = String::new();
        for span in spans {
            let text = clean(&span.text);
            let code = match span.style {
                Style::Plain => "",
                Style::Bold => "1",
                Style::Dim => "2",
                Style::Red => "31",
                Style::Green => "32",
                Style::Yellow => "33",
            };
            if self.paint.0 && !code.is_empty() && !text.is_empty() {
                line.push_str(&format!("\x1b[{code}m{text}\x1b[0m"));
            } else {
                line.push_str(&text);
            }
        }
        self.text.push_str(&uncommanding(line));
        self.text.push('\n');
    }

    /// A text that may have lines of its own, after `head`. Further lines stand below it.
    pub(crate) fn paragraph(&mut self, head: &[Span], text: &str) {
        let mut lines = text.trim_end().lines();
        let mut first = head.to_vec();
        first.push(Span::from(lines.next().unwrap_or_default()));
        self.line(&first);
        let lead = head.first().map_or(0, |s| s.text.len() - s.text.trim_start().len());
        for more in lines {
            self.line(&[Span::from(format!("{:lead$}  {more}", ""))]);
        }
    }

    pub(crate) fn blank(&mut self) {
        self.text.push('\n');
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// Appends what another page holds.
    pub(crate) fn append(&mut self, other: &Page) {
        self.text.push_str(&other.text);
    }

    pub(crate) fn end(self) -> Shown {
        Shown(self.text)
    }
}

/// `text` as one harmless line: what a terminal would not show as a letter becomes an escape.
pub(crate) fn clean(text: &str) -> String {
    if !text.chars().any(hidden) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other if hidden(other) => out.extend(other.escape_unicode()),
            other => out.push(other),
        }
    }
    out
}

/// Whether a letter steers a terminal, turns the order of others, or cannot be seen.
fn hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// The same line, but no command to a GitHub Actions runner, which reads both streams: `::error …::` at the
/// beginning, `##[error]` anywhere (actions/runner, `ActionCommand.cs`).
fn uncommanding(mut line: String) -> String {
    let text = line.trim_start();
    if text.strip_prefix("::").is_some_and(|rest| rest.contains("::")) {
        line = line.replacen(':', "\\u{3a}", 1);
    }
    if line.contains("##[") { line.replace("##[", "#\\u{23}[") } else { line }
}

/// The same JSON in letters that harm no terminal and no log. Outside of strings there are none to escape.
fn escaped_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut units = [0; 2];
    for letter in text.chars() {
        if letter != '\n' && hidden(letter) {
            for unit in letter.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(letter);
        }
    }
    // An empty array never follows two number signs, so this stands in a string.
    if out.contains("##[") { out.replace("##[", "#\\u0023[") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let mut page = Page::new(Paint(false));
        line!(page, text);
        page.end().to_string()
    }

    #[test]
    fn what_steers_a_terminal_becomes_visible() {
        for (text, safe) in [
            ("plain é 漢 🙂", "plain é 漢 🙂"),
            ("\x1b[2J\x1b]0;owned\x07", "\\u{1b}[2J\\u{1b}]0;owned\\u{7}"),
            ("a\rb\tc\nd", "a\\rb\\tc\\nd"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\u{202e}txt.exe", "a\\u{202e}txt.exe"),
            ("no\u{200b}de\u{2066}1\u{feff}", "no\\u{200b}de\\u{2066}1\\u{feff}"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(shown(text), format!("{safe}\n"));
        }
    }

    #[test]
    fn a_line_is_no_command_to_a_runner() {
        assert_eq!(shown("  ::error file=a::b"), "  \\u{3a}:error file=a::b\n");
        assert_eq!(shown("x ##[group]y"), "x #\\u{23}[group]y\n");
        assert_eq!(shown("::/0 is a route"), "::/0 is a route\n");
        assert_eq!(shown("at 10:00 ::error::"), "at 10:00 ::error::\n");
    }

    #[test]
    fn colours_of_a_library_stay_and_nothing_else() {
        let text = Shown::colored("\x1b[38;5;1mred\x1b[0m \x1b[2J \x1b]0;t\x07\n::set-env name=a::b");
        assert_eq!(
            text.to_string(),
            "\x1b[38;5;1mred\x1b[0m \\u{1b}[2J \\u{1b}]0;t\\u{7}\n\\u{3a}:set-env name=a::b\n"
        );
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({"a\u{202e}": ["\u{9b}\x1b\u{e0041}é", "##[error]", "\u{7f}\n"]});
        for text in [Shown::json(&value), Shown::json_line(&value)] {
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
            assert!(!text.chars().any(|c| c != '\n' && hidden(c)), "{text}");
            assert!(!text.contains("##["));
        }
    }

    #[test]
    fn further_lines_of_a_paragraph_stand_below_it() {
        let mut page = Page::new(Paint(false));
        page.paragraph(&["   ".into(), red("error:"), " ".into()], "one\ntwo\x1b[A\n");
        assert_eq!(page.end().to_string(), "   error: one\n     two\\u{1b}[A\n");
    }
}
