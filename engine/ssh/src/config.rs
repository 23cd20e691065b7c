//! How to reach a host: homelab.yaml, the user's SSH configuration, OpenSSH's defaults, in this order.

use std::collections::HashMap;
use std::env;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use homelab_driver::{Target, TransportError};

use crate::link::words;

/// What to do with a host key that nobody knows yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strict {
    /// Refuse.
    Yes,
    /// Add.
    AcceptNew,
}

/// Where keys of an agent come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AgentSocket {
    /// Nowhere.
    None,
    /// `SSH_AUTH_SOCK`.
    Environment,
    /// This socket.
    Path(PathBuf),
}

/// Algorithms that the user allows; empty: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Algorithms {
    pub(crate) kex: Vec<String>,
    pub(crate) host_key: Vec<String>,
    pub(crate) ciphers: Vec<String>,
    pub(crate) macs: Vec<String>,
}

/// A resolved host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// As it was asked for.
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    /// The key that homelab.yaml names.
    pub(crate) identity: Option<PathBuf>,
    pub(crate) identity_files: Vec<PathBuf>,
    pub(crate) identities_only: bool,
    pub(crate) agent: AgentSocket,
    pub(crate) jumps: Vec<Hop>,
    pub(crate) proxy_command: Option<String>,
    pub(crate) user_known_hosts: Vec<PathBuf>,
    pub(crate) global_known_hosts: Vec<PathBuf>,
    pub(crate) revoked_host_keys: Option<PathBuf>,
    pub(crate) strict: Strict,
    pub(crate) hash_known_hosts: bool,
    pub(crate) host_key_alias: Option<String>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) alive_interval: Option<Duration>,
    pub(crate) alive_count: u32,
    /// Some(true): only IPv4; Some(false): only IPv6.
    pub(crate) ipv4: Option<bool>,
    pub(crate) bind_address: Option<String>,
    pub(crate) pubkey: bool,
    pub(crate) password: bool,
    pub(crate) keyboard: bool,
    pub(crate) batch: bool,
    pub(crate) algorithms: Algorithms,
}

impl Settings {
    /// `host:port`, with brackets around IPv6 addresses.
    pub(crate) fn endpoint(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The host's name in known_hosts.
    pub(crate) fn known_as(&self) -> String {
        match &self.host_key_alias {
            Some(alias) => alias.to_ascii_lowercase(),
            None if self.port == 22 => self.host.to_ascii_lowercase(),
            None => format!("[{}]:{}", self.host.to_ascii_lowercase(), self.port),
        }
    }

    fn defaults(name: &str) -> Settings {
        let home = home();
        let ssh = |file: &str| home.join(".ssh").join(file);
        Settings {
            name: name.to_owned(),
            host: name.to_owned(),
            port: 22,
            user: env::var("USER").or_else(|_| env::var("LOGNAME")).unwrap_or_else(|_| "root".to_owned()),
            identity: None,
            identity_files: ["id_ed25519", "id_ecdsa", "id_rsa"].map(ssh).to_vec(),
            identities_only: false,
            agent: AgentSocket::Environment,
            jumps: Vec::new(),
            proxy_command: None,
            user_known_hosts: ["known_hosts", "known_hosts2"].map(ssh).to_vec(),
            global_known_hosts: ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"]
                .map(Into::into)
                .to_vec(),
            revoked_host_keys: None,
            strict: Strict::Yes,
            hash_known_hosts: false,
            host_key_alias: None,
            connect_timeout: None,
            alive_interval: None,
            alive_count: 3,
            ipv4: None,
            bind_address: None,
            pubkey: true,
            password: true,
            keyboard: true,
            batch: false,
            algorithms: Algorithms::default(),
        }
    }
}

/// One host of a ProxyJump.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Hop {
    pub(crate) host: String,
    pub(crate) user: Option<String>,
    pub(crate) port: Option<u16>,
}

/// What a caller asks for; what is None is left to the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Query {
    host: String,
    user: Option<String>,
    port: Option<u16>,
    identity: Option<PathBuf>,
    jump: Option<String>,
}

/// Asks `ssh -G`, once per distinct question.
pub(crate) struct Resolver {
    use_config: bool,
    config_file: Option<PathBuf>,
    answers: Mutex<HashMap<Query, Arc<Settings>>>,
}

impl Resolver {
    pub(crate) fn new(use_config: bool, config_file: Option<PathBuf>) -> Self {
        Resolver { use_config, config_file, answers: Mutex::default() }
    }

    /// The settings of a node.
    pub(crate) fn target(&self, target: &Target) -> Result<Arc<Settings>, TransportError> {
        self.resolve(Query {
            host: target.ssh.host.clone().unwrap_or_else(|| target.address.to_string()),
            user: target.ssh.user.clone(),
            port: target.ssh.port,
            identity: target.ssh.identity.as_deref().map(expand_home),
            jump: target.ssh.jump.clone(),
        })
    }

    /// The settings of a jump host. As with `ssh -J`, nothing of the target's own applies to it.
    pub(crate) fn hop(&self, hop: &Hop) -> Result<Arc<Settings>, TransportError> {
        self.resolve(Query {
            host: hop.host.clone(),
            user: hop.user.clone(),
            port: hop.port,
            ..Query::default()
        })
    }

    fn resolve(&self, query: Query) -> Result<Arc<Settings>, TransportError> {
        // Names reach a ProxyCommand's shell and ssh's argv.
        let safe = |s: &str| {
            !s.is_empty()
                && !s.starts_with('-')
                && !s
                    .contains(|c: char| c.is_whitespace() || c.is_control() || "'`\"$\\;&<>|(){}".contains(c))
        };
        if !safe(&query.host) {
            return Err(TransportError::Config(format!("{:?} is no host name", query.host)));
        }
        if let Some(user) = query.user.as_deref().filter(|u| !safe(u)) {
            return Err(TransportError::Config(format!("{user:?} is no user name")));
        }
        if let Some(known) = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&query) {
            return Ok(known.clone());
        }
        let text = if self.use_config && self.has_config() { self.ask(&query)? } else { None };
        let mut settings = match text {
            Some(text) => parse(&query.host, &text)?,
            None => {
                let mut settings = Settings::defaults(&query.host);
                settings.port = query.port.unwrap_or(22);
                settings.user = query.user.clone().unwrap_or(settings.user);
                settings.jumps = query.jump.as_deref().map(parse_jumps).transpose()?.unwrap_or_default();
                if query.identity.is_some() {
                    settings.identity_files.clear();
                }
                settings
            }
        };
        if !safe(&settings.user) || !safe(&settings.host) {
            let text = format!("{}@{} is no login", settings.user, settings.host);
            return Err(TransportError::Config(text));
        }
        if let Some(identity) = &query.identity {
            settings.identity_files.retain(|f| f != identity);
            settings.identity = Some(identity.clone());
        }
        let settings = Arc::new(settings);
        tracing::debug!(host = %query.host, endpoint = %settings.endpoint(), user = %settings.user, "resolved");
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(answers.entry(query).or_insert(settings).clone())
    }

    /// Whether there is anything that `ssh -G` could tell.
    fn has_config(&self) -> bool {
        self.config_file.is_some()
            || home().join(".ssh/config").exists()
            || ["/etc/ssh/ssh_config", "/etc/ssh/ssh_config.d"].iter().any(|p| Path::new(p).exists())
    }

    /// The words of `ssh -G`; None: there is no ssh client.
    fn ask(&self, query: &Query) -> Result<Option<String>, TransportError> {
        let mut command = Command::new("ssh");
        command.stdin(Stdio::null());
        if let Some(file) = &self.config_file {
            command.arg("-F").arg(file);
        }
        if let Some(user) = &query.user {
            command.arg("-l").arg(user);
        }
        if let Some(port) = query.port {
            command.arg("-p").arg(port.to_string());
        }
        // ssh would pass over a missing file in silence; `auth` reports it.
        if let Some(identity) = query.identity.as_ref() {
            command.arg("-i").arg(identity);
        }
        if let Some(jump) = &query.jump {
            command.arg("-J").arg(jump);
        }
        let output = match command.arg("-G").arg("--").arg(&query.host).output() {
            Ok(output) => output,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                tracing::warn!("no ssh client here: ~/.ssh/config is not honoured");
                return match &self.config_file {
                    Some(file) => Err(TransportError::Config(format!(
                        "{} needs the command ssh, which is not installed",
                        file.display()
                    ))),
                    None => Ok(None),
                };
            }
            Err(e) => return Err(TransportError::Config(format!("cannot run ssh -G: {}", words(&e)))),
        };
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(TransportError::Config(format!("ssh -G {}: {}", query.host, text.trim())));
        }
        Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

/// Reads the output of `ssh -G`.
fn parse(name: &str, text: &str) -> Result<Settings, TransportError> {
    let mut s = Settings::defaults(name);
    let mut identity_files: Vec<String> = Vec::new();
    let list = |v: &str| -> Vec<String> { v.split(',').map(str::to_owned).collect() };
    let seconds = |v: &str| v.parse().ok().filter(|n| *n > 0).map(Duration::from_secs);
    for line in text.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "hostname" => s.host = value.trim_matches(['[', ']']).to_owned(),
            "port" => s.port = value.parse().unwrap_or(22),
            "user" => s.user = value.to_owned(),
            "identityfile" if value != "none" => identity_files.push(value.to_owned()),
            "identitiesonly" => s.identities_only = yes(value),
            "identityagent" => {
                s.agent = match value {
                    "none" => AgentSocket::None,
                    "SSH_AUTH_SOCK" => AgentSocket::Environment,
                    _ => match value.strip_prefix('$') {
                        Some(variable) => env::var_os(variable)
                            .map_or(AgentSocket::None, |path| AgentSocket::Path(path.into())),
                        None => AgentSocket::Path(expand_home(value)),
                    },
                }
            }
            "proxyjump" if value != "none" => s.jumps = parse_jumps(value)?,
            "proxycommand" if value != "none" => s.proxy_command = Some(value.to_owned()),
            "userknownhostsfile" => s.user_known_hosts = files(value),
            "globalknownhostsfile" => s.global_known_hosts = files(value),
            "revokedhostkeys" if value != "none" => s.revoked_host_keys = Some(expand_home(value)),
            "stricthostkeychecking" => {
                s.strict = match value {
                    "accept-new" | "no" | "off" | "false" => Strict::AcceptNew,
                    _ => Strict::Yes,
                }
            }
            "hashknownhosts" => s.hash_known_hosts = yes(value),
            "hostkeyalias" if value != "none" => s.host_key_alias = Some(value.to_owned()),
            "connecttimeout" => s.connect_timeout = seconds(value),
            "serveraliveinterval" => s.alive_interval = seconds(value),
            "serveralivecountmax" => s.alive_count = value.parse().unwrap_or(3),
            "addressfamily" => {
                s.ipv4 = match value {
                    "inet" => Some(true),
                    "inet6" => Some(false),
                    _ => None,
                }
            }
            "bindaddress" if value != "none" => s.bind_address = Some(value.to_owned()),
            "pubkeyauthentication" => s.pubkey = value != "no" && value != "false",
            "passwordauthentication" => s.password = yes(value),
            "kbdinteractiveauthentication" => s.keyboard = yes(value),
            "batchmode" => s.batch = yes(value),
            "kexalgorithms" => s.algorithms.kex = list(value),
            "hostkeyalgorithms" => s.algorithms.host_key = list(value),
            "ciphers" => s.algorithms.ciphers = list(value),
            "macs" => s.algorithms.macs = list(value),
            _ => {}
        }
    }
    s.identity_files = identity_files.iter().map(|f| expand_home(&tokens(f, &s))).collect();
    s.proxy_command = s.proxy_command.as_deref().map(|c| tokens(c, &s));
    Ok(s)
}

fn yes(value: &str) -> bool {
    matches!(value, "yes" | "true")
}

/// Files of a known_hosts option: separated by blanks, possibly quoted.
fn files(value: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut rest = value.trim();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"').and_then(|r| r.split_once('"')) {
            Some(quoted) => quoted,
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        if word != "none" {
            found.push(expand_home(word));
        }
        rest = after.trim_start();
    }
    found
}

/// `ssh -G` leaves the tokens of IdentityFile and ProxyCommand to us.
fn tokens(text: &str, s: &Settings) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some('h') => out.push_str(&s.host),
            Some('p') => out.push_str(&s.port.to_string()),
            Some('r') => out.push_str(&s.user),
            Some('n') => out.push_str(&s.name),
            Some('k') => out.push_str(s.host_key_alias.as_ref().unwrap_or(&s.name)),
            Some('d') => out.push_str(&home().to_string_lossy()),
            Some('u') => out.push_str(&env::var("USER").unwrap_or_else(|_| "root".to_owned())),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// `[user@]host[:port][,...]`, each possibly as `ssh://...`; `none`: no jump.
fn parse_jumps(text: &str) -> Result<Vec<Hop>, TransportError> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    let bad = |hop: &str| TransportError::Config(format!("the jump {hop:?} is not [user@]host[:port]"));
    text.split(',')
        .map(|hop| {
            let rest = hop.trim();
            let rest = rest.strip_prefix("ssh://").unwrap_or(rest).trim_end_matches('/');
            let (user, rest) = match rest.rsplit_once('@') {
                Some((user, rest)) => (Some(user.to_owned()), rest),
                None => (None, rest),
            };
            let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
                let (host, after) = inner.split_once(']').ok_or_else(|| bad(hop))?;
                (host, after.strip_prefix(':'))
            } else if rest.parse::<IpAddr>().is_ok() {
                (rest, None)
            } else {
                rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port)))
            };
            let port = port.map(|p| p.parse().map_err(|_| bad(hop))).transpose()?;
            if host.is_empty() {
                return Err(bad(hop));
            }
            Ok(Hop { host: host.to_owned(), user, port })
        })
        .collect()
}

fn home() -> PathBuf {
    env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

fn expand_home(path: &str) -> PathBuf {
    match path.strip_prefix("~/") {
        Some(rest) => home().join(rest),
        None => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps() {
        let hop = |host: &str, user: Option<&str>, port| Hop {
            host: host.to_owned(),
            user: user.map(str::to_owned),
            port,
        };
        assert_eq!(
            parse_jumps("u1@a:33,[10.0.0.1],ssh://me@b:2222/,fd00::1,[fd00::2]:24").unwrap(),
            [
                hop("a", Some("u1"), Some(33)),
                hop("10.0.0.1", None, None),
                hop("b", Some("me"), Some(2222)),
                hop("fd00::1", None, None),
                hop("fd00::2", None, Some(24)),
            ]
        );
        assert_eq!(parse_jumps("none").unwrap(), []);
        for bad in ["a:port", "", "u@", "[fd00::1"] {
            assert!(parse_jumps(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn output_of_ssh() {
        let text = "hostname 10.0.0.9\nport 2222\nuser bob\nidentityfile /k/%r_%h_%%\nidentityfile /tmp/a b/key\n\
            identitiesonly yes\nidentityagent none\nproxycommand nc %h %p\nuserknownhostsfile /a \"/b c\" /d\n\
            stricthostkeychecking accept-new\nhashknownhosts yes\nhostkeyalias Alias\nconnecttimeout 7\n\
            serveraliveinterval 0\naddressfamily inet6\nciphers a,b\npasswordauthentication no\n";
        let s = parse("node1", text).unwrap();
        assert_eq!(s.endpoint(), "10.0.0.9:2222");
        assert_eq!(s.known_as(), "alias");
        assert_eq!(s.identity_files, ["/k/bob_10.0.0.9_%", "/tmp/a b/key"].map(PathBuf::from));
        assert_eq!(s.proxy_command.as_deref(), Some("nc 10.0.0.9 2222"));
        assert_eq!(s.user_known_hosts, ["/a", "/b c", "/d"].map(PathBuf::from));
        assert_eq!((s.strict, s.agent, s.ipv4), (Strict::AcceptNew, AgentSocket::None, Some(false)));
        assert_eq!((s.connect_timeout, s.alive_interval), (Some(Duration::from_secs(7)), None));
        assert!(s.identities_only && s.hash_known_hosts && !s.password && s.keyboard && s.pubkey);
        assert_eq!(s.algorithms.ciphers, ["a", "b"]);
    }

    #[test]
    fn hostile_names_are_refused() {
        let resolver = Resolver::new(false, None);
        for host in ["-oProxyCommand=x", "a b", "a;b", "$(x)", ""] {
            let hop = Hop { host: host.to_owned(), user: None, port: None };
            assert!(matches!(resolver.hop(&hop), Err(TransportError::Config(_))), "{host}");
        }
    }
}
