//! Plans for people at a terminal.

use homelab_driver::{MODULES, Plan, PlannedNode};
use homelab_model::{Action, Impact, NodePlan, PlannedChange};

use super::kubernetes::kubernetes_human;
use super::page::{Page, Paint, Shown, Span, bold, dim, green, line, red, yellow};
use super::served::folded;
use super::{
    ErrorText, Field, Line, Sign, count, fields, impact_word, module_title, on_trial, plan_sentence, short,
    still_known,
};
use crate::hints;

/// The plan, node by node, with its summary last.
pub fn plan_human(plan: &Plan, paint: Paint, verbose: bool) -> Shown {
    let mut page = Page::new(paint);
    for node in &plan.nodes {
        node_human(&mut page, node, verbose);
    }
    if let Some(planned) = &plan.kubernetes {
        kubernetes_human(&mut page, planned, verbose);
    }
    for gone in &plan.departed {
        let label = match &gone.name {
            Some(name) => format!("{name} ({})", gone.address),
            None => gone.address.to_string(),
        };
        line!(page, bold(label), format!(" left the cluster file; {}.", still_known(gone)));
        page.blank();
    }
    for warning in &plan.warnings {
        page.paragraph(&[yellow("warning:"), " ".into()], warning);
    }
    if on_trial(plan) {
        page.paragraph(&[bold("hint:"), " ".into()], hints::ON_TRIAL);
    }
    if !plan.warnings.is_empty() {
        page.blank();
    }
    line!(page, bold(plan_sentence(plan)));
    impact_lines(&mut page, plan);
    let failed: Vec<&str> =
        plan.nodes.iter().filter(|n| n.outcome.is_err()).map(|n| n.name.as_str()).collect();
    if !failed.is_empty() {
        let text = format!("{} could not be planned: {}.", count(failed.len(), "node"), failed.join(", "));
        line!(page, red(text));
    }
    if plan.kubernetes.as_ref().is_some_and(|k| k.outcome.is_err()) {
        line!(page, red("The Kubernetes API could not be planned."));
    }
    page.end()
}

/// Which nodes notice what.
fn impact_lines(page: &mut Page, plan: &Plan) {
    for impact in [Impact::Disruptive, Impact::Brief] {
        let hit = plan.nodes.iter().filter(|n| n.outcome.as_ref().is_ok_and(|p| p.impact() == impact));
        let names: Vec<&str> = hit.map(|n| n.name.as_str()).collect();
        if !names.is_empty() {
            let word = of_impact(impact, impact_word(impact));
            line!(page, "Impact on running traffic: ", word, format!(" on {}.", names.join(", ")));
        }
    }
}

fn of_impact(impact: Impact, text: &str) -> Span {
    match impact {
        Impact::None => Span::from(text),
        Impact::Brief => yellow(text),
        Impact::Disruptive => red(text),
    }
}

fn node_human(page: &mut Page, node: &PlannedNode, verbose: bool) {
    let head = [bold(&node.name), format!(" ({})", node.address).into()];
    match &node.outcome {
        Err(error) => {
            page.line(&head);
            ErrorText::of(error).show(page, 2);
            page.blank();
        }
        Ok(planned) if planned.changes.is_empty() => {}
        Ok(planned) => {
            page.line(&head);
            changes_human(page, planned, verbose);
            page.blank();
        }
    }
}

/// A node's changes, module by module.
pub(super) fn changes_human(page: &mut Page, planned: &NodePlan, verbose: bool) {
    let shown = if verbose { planned.shown() } else { folded(planned.shown()) };
    for module in MODULES {
        let mut changes = shown.iter().filter(|c| c.module == module).peekable();
        if changes.peek().is_some() {
            line!(page, format!("  {}", module_title(module)));
        }
        for change in changes {
            change_human(page, change, verbose);
        }
    }
}

fn of_action(action: Action, text: String) -> Span {
    match action {
        Action::Create => green(text),
        Action::Delete => red(text),
        Action::Update | Action::Replace => yellow(text),
    }
}

fn change_human(page: &mut Page, change: &PlannedChange, verbose: bool) {
    let title = if verbose { change.object.clone() } else { short(&change.object) };
    item_human(page, change.action, title, &fields(change, verbose), (change.impact, &change.reason));
}

/// A change of whatever object: its title, its fields, and what is noticed of it and why.
pub(super) fn item_human(
    page: &mut Page,
    action: Action,
    title: String,
    shown: &[Field],
    (impact, reason): (Impact, &str),
) {
    let sign = of_action(action, format!("{:>3}", action.sign()));
    line!(page, "  ", sign, " ", title);
    let name_of = |f: &Field| match f {
        Field::Value { name, .. } | Field::Lines { name, .. } => name.chars().count(),
    };
    let width = shown.iter().map(name_of).max().unwrap_or(0);
    for field in shown {
        match field {
            Field::Value { name, before, after } => {
                let head = Span::from(format!("        {name:<width$}  "));
                match (action, before, after) {
                    (Action::Create, _, Some(only)) | (Action::Delete, Some(only), _) => {
                        line!(page, head, only);
                    }
                    (_, before, after) => {
                        let before = before.as_ref().map_or_else(|| dim("(none)"), red);
                        let after = after.as_ref().map_or_else(|| dim("(none)"), green);
                        line!(page, head, before, " -> ", after);
                    }
                }
            }
            Field::Lines { name, lines } => {
                line!(page, format!("        {name}"));
                for line in lines {
                    line!(page, "          ", line_human(line));
                }
            }
        }
    }
    if impact != Impact::None {
        let text = format!("! {}: {reason}", impact_word(impact));
        line!(page, "        ", of_impact(impact, &text));
    }
}

fn line_human(line: &Line) -> Span {
    match line.sign {
        Sign::Same => Span::from(format!("  {}", line.text).trim_end()),
        Sign::Add => green(format!("+ {}", line.text).trim_end()),
        Sign::Remove => red(format!("- {}", line.text).trim_end()),
        Sign::Note => dim(&line.text),
    }
}
