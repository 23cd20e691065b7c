//! The commands. Each gives its exit code.

mod apply;
mod cordon;
mod drift;
mod files;
mod lb;
mod output;
mod plan;
mod rotate;
mod services;
mod session;
mod status;
mod trace;
mod transactions;
mod validate;

use homelab_driver::Goal;
use serde_json::json;

use crate::args::{Changing, Cli, Command, Format, StatusOf};
use crate::error::CliError;
use crate::render::Shown;
use crate::stream;
use crate::terminal::Terminal;
use apply::Task;
pub(crate) use session::{Manner, Session};

/// Everything is well.
pub(crate) const DONE: u8 = 0;
/// An error, or a node failed.
pub(crate) const FAILED: u8 = 1;
/// Something is to be done; only where asked for.
pub(crate) const PENDING: u8 = 2;
/// A change was rolled back on at least one node.
pub(crate) const ROLLED_BACK: u8 = 3;

/// Runs the command of `cli`.
pub(crate) fn run(cli: &Cli, terminal: &Terminal) -> Result<u8, CliError> {
    let global = &cli.global;
    match &cli.command {
        Command::Validate => validate::run(global, terminal),
        Command::Schema => files::schema(terminal),
        Command::Completions { shell } => files::completions(terminal, *shell),
        Command::Man => files::man(terminal),
        command => on_nodes(cli, terminal, &Session::new(global, terminal, &Manner::of(command))?),
    }
}

/// Runs a command that asks nodes.
pub(crate) fn on_nodes(cli: &Cli, terminal: &Terminal, session: &Session) -> Result<u8, CliError> {
    let global = &cli.global;
    match &cli.command {
        Command::Plan { detailed_exitcode, out, scan_pool } => {
            plan::run(global, terminal, session, *detailed_exitcode, out.as_deref(), *scan_pool)
        }
        Command::Apply { plan_file, changing, .. } => {
            let mut task = task(Goal::Desired, changing);
            task.plan_file = plan_file.as_deref();
            apply::run(global, terminal, session, &task)
        }
        Command::Destroy(changing) => apply::run(global, terminal, session, &task(Goal::Destroyed, changing)),
        Command::Rollback(changing) => {
            transactions::rollback(global, terminal, session, &task(Goal::Previous, changing))
        }
        Command::Confirm => transactions::confirm(global, terminal, session),
        Command::Unlock { force } => transactions::unlock(global, terminal, session, *force),
        Command::RotateKey { yes, .. } => rotate::run(global, terminal, session, *yes),
        Command::Drift { detailed_exitcode } => drift::run(global, terminal, session, *detailed_exitcode),
        Command::Status { of: None } => status::run(global, terminal, session),
        Command::Status { of: Some(StatusOf::Services { name }) } => {
            services::run(global, terminal, session, name.as_deref())
        }
        Command::Status { of: Some(StatusOf::Lb { of, watch }) } => {
            lb::run(global, terminal, session, of.as_deref(), *watch)
        }
        Command::Cordon { node } => cordon::run(global, terminal, session, node, true),
        Command::Uncordon { node } => cordon::run(global, terminal, session, node, false),
        Command::Trace { source, destination, protocol, node } => {
            let question =
                trace::Question { source, destination, protocol: *protocol, node: node.as_deref() };
            trace::run(global, terminal, session, &question)
        }
        // These need no session: see `run`.
        Command::Validate | Command::Schema | Command::Completions { .. } | Command::Man => {
            run(cli, terminal)
        }
    }
}

fn task(goal: Goal, changing: &Changing) -> Task<'_> {
    Task { goal, plan_file: None, consent: &changing.consent, hold: changing.trial.hold }
}

/// Asks a question that `yes` answers; where nobody can be asked, only that will do.
fn ask(terminal: &Terminal, yes: bool, question: &str) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !terminal.interactive {
        return Err(CliError::new("there is no terminal to ask on, and nothing was changed")
            .hint("add --yes to go on without a question"));
    }
    if terminal.confirm(question)? { Ok(()) } else { Err(CliError::new("nothing was changed")) }
}

/// Tells programs, too, what ended the command early.
pub(crate) fn report_error(cli: &Cli, terminal: &Terminal, error: &CliError) {
    let (message, hints) = match error {
        CliError::Reported => return,
        CliError::Config(_) => ("problems in the cluster file", &[][..]),
        CliError::Message { text, hints, .. } => (text.as_str(), hints.as_slice()),
    };
    let value = json!({
        "format_version": stream::FORMAT,
        "error": {"message": message, "hints": hints},
        "exit_code": error.code(),
    });
    let streams = matches!(cli.command, Command::Apply { .. } | Command::Destroy(_) | Command::Rollback(_));
    if streams && cli.global.format == Format::Json {
        stream::Stream::new(terminal).send("error", value.clone());
    }
    if let (Some(path), false) = (&cli.global.json_into, matches!(cli.command, Command::Validate)) {
        // What went wrong is said already; a second error about its report would hide it.
        let _ = output::write(path, &Shown::json(&value));
    }
}
