//! The command line.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// One file describes the network of a few home servers; homelab makes it so over SSH.
#[derive(Debug, Parser)]
#[command(name = "homelab", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done; 1 an error, or at least one node failed; \
                        2 changes are pending (only plan --detailed-exitcode).")]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Cluster file; may be given several times, later files change earlier ones; - is stdin
    #[arg(short, long = "file", value_name = "FILE", global = true, env = "HOMELAB_FILE")]
    #[arg(default_value = "homelab.yaml", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) files: Vec<String>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = Format::Human, global = true)]
    pub(crate) format: Format,
    /// Only these nodes, e.g. node1,node2
    #[arg(long, value_name = "NAMES", value_delimiter = ',', global = true)]
    pub(crate) nodes: Vec<String>,
    /// Colours
    #[arg(long, value_enum, default_value_t = Color::Auto, global = true)]
    pub(crate) color: Color,
    /// Show everything, e.g. whole contents of new files
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// Show no progress and no warnings
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Nodes worked on at once
    #[arg(long, value_name = "N", default_value_t = 16, global = true, help_heading = "Connections")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) parallel: u16,
    /// Time for TCP connection and login [default: ConnectTimeout of the SSH configuration, or 10]
    #[arg(long, value_name = "SECONDS", global = true, help_heading = "Connections")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) connect_timeout: Option<u64>,
    /// Add unknown host keys to known_hosts (changed ones are always refused)
    #[arg(long, global = true, help_heading = "Connections", action = ArgAction::SetTrue)]
    pub(crate) accept_new_host_keys: bool,
    /// OpenSSH client configuration to use in place of ~/.ssh/config
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connections")]
    pub(crate) ssh_config: Option<PathBuf>,
    /// File whose first line is the sudo password of all nodes
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connections")]
    pub(crate) become_password_file: Option<PathBuf>,
    /// Directory of the node binaries
    #[arg(long, value_name = "DIR", global = true, env = "HOMELAB_NODE_BINARIES")]
    #[arg(help_heading = "Connections")]
    pub(crate) node_binaries: Option<PathBuf>,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people at a terminal
    Human,
    /// For programs
    Json,
    /// For comments on pull requests
    Markdown,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check the cluster file
    Validate,
    /// Show what an apply would change; changes nothing
    Plan {
        /// Exit with 2 if changes are pending
        #[arg(long)]
        detailed_exitcode: bool,
        /// Write the plan as JSON to a file, too
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Make the nodes as the cluster file says
    Apply(Consent),
    /// Take everything of homelab away from the nodes
    Destroy(Consent),
    /// Show how the nodes are
    Status,
    /// Print the JSON Schema of the cluster file
    Schema,
    /// Print a completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// What the user agrees to beforehand.
#[derive(Debug, Args)]
pub(crate) struct Consent {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Do not ask about changes that interrupt pods' connections either
    #[arg(long)]
    pub(crate) allow_disruptive: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_anywhere() {
        let cli = Cli::try_parse_from(["homelab", "plan", "-f", "a.yaml", "-f", "-", "--nodes=a,b"]).unwrap();
        assert_eq!(cli.global.files, ["a.yaml", "-"]);
        assert_eq!(cli.global.nodes, ["a", "b"]);
        assert!(Cli::try_parse_from(["homelab", "plan", "--parallel", "0"]).is_err());
    }
}
