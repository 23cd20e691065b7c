//! Root in one exec.
//!
//! The remote command prints [`READY`] when it runs as root; what login scripts say before is dropped. For another
//! user it goes through `sudo -S`, which asks on stderr with [`ASK`] only if it needs a password: so one exec serves
//! root, sudo without and sudo with password, and a second question means that the first answer was wrong.

use std::time::{Duration, Instant};

use homelab_driver::TransportError;

use crate::config::Settings;
use crate::link::words;
use crate::secrets::{Purpose, Secrets};
use crate::session::Exec;

/// On stdout, and with sudo on stderr, too: from here on the stream is the command's.
const READY: &str = "homelab-ssh-ready";
/// sudo's question.
const ASK: &str = "homelab-ssh-password";
/// On stdout: there is no sudo.
const MISSING: &str = "homelab-ssh-no-sudo";
/// Bytes of login noise that are passed over.
const NOISE: usize = 64 * 1024;

/// What the login shell is given: `command` with `sh -c`, as root unless `become` is Some(false).
pub(crate) fn script(command: &str, user: &str, r#become: Option<bool>) -> String {
    let command = quote(command);
    if !may_sudo(user, r#become) {
        return format!("echo {READY}; exec sh -c {command}");
    }
    let root = quote(&format!("echo {READY}; echo {READY} >&2; exec sh -c \"$1\""));
    let text = format!(
        "if [ \"$(id -u)\" = 0 ]; then echo {READY}; exec sh -c \"$1\"; fi; \
         command -v sudo >/dev/null || {{ echo {MISSING}; exit 1; }}; \
         exec sudo -S -p {ASK} sh -c \"$2\" sh \"$1\""
    );
    format!("exec sh -c {} sh {command} {root}", quote(&text))
}

/// Whether the script looks for another way to root than the login. For `root` it asks only if told to.
fn may_sudo(user: &str, r#become: Option<bool>) -> bool {
    r#become.unwrap_or(user != "root")
}

/// Quotes for POSIX shells and fish, which takes a backslash within single quotes as an escape.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\0").replace('\'', "'\"'\"'").replace('\0', "'\"\\\\\"'"))
}

/// Reads up to the command's own output, answering sudo. `limit` is the time for it without the user's.
pub(crate) fn enter(
    exec: &mut Exec,
    settings: &Settings,
    r#become: Option<bool>,
    secrets: &Secrets,
    limit: Duration,
) -> Result<(), TransportError> {
    let may_sudo = may_sudo(&settings.user, r#become);
    let sudo = |reason: String| TransportError::Sudo {
        user: settings.user.clone(),
        host: settings.endpoint(),
        reason,
    };
    let lost =
        |exec: &Exec, reason: String| TransportError::Lost { endpoint: exec.endpoint().to_owned(), reason };
    let mut since = Instant::now();
    let mut asked = 0;
    let mut seen = 0;
    let mut generation = None;
    loop {
        let moved = exec.pump(NOISE).map_err(|e| lost(exec, words(&e)))?;
        if skip_to(exec, READY, seen) {
            return Ok(());
        }
        if skip_to(exec, MISSING, seen) {
            return Err(sudo("sudo is not installed there; log in as root, or install it".to_owned()));
        }
        seen = exec.inbox().len();
        if count(exec.errors(), ASK) > asked {
            asked += 1;
            let text = format!("sudo password for {} (asked once for all nodes): ", settings.user);
            let answer = if settings.batch && generation.is_none() {
                secrets.cached(&Purpose::Sudo)
            } else {
                secrets.get(&Purpose::Sudo, &text, generation)
            };
            let Some((password, number)) = answer else {
                return Err(sudo(match generation {
                    Some(_) => "the password was refused".to_owned(),
                    None => "it wants a password, and nobody can be asked".to_owned(),
                }));
            };
            generation = Some(number);
            exec.refresh();
            exec.say(&format!("{}\n", password.expose()));
            since = Instant::now();
            continue;
        }
        if exec.ended() {
            let said = said(exec.errors());
            return Err(if may_sudo {
                sudo(explain(&said, generation.is_some()))
            } else {
                lost(exec, or(said, "the remote shell ended before the command"))
            });
        }
        if exec.inbox().len() >= NOISE {
            return Err(lost(exec, "the remote login prints without end".to_owned()));
        }
        if moved {
            continue;
        }
        if since.elapsed() >= limit {
            let said = said(exec.errors());
            if may_sudo && !said.is_empty() {
                return Err(sudo(format!("it did not come to an end within {limit:?}; it said: {said}")));
            }
            let endpoint = exec.endpoint().to_owned();
            return Err(TransportError::Timeout { endpoint, limit, stage: "starting the command" });
        }
        exec.wait_until(since + limit).map_err(|e| lost(exec, words(&e)))?;
    }
}

/// Removes everything up to the line `mark` from what has arrived; looks only at what is newer than `seen` bytes.
fn skip_to(exec: &mut Exec, mark: &str, seen: usize) -> bool {
    let line = format!("{mark}\n");
    let from = seen.saturating_sub(line.len());
    let inbox = exec.inbox().make_contiguous();
    let Some(new) = inbox.get(from..) else { return false };
    let Some(at) = new.windows(line.len()).position(|w| w == line.as_bytes()) else { return false };
    exec.inbox().drain(..from + at + line.len());
    true
}

fn count(text: &[u8], mark: &str) -> u32 {
    u32::try_from(text.windows(mark.len()).filter(|w| *w == mark.as_bytes()).count()).unwrap_or(u32::MAX)
}

/// stderr of the command alone: without what sudo said before it.
pub(crate) fn own_errors(text: &str) -> &str {
    let line = "homelab-ssh-ready\n";
    text.find(line).map_or(text, |at| &text[at + line.len()..])
}

fn said(errors: &[u8]) -> String {
    let text = String::from_utf8_lossy(errors).replace(ASK, "");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines.join("; ")
}

fn or(text: String, other: &str) -> String {
    if text.is_empty() { other.to_owned() } else { text }
}

/// What sudo's last words mean.
fn explain(said: &str, password_given: bool) -> String {
    if said.contains("must have a tty") || said.contains("a terminal is required") {
        return format!(
            "sudoers demands a terminal (Defaults requiretty), which homelab does not use: {said}"
        );
    }
    if password_given && (said.contains("incorrect password") || said.contains("try again")) {
        return "the password was refused".to_owned();
    }
    or(said.to_owned(), "it ended without a word")
}
