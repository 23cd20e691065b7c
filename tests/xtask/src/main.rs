//! Development commands: `cargo xtask lab` and what others add beside it, each in a module of its own.
#![allow(clippy::print_stdout, reason = "a command line program")]

mod bench;
mod ci;
mod demo;
mod dist;
mod elf;
mod example;
mod lab;
mod lanes;
mod layers;
mod links;
mod schema;
mod test;
mod tools;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Development commands of homelab.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure ours, the peers and the floor in one run
    Bench(bench::Args),
    /// Everything that must hold before a change lands
    Ci(ci::Args),
    /// Boot three nodes, plan, apply, start pods and show who reaches whom
    Demo(demo::Args),
    /// Run all tests
    Test(test::Args),
    /// Build the node binary as `homelab` sends it
    Dist(dist::Args),
    /// Real systemd nodes on a LAN of their own, on this machine
    Lab(lab::Args),
    /// Check which package imports which
    Layers,
    /// Write what is generated from the types of homelab.yaml: its JSON Schema and its page of the book
    Schema(schema::Args),
}

/// What a command ends with: an exit code, or an error to print.
type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let outcome: Outcome = match Cli::parse().command {
        Command::Bench(args) => bench::run(args),
        Command::Ci(args) => ci::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Test(args) => test::run(args),
        Command::Dist(args) => dist::run(args),
        Command::Lab(args) => lab::run(args),
        Command::Layers => layers::run(),
        Command::Schema(args) => schema::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}
