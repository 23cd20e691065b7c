//! What can go wrong on a node.

use std::io;

use homelab_model::Key;
use thiserror::Error;

use crate::netlink::NetlinkError;
use crate::nft::elements::ElementError;

/// Why a node could not be read or changed.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel refused, or netlink failed.
    #[error("{doing}: {source}")]
    Netlink {
        /// What was tried, e.g. `reading links`.
        doing: String,
        /// The kernel's words.
        source: NetlinkError,
    },
    /// A file operation failed.
    #[error("{doing} {path}: {source}")]
    Io {
        /// e.g. `writing`.
        doing: &'static str,
        /// Path.
        path: String,
        /// The system's words.
        source: io::Error,
    },
    /// Elements of services could not be read or changed.
    #[error("services: {0}")]
    Services(Box<ElementError>),
    /// `nft` refused.
    #[error("nft{}: {message}", chain.as_ref().map(|(_, c)| format!(" (chain {c})")).unwrap_or_default())]
    Nft {
        /// The table and chain at fault, if nft named one.
        chain: Option<(String, String)>,
        /// nft's words.
        message: String,
    },
    /// A rule that `nft` cannot read and that is not one of those that can be sent by netlink.
    #[error(
        "nft chain {chain}: neither nft nor netlink can add the rule {rule:?}: write it as the proxy's rules that remember clients of IPv6 are written"
    )]
    NftRule {
        /// Chain.
        chain: String,
        /// Rule.
        rule: String,
    },
    /// The answer of `nft` cannot be understood.
    #[error("the output of nft cannot be understood: {0}")]
    NftOutput(String),
    /// `systemctl` failed, or the unit did.
    #[error("unit {name}: {message}")]
    Unit {
        /// Unit name.
        name: String,
        /// What went wrong; last lines of its journal if it did not start.
        message: String,
    },
    /// A package could not be installed, or taken away.
    #[error("package {name}: {message}")]
    Package {
        /// Its name.
        name: String,
        /// What apt says.
        message: String,
    },
    /// One of our daemons of FRR does not answer, or refuses what it is told.
    #[error("{daemon}: {message}")]
    Frr {
        /// Which.
        daemon: &'static str,
        /// FRR's words, without passwords.
        message: String,
    },
    /// Something that is not ours has the name or place of an object of ours.
    #[error("{0}")]
    Foreign(String),
    /// The object cannot be made: it says something that no node can hold.
    #[error("{0}")]
    Invalid(String),
    /// Another process holds the lock.
    #[error("another homelab process has been at work on this node for over {0:?}")]
    Locked(std::time::Duration),
    /// A file of ours cannot be understood.
    #[error("{path} cannot be understood: {reason}")]
    Record {
        /// Path.
        path: String,
        /// Why.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: impl AsRef<std::path::Path>, source: io::Error) -> Error {
        Error::Io { doing, path: path.as_ref().display().to_string(), source }
    }
}

/// Gives a netlink error the words of what was tried.
pub(crate) fn netlink<T>(doing: impl std::fmt::Display, result: Result<T, NetlinkError>) -> Result<T, Error> {
    result.map_err(|source| Error::Netlink { doing: doing.to_string(), source })
}

/// A change of several failed.
#[derive(Debug, Error)]
#[error("{object}: {source}")]
pub struct ApplyError {
    /// Place in the list. Undo with `invert(&changes[..=index])`: the failed change may have had a part of its
    /// effect, and every change may be made twice.
    pub index: usize,
    /// The object at fault.
    pub object: Key,
    /// Why.
    pub source: Box<Error>,
}
