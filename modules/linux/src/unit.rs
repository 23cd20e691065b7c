//! systemd units, through `systemctl`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use homelab_model::{AgentFact, Unit, ours};

use crate::error::Error;
use crate::files::is_digest;
use crate::process::{Running, complaint};
use crate::root::Root;

const PROPERTIES: &str = "--property=Id,LoadState,FragmentPath,ActiveState,NeedDaemonReload,MainPID";
/// Lines of a unit's journal in an error.
const JOURNAL_LINES: &str = "20";
/// How long an agent may take to say that it has read its configuration.
const READING: Duration = Duration::from_secs(5);

/// Whether systemd is PID 1 here.
pub(crate) fn systemd_runs(root: &Root) -> bool {
    root.is_system() && Path::new("/run/systemd/system").exists()
}

/// Whether to wait for what systemd is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Jobs {
    /// Until it is done.
    Wait,
    /// It is put in the queue.
    Queue,
}

impl Jobs {
    /// Runs `systemctl` with a verb that makes a job.
    fn run(self, verb: &str, name: &str) -> Result<(), String> {
        match self {
            Jobs::Wait => systemctl(&[verb, "--", name]),
            Jobs::Queue => systemctl(&["--no-block", verb, "--", name]),
        }
    }
}

/// A running `systemctl show`.
#[derive(Debug)]
pub(crate) struct Shown {
    running: Option<Running>,
}

impl Shown {
    /// Starts it for these units; where there is no systemd it will find nothing.
    pub(crate) fn start(root: &Root, units: &[&str]) -> Result<Shown, Error> {
        if units.is_empty() || !systemd_runs(root) {
            return Ok(Shown { running: None });
        }
        let mut command = Command::new("systemctl");
        command.args(["show", PROPERTIES, "--"]).args(units);
        let running = Running::start(&mut command).map_err(|e| failure(&units.join(" "), e))?;
        Ok(Shown { running: Some(running) })
    }

    /// Waits for it. Units that systemd does not know, or that are not ours and off, are left out.
    pub(crate) fn finish(self, root: &Root) -> Result<Vec<Unit>, Error> {
        let Some(running) = self.running else { return Ok(Vec::new()) };
        let output = running.finish().map_err(|e| failure("", e))?;
        if !output.status.success() {
            return Err(Error::Unit { name: String::new(), message: complaint(&output) });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.split("\n\n").filter_map(parse_show).filter_map(|shown| shown.unit(root)).collect())
    }
}

/// What systemd says of a unit.
#[derive(Debug, Default, PartialEq, Eq)]
struct State {
    name: String,
    loaded: bool,
    fragment: String,
    active: String,
    reload_needed: bool,
    pid: u32,
}

/// One unit's block of `systemctl show`.
fn parse_show(block: &str) -> Option<State> {
    let mut state = State::default();
    for (key, value) in block.lines().filter_map(|line| line.split_once('=')) {
        match key {
            "Id" => state.name = value.to_owned(),
            "LoadState" => state.loaded = value == "loaded",
            "FragmentPath" => state.fragment = value.to_owned(),
            "ActiveState" => state.active = value.to_owned(),
            "NeedDaemonReload" => state.reload_needed = value == "yes",
            "MainPID" => state.pid = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    (!state.name.is_empty()).then_some(state)
}

impl State {
    fn unit(self, root: &Root) -> Option<Unit> {
        let file = Path::new(ours::UNIT_FILE).with_file_name(&self.name);
        let ours_on_disk = self.loaded && Path::new(&self.fragment) == file;
        let linked = !enabling_links(root, &self.name).is_empty();
        if !(ours_on_disk || linked || self.active == "active") {
            return None;
        }
        let (running, config) = if self.pid == 0 {
            Default::default()
        } else {
            let config = if self.name == ours::UNIT { config } else { started_from };
            (executable(root, self.pid), config(root, self.pid))
        };
        Some(Unit {
            name: self.name,
            // A link to nothing starts nothing.
            enabled: linked && root.path(&file.display().to_string()).exists(),
            state: self.active,
            reload_needed: self.reload_needed,
            running,
            config,
        })
    }
}

/// The symbolic links that start a unit at boot. systemd itself remembers `UnitFileState` from before the last change,
/// and forgets it with the unit file while the links stay.
fn enabling_links(root: &Root, name: &str) -> Vec<PathBuf> {
    let directory = root.path(ours::UNIT_FILE).with_file_name("");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let by =
        |path: &PathBuf| path.extension().is_some_and(|e| e == "wants" || e == "requires" || e == "upholds");
    let links = entries.filter(by).map(|path| path.join(name));
    links.filter(|link| link.symlink_metadata().is_ok_and(|m| m.is_symlink())).collect()
}

/// The digest of the node binary that a process runs, or the path of another executable.
fn executable(root: &Root, pid: u32) -> String {
    let Ok(target) = fs::read_link(root.proc(&format!("{pid}/exe"))) else { return String::new() };
    let path = target.display().to_string();
    let digest = path
        .strip_prefix(ours::LIB)
        .and_then(|rest| rest.strip_prefix('/'))
        .and_then(|rest| rest.strip_suffix("/homelab-node"));
    match digest {
        Some(digest) if is_digest(digest) => digest.to_owned(),
        _ => path,
    }
}

/// The configuration that the agent with this process id says it has loaded.
fn config(root: &Root, pid: u32) -> String {
    agent_report(root).filter(|report| report.pid == pid).map(|report| report.config).unwrap_or_default()
}

/// The unit file that a process says it was started from.
fn started_from(root: &Root, pid: u32) -> String {
    let environment = fs::read(root.proc(&format!("{pid}/environ"))).unwrap_or_default();
    let mut variables = environment.split(|byte| *byte == 0).filter_map(|v| std::str::from_utf8(v).ok());
    let value = variables.find_map(|v| v.strip_prefix(ours::UNIT_DIGEST)?.strip_prefix('='));
    value.unwrap_or_default().to_owned()
}

/// Whether the machine is being shut down.
pub fn machine_stops() -> bool {
    let output = Command::new("systemctl").arg("is-system-running").stdin(Stdio::null()).output();
    // It fails whenever the answer is another than `running`.
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"stopping")
}

/// The agent's report.
pub(crate) fn agent_report(root: &Root) -> Option<AgentFact> {
    let bytes = fs::read(root.path(ours::RUN).join("agent.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn failure(name: &str, error: io::Error) -> Error {
    Error::Unit { name: name.to_owned(), message: format!("systemctl: {error}") }
}

/// Runs `systemctl`; its complaint if it fails.
fn systemctl(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("systemctl: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(complaint(&output))
}

fn must_run(root: &Root, name: &str) -> Result<(), Error> {
    if systemd_runs(root) {
        return Ok(());
    }
    Err(Error::Unit { name: name.to_owned(), message: "systemd does not run here".to_owned() })
}

/// Makes systemd read its unit files again.
pub(crate) fn reload(root: &Root) -> Result<(), Error> {
    if !systemd_runs(root) {
        return Ok(());
    }
    systemctl(&["daemon-reload"]).map_err(|message| Error::Unit { name: "daemon-reload".to_owned(), message })
}

/// Brings a unit from `before` (None: it is not there) to `after`. `file_changed`: its file was written since systemd
/// last read it. Afterwards systemd has read it; true: and all others.
pub(crate) fn set(
    root: &Root,
    before: Option<&Unit>,
    after: &Unit,
    file_changed: bool,
    jobs: Jobs,
) -> Result<bool, Error> {
    let name = after.name.as_str();
    must_run(root, name)?;
    let error = |message: String| Error::Unit { name: name.to_owned(), message };
    // systemd reads the file of a unit that it does not hold when it starts it; reading all files again takes a
    // quarter of a second.
    if before.is_none_or(|b| b.enabled != after.enabled) {
        let verb = if after.enabled { "enable" } else { "disable" };
        systemctl(&["--no-reload", verb, "--", name]).map_err(error)?;
    }
    let reloaded = before.is_some_and(|b| file_changed || b.reload_needed);
    if reloaded {
        reload(root)?;
    }
    if after.state != "active" {
        let _ = jobs.run("stop", name);
        let _ = systemctl(&["reset-failed", "--", name]);
        return Ok(reloaded);
    }
    let as_it_was =
        |b: &Unit| (&b.state, &b.running, &b.config) == (&after.state, &after.running, &after.config);
    if before.is_some_and(as_it_was) {
        return Ok(reloaded);
    }
    // What a process may do is its unit file's, so another file takes another process.
    let new_config = |b: &Unit| !reloaded && (&b.state, &b.running) == (&after.state, &after.running);
    let is_agent = name == ours::UNIT;
    if is_agent && jobs == Jobs::Wait && before.is_some_and(new_config) && reads_again(root, after) {
        return Ok(reloaded);
    }
    // A unit that failed too often in a row may not start before that is forgotten.
    let _ = systemctl(&["reset-failed", "--", name]);
    let mut started = jobs.run("restart", name);
    if jobs == Jobs::Queue {
        return started.map(|()| reloaded).map_err(error);
    }
    let mut now = Shown::start(root, &[name])?.finish(root)?;
    if before.is_none() && (started.is_err() || now.iter().any(|u| u.reload_needed)) {
        // It still held the unit, as one without a file or with an older one.
        reload(root)?;
        started = systemctl(&["restart", "--", name]);
        now = Shown::start(root, &[name])?.finish(root)?;
    }
    let state = now.first().map_or("gone", |unit| unit.state.as_str());
    match started {
        Ok(()) if state == "active" => Ok(reloaded),
        Ok(()) => Err(error(format!("it is {state} after its start\n{}", journal(name)))),
        Err(message) => Err(error(format!("{message}\n{}", journal(name)))),
    }
}

/// Tells a running agent to read its configuration. False if it does not say that it has.
fn reads_again(root: &Root, after: &Unit) -> bool {
    if after.config.is_empty() || systemctl(&["reload", "--", &after.name]).is_err() {
        return false;
    }
    let deadline = Instant::now() + READING;
    loop {
        if agent_report(root).is_some_and(|report| report.config == after.config) {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Tells a running agent to read its configuration again.
pub(crate) fn reload_agent(root: &Root) -> Result<(), Error> {
    must_run(root, ours::UNIT)?;
    let error = |message| Error::Unit { name: ours::UNIT.to_owned(), message };
    systemctl(&["reload", "--", ours::UNIT]).map_err(error)
}

/// Stops and disables a unit.
pub(crate) fn delete(root: &Root, unit: &Unit, jobs: Jobs) -> Result<(), Error> {
    if !systemd_runs(root) {
        return Ok(());
    }
    let name = unit.name.as_str();
    let block: &[&str] = if jobs == Jobs::Queue { &["--no-block"] } else { &[] };
    if let Err(message) = systemctl(&[block, &["--no-reload", "disable", "--now", "--", name]].concat()) {
        // The unit file is gone: what it left is taken away by hand.
        let _ = jobs.run("stop", name);
        for link in enabling_links(root, name) {
            fs::remove_file(&link).map_err(|e| Error::io("removing", link, e))?;
        }
        let left = Shown::start(root, &[name])?.finish(root)?;
        if jobs == Jobs::Wait && left.iter().any(|u| u.state == "active") {
            return Err(Error::Unit { name: name.to_owned(), message });
        }
    }
    let _ = systemctl(&["reset-failed", "--", name]);
    if name == ours::BGP_ZEBRA_UNIT {
        // Sockets of the daemons; it goes after bgpd, and bfdd lives well without its own.
        let _ = fs::remove_dir_all(root.path(ours::FRR_RUN));
    }
    Ok(())
}

/// The last lines of a unit's journal.
fn journal(name: &str) -> String {
    let output = Command::new("journalctl")
        .args(["--no-pager", "--output=cat", "--lines", JOURNAL_LINES, "--unit", name])
        .stdin(Stdio::null())
        .output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_says_which_unit_file_it_is_from() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path()).with_proc(directory.path().join("proc"));
        assert_eq!(started_from(&root, 7), "");
        fs::create_dir_all(root.proc("7")).unwrap();
        fs::write(root.proc("7/environ"), b"A=b\0HOMELAB_UNITS=no\0HOMELAB_UNIT=abc\0LANG=C\0").unwrap();
        assert_eq!(started_from(&root, 7), "abc");
    }

    #[test]
    fn systemctl_show_is_read() {
        let block = "Id=homelab-node.service\nLoadState=loaded\nActiveState=active\n\
                     FragmentPath=/etc/systemd/system/homelab-node.service\n\
                     NeedDaemonReload=no\nMainPID=0\n";
        let state = parse_show(block).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        let unit = state.unit(&root).unwrap();
        assert_eq!((unit.enabled, unit.state.as_str(), unit.reload_needed), (false, "active", false));
        let missing = "Id=homelab-node.service\nLoadState=not-found\nActiveState=inactive\n";
        assert_eq!(parse_show(missing).unwrap().unit(&root), None);
        // A link that outlives its unit file is something of ours, and starts nothing.
        let wants = root.path("/etc/systemd/system/multi-user.target.wants");
        fs::create_dir_all(&wants).unwrap();
        std::os::unix::fs::symlink(ours::UNIT_FILE, wants.join(ours::UNIT)).unwrap();
        let unit = parse_show(missing).unwrap().unit(&root).unwrap();
        assert_eq!((unit.enabled, unit.state.as_str()), (false, "inactive"));
        fs::write(root.path(ours::UNIT_FILE), "").unwrap();
        assert!(parse_show(missing).unwrap().unit(&root).unwrap().enabled);
        assert_eq!(parse_show(""), None);
    }
}
