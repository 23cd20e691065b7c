//! `homelab` while it runs: to be killed, interrupted, waited for.

use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use homelab_lab::Output;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Cluster, ClusterFile};

/// A `homelab` that runs. Dropped before its end, it is killed.
#[derive(Debug)]
pub struct Background {
    command: String,
    child: Child,
    start: Instant,
    stdout: Pipe,
    stderr: Pipe,
}

/// What a program wrote so far.
#[derive(Debug)]
struct Pipe {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Pipe {
    fn of(mut from: impl Read + Send + 'static) -> Pipe {
        let text = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut part = [0; 8192];
            while let Ok(count @ 1..) = from.read(&mut part) {
                shared.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&part[..count]);
            }
        });
        Pipe { text, reader: Some(reader) }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    fn end(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.so_far()
    }
}

impl Cluster {
    /// Starts `homelab` on the client with our file.
    #[track_caller]
    pub fn start(&self, args: &[&str]) -> Background {
        self.start_from("client", &self.file, args)
    }

    /// Starts `homelab` on a host with a file of its own.
    #[track_caller]
    pub fn start_from(&self, host: &str, file: &ClusterFile, args: &[&str]) -> Background {
        let path = self.write_other(file);
        let mut command = self.homelab_command(host, &[&["-f", &path], args].concat());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("homelab starts");
        let stdout = Pipe::of(child.stdout.take().expect("a pipe"));
        let stderr = Pipe::of(child.stderr.take().expect("a pipe"));
        Background {
            command: format!("homelab {}", args.join(" ")),
            child,
            start: Instant::now(),
            stdout,
            stderr,
        }
    }
}

impl Background {
    /// Sends a signal to it, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.start.elapsed()
    }

    /// What it wrote to stdout and stderr so far.
    pub fn so_far(&self) -> String {
        self.stdout.so_far() + &self.stderr.so_far()
    }

    /// Waits for its end, `limit` at most: a `homelab` that hangs is a bug, whatever was done to it.
    #[track_caller]
    pub fn end(mut self, limit: Duration) -> Output {
        let start = Instant::now();
        while !self.has_ended() {
            assert!(
                start.elapsed() < limit,
                "{} still runs after {limit:?}:\n{}",
                self.command,
                self.so_far()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.child.wait().expect("it has ended");
        Output {
            command: self.command.clone(),
            code: exit_code(status),
            stdout: self.stdout.end(),
            stderr: self.stderr.end(),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Exit code in the manner of a shell: 128 + signal number if a signal ended it.
pub(crate) fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
