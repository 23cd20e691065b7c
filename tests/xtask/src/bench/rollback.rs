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
    let mut spans: [Vec<f64>; 4] = Default::default();
    for number in 0..runs {
        let mut times = Times::default();
        let mtu = MTUS[(number + 1) % 2];
        let (code, text) = apply(&lab, mtu, &["--nodes", "node1"], |event| {
            times.note(event);
            Ok(())
        })?;
        if code != 0 {
            return Err(format!("homelab apply: {text}").into());
        }
        let [arm, verify, confirm] =
            times.milliseconds().ok_or("the events do not say when it was armed and confirmed")?;
        for (span, time) in spans.iter_mut().zip([arm, verify, confirm, arm + confirm]) {
            span.push(time);
        }
    }
    let task = "a change of one node that can be taken back";
    let names = ["arming", "login anew, and looking", "confirming", "arming and confirming"];
    for (name, span) in names.into_iter().zip(spans) {
        report.add(task, &format!("homelab: {name}"), "ms", span);
    }

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

/// The events at which a step begins, in their order; the last is the end.
const STEPS: [&str; 5] = ["arming", "applying", "verifying", "confirming", "done"];

/// When a node came to which of [`STEPS`].
#[derive(Default)]
struct Times([Option<Instant>; 5]);

impl Times {
    fn note(&mut self, event: &Value) {
        if let Some(step) = STEPS.iter().position(|step| event["event"] == *step) {
            self.0[step].get_or_insert_with(Instant::now);
        }
    }

    /// Of arming, verifying and confirming.
    fn milliseconds(&self) -> Option<[f64; 3]> {
        let span = |step: usize| Some((self.0[step + 1]? - self.0[step]?).as_secs_f64() * 1000.0);
        Some([span(0)?, span(2)?, span(3)?])
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
