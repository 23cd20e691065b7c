//! Errors as the CNI specification wants them: a code, a message, details.

use std::borrow::Cow;

use serde::Serialize;
use thiserror::Error;

/// Error codes: up to 99 the specification's (1.1.0, section "Error"), from 100 on ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// `cniVersion` is not one that the plugin speaks.
    Version = 1,
    /// A field of the configuration is not supported.
    UnsupportedField = 2,
    /// The container does not exist (CHECK of what was never added). The runtime need not clean up.
    UnknownContainer = 3,
    /// An environment variable is missing or wrong.
    Environment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// Something cannot be decoded.
    Decode = 6,
    /// The network configuration is invalid.
    Config = 7,
    /// The pod's network namespace is the plugin's own (as in the reference implementation's `skel`).
    NetworkNamespace = 8,
    /// A condition that passes: memory or buffers of the kernel are short, or addresses of pods that are gone cannot be
    /// freed before other ADDs are done.
    TryAgain = 11,
    /// STATUS: the plugin cannot serve ADD now; containers that are there are not concerned.
    Unavailable = 50,
    /// STATUS: the plugin cannot serve ADD now, and containers that are there may not reach those of other nodes.
    Limited = 51,
    /// No free address in the node's pod range.
    Exhausted = 100,
    /// A link that homelab did not make is in the way.
    ForeignLink = 101,
    /// This interface of this container is attached already.
    Attached = 102,
    /// The kernel refused a request.
    Kernel = 103,
    /// CHECK found something other than what ADD made.
    Mismatch = 104,
    /// The address that was asked for belongs to another pod.
    AddressTaken = 105,
    /// A port of the node that leads to another pod already.
    PortTaken = 110,
}

/// Longest message or details as they are printed, bytes: a configuration may be of any size, and errors show parts of it.
const LONGEST: usize = 2048;

/// A text for people, cut where it is too long.
fn short(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST {
        return text.into();
    }
    let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    format!("{}... ({} bytes)", text.get(..end).unwrap_or_default(), text.len()).into()
}

/// An error of the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// Code.
    pub code: Code,
    /// One sentence.
    pub message: String,
    /// What lies behind it; may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> CniError {
        CniError { code, message: message.into(), details: String::new() }
    }

    /// An error with details.
    pub fn with(code: Code, message: impl Into<String>, details: impl std::fmt::Display) -> CniError {
        CniError { code, message: message.into(), details: details.to_string() }
    }

    /// The error as the plugin prints it, for a runtime that speaks `version`.
    pub fn to_json(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let (msg, details) = (short(&self.message), short(&self.details));
        let wire = Wire { cni_version: version, code: self.code as u32, msg: &msg, details: &details };
        serde_json::to_string(&wire).unwrap_or_default()
    }
}
