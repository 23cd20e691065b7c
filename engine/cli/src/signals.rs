//! Ctrl-C, a cancelled CI job, a terminal that is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::CliError;
use crate::terminal::Terminal;

/// What a signal means now. Pure, so that it can be tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The nodes at work are finished or rolled back, no other is begun.
    Stop,
    /// The process ends.
    Leave,
    /// The user has seen enough: the process ends, and well.
    Enough,
}

/// Hears the signals of this process.
#[derive(Clone, Default)]
pub(crate) struct Signals {
    /// Set at the first signal: the engine stops.
    pub(crate) cancel: Arc<AtomicBool>,
    changing: Arc<AtomicBool>,
    watching: Arc<AtomicBool>,
    first: Arc<AtomicI32>,
}

impl Signals {
    /// Listens as long as the runtime lives.
    pub(crate) fn listen(&self, terminal: &Terminal) -> Result<Runtime, CliError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let guard = runtime.enter();
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            // nohup, and a shell's background jobs: whoever started us wants us not to hear it.
            if ignored(kind.as_raw_value()) {
                continue;
            }
            let mut stream = signal(kind)?;
            let (signals, voice, interactive) = (self.clone(), terminal.voice(), terminal.interactive);
            runtime.spawn(async move {
                while stream.recv().await.is_some() {
                    match signals.hear(kind.as_raw_value()) {
                        Answer::Stop => voice.say(
                            "stopping: the nodes at work are finished or rolled back first; \
                             a second signal leaves at once",
                        ),
                        Answer::Enough => std::process::exit(0),
                        Answer::Leave => {
                            if signals.is_changing() {
                                voice.say(
                                    "leaving now: what is not confirmed, the nodes take back by themselves; \
                                     homelab status shows when they have",
                                );
                            }
                            if interactive {
                                // A question for a password may have left the terminal silent.
                                let _ = std::process::Command::new("stty").arg("echo").status();
                            }
                            std::process::exit(128 + kind.as_raw_value());
                        }
                    }
                }
            });
        }
        drop(guard);
        Ok(runtime)
    }

    /// Does `work`, which changes nodes: the first signal lets it come to a good end.
    pub(crate) fn changing<R>(&self, work: impl FnOnce() -> R) -> R {
        self.changing.store(true, Ordering::SeqCst);
        let result = work();
        self.changing.store(false, Ordering::SeqCst);
        result
    }

    /// From now on the command only shows what it sees: Ctrl-C is how it is meant to end.
    pub(crate) fn watch(&self) {
        self.watching.store(true, Ordering::SeqCst);
    }

    /// Waits until nodes are being changed, then hears a signal as if it came from outside.
    #[cfg(test)]
    pub(crate) fn feign(&self, number: i32) {
        while !self.is_changing() {
            std::thread::yield_now();
        }
        assert_eq!(self.hear(number), Answer::Stop);
    }

    fn is_changing(&self) -> bool {
        self.changing.load(Ordering::SeqCst)
    }

    fn hear(&self, number: i32) -> Answer {
        if self.watching.load(Ordering::SeqCst) && number == SignalKind::interrupt().as_raw_value() {
            return Answer::Enough;
        }
        if !self.is_changing() || self.cancel.swap(true, Ordering::SeqCst) {
            return Answer::Leave;
        }
        self.first.store(number, Ordering::SeqCst);
        Answer::Stop
    }

    /// Exit code of a run that was stopped: 128 and the number of the signal.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self.first.load(Ordering::SeqCst) {
            0 => None,
            number => u8::try_from(128 + number).ok(),
        }
    }
}

/// Whether this process was started with a signal ignored. Only Linux says.
fn ignored(number: i32) -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| in_mask(&status, number))
}

/// Whether a signal is in the mask `SigIgn` of a `/proc/PID/status`.
fn in_mask(status: &str, number: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let bits = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    (1..=64).contains(&number) && bits >> (number - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_in_the_mask() {
        let status = "Name:\thomelab\nSigBlk:\t0000000000000003\nSigIgn:\t0000000000001001\n";
        assert!(in_mask(status, 1) && in_mask(status, 13));
        assert!(!in_mask(status, 2) && !in_mask(status, 15) && !in_mask("", 1) && !in_mask(status, 0));
    }

    #[test]
    fn ctrl_c_ends_a_watch_well() {
        let signals = Signals::default();
        signals.watch();
        assert_eq!((signals.hear(2), signals.hear(15)), (Answer::Enough, Answer::Leave));
    }

    #[test]
    fn the_first_signal_stops_changes_and_the_second_leaves() {
        let signals = Signals::default();
        assert_eq!(signals.hear(15), Answer::Leave, "nothing is being changed");
        assert_eq!(signals.exit_code(), None);
        signals.changing(|| {
            assert_eq!(signals.hear(15), Answer::Stop);
            assert!(signals.cancel.load(Ordering::SeqCst));
            assert_eq!(signals.hear(2), Answer::Leave);
        });
        assert_eq!(signals.exit_code(), Some(143));
        assert_eq!(signals.hear(2), Answer::Leave);
    }
}
