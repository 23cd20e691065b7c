//! Plans for people at a terminal.

use homelab_driver::{MODULES, Plan, PlannedNode};
use homelab_model::{Action, Impact, PlannedChange};

use super::{
    ErrorText, Field, Line, Paint, Sign, count, fields, impact_word, module_title, plan_sentence, short,
    still_known,
};

/// The plan, node by node, with its summary last.
pub fn plan_human(plan: &Plan, paint: Paint, verbose: bool) -> String {
    let mut out = String::new();
    for node in &plan.nodes {
        node_human(&mut out, node, paint, verbose);
    }
    for gone in &plan.departed {
        let label = match &gone.name {
            Some(name) => format!("{name} ({})", gone.address),
            None => gone.address.to_string(),
        };
        out.push_str(&format!("{} left the cluster file; {}.\n\n", paint.bold(&label), still_known(gone)));
    }
    for warning in &plan.warnings {
        out.push_str(&format!("{} {warning}\n", paint.yellow("warning:")));
    }
    if !plan.warnings.is_empty() {
        out.push('\n');
    }
    out.push_str(&paint.bold(&plan_sentence(plan)));
    out.push('\n');
    out.push_str(&impact_lines(plan, paint));
    let failed: Vec<&str> =
        plan.nodes.iter().filter(|n| n.outcome.is_err()).map(|n| n.name.as_str()).collect();
    if !failed.is_empty() {
        let text = format!("{} could not be planned: {}.", count(failed.len(), "node"), failed.join(", "));
        out.push_str(&format!("{}\n", paint.red(&text)));
    }
    out
}

/// Which nodes notice what.
fn impact_lines(plan: &Plan, paint: Paint) -> String {
    let mut out = String::new();
    for impact in [Impact::Disruptive, Impact::Brief] {
        let hit = plan.nodes.iter().filter(|n| n.outcome.as_ref().is_ok_and(|p| p.impact() == impact));
        let names: Vec<&str> = hit.map(|n| n.name.as_str()).collect();
        if !names.is_empty() {
            let word = paint_impact(impact, impact_word(impact), paint);
            out.push_str(&format!("Impact on running traffic: {word} on {}.\n", names.join(", ")));
        }
    }
    out
}

fn paint_impact(impact: Impact, text: &str, paint: Paint) -> String {
    match impact {
        Impact::None => text.to_owned(),
        Impact::Brief => paint.yellow(text),
        Impact::Disruptive => paint.red(text),
    }
}

fn node_human(out: &mut String, node: &PlannedNode, paint: Paint, verbose: bool) {
    let head = format!("{} ({})", paint.bold(&node.name), node.address);
    match &node.outcome {
        Err(error) => {
            let text = ErrorText::of(error);
            out.push_str(&format!("{head}\n  {} {}\n", paint.red("error:"), text.message));
            for hint in text.hints {
                out.push_str(&format!("  {} {hint}\n", paint.bold("hint:")));
            }
            out.push('\n');
        }
        Ok(planned) if planned.changes.is_empty() => {}
        Ok(planned) => {
            out.push_str(&format!("{head}\n"));
            let shown = planned.shown();
            for module in MODULES {
                let mut changes = shown.iter().filter(|c| c.module == module).peekable();
                if changes.peek().is_some() {
                    out.push_str(&format!("  {}\n", module_title(module)));
                }
                for change in changes {
                    change_human(out, change, paint, verbose);
                }
            }
            out.push('\n');
        }
    }
}

fn paint_action(action: Action, text: &str, paint: Paint) -> String {
    match action {
        Action::Create => paint.green(text),
        Action::Delete => paint.red(text),
        Action::Update | Action::Replace => paint.yellow(text),
    }
}

fn change_human(out: &mut String, change: &PlannedChange, paint: Paint, verbose: bool) {
    let sign = paint_action(change.action, &format!("{:>3}", change.action.sign()), paint);
    let title = if verbose { change.object.clone() } else { short(&change.object) };
    out.push_str(&format!("  {sign} {title}\n"));
    let shown = fields(change, verbose);
    let name_of = |f: &Field| match f {
        Field::Value { name, .. } | Field::Lines { name, .. } => name.chars().count(),
    };
    let width = shown.iter().map(name_of).max().unwrap_or(0);
    for field in &shown {
        match field {
            Field::Value { name, before, after } => {
                let none = || paint.dim("(none)");
                let value = match (change.action, before, after) {
                    (Action::Create, _, Some(after)) => after.clone(),
                    (Action::Delete, Some(before), _) => before.clone(),
                    (_, before, after) => format!(
                        "{} -> {}",
                        before.as_deref().map_or_else(none, |v| paint.red(v)),
                        after.as_deref().map_or_else(none, |v| paint.green(v))
                    ),
                };
                out.push_str(&format!("        {name:<width$}  {value}\n"));
            }
            Field::Lines { name, lines } => {
                out.push_str(&format!("        {name}\n"));
                for line in lines {
                    out.push_str(&format!("          {}\n", line_human(line, paint)));
                }
            }
        }
    }
    if change.impact != Impact::None {
        let text = format!("! {}: {}", impact_word(change.impact), change.reason);
        out.push_str(&format!("        {}\n", paint_impact(change.impact, &text, paint)));
    }
}

fn line_human(line: &Line, paint: Paint) -> String {
    match line.sign {
        Sign::Same => format!("  {}", line.text).trim_end().to_owned(),
        Sign::Add => paint.green(format!("+ {}", line.text).trim_end()),
        Sign::Remove => paint.red(format!("- {}", line.text).trim_end()),
        Sign::Note => paint.dim(&line.text),
    }
}
