//! Load-balancer addresses: how long a client has no answer when something happens to the owner. By the lab test that proves
//! the same, many times over.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use super::figures::Report;
use crate::{dist, tools};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Has every kind of failover happen so many times.
pub(super) fn run(report: &mut Report, runs: usize) -> Result<()> {
    dist::build_for_tests()?;
    tools::run(&mut tools::cargo(&["build", "--workspace", "--all-targets"]))?;
    let mut test = tools::cargo(&["test", "--package=homelab-tests", "--test=speaker", "failover"]);
    test.env("HOMELAB_TEST_RUNS", runs.to_string()).stdout(Stdio::piped());
    let mut child = test.spawn()?;
    let mut found = false;
    for line in child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
        let line = line?;
        // `test NAME ... ` may stand before it.
        let Some((_, figure)) = line.split_once("FIGURE\t") else { continue };
        let (task, values) = figure.split_once('\t').ok_or("not a figure")?;
        let values = values.split(' ').map(str::parse).collect::<std::result::Result<Vec<f64>, _>>()?;
        let (least, most) = values.iter().fold((f64::MAX, 0.0_f64), |(a, b), v| (a.min(*v), b.max(*v)));
        report.remark(&format!("{task}: {least} to {most} ms"));
        report.add(&format!("no answer: {task}"), "homelab", "ms", values);
        found = true;
    }
    if !child.wait()?.success() || !found {
        return Err("the test of failovers failed".into());
    }
    report
        .remark("MetalLB is not measured: it needs Kubernetes. Its users see 6 to 45 s (metallb#524, #767)");
    Ok(())
}
