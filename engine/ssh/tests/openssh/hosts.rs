use std::fs;
use std::process::Command;
use std::thread;

use homelab_ssh::{SshOptions, SshTransport, Transport, TransportError};

use crate::server::{Sshd, error, target, text};

fn accepting(sshd: &Sshd) -> SshTransport {
    SshTransport::new(SshOptions { accept_new_host_keys: true, ..sshd.options() })
}

/// An sshd that lets us in and that nobody knows.
fn stranger(kinds: &[&str]) -> Sshd {
    let sshd = Sshd::with("", kinds);
    sshd.authorize("id", &["-t", "ed25519"]);
    sshd
}

#[test]
fn unknown() {
    let sshd = stranger(&["ed25519"]);
    match sshd.error() {
        TransportError::HostKeyUnknown { host, algorithm, fingerprint, known_hosts, port } => {
            assert_eq!(host, sshd.name());
            assert_eq!(algorithm, "ssh-ed25519");
            assert_eq!(fingerprint, sshd.fingerprint("ed25519"));
            assert_eq!(known_hosts, sshd.path("known_hosts").display().to_string());
            assert_eq!(port, sshd.port);
        }
        other => panic!("{other}"),
    }
    assert!(!sshd.path("known_hosts").exists());
    assert!(!sshd.log().contains("publickey"), "authentication began before the host was known");
}

#[test]
fn the_command_that_mends_unknown_works() {
    let sshd = stranger(&["ed25519", "rsa"]);
    let output =
        Command::new("ssh-keyscan").args(["-p", &sshd.port.to_string(), "127.0.0.1"]).output().unwrap();
    sshd.write_known(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(sshd.run("echo in"), "in\n");
}

#[test]
fn accept_new_plain() {
    let sshd = stranger(&["ed25519"]);
    assert_eq!(text(&mut *accepting(&sshd).open(&target(), "echo in").unwrap()), "in\n");
    assert_eq!(sshd.known(), format!("{} {}\n", sshd.name(), sshd.host_key("ed25519")));
    assert_eq!(sshd.run("echo in"), "in\n");
}

#[test]
fn accept_new_hashed() {
    let sshd = stranger(&["ed25519"]);
    sshd.configure("HashKnownHosts yes\n");
    assert_eq!(text(&mut *accepting(&sshd).open(&target(), "echo in").unwrap()), "in\n");
    assert!(sshd.known().starts_with("|1|") && !sshd.known().contains("127.0.0.1"), "{}", sshd.known());
    assert_eq!(sshd.run("echo in"), "in\n");
    // OpenSSH reads it as we do.
    let status = Command::new("ssh")
        .args(["-F".as_ref(), sshd.path("ssh_config").as_os_str()])
        .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "127.0.0.1", "true"])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn accept_new_by_the_users_configuration() {
    for word in ["accept-new", "no"] {
        let sshd = stranger(&["ed25519"]);
        sshd.configure(&format!("StrictHostKeyChecking {word}\n"));
        assert_eq!(sshd.run("echo in"), "in\n");
        assert!(sshd.known().contains(&sshd.host_key("ed25519")));
    }
}

#[test]
fn accept_new_with_nowhere_to_write() {
    let sshd = stranger(&["ed25519"]);
    sshd.configure("StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n");
    assert_eq!(sshd.run("echo in"), "in\n");
}

#[test]
fn accept_new_makes_the_directory() {
    let sshd = stranger(&["ed25519"]);
    let file = sshd.path("fresh/known_hosts");
    let options =
        SshOptions { accept_new_host_keys: true, known_hosts_file: Some(file.clone()), ..sshd.options() };
    assert_eq!(text(&mut *SshTransport::new(options).open(&target(), "echo in").unwrap()), "in\n");
    assert!(fs::read_to_string(file).unwrap().contains(&sshd.host_key("ed25519")));
    assert!(!sshd.path("known_hosts").exists());
}

#[test]
fn accept_new_from_many_threads_adds_one_line() {
    let sshd = stranger(&["ed25519"]);
    let transport = accepting(&sshd);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(text(&mut *transport.open(&target(), "echo in").unwrap()), "in\n"));
        }
    });
    assert_eq!(sshd.known().lines().count(), 1);
}

fn assert_changed(error: TransportError, line_expected: usize) {
    match error {
        TransportError::HostKeyChanged { known_hosts, line, fingerprint, .. } => {
            assert!(known_hosts.ends_with("/known_hosts") && fingerprint.starts_with("SHA256:"));
            assert_eq!(line, line_expected);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn changed() {
    let sshd = stranger(&["ed25519"]);
    let other = Sshd::with("", &["ed25519"]);
    let known = format!("# a comment\nelsewhere {0}\n{1} {0}\n", other.host_key("ed25519"), sshd.name());
    sshd.write_known(&known);
    assert_changed(sshd.error(), 3);
    // No flag and no option makes it good.
    assert_changed(error(accepting(&sshd).open(&target(), "true")), 3);
    sshd.configure("StrictHostKeyChecking no\n");
    assert_changed(sshd.error(), 3);
    assert_eq!(sshd.known(), known);
    // The command that we name mends it.
    let status = Command::new("ssh-keygen")
        .arg("-R")
        .arg(sshd.name())
        .arg("-f")
        .arg(sshd.path("known_hosts"))
        .output();
    assert!(status.unwrap().status.success());
    sshd.configure("");
    assert!(matches!(sshd.error(), TransportError::HostKeyUnknown { .. }));
}

#[test]
fn changed_under_a_hashed_name() {
    let sshd = stranger(&["ed25519"]);
    let other = Sshd::with("", &["ed25519"]);
    sshd.write_known(&format!("{} {}\n", sshd.name(), other.host_key("ed25519")));
    assert!(
        Command::new("ssh-keygen")
            .arg("-H")
            .arg("-f")
            .arg(sshd.path("known_hosts"))
            .output()
            .unwrap()
            .status
            .success()
    );
    assert!(sshd.known().starts_with("|1|"));
    assert_changed(sshd.error(), 1);
}

#[test]
fn known_by_one_kind_only() {
    // The server has several, libssh2 would choose ed25519, and the known one must be asked for.
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let sshd = stranger(&["ed25519", "ecdsa", "rsa"]);
        sshd.know(kind);
        assert_eq!(sshd.run("echo in"), "in\n", "{kind}");
    }
}

#[test]
fn a_server_without_the_known_kind_has_changed() {
    let sshd = stranger(&["ed25519"]);
    let other = Sshd::with("", &["ecdsa"]);
    sshd.write_known(&format!("{} {}\n", sshd.name(), other.host_key("ecdsa")));
    assert_changed(error(accepting(&sshd).open(&target(), "true")), 1);
}

#[test]
fn revoked() {
    let sshd = stranger(&["ed25519"]);
    let key = sshd.host_key("ed25519");
    sshd.write_known(&format!("{} {key}\n@revoked * {key}\n", sshd.name()));
    for error in [sshd.error(), error(accepting(&sshd).open(&target(), "true"))] {
        match error {
            TransportError::HostKeyRevoked { line, fingerprint, .. } => {
                assert_eq!((line, fingerprint), (2, sshd.fingerprint("ed25519")));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn revoked_by_a_file_of_keys() {
    let sshd = stranger(&["ed25519"]);
    sshd.know("ed25519");
    sshd.configure(&format!("RevokedHostKeys {}\n", sshd.path("revoked").display()));
    assert!(matches!(sshd.error(), TransportError::Config(_)), "a missing list must not count as empty");
    fs::write(sshd.path("revoked"), format!("{}\n", sshd.host_key("ed25519"))).unwrap();
    assert!(matches!(sshd.error(), TransportError::HostKeyRevoked { .. }));
    fs::write(sshd.path("revoked"), "").unwrap();
    assert_eq!(sshd.run("echo in"), "in\n");
}

#[test]
fn certificate_authorities_are_passed_over() {
    let sshd = stranger(&["ed25519"]);
    let key = sshd.host_key("ed25519");
    sshd.write_known(&format!("@cert-authority * {key}\n"));
    assert!(matches!(sshd.error(), TransportError::HostKeyUnknown { .. }));
    sshd.write_known(&format!("@cert-authority * {key}\n{} {key}\n", sshd.name()));
    assert_eq!(sshd.run("echo in"), "in\n");
}

#[test]
fn names() {
    let sshd = stranger(&["ed25519"]);
    let key = sshd.host_key("ed25519");
    for name in ["127.0.0.1", "[127.0.0.*]:*", "other,[127.0.0.1]:*", "*"] {
        sshd.write_known(&format!("{name} {key}\n"));
        assert_eq!(sshd.run("echo in"), "in\n", "{name}");
    }
    for name in ["127.0.0.2", "[127.0.0.1]:1", "*,!127.0.0.1,![127.0.0.1]:*"] {
        sshd.write_known(&format!("{name} {key}\n"));
        assert!(matches!(sshd.error(), TransportError::HostKeyUnknown { .. }), "{name}");
    }
    // Another host's key under the bare address does not make this port's key a changed one.
    let other = Sshd::with("", &["ed25519"]);
    sshd.write_known(&format!("127.0.0.1 {}\n", other.host_key("ed25519")));
    assert!(matches!(sshd.error(), TransportError::HostKeyUnknown { .. }));
}

#[test]
fn the_global_file_counts() {
    let sshd = stranger(&["ed25519"]);
    fs::write(sshd.path("global_known_hosts"), format!("{} {}\n", sshd.name(), sshd.host_key("ed25519")))
        .unwrap();
    assert_eq!(sshd.run("echo in"), "in\n");
}

#[test]
fn host_key_alias() {
    let sshd = stranger(&["ed25519"]);
    sshd.configure("HostKeyAlias Server7\n");
    match sshd.error() {
        TransportError::HostKeyUnknown { host, .. } => assert_eq!(host, "server7"),
        other => panic!("{other}"),
    }
    sshd.write_known(&format!("server7 {}\n", sshd.host_key("ed25519")));
    assert_eq!(sshd.run("echo in"), "in\n");
}

#[test]
fn algorithms_of_the_users_configuration() {
    let sshd = stranger(&["ed25519", "rsa"]);
    sshd.know("ed25519");
    sshd.configure("HostKeyAlgorithms rsa-sha2-512\n");
    assert_changed(sshd.error(), 1);
    sshd.configure("Ciphers aes256-ctr\nMACs hmac-sha2-512\nKexAlgorithms ecdh-sha2-nistp384\n");
    assert_eq!(sshd.run("echo in"), "in\n");
    sshd.configure("KexAlgorithms sntrup761x25519-sha512@openssh.com\n");
    match sshd.error() {
        TransportError::Config(text) => assert!(text.contains("KexAlgorithms"), "{text}"),
        other => panic!("{other}"),
    }
}
