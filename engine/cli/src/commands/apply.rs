//! `homelab apply`, `homelab destroy`, and `homelab rollback` of what is confirmed: a plan is shown, agreed to and
//! carried out.

use std::path::Path;
use std::time::{Duration, Instant};

use homelab_driver::{
    ApplyError, Departed, Engine, Farewell, Goal, KubernetesOutcome, LockOutcome, NodeReport, Outcome, Plan,
    PlannedNode, Prepared, Report,
};
use homelab_model::Impact;
use serde_json::{Value, json};

use super::output;
use super::session::Session;
use super::{DONE, FAILED, ROLLED_BACK, plan};
use crate::args::{Consent, Format, Global};
use crate::error::CliError;
use crate::render::{Goodbye, plan_human, plan_json, report_human, report_json, report_markdown};
use crate::stream::Stream;
use crate::terminal::Terminal;
use crate::{hints, planfile};

/// What is to be done, and how.
pub(crate) struct Task<'a> {
    /// What the nodes shall become.
    pub(crate) goal: Goal,
    /// Carry out exactly this plan.
    pub(crate) plan_file: Option<&'a Path>,
    /// What was agreed to beforehand.
    pub(crate) consent: &'a Consent,
    /// Only try it for so long.
    pub(crate) hold: Option<Duration>,
}

/// A run of a task.
struct Run<'a> {
    global: &'a Global,
    terminal: &'a Terminal,
    task: &'a Task<'a>,
    session: &'a Session,
    stream: Option<&'a Stream<'a>>,
    /// The plan file, read.
    file: Option<(String, Value)>,
}

pub(crate) fn run(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    task: &Task<'_>,
) -> Result<u8, CliError> {
    run_from(global, terminal, session, task, None)
}

/// The same from a plan that may be there already.
pub(crate) fn run_from(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    task: &Task<'_>,
    prepared: Option<Prepared>,
) -> Result<u8, CliError> {
    // A file that is no plan is refused before any node is asked.
    let file = task.plan_file.map(read).transpose()?;
    let stream = (global.format == Format::Json).then(|| Stream::new(terminal));
    Run { global, terminal, task, session, stream: stream.as_ref(), file }
        .run(prepared)
        .map_err(|e| e.stopped_by(session.signals.exit_code()))
}

fn read(path: &Path) -> Result<(String, Value), CliError> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| CliError::new(format!("cannot read {name}: {e}")))?;
    let plan = planfile::read(&name, &bytes)?;
    Ok((name, plan))
}

impl Run<'_> {
    fn run(&self, prepared: Option<Prepared>) -> Result<u8, CliError> {
        let mut prepared = prepared.map_or_else(|| self.prepare(), Ok)?;
        if self.task.goal == Goal::Desired {
            let by_hand = super::drift::by_hand(self.session, &prepared);
            prepared.plan.warnings.extend(by_hand);
        }
        if self.session.stopped() {
            prepared.close(self.session.parallel());
            return Err(CliError::new("stopped before anything was changed"));
        }
        self.check(&prepared)?;
        let plan = &prepared.plan;
        if self.task.goal == Goal::Previous && plan.is_empty() && !plan.has_failed() {
            let nothing =
                CliError::new("there is no apply that could be taken back, and nothing was changed");
            return Err(plan.warnings.iter().fold(nothing, |error, why| error.hint(why)));
        }
        self.show(&prepared.plan)?;
        if prepared.plan.is_empty() {
            return self.nothing_to_do(prepared);
        }
        self.agree(&prepared.plan)?;
        // Peers forget a departed node with this apply, so now is the time to ask about it.
        let mut cleaning = self.departed(&prepared.plan)?;
        let shown = essence(&prepared.plan);
        let outcome =
            self.session.with(self.terminal, self.stream, |engine| self.lock(engine, &mut prepared))?;
        if shown != essence(&prepared.plan) {
            let why = if outcome == LockOutcome::Waited { "while we waited for a lock" } else { "meanwhile" };
            self.terminal.say(&format!("the nodes have changed {why}; this is the plan now:"));
            self.check(&prepared)?;
            self.show(&prepared.plan)?;
            if prepared.plan.is_empty() {
                return self.nothing_to_do(prepared);
            }
            self.agree(&prepared.plan)?;
            cleaning = self.departed(&prepared.plan)?;
        }
        let start = Instant::now();
        let (report, goodbyes) = self.session.signals.changing(|| {
            self.session.with(self.terminal, self.stream, |engine| self.carry_out(engine, prepared, cleaning))
        })?;
        self.finish(&report, &goodbyes, start.elapsed())
    }

    fn prepare(&self) -> Result<Prepared, CliError> {
        let session = self.session;
        if self.file.is_some() {
            // A file that is refused must leave everything as it is, open changes too.
            return session.prepare(self.terminal, self.task.goal);
        }
        // Changes that a dead laptop left open are taken back here, which the nodes would do by themselves later.
        session
            .signals
            .changing(|| {
                session.with(self.terminal, None, |engine| {
                    engine.prepare_apply(&session.cluster, self.task.goal, &session.chosen)
                })
            })
            .map_err(|e| CliError::new(e.to_string()))
    }

    /// Whether the plan is the one of the plan file.
    fn check(&self, prepared: &Prepared) -> Result<(), CliError> {
        match &self.file {
            Some((name, file)) => {
                let open = |n: &&PlannedNode| n.history.open.is_some();
                if let Some(node) = prepared.plan.nodes.iter().find(open) {
                    return Err(CliError::new(format!(
                        "{name} cannot be applied: {} has a change that is still open; nothing was changed",
                        node.name
                    ))
                    .hint(hints::ON_TRIAL));
                }
                let fresh = planfile::bind(plan_json(&prepared.plan), &self.session.basis(prepared));
                planfile::compare(name, file, &fresh)
            }
            None => Ok(()),
        }
    }

    fn show(&self, plan: &Plan) -> Result<(), CliError> {
        let Some(stream) = self.stream else {
            return self.terminal.out(&plan::text(plan, self.global, self.terminal));
        };
        stream.send("plan", plan_json(plan));
        if !self.task.consent.yes {
            // The question would stand in front of a plan that nobody has seen yet.
            self.terminal.show(&plan_human(plan, self.terminal.stderr_paint, false));
        }
        Ok(())
    }

    fn nothing_to_do(&self, mut prepared: Prepared) -> Result<u8, CliError> {
        let code = if prepared.plan.has_failed() { FAILED } else { DONE };
        let nodes = std::mem::take(&mut prepared.plan.nodes).into_iter().map(|node| NodeReport {
            name: node.name,
            address: node.address,
            outcome: node.outcome.map_or_else(Outcome::Unplanned, |_| Outcome::Unchanged),
            elapsed: Duration::ZERO,
        });
        let kubernetes = prepared.plan.kubernetes.take().map(|planned| match planned.outcome {
            Ok(_) => KubernetesOutcome::Unchanged,
            Err(error) => KubernetesOutcome::Unplanned(error),
        });
        let nodes = nodes.collect();
        let report = Report { nodes, kubernetes, traffic: prepared.traffic, warnings: Vec::new() };
        prepared.close(self.session.parallel());
        self.result(&report, &[], Duration::ZERO, code)?;
        Ok(code)
    }

    /// Asks for what was not agreed to on the command line.
    fn agree(&self, plan: &Plan) -> Result<(), CliError> {
        let (consent, terminal) = (self.task.consent, self.terminal);
        let destroy = self.task.goal == Goal::Destroyed;
        // A destroy is disruptive by its name; its own question is enough.
        let again = plan.impact() == Impact::Disruptive && !destroy && !consent.allow_disruptive;
        if !terminal.interactive {
            if !consent.yes {
                return Err(CliError::new("there is no terminal to ask on, and nothing was changed")
                    .hint("add --yes to go on without a question"));
            }
            if again {
                return Err(CliError::new("this plan interrupts pods' connections, and nothing was changed")
                    .hint("add --allow-disruptive to allow that"));
            }
            return Ok(());
        }
        let question = match self.task.goal {
            Goal::Destroyed => "Take everything of homelab away?",
            Goal::Previous => "Take the last apply back?",
            Goal::Desired => "Apply these changes?",
        };
        if !consent.yes && !terminal.confirm(question)? {
            return Err(CliError::new("nothing was changed"));
        }
        if again && !terminal.confirm("This interrupts pods' connections, as the plan says. Go on?")? {
            return Err(CliError::new("nothing was changed"));
        }
        Ok(())
    }

    /// The nodes that left the file, and whether they are to be cleaned. With --nodes the others still know them,
    /// and a later run asks. What is only tried takes nothing from a node that it could not give back.
    fn departed(&self, plan: &Plan) -> Result<Vec<(Departed, bool)>, CliError> {
        if !self.session.chosen.is_empty() {
            return Ok(Vec::new());
        }
        let ask = |gone: &Departed| {
            if self.task.hold.is_some() {
                return Ok(false);
            }
            if self.task.consent.yes {
                return Ok(true);
            }
            let label = gone.label();
            self.terminal.confirm(&format!(
                "{label} left the cluster file. Take homelab away from it, too, if it answers?"
            ))
        };
        plan.departed.iter().map(|gone| Ok((gone.clone(), ask(gone)?))).collect()
    }

    /// Takes the locks. Whoever was waited for may have changed what we saw.
    fn lock(&self, engine: &Engine<'_>, prepared: &mut Prepared) -> Result<LockOutcome, CliError> {
        let outcome = engine.lock(prepared).map_err(|e| self.refused(&e))?;
        if outcome == LockOutcome::Waited {
            engine.refresh(prepared).map_err(|e| CliError::new(e.to_string()))?;
        }
        Ok(outcome)
    }

    fn carry_out(
        &self,
        engine: &Engine<'_>,
        prepared: Prepared,
        cleaning: Vec<(Departed, bool)>,
    ) -> Result<(Report, Vec<Goodbye>), CliError> {
        let report = engine.apply(prepared).map_err(|e| self.refused(&e))?;
        let goodbyes = cleaning.into_iter().map(|(gone, clean)| {
            let farewell =
                (clean && !self.session.stopped()).then(|| engine.farewell(&self.session.cluster, &gone));
            (gone, farewell)
        });
        Ok((report, goodbyes.collect()))
    }

    fn refused(&self, error: &ApplyError) -> CliError {
        hints::apply(error).into_iter().fold(CliError::new(error.to_string()), CliError::hint)
    }

    fn finish(&self, report: &Report, goodbyes: &[Goodbye], total: Duration) -> Result<u8, CliError> {
        let code = code(report, goodbyes, self.session.signals.exit_code());
        let destroy = self.task.goal == Goal::Destroyed;
        let written = match self.global.format {
            Format::Human => {
                self.terminal.out(&report_human(report, goodbyes, total, destroy, self.terminal.paint))
            }
            Format::Markdown => self.terminal.out(&report_markdown(report, goodbyes, total, destroy)),
            Format::Json => Ok(()),
        };
        let result = self.result(report, goodbyes, total, code);
        // What became of the nodes says more than a reader that is gone.
        match code {
            DONE => written.and(result).map(|()| code),
            _ => Ok(code),
        }
    }

    /// The result for programs.
    fn result(
        &self,
        report: &Report,
        goodbyes: &[Goodbye],
        total: Duration,
        code: u8,
    ) -> Result<(), CliError> {
        let mut value = report_json(report, goodbyes, total);
        value["exit_code"] = json!(code);
        if let Some(stream) = self.stream {
            stream.send("result", value.clone());
        }
        output::into(self.global, &value)
    }
}

/// What the user agreed to in a plan; times and warnings are no part of it.
fn essence(plan: &Plan) -> Value {
    let mut value = plan_json(plan);
    for node in value["nodes"].as_array_mut().into_iter().flatten() {
        let failed = !node["error"].is_null();
        *node = json!([node["name"], node["changes"], failed]);
    }
    json!([value["nodes"], value["departed"], value["kubernetes"]])
}

/// Exit code of a run. The signal that stopped it comes first, then a rollback, then any other failure.
fn code(report: &Report, goodbyes: &[Goodbye], signal: Option<u8>) -> u8 {
    let lost = goodbyes.iter().any(|(_, f)| matches!(f, Some(Farewell::RolledBack { .. })));
    match signal {
        Some(code) => code,
        None if report.rolled_back() || lost => ROLLED_BACK,
        None if report.succeeded() => DONE,
        None => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use homelab_driver::NodeError;

    use super::*;

    fn report(outcomes: Vec<Outcome>) -> Report {
        let node = |(i, outcome)| NodeReport {
            name: format!("node{i}"),
            address: "192.168.50.11".parse().unwrap(),
            outcome,
            elapsed: Duration::ZERO,
        };
        Report { nodes: outcomes.into_iter().enumerate().map(node).collect(), ..Report::default() }
    }

    #[test]
    fn a_rollback_is_never_a_success() {
        let back = |left: &[&str]| Outcome::RolledBack {
            reason: "x".into(),
            error: None,
            left: left.iter().map(|l| (*l).to_owned()).collect(),
        };
        let good = || Outcome::Changed(Default::default());
        let failed = || Outcome::Failed(NodeError::Cancelled);
        for (outcomes, signal, expected) in [
            (vec![good(), Outcome::Unchanged], None, DONE),
            (vec![Outcome::Held { summary: Default::default(), seconds: 9 }], None, DONE),
            (vec![good(), back(&[])], None, ROLLED_BACK),
            (vec![failed(), back(&["x"]), Outcome::NotStarted], None, ROLLED_BACK),
            (vec![good(), failed()], None, FAILED),
            (vec![good(), Outcome::NotStarted], None, FAILED),
            (vec![Outcome::Unsure(NodeError::Cancelled)], None, FAILED),
            (vec![good(), back(&[])], Some(143), 143),
            (vec![good()], Some(130), 130),
        ] {
            let report = report(outcomes);
            assert_eq!(code(&report, &[], signal), expected, "{report:?}");
        }
    }
}
