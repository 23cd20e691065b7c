//! The process beside each node that stays when the command or the test that made the lab has ended: it starts
//! nspawn again when the node reboots, in a new network namespace, and clears up when the node is off.

use crate::command::exit_code;
use crate::process::Process;
use crate::{Error, Result, cgroup, lan, launch, node, paths};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// What nspawn ends with when the node asked for a reboot.
const REBOOT: i32 = 133;
/// Told to the supervisor by who starts it; raise it when either side changes, so that a stale binary is noticed.
const VERSION: &str = "1";
/// Exit code of a supervisor of another version.
const STALE: u8 = 3;
const BINARY: &str = "homelab-lab-supervisor";

/// What a running supervisor says about its node.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Supervised {
    pub(crate) supervisor: Process,
    pub(crate) nspawn: Option<Process>,
    /// How often the node booted since it was started.
    pub(crate) boots: u32,
}

pub(crate) fn state_file(node_dir: &Path) -> PathBuf {
    node_dir.join("supervisor.json")
}

/// What the node's supervisor last said, if it still runs.
pub(crate) fn read(node_dir: &Path) -> Option<Supervised> {
    paths::read_json::<Supervised>(&state_file(node_dir)).filter(|state| state.supervisor.alive())
}

/// Starts a supervisor for the node and returns when it has said that it runs.
pub(crate) fn start(lab: &str, node: &str, node_dir: &Path) -> Result<()> {
    match spawn(lab, node, node_dir, &find()?) {
        // Someone ran a test by `cargo test` after a change of the lab.
        Err(Error::Usage(_)) if std::env::var_os("CARGO").is_some() => spawn(lab, node, node_dir, &build()?),
        result => result,
    }
}

fn spawn(lab: &str, node: &str, node_dir: &Path, binary: &Path) -> Result<()> {
    let log = node_dir.join("supervisor.log");
    let open = || OpenOptions::new().create(true).append(true).open(&log).map_err(Error::file("open", &log));
    let mut child = Command::new(binary)
        .args([VERSION, "supervise", lab, node])
        .stdin(Stdio::null())
        .stdout(open()?)
        .stderr(open()?)
        .spawn()
        .map_err(|source| Error::Start { command: binary.display().to_string(), source })?;
    let mut early = None;
    let told = crate::command::wait_until(std::time::Duration::from_secs(10), || {
        early = child.try_wait().ok().flatten();
        early.is_some() || read(node_dir).is_some()
    });
    if let Some(status) = early {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if exit_code(status) == i32::from(STALE) {
            return Err(Error::Usage(format!(
                "{} is stale: cargo build -p homelab-lab --bins",
                binary.display()
            )));
        }
        return Err(Error::Failed { command: BINARY.into(), code: exit_code(status), output: text });
    }
    // Whoever lives longer must not leave the other a zombie.
    std::thread::spawn(move || child.wait());
    if told {
        return Ok(());
    }
    Err(Error::Timeout { what: format!("{node}: supervisor"), seconds: 10, detail: String::new() })
}

/// `$HOMELAB_LAB_SUPERVISOR`, or the binary in the target directory we run from, built if need be.
fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HOMELAB_LAB_SUPERVISOR") {
        return Ok(path.into());
    }
    if let Some(path) = paths::beside_us(BINARY) {
        return Ok(path);
    }
    if std::env::var_os("CARGO").is_some() {
        return build();
    }
    Err(Error::Usage(format!("no {BINARY} beside this program: cargo build -p homelab-lab --bins")))
}

fn build() -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    crate::command::run(&cargo, &["build", "--quiet", "--package", "homelab-lab", "--bins"])?;
    paths::beside_us(BINARY).ok_or_else(|| Error::Usage(format!("cargo built {BINARY} elsewhere")))
}

/// Entry point of the binary `homelab-lab-supervisor`; nothing else calls it.
pub fn supervisor_main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        [VERSION, "supervise", lab, node] => supervise(lab, node),
        [VERSION, "launch", lab, node] => launch::launch(lab, node).map(|_| ()),
        _ => return ExitCode::from(STALE),
    };
    if let Err(error) = result {
        eprintln!("{BINARY}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn supervise(lab: &str, node: &str) -> Result<()> {
    let dir = paths::node_dir(&paths::lab_dir(lab), node);
    // Neither the terminal of who started us nor its end concern the node.
    nix::unistd::setsid().map_err(Error::system("setsid"))?;
    let supervisor = Process::current().ok_or_else(|| Error::Usage("no /proc".into()))?;
    let mut state = Supervised { supervisor, nspawn: None, boots: 0 };
    paths::write_json(&state_file(&dir), &state)?;
    let result = boot_until_off(lab, node, &dir, &mut state);
    lan::unplug(lab, node);
    let cleared = cgroup::remove_node(lab, node);
    paths::remove(&state_file(&dir))?;
    result.and(cleared)
}

fn boot_until_off(lab: &str, name: &str, dir: &Path, state: &mut Supervised) -> Result<()> {
    let path = dir.join("console.log");
    let mut log =
        OpenOptions::new().create(true).append(true).open(&path).map_err(Error::file("open", &path))?;
    let copy = |log: &std::fs::File| log.try_clone().map_err(Error::file("open", &path));
    loop {
        cgroup::remove_node(lab, name)?;
        lan::plug(lab, name, &node::mac(name)?, node::attached(dir))?;
        let mut child = Command::new("/proc/self/exe")
            .args([VERSION, "launch", lab, name])
            .stdin(Stdio::null())
            .stdout(copy(&log)?)
            .stderr(copy(&log)?)
            .spawn()
            .map_err(|source| Error::Start { command: "launch".into(), source })?;
        state.nspawn = Process::of(child.id());
        state.boots += 1;
        paths::write_json(&state_file(dir), state)?;
        let code = exit_code(child.wait().map_err(Error::system("wait for nspawn"))?);
        let _ = writeln!(log, "--- nspawn ended with {code}");
        // A power cut in the middle of a reboot must not be undone by it.
        if code != REBOOT || node::off_flag(dir).exists() {
            return Ok(());
        }
    }
}
