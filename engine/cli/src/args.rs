//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use homelab_driver::Batch;

use crate::amounts;

const EXIT_CODES: &str = "Exit codes: 0 done; 1 an error, or at least one node failed; \
    2 something is to be done (only with --detailed-exitcode); 3 a change was rolled back on at least one node; \
    129, 130, 143 stopped by SIGHUP, SIGINT (Ctrl-C), SIGTERM.";

/// One file describes the network of a few home servers; homelab makes it so over SSH.
#[derive(Debug, Parser)]
#[command(name = "homelab", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = EXIT_CODES)]
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
    /// Write the result as JSON to this file, too; it is replaced as a whole
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) json_into: Option<PathBuf>,
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
    #[command(after_help = EXIT_CODES)]
    Plan {
        /// Exit with 2 if changes are pending
        #[arg(long)]
        detailed_exitcode: bool,
        /// Write a plan file, which homelab apply FILE carries out as it stands
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Ask on the LAN whether other machines use addresses of the pools, and warn of those; takes some seconds
        #[arg(long)]
        scan_pool: bool,
    },
    /// Make the nodes as the cluster file says
    #[command(after_help = EXIT_CODES)]
    Apply {
        /// Carry out exactly this plan (of homelab plan --out), and refuse it if anything has changed since
        #[arg(value_name = "PLANFILE")]
        plan_file: Option<PathBuf>,
        /// Give the nodes new Kubernetes accounts and tokens; the old ones are refused from then on
        #[arg(long, conflicts_with = "plan_file")]
        new_tokens: bool,
        /// How its changes are made.
        #[command(flatten)]
        changing: Changing,
    },
    /// Keep the changes that nodes hold on trial (apply --try)
    #[command(after_help = EXIT_CODES)]
    Confirm,
    /// Take changes back: those on trial or left open, else the last apply of each node
    #[command(after_help = EXIT_CODES)]
    Rollback(Changing),
    /// Take everything of homelab away from the nodes
    #[command(after_help = EXIT_CODES)]
    Destroy(Changing),
    /// Show what was changed on the nodes by hand, apart from what changed in the cluster file
    #[command(after_help = EXIT_CODES)]
    Drift {
        /// Exit with 2 if something was changed by hand
        #[arg(long)]
        detailed_exitcode: bool,
    },
    /// Show who holds the nodes' locks, and free them
    Unlock {
        /// Take the locks away from whoever holds them
        #[arg(long)]
        force: bool,
    },
    /// Replace the key of the agents' membership traffic, in steps and without an outage
    #[command(after_help = EXIT_CODES)]
    RotateKey {
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        /// How it is rolled out.
        #[command(flatten)]
        rollout: Rollout,
    },
    /// Let other nodes have a node's load-balancer addresses; its pods stay
    #[command(after_help = EXIT_CODES)]
    Cordon {
        /// The node
        node: String,
    },
    /// Let a node have load-balancer addresses again
    #[command(after_help = EXIT_CODES)]
    Uncordon {
        /// The node
        node: String,
    },
    /// Show how the nodes are
    Status {
        /// What else to show.
        #[command(subcommand)]
        of: Option<StatusOf>,
    },
    /// Show rule by rule what nodes do with the first packet of a connection; sends nothing
    Trace {
        /// Who sends it: an address, a node's name, or NODE/CONTAINER
        source: String,
        /// Where to: an address or a service (NAME or NAMESPACE/NAME), with :PORT unless there is only one, or a node;
        /// :PORT/PROTOCOL, as `status` writes it, is understood
        #[arg(value_name = "DESTINATION[:PORT]")]
        destination: String,
        /// Protocol [default: that of the service's port, or tcp]
        #[arg(long, value_enum)]
        protocol: Option<TraceProtocol>,
        /// Ask this node [default: the one where the packet meets the rules]
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
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

/// What the status is of.
#[derive(Debug, Subcommand)]
pub(crate) enum StatusOf {
    /// Show the services as the nodes hold them
    Services {
        /// Only this one: NAME or NAMESPACE/NAME
        name: Option<String>,
    },
    /// Show the load-balancer addresses: who has them, since when, and what is in the way
    Lb {
        /// Only this address, or those of this service: NAME or NAMESPACE/NAME
        #[arg(value_name = "ADDRESS|SERVICE")]
        of: Option<String>,
        /// Go on and show every change, until Ctrl-C
        #[arg(long)]
        watch: bool,
    },
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TraceProtocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// How a command changes nodes.
#[derive(Debug, Args)]
pub(crate) struct Changing {
    /// What is agreed to.
    #[command(flatten)]
    pub(crate) consent: Consent,
    /// How it is rolled out.
    #[command(flatten)]
    pub(crate) rollout: Rollout,
    /// Whether it is only tried.
    #[command(flatten)]
    pub(crate) trial: Trial,
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

/// Whether changes are only tried.
#[derive(Debug, Args)]
#[command(next_help_heading = "Roll-out")]
pub(crate) struct Trial {
    /// Only try the changes: the nodes take them back after this time unless homelab confirm comes first
    #[arg(long = "try", value_name = "TIME", value_parser = amounts::some_time)]
    pub(crate) hold: Option<Duration>,
}

/// How changes are rolled out.
#[derive(Debug, Args)]
#[command(next_help_heading = "Roll-out")]
pub(crate) struct Rollout {
    /// A node takes its changes back if it is not told within this time that they may stay
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = amounts::some_time)]
    pub(crate) confirm_timeout: Duration,
    /// Wait this long for others who work on the nodes
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = amounts::duration)]
    pub(crate) lock_timeout: Duration,
    /// Nodes changed at once after the first one: a number, or a part such as 25% [default: --parallel]
    #[arg(long, value_name = "N|P%", value_parser = amounts::share)]
    pub(crate) batch: Option<Batch>,
    /// Most nodes out of service at the same time: a number, or a part such as 25%
    #[arg(long, value_name = "N|P%", value_parser = amounts::share)]
    pub(crate) max_unavailable: Option<Batch>,
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

    #[test]
    fn the_status_of_services_takes_flags_anywhere() {
        for words in [
            &["status", "services", "web", "--format", "json"][..],
            &["status", "--format", "json", "services", "web"],
            &["--format", "json", "status", "services", "web"],
        ] {
            let cli = Cli::try_parse_from(["homelab"].iter().chain(words)).unwrap();
            assert_eq!(cli.global.format, Format::Json);
            let Command::Status { of: Some(StatusOf::Services { name }) } = cli.command else {
                panic!("{words:?}");
            };
            assert_eq!(name.as_deref(), Some("web"));
        }
        assert!(matches!(
            Cli::try_parse_from(["homelab", "status"]).unwrap().command,
            Command::Status { of: None }
        ));
    }

    #[test]
    fn addresses_are_asked_for_by_address_or_service() {
        let of = |words: &[&str]| {
            let cli = Cli::try_parse_from(["homelab", "status", "lb"].iter().chain(words)).unwrap();
            let Command::Status { of: Some(StatusOf::Lb { of, watch }) } = cli.command else {
                panic!("{words:?}");
            };
            (of, watch)
        };
        assert_eq!(of(&[]), (None, false));
        assert_eq!(of(&["--watch", "192.168.50.200"]), (Some("192.168.50.200".into()), true));
        assert!(Cli::try_parse_from(["homelab", "cordon"]).is_err());
    }

    #[test]
    fn times_and_parts_say_what_is_allowed() {
        let rollout = |words: &[&str]| {
            let all = ["homelab", "apply"].iter().chain(words);
            match Cli::try_parse_from(all).map_err(|e| e.to_string())?.command {
                Command::Apply { changing, plan_file, .. } => {
                    Ok((changing.rollout, changing.trial, plan_file))
                }
                other => Err(format!("{other:?}")),
            }
        };
        let (good, trial, file) = rollout(&[
            "p.json",
            "--try",
            "10m",
            "--batch=25%",
            "--max-unavailable",
            "1",
            "--lock-timeout=1h",
        ])
        .unwrap();
        assert_eq!(file, Some("p.json".into()));
        assert_eq!(trial.hold, Some(Duration::from_secs(600)));
        assert_eq!(good.confirm_timeout, Duration::from_secs(60));
        assert_eq!(good.lock_timeout, Duration::from_secs(3600));
        assert_eq!((good.batch, good.max_unavailable), (Some(Batch::Percent(25)), Some(Batch::Nodes(1))));
        assert!(rollout(&["--try", "soon"]).unwrap_err().contains("90s, 10m, 1h"));
        assert!(rollout(&["--confirm-timeout", "0"]).unwrap_err().contains("no time at all"));
        assert!(rollout(&["--batch", "0"]).unwrap_err().contains("25%"));
    }
}
