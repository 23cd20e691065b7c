//! What it costs that a change can be taken back, and how long a node takes that lost its laptop.

use std::io::{BufRead as _, BufReader};
use std::process::{ChildStdout, Stdio};
use std::time::{Duration, Instant};

use homelab_lab::{Lab, LabGuard, LabOptions};
use serde_json::Value;

use super::figures::Report;
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// `--confirm-timeout` of the runs that lose their link.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The two MTUs between which the tunnel is switched: a change of several objects, with a restart of the agent.
const MTUS: [u32; 2] = [1450, 1400];

pub(super) fn run(report: &mut Report, runs: usize) -> Result<()> {
    let lab = LabGuard::up(LabOptions::unique("br"))?;
    for node in lab.nodes() {
        lab.wait_settled(node)?;
    }
    let (code, text) = apply(&lab, MTUS[0], &[], |_| Ok(()))?;
    if code != 0 {
        return Err(format!("homelab apply: {text}").into());
    }
    let (mut arming, mut confirming, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..runs {
        let mut times = Times::default();
        let mtu = MTUS[(number + 1) % 2];
        let (code, text) = apply(&lab, mtu, &["--nodes", "node1"], |event| times.note(event))?;
        if code != 0 {
            return Err(format!("homelab apply: {text}").into());
        }
        let (arm, confirm) =
            times.milliseconds().ok_or("the events do not say when it was armed and confirmed")?;
        arming.push(arm);
        confirming.push(confirm);
        both.push(arm + confirm);
    }
    let task = "a change of one node that can be taken back";
    report.add(task, "homelab: arming", "ms", arming);
    report.add(task, "homelab: confirming over a fresh connection", "ms", confirming);
    report.add(task, "homelab: both", "ms", both);

    let mut restored = Vec::new();
    for _ in 0..runs.min(5) {
        restored.push(lose_the_link(&lab)?);
    }
    let task = format!("node restored after its link was cut, timeout {} s", TIMEOUT.as_secs());
    report.add(&task, "homelab", "s", restored);
    lab.down()?;
    Ok(())
}

/// Cuts the link as soon as the node works; gives how long until the node is as before, seconds.
fn lose_the_link(lab: &Lab) -> Result<f64> {
    let mtu =
        || -> Result<u32> { Ok(lab.sh("node1", "cat /sys/class/net/homelab.1/mtu")?.ok()?.text().parse()?) };
    let before = mtu()?;
    let after = MTUS.into_iter().find(|mtu| *mtu != before).unwrap_or(MTUS[0]);
    let timeout = format!("{}s", TIMEOUT.as_secs());
    let mut result = Err("it was never applied".into());
    let mut cut = false;
    let watch = |event: &Value| {
        if cut || event["event"] != "applying" {
            return Ok(());
        }
        cut = true;
        lab.partition("node1")?;
        let start = Instant::now();
        let restored = wait(TIMEOUT, || Ok(mtu()? == after)).and_then(|()| {
            wait(TIMEOUT * 2, || {
                let open = lab.sh("node1", "test -e /var/lib/homelab/transaction")?.success();
                Ok(!open && mtu()? == before)
            })
        });
        result = restored.map(|()| start.elapsed().as_secs_f64());
        lab.heal("node1")?;
        Ok(())
    };
    let (code, text) = apply(lab, after, &["--nodes", "node1", "--confirm-timeout", &timeout], watch)?;
    if code != 3 {
        return Err(format!("a rollback ends with 3, this with {code}: {text}").into());
    }
    result
}

fn wait(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > limit {
            return Err(format!("not after {limit:?}").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// When a node came to which step.
#[derive(Default)]
struct Times {
    armed: Option<(Instant, Option<Instant>)>,
    confirmed: Option<(Instant, Option<Instant>)>,
}

impl Times {
    fn note(&mut self, event: &Value) -> Result<()> {
        let now = Instant::now();
        match event["event"].as_str() {
            Some("arming") => self.armed = Some((now, None)),
            Some("applying") => {
                if let Some((_, end @ None)) = &mut self.armed {
                    *end = Some(now);
                }
            }
            Some("confirming") => self.confirmed = Some((now, None)),
            Some("done") => {
                if let Some((_, end)) = &mut self.confirmed {
                    *end = Some(now);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Of arming and of confirming.
    fn milliseconds(&self) -> Option<(f64, f64)> {
        let span = |times: Option<(Instant, Option<Instant>)>| {
            let (start, end) = times?;
            Some((end? - start).as_secs_f64() * 1000.0)
        };
        Some((span(self.armed)?, span(self.confirmed)?))
    }
}

/// Applies with another MTU and hands over every event as it comes; gives exit code and output.
fn apply(
    lab: &Lab,
    mtu: u32,
    arguments: &[&str],
    mut event: impl FnMut(&Value) -> Result<()>,
) -> Result<(i32, String)> {
    let config = lab.dir().join("mtu.yaml");
    let text = std::fs::read_to_string(lab.config_path())?;
    std::fs::write(&config, format!("{text}network:\n  vxlan:\n    mtu: {mtu}\n"))?;
    let all = [&["apply", "--yes", "--format", "json"], arguments].concat();
    let mut command = super::homelab(lab, &config, &all)?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut output = String::new();
    let result = child.stdout.take().map_or(Ok(()), |stdout| lines(stdout, &mut output, &mut event));
    let status = child.wait()?;
    result.map(|()| (status.code().unwrap_or(255), output))
}

fn lines(
    stdout: ChildStdout,
    output: &mut String,
    event: &mut impl FnMut(&Value) -> Result<()>,
) -> Result<()> {
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        event(&serde_json::from_str(&line)?)?;
        output.push_str(&line);
        output.push('\n');
    }
    Ok(())
}
