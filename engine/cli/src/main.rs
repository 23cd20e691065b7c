//! The homelab command.

use std::process::ExitCode;

fn main() -> ExitCode {
    homelab_cli::main()
}
