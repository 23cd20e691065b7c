//! What the driver needs of a connection: a byte stream to a command that runs as root on a node.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::time::Duration;

use homelab_model::SshSettings;
use thiserror::Error;

/// A node to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Node name of homelab.yaml.
    pub name: String,
    /// Where to connect unless `ssh.host` says otherwise.
    pub address: IpAddr,
    /// How to reach it.
    pub ssh: SshSettings,
}

/// Opens sessions. Called from several threads at once, one per node.
pub trait Transport: Sync {
    /// Connects to `target`, proves who we are, becomes root, and runs `command` with `sh -c`.
    fn open(&self, target: &Target, command: &str) -> Result<Box<dyn Session>, TransportError>;
}

/// A running command. Reads its stdout, writes its stdin; a long write never blocks because nobody reads meanwhile.
///
/// Written bytes may stay buffered until `flush`, the next `read` or `finish`. A read or write that sees no progress
/// for longer than the transport's idle timeout fails with [`std::io::ErrorKind::TimedOut`]. A read gives 0 only when
/// the command has closed its stdout; a lost connection is an error.
pub trait Session: Read + Write + Send {
    /// What the command has said on stderr so far (at most the last 64 KiB).
    fn stderr(&mut self) -> String;
    /// Closes stdin, waits for the end and gives the exit status (None: ended by a signal or lost).
    fn finish(&mut self) -> Option<i32>;
    /// From now on a read or write that sees no progress for longer than `idle` fails with
    /// [`std::io::ErrorKind::TimedOut`], in place of the transport's own idle timeout.
    fn patience(&mut self, idle: Duration);
    /// Bytes sent and received so far, before encryption.
    fn traffic(&self) -> (u64, u64);
}

/// Why there is no session.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The name has no address.
    #[error("cannot resolve {host}: {reason}")]
    Resolve {
        /// Host name.
        host: String,
        /// The resolver's words.
        reason: String,
    },
    /// Nobody answered or accepted.
    #[error("cannot connect to {endpoint}: {reason}")]
    Connect {
        /// `host:port`.
        endpoint: String,
        /// The system's words.
        reason: String,
    },
    /// The peer accepted and then said nothing.
    #[error("{endpoint} did not answer within {limit:?} while {stage}")]
    Timeout {
        /// `host:port`.
        endpoint: String,
        /// How long we waited.
        limit: Duration,
        /// What we waited for, e.g. `the SSH handshake`.
        stage: &'static str,
    },
    /// The handshake failed.
    #[error("the SSH handshake with {endpoint} failed: {reason}")]
    Handshake {
        /// `host:port`.
        endpoint: String,
        /// libssh2's words.
        reason: String,
    },
    /// No known_hosts file has a key for this host.
    #[error("the host key of {host} is unknown: {algorithm} {fingerprint}")]
    HostKeyUnknown {
        /// Name as known_hosts has it: `host`, or `[host]:port` if the port is not 22.
        host: String,
        /// e.g. `ssh-ed25519`.
        algorithm: String,
        /// `SHA256:...`, as `ssh-keygen -lf` prints it.
        fingerprint: String,
        /// Where it would be added.
        known_hosts: String,
        /// TCP port.
        port: u16,
    },
    /// known_hosts has another key for this host. No flag accepts this.
    #[error("the host key of {host} is not the known one: it shows {algorithm} {fingerprint}")]
    HostKeyChanged {
        /// Name as known_hosts has it.
        host: String,
        /// e.g. `ssh-ed25519`.
        algorithm: String,
        /// `SHA256:...`
        fingerprint: String,
        /// The file with the other key.
        known_hosts: String,
        /// Its line, from 1.
        line: usize,
        /// TCP port.
        port: u16,
    },
    /// known_hosts marks the host's key as revoked.
    #[error("the host key of {host} is revoked: {algorithm} {fingerprint}")]
    HostKeyRevoked {
        /// Name as known_hosts has it.
        host: String,
        /// e.g. `ssh-ed25519`.
        algorithm: String,
        /// `SHA256:...`
        fingerprint: String,
        /// The file that says so.
        known_hosts: String,
        /// Its line, from 1.
        line: usize,
    },
    /// No key was accepted.
    #[error("{user}@{host} accepted none of our keys ({tried})")]
    Auth {
        /// User.
        user: String,
        /// Host.
        host: String,
        /// What was tried, e.g. `agent: 2 keys, ~/.ssh/id_ed25519`.
        tried: String,
    },
    /// A private key cannot be used.
    #[error("the key {path} cannot be used: {reason}")]
    Key {
        /// File.
        path: String,
        /// Why.
        reason: String,
    },
    /// sudo wants a password and there is none, or it was wrong.
    #[error("sudo for {user} on {host}: {reason}")]
    Sudo {
        /// User.
        user: String,
        /// Host.
        host: String,
        /// Why.
        reason: String,
    },
    /// `ssh -G` or the user's configuration.
    #[error("SSH configuration: {0}")]
    Config(String),
    /// Something else of the connection.
    #[error("the connection to {endpoint} failed: {reason}")]
    Lost {
        /// `host:port`.
        endpoint: String,
        /// Why.
        reason: String,
    },
}
