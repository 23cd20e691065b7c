//! What the commands that ask nodes have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use homelab_driver::{Engine, NodeBinaries, Options, Transport};
use homelab_model::Cluster;
use homelab_ssh::{NoPrompt, Prompt, SshOptions, SshTransport};
use tokio::runtime::Runtime;

use crate::args::Global;
use crate::error::CliError;
use crate::terminal::{AskSecret, Terminal};
use crate::{hints, input, progress};

/// Exit code of a process that Ctrl-C ended (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// A checked cluster file, the way to its nodes, and Ctrl-C.
pub(crate) struct Session {
    pub(crate) cluster: Cluster,
    /// The names of `--nodes`.
    pub(crate) chosen: Vec<String>,
    transport: Box<dyn Transport>,
    binaries: NodeBinaries,
    cancel: Arc<AtomicBool>,
    changing: Arc<AtomicBool>,
    parallel: usize,
    /// Listens for Ctrl-C as long as it lives.
    _runtime: Runtime,
}

impl Session {
    pub(crate) fn new(global: &Global, terminal: &Terminal) -> Result<Session, CliError> {
        let loaded = input::cluster(&global.files)?;
        if !terminal.quiet {
            for warning in &loaded.warnings {
                terminal.problem(warning);
            }
        }
        let chosen = chosen(&loaded.cluster, &global.nodes)?;
        let exe = std::env::current_exe().ok();
        let binaries = NodeBinaries::find(global.node_binaries.as_deref(), exe.as_deref())
            .map_err(|e| CliError::new(e.to_string()).hint(hints::binaries(&e)))?;
        let transport = transport(global, terminal)?;
        let cancel = Arc::new(AtomicBool::new(false));
        let changing = Arc::new(AtomicBool::new(false));
        let runtime = interrupts(Arc::clone(&cancel), Arc::clone(&changing), terminal)?;
        let parallel = usize::from(global.parallel);
        Ok(Session {
            cluster: loaded.cluster,
            chosen,
            transport,
            binaries,
            cancel,
            changing,
            parallel,
            _runtime: runtime,
        })
    }

    /// Does `work` with an engine that reports to the terminal.
    pub(crate) fn with<R>(&self, terminal: &Terminal, work: impl FnOnce(&Engine<'_>) -> R) -> R {
        let names: Vec<String> = self.cluster.nodes.iter().map(|n| n.name.clone()).collect();
        let observer = progress::observer(terminal, &names);
        let engine = Engine {
            transport: self.transport.as_ref(),
            binaries: &self.binaries,
            observer: observer.as_ref(),
            cancel: &self.cancel,
            options: Options { parallel: self.parallel, by: caller(), ..Options::default() },
        };
        work(&engine)
    }

    /// Does `work`, which changes nodes: Ctrl-C lets it come to a good end.
    pub(crate) fn changing<R>(&self, terminal: &Terminal, work: impl FnOnce(&Engine<'_>) -> R) -> R {
        self.changing.store(true, Ordering::SeqCst);
        let result = self.with(terminal, work);
        self.changing.store(false, Ordering::SeqCst);
        result
    }

    /// Whether the user pressed Ctrl-C.
    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    pub(crate) fn parallel(&self) -> usize {
        self.parallel
    }
}

fn chosen(cluster: &Cluster, names: &[String]) -> Result<Vec<String>, CliError> {
    let have: Vec<&str> = cluster.nodes.iter().map(|n| n.name.as_str()).collect();
    match names.iter().find(|n| !have.contains(&n.as_str())) {
        Some(unknown) => Err(CliError::new(format!("there is no node {unknown:?} in the cluster file"))
            .hint(format!("its nodes are {}", have.join(", ")))),
        None => Ok(names.to_vec()),
    }
}

fn transport(global: &Global, terminal: &Terminal) -> Result<Box<dyn Transport>, CliError> {
    let password = match &global.become_password_file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|e| CliError::new(format!("cannot read {}: {e}", path.display())))?;
            Some(text.lines().next().unwrap_or_default().to_owned())
        }
    };
    let prompt: Box<dyn Prompt> =
        if terminal.interactive { Box::new(AskSecret(terminal.bars.clone())) } else { Box::new(NoPrompt) };
    let options = SshOptions {
        connect_timeout: global.connect_timeout.map(Duration::from_secs),
        accept_new_host_keys: global.accept_new_host_keys,
        ssh_config_file: global.ssh_config.clone(),
        become_password: password,
        prompt,
        ..SshOptions::default()
    };
    Ok(Box::new(SshTransport::new(options)))
}

/// Ctrl-C ends the process at once, unless nodes are being changed: then the first one stops before the next node.
fn interrupts(
    cancel: Arc<AtomicBool>,
    changing: Arc<AtomicBool>,
    terminal: &Terminal,
) -> Result<Runtime, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (bars, interactive) = (terminal.bars.clone(), terminal.interactive);
    runtime.spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            if !changing.load(Ordering::SeqCst) || cancel.swap(true, Ordering::SeqCst) {
                if interactive {
                    // A question for a password may have left the terminal silent.
                    let _ = std::process::Command::new("stty").arg("echo").status();
                }
                std::process::exit(INTERRUPTED);
            }
            bars.suspend(|| eprintln!("stopping after the nodes at work; Ctrl-C again ends at once"));
        }
    });
    Ok(runtime)
}

/// `user@host`, for the nodes' journals.
fn caller() -> String {
    let user =
        ["USER", "LOGNAME"].iter().find_map(|v| std::env::var(v).ok()).unwrap_or_else(|| "unknown".into());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| {
            let output = std::process::Command::new("hostname").output().ok()?;
            String::from_utf8(output.stdout).ok()
        })
        .unwrap_or_else(|| "unknown".to_owned());
    format!("{user}@{}", host.trim())
}
