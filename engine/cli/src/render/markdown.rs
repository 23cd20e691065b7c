//! Plans for comments on pull requests.

use homelab_driver::{MODULES, Plan, PlannedNode};
use homelab_model::{Action, Impact};

use super::{ErrorText, Field, Sign, fields, impact_word, parts, plan_sentence, short, still_known};

/// Longest text, bytes. GitHub takes 65,536 characters per comment; a workflow adds its own words.
pub const MARKDOWN_LIMIT: usize = 60_000;
/// Room for the note that something was left out.
const NOTE: usize = 400;

/// The plan as Markdown, its summary first, cut to [`MARKDOWN_LIMIT`].
pub fn plan_markdown(plan: &Plan) -> String {
    let mut out = format!("### homelab plan: {}\n\n**{}**\n\n", plan.cluster, plan_sentence(plan));
    if plan.impact() != Impact::None {
        let nodes =
            plan.nodes.iter().filter(|n| n.outcome.as_ref().is_ok_and(|p| p.impact() == plan.impact()));
        let names: Vec<&str> = nodes.map(|n| n.name.as_str()).collect();
        let word = impact_word(plan.impact());
        out.push_str(&format!("Impact on running traffic: **{word}** on {}.\n\n", names.join(", ")));
    }
    for gone in &plan.departed {
        out.push_str(&format!(
            "`{}` ({}) left the cluster file; {}.\n\n",
            gone.label(),
            gone.address,
            still_known(gone)
        ));
    }
    for warning in &plan.warnings {
        out.push_str(&format!("> **Warning:** {}\n\n", escape(warning)));
    }
    for node in &plan.nodes {
        if let Err(error) = &node.outcome {
            let text = ErrorText::of(error);
            out.push_str(&format!("> **{}** ({}) could not be planned: ", node.name, node.address));
            out.push_str(&format!("{}\n", escape(&text.message)));
            for hint in text.hints {
                out.push_str(&format!("> Hint: {}\n", escape(&hint)));
            }
            out.push('\n');
        }
    }
    truncate(&mut out, MARKDOWN_LIMIT - NOTE);
    let mut left_out = Vec::new();
    for node in &plan.nodes {
        let Some(details) = node_markdown(node) else { continue };
        if out.len() + details.len() + NOTE <= MARKDOWN_LIMIT {
            out.push_str(&details);
        } else {
            left_out.push(node.name.as_str());
        }
    }
    if !left_out.is_empty() {
        let mut names = left_out.join(", ");
        truncate(&mut names, NOTE / 2);
        out.push_str(&format!(
            "_Too long for a comment; left out here: {names}. Run `homelab plan` to see all._\n"
        ));
    }
    out
}

fn truncate(text: &mut String, limit: usize) {
    if text.len() > limit {
        let mut end = limit;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("…\n\n");
    }
}

/// Text that shall not be taken for HTML or end a line of a quotation.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\n', " ")
}

fn node_markdown(node: &PlannedNode) -> Option<String> {
    let plan = node.outcome.as_ref().ok().filter(|p| !p.changes.is_empty())?;
    let mut body = String::new();
    let shown = plan.shown();
    for module in MODULES {
        for change in shown.iter().filter(|c| c.module == module) {
            // diff blocks colour lines by their first character; `!` stands for a change.
            let sign = match change.action {
                Action::Create => "+",
                Action::Delete => "-",
                Action::Update | Action::Replace => "!",
            };
            let again = if change.action == Action::Replace { " (made anew)" } else { "" };
            body.push_str(&format!("{sign} {}: {}{again}\n", module.as_str(), short(&change.object)));
            for field in fields(change, false) {
                field_markdown(&mut body, &field);
            }
            if change.impact != Impact::None {
                body.push_str(&format!("# {}: {}\n", impact_word(change.impact), change.reason));
            }
        }
    }
    let fence = fence(&body);
    Some(format!(
        "<details><summary>{} ({}): {}</summary>\n\n{fence}diff\n{body}{fence}\n\n</details>\n\n",
        node.name,
        node.address,
        parts(&plan.summary(), true)
    ))
}

/// A fence longer than any run of backticks in `body`.
fn fence(body: &str) -> String {
    let longest = body.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(longest.max(2) + 1)
}

fn field_markdown(body: &mut String, field: &Field) {
    match field {
        Field::Value { name, before, after } => {
            for (sign, value) in [('-', before), ('+', after)] {
                if let Some(value) = value {
                    body.push_str(&format!("{sign}     {name}: {value}\n"));
                }
            }
        }
        Field::Lines { name, lines } => {
            body.push_str(&format!("      {name}:\n"));
            for line in lines {
                let sign = match line.sign {
                    Sign::Add => '+',
                    Sign::Remove => '-',
                    Sign::Same | Sign::Note => ' ',
                };
                body.push_str(format!("{sign}       {}", line.text).trim_end());
                body.push('\n');
            }
        }
    }
}
