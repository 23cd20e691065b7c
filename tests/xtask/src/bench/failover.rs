//! Load-balancer addresses: how long a client has no answer when something happens to the owner, what moves though nothing
//! happened, and what speakers cost. By the lab tests that prove the same, many times over or for long.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use super::figures::Report;
use crate::{dist, tools};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Has every kind of failover happen so many times.
pub(super) fn run(report: &mut Report, runs: usize) -> Result<()> {
    build()?;
    let setting = ("HOMELAB_TEST_RUNS", runs.to_string());
    figures(report, &["--test=speaker", "failover"], setting, "no answer: ")?;
    report
        .remark("MetalLB is not measured: it needs Kubernetes. Its users see 6 to 45 s (metallb#524, #767)");
    Ok(())
}

/// Has CPU be short and packets be lost for so many minutes, and counts owners that move.
pub(super) fn endure(report: &mut Report, minutes: f64) -> Result<()> {
    build()?;
    let setting = ("HOMELAB_TEST_MINUTES", minutes.to_string());
    figures(report, &["--test=lan", "no_false_failover"], setting, "")?;
    report.remark("MetalLB's memberlist takes a node for dead after 5 to 6 s of silence on three nodes");
    Ok(())
}

/// Speakers at rest and under a flood.
pub(super) fn speaker(report: &mut Report) -> Result<()> {
    build()?;
    let setting = ("HOMELAB_TEST_MINUTES", "1".to_owned());
    figures(report, &["--test=lan", "speaker"], setting, "")
}

fn build() -> Result<()> {
    dist::build_for_tests()?;
    tools::run(&mut tools::cargo(&["build", "--workspace", "--all-targets"]))
}

/// Runs tests, and takes over the lines that are figures: what, values, and their unit if they are not milliseconds.
fn figures(report: &mut Report, test: &[&str], setting: (&str, String), of: &str) -> Result<()> {
    let mut test = tools::cargo(&[&["test", "--package=homelab-tests"], test].concat());
    test.env(setting.0, setting.1).stdout(Stdio::piped());
    let mut child = test.spawn()?;
    let mut found = false;
    for line in child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
        let line = line?;
        // `test NAME ... ` may stand before it.
        let Some((_, figure)) = line.split_once("FIGURE\t") else { continue };
        let mut fields = figure.split('\t');
        let (Some(task), Some(values)) = (fields.next(), fields.next()) else {
            return Err(format!("not a figure: {line}").into());
        };
        let unit = fields.next().unwrap_or("ms");
        let values = values.split(' ').map(str::parse).collect::<std::result::Result<Vec<f64>, _>>()?;
        let (least, most) = values.iter().fold((f64::MAX, 0.0_f64), |(a, b), v| (a.min(*v), b.max(*v)));
        if values.len() > 1 {
            report.remark(&format!("{task}: {least} to {most} {unit}"));
        }
        report.add(&format!("{of}{task}"), "homelab", unit, values);
        found = true;
    }
    if !child.wait()?.success() || !found {
        return Err("the test failed".into());
    }
    Ok(())
}
