//! Our daemons of FRR, through its `vtysh`.
//!
//! Each is asked by itself: together they would be shown as one, and what one has forgotten another would still say. What is
//! said to them goes through standard input, since arguments of processes are everybody's to read.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use homelab_model::ours;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::Error;
use crate::root::Root;

/// How long an answer may take. A daemon that is busy answers late.
const PATIENCE: Duration = Duration::from_secs(20);
/// A running command is looked after so often.
const LOOK: Duration = Duration::from_millis(2);

/// One of our daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// bgpd.
    Bgp,
    /// bfdd.
    Bfd,
}

impl Daemon {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Daemon::Bgp => "bgpd",
            Daemon::Bfd => "bfdd",
        }
    }

    /// What tells its process from the next one; None: it does not run. Cheap.
    pub fn start(self, root: &Root) -> Option<(u64, i64, i64)> {
        let path = root.path(&format!("{}/{}.pid", ours::FRR_RUN, self.name()));
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.ino(), meta.mtime(), meta.mtime_nsec()))
    }

    /// Its running configuration. It may hold passwords.
    ///
    /// # Errors
    /// It does not run or does not answer, or there is no vtysh.
    pub fn running_config(self) -> Result<String, Error> {
        self.ask("show running-config")
    }

    /// Carries commands out, in the form of a configuration file.
    ///
    /// # Errors
    /// As above, or some of the commands were refused; the others were carried out.
    pub fn configure(self, commands: &[String]) -> Result<(), Error> {
        let mut text = commands.join("\n");
        text.push('\n');
        self.run(&["-f", "/dev/stdin"], &text).map(drop)
    }

    fn ask(self, command: &str) -> Result<String, Error> {
        self.run(&["-c", command], "")
    }

    fn run(self, arguments: &[&str], input: &str) -> Result<String, Error> {
        let error = |message: String| Error::Frr { daemon: self.name(), message };
        // vtysh would also keep a history of commands.
        let mut command = Command::new("vtysh");
        command.args(["-N", ours::FRR_PATHSPACE, "-H", "/dev/null", "-d", self.name()]).args(arguments);
        let (ended, output, complaints) =
            run(&mut command, input).map_err(|e| error(format!("vtysh: {e}")))?;
        match ended {
            Some(0) => Ok(output),
            Some(_) => Err(error(complaint(&complaints))),
            None => Err(error(format!("no answer in {} s", PATIENCE.as_secs()))),
        }
    }
}

/// Sessions as bgpd tells of them, JSON.
///
/// # Errors
/// bgpd does not run or does not answer, or there is no vtysh.
pub fn neighbors() -> Result<String, Error> {
    Daemon::Bgp.ask("show bgp neighbors json")
}

/// Runs a command to its end: how it ended (None: it was killed after [`PATIENCE`]; -1: by a signal), its output and its
/// complaints. Everything goes through memory that has no name, so that no side waits for the other.
fn run(command: &mut Command, input: &str) -> std::io::Result<(Option<i32>, String, String)> {
    let file = || memfd_create(c"vtysh", MFdFlags::MFD_CLOEXEC).map(File::from);
    let (mut stdin, mut stdout, mut stderr) = (file()?, file()?, file()?);
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    command.stdin(Stdio::from(stdin));
    command.stdout(Stdio::from(stdout.try_clone()?)).stderr(Stdio::from(stderr.try_clone()?));
    command.env("LC_ALL", "C");
    let mut child = command.spawn()?;
    let end = Instant::now() + PATIENCE;
    let ended = loop {
        match child.try_wait()? {
            Some(status) => break Some(status.code().unwrap_or(-1)),
            None if Instant::now() >= end => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => sleep(LOOK),
        }
    };
    let text = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok((ended, text(&mut stdout)?, text(&mut stderr)?))
}

/// What vtysh complains of, without passwords and what does not matter.
fn complaint(text: &str) -> String {
    let matters = |line: &&str| !line.is_empty() && !line.contains("vtysh.conf");
    let lines = text.lines().map(str::trim).filter(matters).map(|line| match line.split_once(" password ") {
        Some((start, _)) => format!("{start} password ..."),
        None => line.to_owned(),
    });
    let lines: Vec<String> = lines.take(3).collect();
    match lines.is_empty() {
        true => "vtysh failed and said nothing".to_owned(),
        false => lines.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_get_more_than_a_pipe_holds_and_answer_with_more() {
        let input = "neighbor\n".repeat(50_000);
        let mut command = Command::new("sh");
        let (ended, output, complaints) =
            run(command.args(["-c", "cat /dev/stdin; echo no >&2; exit 3"]), &input).unwrap();
        assert_eq!((ended, complaints.as_str()), (Some(3), "no\n"));
        assert!(output == input, "{} of {} bytes", output.len(), input.len());
        let (ended, ..) = run(Command::new("sh").args(["-c", "kill -TERM $$"]), "").unwrap();
        assert_eq!(ended, Some(-1));
    }

    #[test]
    fn complaints_show_no_passwords() {
        let text = "% Can't open configuration file /etc/frr/homelab/vtysh.conf due to 'No such file'.\n\
                    line 9: % Unknown command[4]:  neighbor 192.0.2.1 password pass word\n";
        assert_eq!(complaint(text), "line 9: % Unknown command[4]:  neighbor 192.0.2.1 password ...");
        assert_eq!(complaint("\n"), "vtysh failed and said nothing");
    }
}
