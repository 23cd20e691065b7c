//! plan and apply on lab nodes, beside Ansible, pyinfra and bare SSH.

use std::process::Command;

use homelab_lab::{Lab, LabGuard, LabOptions};

use super::figures::{Cost, Report, cost};
use super::peers::Peers;
use crate::tools;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const NO_OP: &str = "plan, nothing to do";
const FIRST: &str = "first apply on fresh nodes";
const DRIFT: &str = "apply after one FDB entry was lost";

/// One measured run: seconds, CPU seconds on the laptop, bytes that left the laptop.
struct Run(Cost, f64);

fn run_one(lab: &Lab, command: &mut Command, expect: i32) -> Result<Run> {
    let sent = || -> Result<f64> {
        let counter = lab.sh("client", "awk '/eth0:/ {print $10}' /proc/net/dev")?.ok()?;
        Ok(counter.stdout.trim().parse()?)
    };
    let before = sent()?;
    let cost = cost(command)?;
    if cost.code != expect {
        return Err(format!("{command:?} ended with {}, not {expect}:\n{}", cost.code, cost.text).into());
    }
    Ok(Run(cost, sent()? - before))
}

fn add(report: &mut Report, task: &str, who: &str, runs: &[Run]) {
    report.add(task, who, "s", runs.iter().map(|r| r.0.wall).collect());
    report.add(task, who, "cpu-s", runs.iter().map(|r| r.0.cpu).collect());
    report.add(task, who, "kB sent", runs.iter().map(|r| r.1 / 1000.0).collect());
}

fn repeat(runs: usize, mut one: impl FnMut() -> Result<Run>) -> Result<Vec<Run>> {
    one()?;
    (0..runs).map(|_| one()).collect()
}

fn ours(lab: &Lab, arguments: &[&str]) -> Result<Command> {
    Ok(super::homelab(lab, &lab.config_path(), arguments)?)
}

fn binary(name: &str) -> std::path::PathBuf {
    tools::root().join("target/release").join(name)
}

fn floor(lab: &Lab) -> Result<Command> {
    let mut command = lab.command_in("client")?;
    command
        .arg("env")
        .arg(format!("HOME={}", lab.home().display()))
        .arg(binary("examples/floor"))
        .arg(lab.key_path());
    for node in lab.nodes() {
        command.arg(lab.address(node)?.to_string());
    }
    Ok(command)
}

pub(super) fn run(report: &mut Report, runs: usize) -> Result<()> {
    let lab = LabGuard::up(LabOptions::unique("be"))?;
    let node_binary = tools::root()
        .join("target")
        .join(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .join("dist/homelab-node");
    let peers = Peers::new(&lab, &node_binary)?;
    let plan = ["plan", "--detailed-exitcode"];
    let apply = ["apply", "--yes"];
    let fresh = |command: &dyn Fn() -> Result<Command>| -> Result<Vec<Run>> {
        (0..runs.min(3))
            .map(|_| {
                lab.reset(&[])?;
                for node in lab.nodes() {
                    lab.wait_settled(node)?;
                }
                run_one(&lab, &mut command()?, 0)
            })
            .collect()
    };
    let drifted = |link: &str, command: &dyn Fn() -> Result<Command>| -> Result<Vec<Run>> {
        let entries = || lab.sh("node1", &format!("bridge fdb show dev {link} | sort"))?.ok();
        repeat(runs.min(5), || {
            let all = entries()?.stdout;
            let lose = format!(
                "bridge fdb show dev {link} | head -1 | {{ read mac rest; bridge fdb del $mac dev {link}; }}"
            );
            lab.sh("node1", &lose)?.ok()?;
            let lost = entries()?.stdout;
            let run = run_one(&lab, &mut command()?, 0)?;
            let mended = entries()?.stdout;
            if lost == all || mended != all {
                return Err(
                    format!("an entry is to be lost and to come back:\n{all}\n{lost}\n{mended}").into()
                );
            }
            Ok(run)
        })
    };

    add(report, FIRST, "homelab", &fresh(&|| ours(&lab, &apply))?);
    add(report, NO_OP, "homelab", &repeat(runs, || run_one(&lab, &mut ours(&lab, &plan)?, 0))?);
    add(
        report,
        NO_OP,
        "floor: parallel SSH, exec true",
        &repeat(runs, || run_one(&lab, &mut floor(&lab)?, 0))?,
    );
    // The agent would mend the entry before the engine sees it; stopped in order, it would be one more thing to mend.
    lab.sh("node1", "kill -STOP $(systemctl show -P MainPID homelab-node)")?.ok()?;
    add(report, DRIFT, "homelab", &drifted("homelab.1", &|| ours(&lab, &apply))?);

    add(report, FIRST, "ansible", &fresh(&|| peers.ansible(&lab, false))?);
    add(
        report,
        NO_OP,
        "ansible --check",
        &repeat(runs.min(5), || run_one(&lab, &mut peers.ansible(&lab, true)?, 0))?,
    );
    add(report, DRIFT, "ansible", &drifted("peer.1", &|| peers.ansible(&lab, false))?);

    add(report, FIRST, "pyinfra", &fresh(&|| peers.pyinfra(&lab, false))?);
    add(report, NO_OP, "pyinfra --dry", &repeat(runs, || run_one(&lab, &mut peers.pyinfra(&lab, true)?, 0))?);
    add(report, DRIFT, "pyinfra", &drifted("peer.1", &|| peers.pyinfra(&lab, false))?);

    lab.reset(&[])?;
    run_one(&lab, &mut ours(&lab, &apply)?, 0)?;
    std::thread::sleep(std::time::Duration::from_secs(10));
    let resident = lab
        .nodes()
        .iter()
        .map(|node| {
            let script = "awk '/VmRSS/ {print $2}' /proc/$(systemctl show -P MainPID homelab-node)/status";
            let text = lab.sh(node, script)?.ok()?.stdout;
            Ok(text.trim().parse::<f64>()? / 1024.0)
        })
        .collect::<Result<Vec<f64>>>()?;
    report.add("agent at rest, resident memory", "homelab", "MiB", resident);
    lab.down()?;
    Ok(())
}

/// What 3, 10, 20 and 30 nodes cost; no more than the machine can boot.
pub(super) fn scale(report: &mut Report, runs: usize) -> Result<()> {
    // systemd, dbus, networkd and logind of a node hold five of them; without one, networkd gives the node no address.
    let limit =
        std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances")?.trim().parse::<usize>()?;
    for count in [3, 10, 20, 30] {
        if count * 6 > limit {
            eprintln!("{count} nodes left out: they need more than fs.inotify.max_user_instances = {limit}");
            continue;
        }
        let lab = LabGuard::up(LabOptions::unique("bs").nodes(count))?;
        for node in lab.nodes() {
            lab.wait_settled(node)?;
        }
        let first = run_one(&lab, &mut ours(&lab, &["apply", "--yes"])?, 0)?;
        add(report, &format!("{FIRST}, {count} nodes"), "homelab", &[first]);
        let plan = repeat(runs, || run_one(&lab, &mut ours(&lab, &["plan", "--detailed-exitcode"])?, 0))?;
        add(report, &format!("{NO_OP}, {count} nodes"), "homelab", &plan);
        let floor = repeat(runs, || run_one(&lab, &mut floor(&lab)?, 0))?;
        add(report, &format!("{NO_OP}, {count} nodes"), "floor: parallel SSH, exec true", &floor);
        lab.down()?;
    }
    Ok(())
}
