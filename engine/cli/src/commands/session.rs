//! What the commands that ask nodes have in common.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use homelab_driver::{
    ByNode, Engine, Goal, Kubernetes, NodeBinaries, Observer, Options, PlannedNode, Prepared, Silent,
    Transport,
};
use homelab_model::Cluster;
use homelab_ssh::{NoPrompt, Prompt, SshOptions, SshTransport};
use tokio::runtime::Runtime;

use crate::args::{Changing, Command, Global, Rollout};
use crate::error::CliError;
use crate::planfile::Basis;
use crate::random::Random;
use crate::render::ErrorText;
use crate::signals::Signals;
use crate::stream::{Both, Stream};
use crate::terminal::{AskSecret, Terminal};
use crate::{hints, input, kubernetes, progress};

/// A checked cluster file, the way to its nodes, and the signals.
pub(crate) struct Session {
    pub(crate) cluster: Cluster,
    /// The names of `--nodes`.
    pub(crate) chosen: Vec<String>,
    transport: Box<dyn Transport>,
    binaries: NodeBinaries,
    /// The Kubernetes API, for commands that have to do with it.
    pub(crate) api: Option<Box<dyn Kubernetes>>,
    /// What this process is told from outside.
    pub(crate) signals: Signals,
    options: Options,
    random: Random,
    /// Listens for signals as long as it lives.
    _runtime: Runtime,
}

impl Session {
    pub(crate) fn new(
        global: &Global,
        terminal: &Terminal,
        manner: &Manner<'_>,
    ) -> Result<Session, CliError> {
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
        let signals = Signals::default();
        let runtime = signals.listen(terminal)?;
        let mut options = options(global, manner);
        if manner.passwords {
            options.passwords = Some(input::passwords(&loaded)?);
        }
        options.new_tokens = manner.new_tokens;
        let api = if manner.kubernetes { kubernetes::open(&loaded)? } else { None };
        let random = Random::new()?;
        Ok(Session {
            cluster: loaded.cluster,
            chosen,
            transport,
            binaries,
            api,
            signals,
            options,
            random,
            _runtime: runtime,
        })
    }

    /// Does `work` with an engine that reports to the terminal, and to `stream` if there is one.
    pub(crate) fn with<R>(
        &self,
        terminal: &Terminal,
        stream: Option<&Stream<'_>>,
        work: impl FnOnce(&Engine<'_>) -> R,
    ) -> R {
        let names: Vec<String> = self.cluster.nodes.iter().map(|n| n.name.clone()).collect();
        let mut observer = progress::observer(terminal, &names);
        if let Some(stream) = stream {
            observer = Box::new(Both(observer, stream));
        }
        self.engine(observer.as_ref(), work)
    }

    /// Does `work` with an engine that reports nothing.
    pub(crate) fn silently<R>(&self, work: impl FnOnce(&Engine<'_>) -> R) -> R {
        self.engine(&Silent, work)
    }

    fn engine<R>(&self, observer: &dyn Observer, work: impl FnOnce(&Engine<'_>) -> R) -> R {
        let engine = Engine {
            transport: self.transport.as_ref(),
            binaries: &self.binaries,
            kubernetes: self.api.as_deref(),
            observer,
            cancel: &self.signals.cancel,
            random: &|| self.random.next(),
            options: self.options.clone(),
        };
        work(&engine)
    }

    /// Gathers and plans.
    pub(crate) fn prepare(&self, terminal: &Terminal, goal: Goal) -> Result<Prepared, CliError> {
        self.with(terminal, None, |engine| engine.prepare(&self.cluster, goal, &self.chosen))
            .map_err(|e| CliError::new(e.to_string()))
    }

    /// What a plan file depends on.
    pub(crate) fn basis<'a>(&'a self, prepared: &'a Prepared) -> Basis<'a> {
        let names = self.cluster.nodes.iter().map(|n| &n.name);
        Basis {
            cluster: &self.cluster,
            chosen: &self.chosen,
            binaries: self.binaries.digests(),
            observed: names.filter_map(|n| Some((n.clone(), prepared.observed(n)?))).collect(),
            specs: &prepared.specs,
            by: self.options.by.clone(),
            at: self.options.now,
        }
    }

    /// Whether a signal has asked us to stop.
    pub(crate) fn stopped(&self) -> bool {
        self.signals.cancel.load(Ordering::SeqCst)
    }

    pub(crate) fn parallel(&self) -> usize {
        self.options.parallel
    }
}

#[cfg(test)]
impl Session {
    /// A session with nodes of tests.
    pub(crate) fn fake(
        global: &Global,
        manner: &Manner<'_>,
        cluster: Cluster,
        transport: Box<dyn Transport>,
        binaries: NodeBinaries,
    ) -> Session {
        let mut options = options(global, manner);
        options.settle = Duration::ZERO;
        options.pause = Duration::ZERO;
        Session {
            cluster,
            chosen: global.nodes.clone(),
            transport,
            binaries,
            api: None,
            signals: Signals::default(),
            options,
            random: Random::new().unwrap(),
            _runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
        }
    }
}

/// How a command works on nodes.
#[derive(Default)]
pub(crate) struct Manner<'a> {
    /// Its name, as locks and journals say it.
    pub(crate) command: &'static str,
    /// How its changes are rolled out.
    pub(crate) rollout: Option<&'a Rollout>,
    /// They are only tried for so long.
    pub(crate) hold: Option<Duration>,
    /// It needs to know the passwords of BGP peers.
    pub(crate) passwords: bool,
    /// It has to do with the Kubernetes API.
    pub(crate) kubernetes: bool,
    /// Agents get new accounts and tokens.
    pub(crate) new_tokens: bool,
}

impl Manner<'_> {
    pub(crate) fn of(command: &Command) -> Manner<'_> {
        fn changing<'a>(command: &'static str, how: &'a Changing) -> Manner<'a> {
            Manner { command, rollout: Some(&how.rollout), hold: how.trial.hold, ..Manner::default() }
        }
        let looking = |command| Manner { command, ..Manner::default() };
        match command {
            Command::Apply { changing: how, new_tokens, .. } => Manner {
                passwords: true,
                kubernetes: true,
                new_tokens: *new_tokens,
                ..changing("apply", how)
            },
            Command::Plan { .. } => Manner { passwords: true, kubernetes: true, ..looking("plan") },
            Command::Rollback(how) => changing("rollback", how),
            Command::Destroy(how) => Manner { kubernetes: true, ..changing("destroy", how) },
            Command::RotateKey { rollout, .. } => {
                Manner { command: "rotate-key", rollout: Some(rollout), ..Manner::default() }
            }
            Command::Cordon { .. } => looking("cordon"),
            Command::Uncordon { .. } => looking("uncordon"),
            Command::Confirm => looking("confirm"),
            Command::Unlock { .. } => looking("unlock"),
            _ => looking("plan"),
        }
    }
}

pub(super) fn options(global: &Global, manner: &Manner<'_>) -> Options {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut options = Options {
        parallel: usize::from(global.parallel),
        by: caller(),
        pid: std::process::id(),
        command: manner.command.to_owned(),
        now,
        ..Options::default()
    };
    options.hold = manner.hold;
    if let Some(rollout) = manner.rollout {
        options.confirm_timeout = rollout.confirm_timeout;
        options.batch = rollout.batch;
        options.max_unavailable = rollout.max_unavailable;
        options.lock_wait = rollout.lock_timeout;
    }
    options
}

/// What each planned node answered, or why it could not be asked.
pub(super) fn by_node<T: Default>(
    prepared: &Prepared,
    mut answers: ByNode<T>,
) -> Vec<(String, Result<T, ErrorText>)> {
    let of_node = |node: &PlannedNode| {
        let answer = answers.iter().position(|(name, _)| *name == node.name).map(|at| answers.remove(at).1);
        let answer = match (answer, &node.outcome) {
            (Some(answer), _) => answer.map_err(|error| ErrorText::of(&error)),
            (None, Err(error)) => Err(ErrorText::of(error)),
            (None, Ok(_)) => Ok(T::default()),
        };
        (node.name.clone(), answer)
    };
    prepared.plan.nodes.iter().map(of_node).collect()
}

pub(super) fn chosen(cluster: &Cluster, names: &[String]) -> Result<Vec<String>, CliError> {
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

/// `user@host`, for the nodes' journals.
fn caller() -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().ok()?;
        String::from_utf8(output.stdout).ok().filter(|text| !text.trim().is_empty())
    };
    let unknown = || "unknown".to_owned();
    let named = |variable: &&str| std::env::var(variable).ok().filter(|name| !name.is_empty());
    // Services and pipelines often run without either variable.
    let user = ["USER", "LOGNAME"].iter().find_map(named).or_else(|| said("id", &["-un"]));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| said("hostname", &[]));
    format!("{}@{}", user.unwrap_or_else(unknown).trim(), host.unwrap_or_else(unknown).trim())
}
