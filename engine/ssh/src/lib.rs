//! The one [`Transport`] that opens SSH: libssh2 (crate `ssh2`), one thread per session, no shared state but caches.
//!
//! # Decisions
//! - **The user's configuration is asked for, not parsed.** `ssh -G` prints what OpenSSH itself makes of
//!   `~/.ssh/config` (Host, Match, Include, tokens, canonical names), for about 5 ms per host, and
//!   homelab.yaml's values go in as options, so they win. It is asked for the node's *address* unless homelab.yaml
//!   gives `ssh.host`. Without an `ssh` client or without any configuration file OpenSSH's defaults hold.
//! - **Honoured**: HostName, Port, User, IdentityFile (with tokens), IdentitiesOnly, IdentityAgent, ProxyJump
//!   (chains, each hop with its own configuration), ProxyCommand, UserKnownHostsFile, GlobalKnownHostsFile,
//!   RevokedHostKeys (lists of keys; a KRL is refused), StrictHostKeyChecking, HashKnownHosts, HostKeyAlias,
//!   ConnectTimeout, ServerAliveInterval, ServerAliveCountMax, AddressFamily, BindAddress, BatchMode,
//!   PubkeyAuthentication, PasswordAuthentication, KbdInteractiveAuthentication, and Ciphers, MACs, KexAlgorithms and
//!   HostKeyAlgorithms as filters (the order stays libssh2's).
//! - **Not honoured**: certificates of hosts and users, GSSAPI and host-based authentication, security-key files
//!   (an agent that holds them works), ControlMaster, forwardings, Compression, VerifyHostKeyDNS, KnownHostsCommand,
//!   UpdateHostKeys. `@cert-authority` lines are passed over. A jump host's connection is not shared by nodes.
//! - **Host keys**: known_hosts is read here, since libssh2 knows neither wildcards nor markers. The server is asked
//!   for the kind of key that is known. An unknown key is added only with [`SshOptions::accept_new_host_keys`] or the
//!   user's own `StrictHostKeyChecking accept-new|no`; a changed or revoked one is never accepted.
//! - **No "none" probe** before keys: it would cost a round trip, and its answer matters only when all keys fail.
//! - **The socket never blocks.** libssh2 runs in its non-blocking mode below a `poll` of ours, so every wait has a
//!   deadline, and writing goes on reading, so that neither direction can stop the other.
//! - **TCP_QUICKACK** (Linux) before every wait: sshd leaves Nagle's algorithm on until a session has started, so its
//!   answer to the first request after login would wait 40 ms for our delayed ACK.
//! - **sudo in the same exec**: see the module `sudo`. Passwords go through stdin only.

mod auth;
mod config;
mod hostkey;
mod jump;
mod keyfile;
mod known_hosts;
mod link;
mod secrets;
mod session;
mod sudo;
mod transport;
mod wire;

pub use homelab_driver::{Session, Target, Transport, TransportError};
pub use secrets::{NoPrompt, Prompt};
pub use transport::{SshOptions, SshTransport};
