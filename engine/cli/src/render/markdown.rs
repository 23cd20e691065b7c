//! Plans for comments on pull requests.

use homelab_driver::{MODULES, Plan, PlannedNode};
use homelab_model::{Action, Impact, NodePlan};

use super::kubernetes::{self, kubernetes_markdown};
use super::page::{Page, Paint, Shown, clean, line};
use super::served::folded;
use super::{
    ErrorText, Field, Sign, fields, impact_word, on_trial, parts, plan_sentence, short, still_known,
};
use crate::hints;

/// Longest text, bytes. GitHub takes 65,536 characters per comment; a workflow adds its own words.
pub const MARKDOWN_LIMIT: usize = 60_000;
/// Room for the note that something was left out.
const NOTE: usize = 400;

/// The plan as Markdown, its summary first, cut to [`MARKDOWN_LIMIT`].
pub fn plan_markdown(plan: &Plan) -> Shown {
    let mut page = Page::new(Paint(false));
    line!(page, format!("### homelab plan: {}", prose(&plan.cluster)));
    page.blank();
    line!(page, format!("**{}**", plan_sentence(plan)));
    page.blank();
    if plan.impact() != Impact::None {
        let nodes =
            plan.nodes.iter().filter(|n| n.outcome.as_ref().is_ok_and(|p| p.impact() == plan.impact()));
        let names: Vec<String> = nodes.map(|n| prose(&n.name)).collect();
        let word = impact_word(plan.impact());
        line!(page, format!("Impact on running traffic: **{word}** on {}.", names.join(", ")));
        page.blank();
    }
    let mut notes = Vec::new();
    for gone in &plan.departed {
        let known = prose(&still_known(gone));
        notes.push(format!("{} ({}) left the cluster file; {known}.", code(&gone.label()), gone.address));
    }
    notes.extend(plan.warnings.iter().map(|w| format!("> **Warning:** {}", code(w))));
    if on_trial(plan) {
        notes.push(format!("> {}", hints::ON_TRIAL));
    }
    for node in &plan.nodes {
        if let Err(error) = &node.outcome {
            notes.push(not_planned(node, &ErrorText::of(error)));
        }
    }
    let (section, failed) = plan.kubernetes.as_ref().map(kubernetes_markdown).unwrap_or_default();
    notes.extend(failed);
    fit(&mut page, notes, MARKDOWN_LIMIT / 2);
    let mut left_out = Vec::new();
    if let Some(section) = section {
        match page.len() + section.len() + NOTE <= MARKDOWN_LIMIT {
            true => page.append(&section),
            false => left_out.push(kubernetes::TITLE),
        }
    }
    for node in &plan.nodes {
        let Some(details) = node_markdown(node) else { continue };
        if page.len() + details.len() + NOTE <= MARKDOWN_LIMIT {
            page.append(&details);
        } else {
            left_out.push(node.name.as_str());
        }
    }
    if !left_out.is_empty() {
        let names: String = left_out.join(", ").chars().take(NOTE / 4).collect();
        let names = prose(&names);
        line!(
            page,
            format!("_Too long for a comment; left out here: {names}. Run `homelab plan` to see all._")
        );
    }
    page.end()
}

fn not_planned(node: &PlannedNode, error: &ErrorText) -> String {
    let mut text = format!(
        "> **{}** ({}) could not be planned: {}",
        prose(&node.name),
        node.address,
        code(&error.message)
    );
    for hint in &error.hints {
        text.push_str(&format!("\n> Hint: {}", code(hint)));
    }
    text
}

/// Paragraphs, as many as fit into `limit` bytes; then says how many do not.
pub(super) fn fit(page: &mut Page, paragraphs: Vec<String>, limit: usize) {
    let mut left = 0;
    for text in paragraphs {
        if page.len() + text.len() > limit {
            left += 1;
            continue;
        }
        for one in text.lines() {
            line!(page, one);
        }
        page.blank();
    }
    if left > 0 {
        line!(page, format!("_Too long for a comment; {} left out here._", super::count(left, "note")));
        page.blank();
    }
}

/// Foreign text in a comment: a code span, in which neither HTML nor Markdown nor a mention means anything.
/// It is cut to a length that leaves room for others.
pub(super) fn code(text: &str) -> String {
    const LONGEST: usize = 1_000;
    let mut text = clean(&text.trim().replace('\n', " "));
    if text.chars().count() > LONGEST {
        text = text.chars().take(LONGEST).chain(['…']).collect();
    }
    if text.is_empty() {
        return text;
    }
    let ticks = "`".repeat(text.split(|c| c != '`').map(str::len).max().unwrap_or(0) + 1);
    // A backtick next to the fence would lengthen it. Renderers drop one space on each side.
    if text.contains('`') { format!("{ticks} {text} {ticks}") } else { format!("{ticks}{text}{ticks}") }
}

/// Foreign text in a cell of a table.
pub(super) fn cell(text: &str) -> String {
    code(text).replace('|', "\\|")
}

/// A name or a sentence in running text: as it is if all its letters mean nothing to Markdown, else a code span.
pub(super) fn prose(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || " -.,;:()/%'\"+=…".contains(c);
    if text.chars().all(plain) && !text.contains("://") && !text.contains("www.") {
        return clean(text);
    }
    code(text)
}

/// A name within HTML, where Markdown means nothing. An entity that shows nothing breaks mentions.
fn html(text: &str) -> String {
    let entity = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '@' => "@&#8203;".to_owned(),
        other => other.to_string(),
    };
    clean(text).chars().map(entity).collect()
}

fn node_markdown(node: &PlannedNode) -> Option<Page> {
    let plan = node.outcome.as_ref().ok().filter(|p| !p.changes.is_empty())?;
    let title = format!("{} ({}): {}", node.name, node.address, parts(&plan.summary(), true));
    Some(details(&title, plan))
}

/// A node's changes, folded away.
pub(super) fn details(title: &str, plan: &NodePlan) -> Page {
    let mut body = Vec::new();
    let shown = folded(plan.shown());
    for module in MODULES {
        for change in shown.iter().filter(|c| c.module == module) {
            let title = format!("{}: {}", module.as_str(), short(&change.object));
            let impact = (change.impact, change.reason.as_str());
            item_markdown(&mut body, change.action, &title, &fields(change, false), impact);
        }
    }
    details_of(title, body)
}

/// A change of whatever object, as lines of a diff block.
pub(super) fn item_markdown(
    body: &mut Vec<String>,
    action: Action,
    title: &str,
    fields: &[Field],
    (impact, reason): (Impact, &str),
) {
    // diff blocks colour lines by their first character; `!` stands for a change.
    let sign = match action {
        Action::Create => "+",
        Action::Delete => "-",
        Action::Update | Action::Replace => "!",
    };
    let again = if action == Action::Replace { " (made anew)" } else { "" };
    body.push(format!("{sign} {title}{again}"));
    for field in fields {
        field_markdown(body, field);
    }
    if impact != Impact::None {
        body.push(format!("# {}: {reason}", impact_word(impact)));
    }
}

/// A diff block, folded away.
pub(super) fn details_of(title: &str, body: Vec<String>) -> Page {
    let fence = fence(&body);
    let mut page = Page::new(Paint(false));
    line!(page, format!("<details><summary>{}</summary>", html(title)));
    page.blank();
    line!(page, format!("{fence}diff"));
    for text in body {
        line!(page, text);
    }
    line!(page, fence);
    page.blank();
    line!(page, "</details>");
    page.blank();
    page
}

/// A fence longer than any run of backticks in `body`.
fn fence(body: &[String]) -> String {
    let runs = body.iter().flat_map(|line| line.split(|c| c != '`')).map(str::len);
    "`".repeat(runs.max().unwrap_or(0).max(2) + 1)
}

fn field_markdown(body: &mut Vec<String>, field: &Field) {
    match field {
        Field::Value { name, before, after } => {
            for (sign, value) in [('-', before), ('+', after)] {
                if let Some(value) = value {
                    body.push(format!("{sign}     {name}: {value}"));
                }
            }
        }
        Field::Lines { name, lines } => {
            body.push(format!("      {name}:"));
            for line in lines {
                let sign = match line.sign {
                    Sign::Add => '+',
                    Sign::Remove => '-',
                    Sign::Same | Sign::Note => ' ',
                };
                body.push(format!("{sign}       {}", line.text).trim_end().to_owned());
            }
        }
    }
}
