//! The commands. Each gives its exit code.

mod apply;
mod files;
mod plan;
mod session;
mod status;
mod validate;

use crate::args::{Cli, Command};
use crate::error::CliError;
use crate::terminal::Terminal;

/// Everything is well.
pub(crate) const DONE: u8 = 0;
/// An error, or a node failed.
pub(crate) const FAILED: u8 = 1;
/// Changes are pending; only where asked for.
pub(crate) const PENDING: u8 = 2;

/// Runs the command of `cli`.
pub(crate) fn run(cli: &Cli, terminal: &Terminal) -> Result<u8, CliError> {
    match &cli.command {
        Command::Validate => validate::run(&cli.global, terminal),
        Command::Plan { detailed_exitcode, out } => {
            plan::run(&cli.global, terminal, *detailed_exitcode, out.as_deref())
        }
        Command::Apply(consent) => apply::run(&cli.global, terminal, consent, false),
        Command::Destroy(consent) => apply::run(&cli.global, terminal, consent, true),
        Command::Status => status::run(&cli.global, terminal),
        Command::Schema => files::schema(terminal),
        Command::Completions { shell } => files::completions(terminal, *shell),
        Command::Man => files::man(terminal),
    }
}
