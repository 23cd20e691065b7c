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
    },
    /// Everything is said already.
    Reported,
}

impl CliError {
    /// An error without a hint.
    pub(crate) fn new(text: impl Into<String>) -> CliError {
        CliError::Message { text: text.into(), hints: Vec::new() }
    }

    /// The same error with one more hint.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> CliError {
        if let CliError::Message { hints, .. } = &mut self {
            hints.push(hint.into());
        }
        self
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
