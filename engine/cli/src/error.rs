//! What ends a command.

use homelab_config::Diagnostics;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum CliError {
    /// Problems of the cluster file.
    Config(Diagnostics),
    /// Anything else: what is wrong and what to do next.
    Message {
        /// What is wrong.
        text: String,
        /// What to do next.
        hints: Vec<String>,
        /// Exit code of the process.
        code: u8,
    },
    /// Everything is said already.
    Reported,
}

impl CliError {
    /// An error without a hint.
    pub(crate) fn new(text: impl Into<String>) -> CliError {
        CliError::Message { text: text.into(), hints: Vec::new(), code: 1 }
    }

    /// The same error with one more hint.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> CliError {
        if let CliError::Message { hints, .. } = &mut self {
            hints.push(hint.into());
        }
        self
    }

    /// The same error with the exit code of a signal that brought it about, if one did.
    pub(crate) fn stopped_by(mut self, signal: Option<u8>) -> CliError {
        if let (CliError::Message { code, .. }, Some(signal)) = (&mut self, signal) {
            *code = signal;
        }
        self
    }

    /// Exit code of the process.
    pub(crate) fn code(&self) -> u8 {
        match self {
            CliError::Message { code, .. } => *code,
            CliError::Config(_) | CliError::Reported => 1,
        }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        // A reader like `head` that has enough is no error worth a word.
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return CliError::Reported;
        }
        CliError::new(error.to_string())
    }
}
