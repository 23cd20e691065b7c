//! The binary on a node: agent, CNI plugin and the engine's remote end.
//!
//! Called under the name of the CNI plugin or with `CNI_COMMAND` in its environment it is the plugin; otherwise its
//! first argument says what it is.

mod agent;
mod cni;
#[cfg(test)]
mod fake;
mod host;
mod machine;
mod revert;
mod scan;
mod serve;
mod status;
mod transaction;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// homelab's part on a node. The laptop's `homelab` installs and drives it.
#[derive(Parser)]
#[command(name = "homelab-node", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keep the kernel's state as /etc/homelab/node.json says (systemd runs this)
    Agent,
    /// Answer the laptop's requests on stdin and stdout (`homelab` runs this over SSH)
    Serve {
        /// Directory of this very binary, to be removed at once: it is a copy for one session
        #[arg(long)]
        temporary: Option<PathBuf>,
    },
    /// Show what this node holds and what differs from what it should hold
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a change back that nobody confirmed (systemd runs this)
    #[command(hide = true)]
    Revert {
        /// The transaction, once its time is over
        #[arg(long, required_unless_present = "boot", conflicts_with = "boot")]
        id: Option<String>,
        /// Whatever is open: the node starts anew
        #[arg(long)]
        boot: bool,
    },
    /// Print version, protocol and digest of this binary
    Version,
}

fn main() -> ExitCode {
    if cni::is_called() {
        return cni::run();
    }
    match Arguments::parse().command {
        Command::Agent => agent::main(),
        Command::Serve { temporary } => serve::main(temporary.as_deref()),
        Command::Status { json } => status::main(json),
        Command::Revert { id, boot: _ } => revert::main(id.as_deref()),
        Command::Version => status::version(),
    }
}
