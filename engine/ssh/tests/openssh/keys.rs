use std::fs;
use std::thread;
use std::time::Duration;

use homelab_ssh::{Prompt, SshOptions, SshTransport, Transport, TransportError};

use crate::server::{Agent, Sshd, User, error, keygen, target, text};

/// Logs in with the one key that `args` make.
fn logs_in(args: &[&str]) {
    let sshd = Sshd::with("", &["ed25519"]);
    sshd.know("ed25519");
    sshd.authorize("id", args);
    assert_eq!(sshd.run("echo in"), "in\n");
    assert!(sshd.log().contains("Accepted publickey"), "{}", sshd.log());
    // Also without the public half beside it.
    fs::remove_file(sshd.path("id.pub")).unwrap();
    assert_eq!(sshd.run("echo in"), "in\n");
}

#[test]
fn ed25519() {
    logs_in(&["-t", "ed25519"]);
}

#[test]
fn ecdsa() {
    for bits in ["256", "384", "521"] {
        logs_in(&["-t", "ecdsa", "-b", bits]);
    }
}

#[test]
fn rsa() {
    logs_in(&["-t", "rsa"]);
}

#[test]
fn pem() {
    logs_in(&["-t", "rsa", "-m", "PEM"]);
    logs_in(&["-t", "ecdsa", "-m", "PEM"]);
    logs_in(&["-t", "rsa", "-m", "PKCS8"]);
}

fn passphrase(args: &[&str], public_beside: bool) {
    let sshd = Sshd::with("", &["ed25519"]);
    sshd.know("ed25519");
    sshd.authorize("id", &[args, &["-N", "open sesame"]].concat());
    if !public_beside {
        fs::remove_file(sshd.path("id.pub")).unwrap();
    }
    let user = User::says(&["wrong", "open sesame"]);
    let options = SshOptions { prompt: Box::new(user.clone()), ..sshd.options() };
    let transport = SshTransport::new(options);
    // Two at once: one question, its repetition, and no more.
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(text(&mut *transport.open(&target(), "echo in").unwrap()), "in\n"));
        }
    });
    let question = format!("Passphrase for the key {}: ", sshd.path("id").display());
    assert_eq!(user.questions(), [question.clone(), question]);
}

#[test]
fn encrypted_ed25519() {
    passphrase(&["-t", "ed25519"], true);
    passphrase(&["-t", "ed25519"], false);
}

#[test]
fn encrypted_ecdsa() {
    passphrase(&["-t", "ecdsa"], false);
}

#[test]
fn encrypted_rsa() {
    passphrase(&["-t", "rsa"], false);
}

#[test]
fn encrypted_pem() {
    passphrase(&["-t", "rsa", "-m", "PEM"], true);
    passphrase(&["-t", "rsa", "-m", "PEM"], false);
}

#[test]
fn encrypted_and_nobody_to_ask() {
    let sshd = Sshd::with("", &["ed25519"]);
    sshd.know("ed25519");
    sshd.authorize("id", &["-t", "ed25519", "-N", "open sesame"]);
    let said = sshd.error().to_string();
    assert!(said.contains("id (encrypted, and nobody to ask)"), "{said}");
    let user = User::says(&["a", "b", "c", "d"]);
    let transport = SshTransport::new(SshOptions { prompt: Box::new(user.clone()), ..sshd.options() });
    let said = error(transport.open(&target(), "true")).to_string();
    assert!(said.contains("id (wrong passphrase)"), "{said}");
    assert_eq!(user.questions().len(), 3);
}

/// Types for longer than a connection may take.
struct Slow;

impl Prompt for Slow {
    fn secret(&self, _text: &str) -> Option<String> {
        thread::sleep(Duration::from_secs(4));
        Some("open sesame".to_owned())
    }
}

#[test]
fn the_users_time_does_not_count() {
    let sshd = Sshd::with("", &["ed25519"]);
    sshd.know("ed25519");
    sshd.authorize("id", &["-t", "ed25519", "-N", "open sesame"]);
    let transport = SshTransport::new(SshOptions {
        prompt: Box::new(Slow),
        connect_timeout: Some(Duration::from_secs(3)),
        ..sshd.options()
    });
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(text(&mut *transport.open(&target(), "echo in").unwrap()), "in\n"));
        }
    });
}

#[test]
fn a_key_that_the_server_does_not_want_needs_no_passphrase() {
    let sshd = Sshd::start();
    keygen(sshd.dir.path(), "locked", &["-t", "ed25519", "-N", "open sesame"]);
    sshd.configure(&format!("IdentityFile {}\n", sshd.path("locked").display()));
    let user = User::says(&["never asked"]);
    let transport = SshTransport::new(SshOptions { prompt: Box::new(user.clone()), ..sshd.options() });
    assert_eq!(text(&mut *transport.open(&target(), "echo in").unwrap()), "in\n");
    assert_eq!(user.questions(), Vec::<String>::new());
}

#[test]
fn wrong_key() {
    let sshd = Sshd::start();
    fs::write(sshd.path("authorized_keys"), "").unwrap();
    match sshd.error() {
        TransportError::Auth { tried, .. } => assert!(tried.ends_with("/id"), "{tried}"),
        other => panic!("{other}"),
    }
}

#[test]
fn no_key_at_all() {
    let sshd = Sshd::start();
    fs::remove_file(sshd.path("id")).unwrap();
    fs::remove_file(sshd.path("id.pub")).unwrap();
    match sshd.error() {
        TransportError::Auth { tried, .. } => assert_eq!(tried, "no key found"),
        other => panic!("{other}"),
    }
}

#[test]
fn key_of_the_file() {
    let sshd = Sshd::start();
    sshd.authorize("other", &["-t", "ed25519"]);
    fs::write(sshd.path("id"), "this is no key").unwrap();
    let mut target = target();
    target.ssh.identity = Some(sshd.path("other").display().to_string());
    assert_eq!(text(&mut *sshd.transport().open(&target, "echo in").unwrap()), "in\n");
    target.ssh.identity = Some(sshd.path("absent").display().to_string());
    match error(sshd.transport().open(&target, "true")) {
        TransportError::Key { path, reason } => {
            assert!(path.ends_with("/absent") && reason == "No such file or directory", "{path}: {reason}");
        }
        other => panic!("{other}"),
    }
    // The configuration's key is no key, and that is said.
    let said = sshd.error().to_string();
    assert!(said.contains("/id (it is no key)"), "{said}");
}

#[test]
fn agent() {
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let sshd = Sshd::start();
        let agent = Agent::start(sshd.dir.path());
        fs::write(sshd.path("authorized_keys"), "").unwrap();
        sshd.authorize("in_agent", &["-t", kind]);
        agent.add(&sshd.path("in_agent"));
        fs::remove_file(sshd.path("in_agent")).unwrap();
        sshd.configure(&format!("IdentityAgent {}\n", agent.socket.display()));
        assert_eq!(sshd.run("echo in"), "in\n");
        // The file names another key, and only that one may be used.
        sshd.configure(&format!("IdentityAgent {}\nIdentitiesOnly yes\n", agent.socket.display()));
        assert!(matches!(sshd.error(), TransportError::Auth { .. }));
    }
}

#[test]
fn an_agent_full_of_keys_leaves_room_for_the_right_one() {
    // More keys than MaxAuthTries; the right one is named by its public half alone.
    let sshd = Sshd::start();
    let agent = Agent::start(sshd.dir.path());
    for n in 0..8 {
        let name = format!("extra{n}");
        keygen(sshd.dir.path(), &name, &["-t", "ed25519"]);
        agent.add(&sshd.path(&name));
    }
    agent.add(&sshd.path("id"));
    fs::remove_file(sshd.path("id")).unwrap();
    sshd.configure(&format!("IdentityAgent {}\n", agent.socket.display()));
    assert_eq!(sshd.run("echo in"), "in\n");
    // homelab.yaml's key goes before the agent's other keys, too.
    keygen(sshd.dir.path(), "own", &["-t", "ed25519"]);
    sshd.authorize_public(&fs::read_to_string(sshd.path("own.pub")).unwrap());
    fs::remove_file(sshd.path("id.pub")).unwrap();
    let mut target = target();
    target.ssh.identity = Some(sshd.path("own").display().to_string());
    assert_eq!(text(&mut *sshd.transport().open(&target, "echo in").unwrap()), "in\n");
    // Without a name the server hangs up after six; that is said, not hidden.
    let said = sshd.error().to_string();
    assert!(said.contains("agent: ") && said.contains("the server closed the connection"), "{said}");
}

#[test]
fn an_agent_that_is_gone_is_no_obstacle() {
    let sshd = Sshd::start();
    sshd.configure(&format!("IdentityAgent {}\n", sshd.path("absent").display()));
    assert_eq!(sshd.run("echo in"), "in\n");
}

#[test]
fn secrets_are_not_shown() {
    let sshd = Sshd::with("", &["ed25519"]);
    sshd.know("ed25519");
    sshd.authorize("id", &["-t", "ed25519", "-N", "open sesame"]);
    let transport =
        SshTransport::new(SshOptions { prompt: Box::new(User::says(&["sesame"])), ..sshd.options() });
    let said = error(transport.open(&target(), "true"));
    assert!(!format!("{said} {said:?}").contains("sesame"));
}
