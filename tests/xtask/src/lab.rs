//! `cargo xtask lab`.

use crate::Outcome;
use homelab_lab::{Impairment, Lab, LabOptions, LabStatus, NodeState};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command as Process, ExitCode};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the lab; labs with different names do not meet
    #[arg(long, global = true, default_value = "lab", env = "HOMELAB_LAB")]
    name: String,
    /// How many nodes `up` makes
    #[arg(long, global = true, default_value_t = 3)]
    nodes: usize,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Boot the nodes; does nothing if the lab is up
    Up {
        /// Take down a lab that is up first
        #[arg(long)]
        fresh: bool,
    },
    /// Take the lab down and forget it
    Down,
    /// List the labs of this machine
    List,
    /// Give nodes (all if none is named) their first disk again and boot them
    Reset {
        #[arg(value_name = "NODE")]
        which: Vec<String>,
    },
    /// Show the state of the nodes
    Status {
        /// How to print it
        #[arg(long, value_enum, default_value_t = Format::Human)]
        format: Format,
    },
    /// Run a command on node1.., router, client or wan, inside its namespaces
    Exec {
        host: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command (or a shell) by ssh from the client: node1, debian@node2, router
    Ssh {
        target: String,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Run homelab on the client with the lab's homelab.yaml and ssh configuration
    Homelab {
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Have a node reboot by its own init
    Reboot { node: String },
    /// Take the power from nodes at once; their disks stay
    PowerCut {
        #[arg(required = true, value_name = "NODE")]
        which: Vec<String>,
    },
    /// Turn a node on again
    Start { node: String },
    /// Stop all processes of a node where they are
    Freeze { node: String },
    /// Let a frozen node go on
    Thaw { node: String },
    /// Cut a node off in the switch
    Partition { node: String },
    /// End a partition
    Heal { node: String },
    /// Pull a node's cable for a time
    LinkFlap {
        node: String,
        #[arg(long, default_value_t = 1000)]
        milliseconds: u64,
    },
    /// Delay, lose and slow down a node's packets, in each direction
    Impair {
        node: String,
        /// Milliseconds every packet is held back
        #[arg(long, default_value_t = 0.0)]
        delay_ms: f64,
        /// Milliseconds by which the delay varies to both sides
        #[arg(long, default_value_t = 0.0)]
        jitter_ms: f64,
        /// Per cent of packets that vanish
        #[arg(long, default_value_t = 0.0)]
        loss: f64,
        /// Megabits per second, 0 for no limit
        #[arg(long, default_value_t = 0.0)]
        rate_mbit: f64,
    },
    /// End an impairment
    Unimpair { node: String },
    /// Boot one node more
    AddNode,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Human,
    Json,
}

pub(crate) fn run(args: Args) -> Outcome {
    let name = args.name.as_str();
    let start = Instant::now();
    match args.command {
        Command::Up { fresh } => up(LabOptions::new(name).nodes(args.nodes), fresh)?,
        Command::Down => Lab::down_name(name)?,
        Command::List => Lab::list().iter().for_each(|name| println!("{name}")),
        Command::AddNode => println!("{} after {:.1?}", Lab::open(name)?.add_node()?, start.elapsed()),
        command => return on_lab(&Lab::open(name)?, command),
    }
    Ok(ExitCode::SUCCESS)
}

fn up(options: LabOptions, fresh: bool) -> Result<(), homelab_lab::Error> {
    let start = Instant::now();
    if let (false, Ok(lab)) = (fresh, Lab::open(&options.name)) {
        let status = lab.status()?;
        // One that a crash left half up is not "up already".
        if status.nodes.iter().all(|node| node.leader.is_some()) {
            print(&status);
            return Ok(());
        }
    }
    let lab = Lab::up(options)?;
    print(&lab.status()?);
    println!("up after {:.1?}", start.elapsed());
    Ok(())
}

fn on_lab(lab: &Lab, command: Command) -> Outcome {
    match command {
        Command::Reset { which } => lab.reset(&which.iter().map(String::as_str).collect::<Vec<_>>())?,
        Command::Status { format: Format::Json } => {
            println!("{}", serde_json::to_string_pretty(&lab.status()?)?)
        }
        Command::Status { format: Format::Human } => print(&lab.status()?),
        Command::Exec { host, command } => return pass_through(lab.command_in(&host)?.args(command)),
        Command::Ssh { target, command } => {
            let mut ssh = lab.command_in("client")?;
            return pass_through(ssh.arg("ssh").arg(target).args(command));
        }
        Command::Homelab { args } => {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            return pass_through(&mut lab.homelab_command(&args)?);
        }
        Command::Reboot { node } => lab.reboot(&node)?,
        Command::PowerCut { which } => {
            lab.power_cut(&which.iter().map(String::as_str).collect::<Vec<_>>())?
        }
        Command::Start { node } => lab.start(&node)?,
        Command::Freeze { node } => lab.freeze(&node)?,
        Command::Thaw { node } => lab.thaw(&node)?,
        Command::Partition { node } => lab.partition(&node)?,
        Command::Heal { node } => lab.heal(&node)?,
        Command::LinkFlap { node, milliseconds } => {
            lab.link_flap(&node, Duration::from_millis(milliseconds))?
        }
        Command::Impair { node, delay_ms, jitter_ms, loss, rate_mbit } => {
            lab.impair(&node, Impairment { delay_ms, jitter_ms, loss_percent: loss, rate_mbit })?;
        }
        Command::Unimpair { node } => lab.unimpair(&node)?,
        Command::Up { .. } | Command::Down | Command::List | Command::AddNode => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a program with our own stdin, stdout and stderr and ends as it ends.
fn pass_through(command: &mut Process) -> Outcome {
    let status = command.status()?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn print(status: &LabStatus) {
    println!("lab {}: homelab.yaml {}", status.name, status.config.display());
    for node in &status.nodes {
        let mut words = match node.state {
            NodeState::Off => "off".to_owned(),
            NodeState::On => format!("on, boot {}", node.boots),
            NodeState::Frozen => "frozen".to_owned(),
        };
        if node.partitioned {
            words += ", partitioned";
        }
        if let Some(how) = node.impairment {
            words += &format!(
                ", impaired: {} ms +- {} ms, loss {} %, rate {} Mbit/s",
                how.delay_ms, how.jitter_ms, how.loss_percent, how.rate_mbit
            );
        }
        println!("  {:<7} {:<15} {:<12} {words}", node.name, node.address, node.address6);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn options_and_node_names_do_not_get_mixed_up() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().args;
        for line in ["lab --name x --nodes 5 reset node1 node2", "lab reset node1 node2 --nodes 5 --name x"] {
            let args = parse(line);
            assert_eq!((args.name.as_str(), args.nodes), ("x", 5));
            assert!(matches!(args.command, Command::Reset { which } if which == ["node1", "node2"]));
        }
        let args = parse("lab exec node1 -- ip --name");
        assert!(
            matches!(args.command, Command::Exec { host, command } if host == "node1" && command.len() == 2)
        );
        assert!(
            matches!(parse("lab power-cut node1").command, Command::PowerCut { which } if which.len() == 1)
        );
        assert!(
            matches!(parse("lab homelab -- -f x plan").command, Command::Homelab { args } if args.len() == 3)
        );
    }
}
