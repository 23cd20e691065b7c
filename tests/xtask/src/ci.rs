//! `cargo xtask ci`: everything that must hold before a change lands.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::{Outcome, demo, layers, schema, test, tools};

type Step = Box<dyn FnOnce() -> Outcome>;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out the demo and the tests
    #[arg(long)]
    no_tests: bool,
}

pub(crate) fn run(args: Args) -> Outcome {
    tools::ensure_build_packages()?;
    let cargo = |arguments: &'static [&'static str]| -> Step {
        Box::new(move || tools::run(&mut tools::cargo(arguments)).map(|()| ExitCode::SUCCESS))
    };
    let mut steps: Vec<(&str, Step)> = vec![
        ("format", cargo(&["fmt", "--all", "--check"])),
        ("clippy", cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
        ("layers", Box::new(layers::run)),
        ("schema", Box::new(|| schema::run(schema::Args { check: true }))),
        ("dependencies", Box::new(dependencies)),
        ("book", Box::new(book)),
    ];
    if !args.no_tests {
        let name = format!("ci-{}", std::process::id());
        steps.push(("demo", Box::new(|| demo::run(demo::Args { name, down: true }))));
        steps.push(("tests", Box::new(|| test::run(test::Args::default()))));
    }
    // A step that fails does not hide what the later ones find.
    let mut results: Vec<(&str, Duration, bool)> = Vec::new();
    for (name, step) in steps {
        println!("== {name}");
        let start = Instant::now();
        let passed = match step() {
            Ok(code) => code == ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                false
            }
        };
        results.push((name, start.elapsed(), passed));
    }
    println!("== summary");
    for (name, time, passed) in &results {
        println!("{name:<14} {:<6} {:>7.1} s", if *passed { "ok" } else { "FAILED" }, time.as_secs_f64());
    }
    let passed = results.iter().all(|(_, _, passed)| *passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn dependencies() -> Outcome {
    let deny = tools::CARGO_DENY.ensure()?;
    let mut checks = vec!["bans", "licenses", "sources"];
    if advisories_reachable() {
        checks.push("advisories");
    } else {
        println!("advisories: skipped, the RustSec database cannot be reached from here");
    }
    let mut command = Command::new(deny);
    command.current_dir(tools::root()).args(["--log-level", "error", "check"]).args(checks);
    tools::run(&mut command)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the RustSec database can be fetched within some seconds.
fn advisories_reachable() -> bool {
    let mut command = Command::new("timeout");
    command.args(["15", "git", "ls-remote", "--exit-code"]);
    command.args(["https://github.com/rustsec/advisory-db", "HEAD"]).env("GIT_TERMINAL_PROMPT", "0");
    command.output().is_ok_and(|output| output.status.success())
}

fn book() -> Outcome {
    let mdbook = tools::MDBOOK.ensure()?;
    tools::run(Command::new(mdbook).current_dir(tools::root()).args(["build", "book"]))?;
    Ok(ExitCode::SUCCESS)
}
