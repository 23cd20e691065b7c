//! The dialogue with sudo, by scripts named `id` and `sudo` in the server's PATH: the machine that runs these tests
//! has neither a second user nor, perhaps, sudo. The lab's tests use the real one.

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use homelab_ssh::{SshOptions, SshTransport, Transport, TransportError};
use tempfile::TempDir;

use crate::server::{Sshd, User, error, script, target, text};

/// Speaks as sudo 1.9 does; `$DIR` is where it notes what it sees.
const SUDO: &str = r#"#!/bin/sh
echo "$@" >>"$DIR/argv"
[ "$1" = -S ] && [ "$2" = -p ] || { echo "usage" >&2; exit 1; }
prompt=$3
shift 3
tries=0
while [ -e "$DIR/password" ]; do
    printf '%s' "$prompt" >&2
    IFS= read -r given || { echo >&2; echo "sudo: no password was provided" >&2; exit 1; }
    [ "$given" = "$(cat "$DIR/password")" ] && break
    tries=$((tries + 1))
    [ $tries = 3 ] && { echo "sudo: 3 incorrect password attempts" >&2; exit 1; }
    echo "Sorry, try again." >&2
done
[ -e "$DIR/refuse" ] && { cat "$DIR/refuse" >&2; exit 1; }
echo "a lecture" >&2
exec env HL_ROOT=yes "$@"
"#;

/// An sshd whose login looks like a user's with sudo.
fn user_with_sudo() -> (TempDir, Sshd) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    script(&dir.path().join("id"), "#!/bin/sh\necho 1000\n");
    script(&dir.path().join("sudo"), SUDO);
    let sshd = Sshd::with(&format!("PATH={path}:/usr/bin:/bin DIR={path}"), &["ed25519"]);
    sshd.know("ed25519");
    sshd.authorize("id", &["-t", "ed25519"]);
    (dir, sshd)
}

fn become_target() -> homelab_ssh::Target {
    let mut target = target();
    target.ssh.r#become = Some(true);
    target
}

fn transport(sshd: &Sshd, user: &User) -> SshTransport {
    SshTransport::new(SshOptions { prompt: Box::new(user.clone()), ..sshd.options() })
}

#[test]
fn without_password() {
    let (_dir, sshd) = user_with_sudo();
    let user = User::default();
    let mut session =
        transport(&sshd, &user).open(&become_target(), "echo $HL_ROOT; echo err >&2; cat").unwrap();
    session.write_all(b"data\n").unwrap();
    let mut buffer = [0; 9];
    session.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"yes\ndata\n");
    assert_eq!(session.finish(), Some(0));
    // Neither the lecture nor our own marks.
    assert_eq!(session.stderr(), "err\n");
    assert_eq!(user.questions(), Vec::<String>::new());
}

#[test]
fn with_password_asked_once_for_all_nodes() {
    let (dir, sshd) = user_with_sudo();
    fs::write(dir.path().join("password"), "it's a \\ $ecret\n").unwrap();
    let user = User::says(&["it's a \\ $ecret"]);
    let transport = transport(&sshd, &user);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut session = transport.open(&become_target(), "echo $HL_ROOT; cat; exit 5").unwrap();
                session.write_all(b"data").unwrap();
                assert_eq!(session.finish(), Some(5));
                assert_eq!(text(&mut *session), "yes\ndata");
                assert_eq!(session.stderr(), "");
            });
        }
    });
    assert_eq!(user.questions().len(), 1);
    assert!(user.questions()[0].starts_with("sudo password for "), "{:?}", user.questions());
    // Never in an argument list, and never in sshd's log.
    assert!(!fs::read_to_string(dir.path().join("argv")).unwrap().contains("ecret"));
    assert!(!sshd.log().contains("ecret"));
}

#[test]
fn a_given_password() {
    let (dir, sshd) = user_with_sudo();
    fs::write(dir.path().join("password"), "right\n").unwrap();
    let open = |password: &str| {
        let options = SshOptions { become_password: Some(password.to_owned()), ..sshd.options() };
        SshTransport::new(options).open(&become_target(), "echo $HL_ROOT")
    };
    assert_eq!(text(&mut *open("right").unwrap()), "yes\n");
    let start = Instant::now();
    match error(open("wrong")) {
        TransportError::Sudo { reason, .. } => assert_eq!(reason, "the password was refused"),
        other => panic!("{other}"),
    }
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_slip_of_the_hand() {
    let (dir, sshd) = user_with_sudo();
    fs::write(dir.path().join("password"), "right\n").unwrap();
    let user = User::says(&["wrong", "right"]);
    let mut session = transport(&sshd, &user).open(&become_target(), "echo $HL_ROOT").unwrap();
    assert_eq!(text(&mut *session), "yes\n");
    assert_eq!(user.questions().len(), 2);
    let user = User::says(&["a", "b", "c", "d", "e"]);
    match error(transport(&sshd, &user).open(&become_target(), "true")) {
        TransportError::Sudo { reason, .. } => assert_eq!(reason, "the password was refused"),
        other => panic!("{other}"),
    }
    assert_eq!(user.questions().len(), 3);
}

#[test]
fn nobody_to_ask() {
    let (dir, sshd) = user_with_sudo();
    fs::write(dir.path().join("password"), "right\n").unwrap();
    match error(sshd.transport().open(&become_target(), "true")) {
        TransportError::Sudo { reason, .. } => assert!(reason.contains("nobody can be asked"), "{reason}"),
        other => panic!("{other}"),
    }
}

#[test]
fn refusals() {
    let (dir, sshd) = user_with_sudo();
    for (said, expected) in [
        ("sudo: sorry, you must have a tty to run sudo\n", "requiretty"),
        ("me is not in the sudoers file.\n", "me is not in the sudoers file."),
        ("", "it ended without a word"),
    ] {
        fs::write(dir.path().join("refuse"), said).unwrap();
        match error(sshd.transport().open(&become_target(), "true")) {
            TransportError::Sudo { reason, .. } => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn no_sudo() {
    let dir = tempfile::tempdir().unwrap();
    script(&dir.path().join("id"), "#!/bin/sh\necho 1000\n");
    for tool in ["sh", "echo"] {
        std::os::unix::fs::symlink(format!("/bin/{tool}"), dir.path().join(tool)).unwrap();
    }
    let sshd = Sshd::with(&format!("PATH={}", dir.path().display()), &["ed25519"]);
    sshd.know("ed25519");
    sshd.authorize("id", &["-t", "ed25519"]);
    match error(sshd.transport().open(&become_target(), "true")) {
        TransportError::Sudo { reason, .. } => {
            assert!(reason.starts_with("sudo is not installed"), "{reason}")
        }
        other => panic!("{other}"),
    }
}

#[test]
fn root_needs_no_sudo() {
    let (dir, sshd) = user_with_sudo();
    script(&dir.path().join("id"), "#!/bin/sh\necho 0\n");
    let mut session = sshd.transport().open(&become_target(), "echo root$HL_ROOT").unwrap();
    assert_eq!(text(&mut *session), "root\n");
    assert!(!dir.path().join("argv").exists());
}

#[test]
fn not_wanted() {
    let (dir, sshd) = user_with_sudo();
    let mut target = target();
    target.ssh.r#become = Some(false);
    let mut session = sshd.transport().open(&target, "echo user$HL_ROOT").unwrap();
    assert_eq!(text(&mut *session), "user\n");
    assert!(!dir.path().join("argv").exists());
}

#[test]
fn any_command_arrives_through_sudo_as_it_is() {
    let (_dir, sshd) = user_with_sudo();
    let command = "printf %s \"$(cat <<'END'\nit's \\\\ a\\b \"$HOME\" `id` !\nEND\n)\"";
    let mut session = sshd.transport().open(&become_target(), command).unwrap();
    assert_eq!(text(&mut *session), "it's \\\\ a\\b \"$HOME\" `id` !");
}

#[test]
fn a_sudo_that_hangs() {
    let (dir, sshd) = user_with_sudo();
    script(&dir.path().join("sudo"), "#!/bin/sh\nprintf 'Verification code: ' >&2\nexec sleep 60\n");
    let options = SshOptions { connect_timeout: Some(Duration::from_secs(2)), ..sshd.options() };
    let start = Instant::now();
    match error(SshTransport::new(options).open(&become_target(), "true")) {
        TransportError::Sudo { reason, .. } => assert!(reason.contains("Verification code"), "{reason}"),
        other => panic!("{other}"),
    }
    assert!(start.elapsed() < Duration::from_secs(30));
}
