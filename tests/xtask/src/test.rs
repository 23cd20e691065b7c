//! `cargo xtask test`: every test of the workspace, on a machine that may have nothing but Rust.

use std::io::{BufRead as _, BufReader};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::{Outcome, dist, lanes, tools};

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Only tests that need no root, no namespaces and no lab
    #[arg(long)]
    unit: bool,
}

/// What `cargo test` said of all its test programs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Totals {
    programs: usize,
    passed: u64,
    failed: u64,
    ignored: u64,
}

pub(crate) fn run(args: Args) -> Outcome {
    tools::ensure_build_packages()?;
    let mut parts: Vec<(&str, Duration)> = Vec::new();
    let mut totals = Totals::default();
    let mut passed = true;
    let mut timed = |name, work: &mut dyn FnMut() -> Result<bool, Box<dyn std::error::Error>>| {
        let start = Instant::now();
        let result = work();
        parts.push((name, start.elapsed()));
        result
    };
    if !args.unit {
        timed("prerequisites", &mut || {
            homelab_lab::host::ensure_packages()?;
            tools::ensure_sshd().map(|()| true)
        })?;
        timed("node binaries", &mut || dist::build_for_tests().map(|()| true))?;
    }
    // All phases select the whole workspace, else cargo builds dependencies again with other features.
    timed("build", &mut || {
        tools::run(&mut tools::cargo(&["build", "--workspace", "--all-targets"])).map(|()| true)
    })?;
    passed &= timed("unit tests", &mut || cargo_test(&["--workspace", "--lib", "--bins"], &mut totals))?;
    // They are not in the binary that is built for nodes.
    let points = ["--package", "homelab-linux", "--features", "fault-points", "--lib", "fault::"];
    passed &= timed("fault points", &mut || cargo_test(&points, &mut totals))?;
    passed &= timed("doc tests", &mut || cargo_test(&["--workspace", "--doc"], &mut totals))?;
    let mut failed = Vec::new();
    if !args.unit {
        passed &= timed("integration tests", &mut || {
            failed = lanes::run(&mut |line| {
                println!("{line}");
                totals.add(line);
            })?;
            Ok(failed.is_empty())
        })?;
    }
    // Once more at the end: a log of an hour is often cut in its middle.
    for lanes::Failed { program, end } in &failed {
        println!("\n== {program} failed; the end of what it said:\n{end}");
    }
    println!("\ntime");
    for (name, time) in &parts {
        println!("  {name:<18} {:>7.1} s", time.as_secs_f64());
    }
    println!(
        "{}: {} passed, {} failed, {} ignored in {} test programs",
        if passed { "all tests passed" } else { "TESTS FAILED" },
        totals.passed,
        totals.failed,
        totals.ignored,
        totals.programs
    );
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs `cargo test`, passes its output on and adds up its results; false if a test failed.
fn cargo_test(selection: &[&str], totals: &mut Totals) -> Result<bool, Box<dyn std::error::Error>> {
    let mut cargo = tools::cargo(&["test", "--no-fail-fast"]);
    cargo.args(selection).stdout(Stdio::piped()).stdin(Stdio::null());
    eprintln!("+ cargo test --no-fail-fast {}", selection.join(" "));
    let mut child = cargo.spawn()?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            totals.add(&line);
        }
    }
    Ok(child.wait()?.success())
}

impl Totals {
    /// Counts a line like `test result: ok. 9 passed; 0 failed; 1 ignored; ...`; others count nothing.
    fn add(&mut self, line: &str) {
        let Some(result) = line.trim().strip_prefix("test result: ") else { return };
        self.programs += 1;
        let counts = result.split_once(". ").map_or("", |(_, counts)| counts);
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let number: u64 = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_programs_add_up() {
        let mut totals = Totals::default();
        for line in [
            "running 9 tests",
            "test result: ok. 9 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            totals.add(line);
        }
        assert_eq!(totals, Totals { programs: 2, passed: 12, failed: 2, ignored: 1 });
    }
}
