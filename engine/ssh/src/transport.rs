//! From a target to a running command.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use homelab_driver::{Session, Target, Transport, TransportError};

use crate::auth::authenticate;
use crate::config::{Resolver, Settings};
use crate::hostkey::Trust;
use crate::link::{Below, Limit, Link, Stopped};
use crate::secrets::{NoPrompt, Prompt, Secrets};
use crate::session::{Exec, Patience};
use crate::{jump, sudo, wire};

/// Jump hosts in a row; more is a loop.
const HOPS: usize = 8;
/// Time to connect where neither the caller nor the user's configuration says one.
const CONNECT: Duration = Duration::from_secs(10);

/// How to connect.
pub struct SshOptions {
    /// For each connection, from the first packet to the running command, without the time in which the user types.
    /// None: ConnectTimeout of the user's configuration, else 10 s.
    pub connect_timeout: Option<Duration>,
    /// How long a read or write may see no progress.
    pub idle_timeout: Duration,
    /// How long a session may last.
    pub total_timeout: Option<Duration>,
    /// A peer that is silent for this long is probed (at least 2 s), and given up after three unanswered probes. None:
    /// ServerAliveInterval of the user's configuration, else no probes.
    pub keepalive: Option<Duration>,
    /// Adds unknown host keys to known_hosts. Never accepts a changed one.
    pub accept_new_host_keys: bool,
    /// A known_hosts file that is read before the user's own ones and takes new keys.
    pub known_hosts_file: Option<PathBuf>,
    /// Asks for passphrases and passwords.
    pub prompt: Box<dyn Prompt>,
    /// The password for sudo on all nodes, where it is known beforehand; never logged.
    pub become_password: Option<String>,
    /// Whether the user's SSH configuration counts.
    pub use_ssh_config: bool,
    /// Read instead of `~/.ssh/config` and `/etc/ssh/ssh_config` (`ssh -F`).
    pub ssh_config_file: Option<PathBuf>,
}

impl Default for SshOptions {
    fn default() -> Self {
        SshOptions {
            connect_timeout: None,
            idle_timeout: Duration::from_secs(60),
            total_timeout: None,
            keepalive: Some(Duration::from_secs(5)),
            accept_new_host_keys: false,
            known_hosts_file: None,
            prompt: Box::new(NoPrompt),
            become_password: None,
            use_ssh_config: true,
            ssh_config_file: None,
        }
    }
}

/// Opens SSH sessions. Remembers, over all of them, answers of `ssh -G`, passphrases and passwords.
pub struct SshTransport {
    connect_timeout: Option<Duration>,
    idle_timeout: Duration,
    total_timeout: Option<Duration>,
    keepalive: Option<Duration>,
    resolver: Resolver,
    secrets: Secrets,
    trust: Trust,
}

impl SshTransport {
    /// A transport; nothing is connected yet.
    pub fn new(options: SshOptions) -> Self {
        SshTransport {
            connect_timeout: options.connect_timeout,
            idle_timeout: options.idle_timeout,
            total_timeout: options.total_timeout,
            keepalive: options.keepalive,
            resolver: Resolver::new(options.use_ssh_config, options.ssh_config_file),
            secrets: Secrets::new(options.prompt, options.become_password),
            trust: Trust {
                accept_new: options.accept_new_host_keys,
                extra: options.known_hosts_file,
                writing: Mutex::new(()),
            },
        }
    }

    fn limit(&self, settings: &Settings) -> Limit {
        Limit::new(self.connect_timeout.or(settings.connect_timeout).unwrap_or(CONNECT))
    }

    /// A session with the host of `settings`, through its jump hosts.
    fn reach(&self, settings: &Settings, depth: usize) -> Result<Link, TransportError> {
        if depth > HOPS {
            return Err(TransportError::Config(format!(
                "the ProxyJump of {} leads in circles",
                settings.name
            )));
        }
        let mut outer: Option<Link> = None;
        for (index, hop) in settings.jumps.iter().enumerate() {
            let hop = self.resolver.hop(hop)?;
            // As with `ssh -J`, only the first hop's own ProxyJump counts: the others have theirs from the chain.
            outer = Some(if index == 0 { self.reach(&hop, depth + 1)? } else { self.connect(&hop, outer)? });
        }
        self.connect(settings, outer)
    }

    /// Connects, checks the host's key, and logs in.
    fn connect(&self, settings: &Settings, outer: Option<Link>) -> Result<Link, TransportError> {
        let mut limit = self.limit(settings);
        let start = Instant::now();
        let (socket, below) = match (outer, &settings.proxy_command) {
            (Some(outer), _) => jump::through(outer, settings, &limit)?,
            (None, Some(command)) => wire::proxy_command(command, settings)?,
            (None, None) => (wire::tcp(settings, &limit)?, Below::default()),
        };
        let connected = start.elapsed();
        let mut link = Link::new(socket, below, settings.endpoint())?;
        self.trust.prefer(&link, settings)?;
        link.drive(&limit, |session| session.handshake()).map_err(|stopped| match stopped {
            Stopped::Ssh(e) => TransportError::Handshake {
                endpoint: link.endpoint.clone(),
                reason: link.explain(e.message().to_owned()),
            },
            other => link.error(other, &limit, "the SSH handshake"),
        })?;
        let shaken = start.elapsed();
        self.trust.check(&link, settings)?;
        authenticate(&mut link, settings, &self.secrets, &mut limit)?;
        let interval = self.keepalive.or(settings.alive_interval);
        link.keep_alive(interval, if self.keepalive.is_some() { 3 } else { settings.alive_count });
        tracing::debug!(
            endpoint = %link.endpoint, tcp = ?connected, handshake = ?shaken - connected,
            auth = ?start.elapsed() - shaken, "connected"
        );
        Ok(link)
    }
}

impl Transport for SshTransport {
    fn open(&self, target: &Target, command: &str) -> Result<Box<dyn Session>, TransportError> {
        let end = self.total_timeout.map(|total| Instant::now() + total);
        let settings = self.resolver.target(target)?;
        let mut link = self.reach(&settings, 0)?;
        let start = Instant::now();
        let limit = self.limit(&settings);
        let failed = |link: &Link, stopped| link.error(stopped, &limit, "starting the command");
        let mut channel = link.drive(&limit, |s| s.channel_session()).map_err(|e| failed(&link, e))?;
        let script = sudo::script(command, &settings.user, target.ssh.r#become);
        link.drive(&limit, |_| channel.exec(&script)).map_err(|e| failed(&link, e))?;
        let started = start.elapsed();
        let mut exec = Exec::new(link, channel, Patience { idle: self.idle_timeout, end });
        sudo::enter(&mut exec, &settings, target.ssh.r#become, &self.secrets, limit.length)?;
        tracing::debug!(endpoint = exec.endpoint(), exec = ?started, ready = ?start.elapsed() - started, "running");
        Ok(Box::new(exec))
    }
}
