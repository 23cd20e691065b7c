//! The homelab command: arguments, terminal and output around `homelab-config`, `homelab-driver` and
//! `homelab-ssh`.
//!
//! What is printed is made by pure functions in [`render`]; what is asked and drawn lives in `terminal` and
//! `progress`; `commands` puts both together.

mod amounts;
mod args;
mod commands;
mod error;
mod hints;
mod input;
mod kubernetes;
mod places;
mod planfile;
mod progress;
mod random;
pub mod render;
mod signals;
mod stream;
mod terminal;

/// The nodes of the driver's tests.
#[cfg(test)]
#[path = "../../driver/tests/fake/mod.rs"]
mod fake;
#[cfg(test)]
mod flow_tests;

use std::process::ExitCode;

use clap::Parser;

pub use args::{Cli, Format};

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            let _ = usage.print();
            // clap says 2 for usage errors, which here always means "changes are pending".
            return if usage.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    let terminal = terminal::Terminal::new(&cli.global);
    match commands::run(&cli, &terminal) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            terminal.error(&error);
            commands::report_error(&cli, &terminal, &error);
            ExitCode::from(error.code())
        }
    }
}
