use std::fs;
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use homelab_ssh::Transport;

use crate::server::{Sshd, target, text};

const MIB: usize = 1 << 20;

/// Bytes that no shifted copy equals.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_be_bytes());
    }
    data.truncate(len);
    data
}

#[test]
fn echo_of_64_mib_written_before_anything_is_read() {
    let sshd = Sshd::start();
    let mut session = sshd.open("cat").unwrap();
    let data = noise(64 * MIB);
    session.write_all(&data).unwrap();
    session.flush().unwrap();
    let mut back = vec![0; data.len()];
    session.read_exact(&mut back).unwrap();
    assert!(back == data);
    assert_eq!(session.finish(), Some(0));
    assert_eq!(session.read(&mut [0]).unwrap(), 0);
    let (sent, received) = session.traffic();
    assert_eq!(sent, data.len() as u64);
    // And the line that says that the command has started.
    assert!(received >= data.len() as u64 && received < data.len() as u64 + 100);
}

#[test]
fn echo_in_turns() {
    let sshd = Sshd::start();
    let mut session = sshd.open("cat").unwrap();
    let data = noise(64 * MIB);
    let mut back = Vec::new();
    let mut buffer = vec![0; 100_000];
    for part in data.chunks(77_777) {
        session.write_all(part).unwrap();
        let n = session.read(&mut buffer).unwrap();
        back.extend_from_slice(&buffer[..n]);
    }
    while back.len() < data.len() {
        let n = session.read(&mut buffer).unwrap();
        back.extend_from_slice(&buffer[..n]);
    }
    assert!(back == data);
    assert_eq!(session.finish(), Some(0));
}

#[test]
fn requests_and_answers() {
    let sshd = Sshd::start();
    let mut session = sshd.open("while read n; do echo got $n; done; echo end >&2; exit 3").unwrap();
    let mut buffer = [0; 64];
    for n in 0..100 {
        writeln!(session, "{n}").unwrap();
        let expected = format!("got {n}\n");
        session.read_exact(&mut buffer[..expected.len()]).unwrap();
        assert_eq!(&buffer[..expected.len()], expected.as_bytes());
    }
    assert_eq!(session.finish(), Some(3));
    assert_eq!(session.stderr(), "end\n");
    // After the end: no hang, no panic.
    assert_eq!(session.finish(), Some(3));
    assert_eq!(session.read(&mut buffer).unwrap(), 0);
    assert!(session.write_all(b"more").and_then(|()| session.flush()).is_err());
}

#[test]
fn exit() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let finish = |command: &str| transport.open(&target(), command).unwrap().finish();
    assert_eq!(finish("true"), Some(0));
    assert_eq!(finish("exit 42"), Some(42));
    assert_eq!(finish("kill -9 $$"), None);
    assert_eq!(finish("no-such-command-here"), Some(127));
    // Output that nobody reads does not keep the end away.
    assert_eq!(finish("head -c 10000000 /dev/zero; head -c 10000000 /dev/zero >&2; exit 7"), Some(7));
}

#[test]
fn stderr_is_kept_apart_and_bounded() {
    let sshd = Sshd::start();
    let mut session = sshd.open("echo out; echo err >&2").unwrap();
    assert_eq!(text(&mut *session), "out\n");
    assert_eq!(session.finish(), Some(0));
    assert_eq!(session.stderr(), "err\n");
    let mut session =
        sshd.open("head -c 3000000 /dev/zero | tr '\\0' x >&2; echo last >&2; echo out").unwrap();
    assert_eq!(text(&mut *session), "out\n");
    assert_eq!(session.finish(), Some(0));
    let said = session.stderr();
    assert!(said.len() == 64 * 1024 && said.ends_with("xxxlast\n"));
}

#[test]
fn any_command_arrives_as_it_is() {
    let sshd = Sshd::start();
    for word in
        ["it's", "a\\b", "\\\\", "\\'", "two\nlines", "$HOME `id` \"quoted\" !!", "*;&|", "ünï", "tab\there"]
    {
        let command = format!("printf %s \"$(cat <<'END'\n{word}\nEND\n)\"");
        assert_eq!(sshd.run(&command), word);
    }
}

#[test]
fn the_files_of_who_runs_the_tests_are_not_read() {
    let sshd = Sshd::start();
    let home = sshd.path("").display().to_string();
    assert_eq!(sshd.run("printf %s \"$HOME\""), home.trim_end_matches('/'));
    // ~/.ssh/rc is found by the password file, not by HOME.
    let config = std::process::Command::new("/usr/sbin/sshd")
        .args(["-T", "-f"])
        .arg(sshd.path("sshd_config"))
        .output();
    let config = String::from_utf8(config.unwrap().stdout).unwrap();
    assert!(config.lines().any(|line| line == "permituserrc no"), "{config}");
}

#[test]
fn login_noise_is_dropped() {
    let sshd = Sshd::start();
    let (rc, ran) = (sshd.path(".bashrc"), sshd.path("ran"));
    let noisy = format!("touch {}; echo Welcome; echo warning >&2; printf 'no newline'\n", ran.display());
    fs::write(&rc, &noisy).unwrap();
    assert_eq!(sshd.run("printf data"), "data");
    assert!(ran.exists(), "this test needs bash as the login shell");
    // A login that prints without end is given up.
    fs::write(&rc, "while :; do printf '%01000d\\n' 0; done\n").unwrap();
    let said = sshd.error().to_string();
    assert!(said.contains("prints without end"), "{said}");
    // One that ends before our command, too.
    fs::write(&rc, "echo This account is closed. >&2; exit 1\n").unwrap();
    let said = sshd.error().to_string();
    assert!(said.contains("This account is closed."), "{said}");
}

#[test]
fn a_command_that_stops_reading() {
    let sshd = Sshd::start();
    let mut session = sshd.open("head -c 10 >/dev/null; echo done").unwrap();
    let data = noise(MIB);
    let start = Instant::now();
    let error = (0..100).find_map(|_| session.write_all(&data).err()).expect("it cannot have taken 100 MiB");
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(text(&mut *session), "done\n");
    assert_eq!(session.finish(), Some(0));
}

#[test]
fn eight_at_once() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let data = noise(4 * MIB);
    thread::scope(|scope| {
        for n in 0..8 {
            let (transport, data) = (&transport, &data);
            scope.spawn(move || {
                let mut session = transport.open(&target(), &format!("cat; exit {n}")).unwrap();
                session.write_all(data).unwrap();
                let mut back = vec![0; data.len()];
                session.read_exact(&mut back).unwrap();
                assert!(back == *data);
                assert_eq!(session.finish(), Some(n));
            });
        }
    });
}

#[test]
fn small_writes_make_few_packets() {
    // The same bytes, one by one: buffered, else this takes a packet (64 bytes on the wire) per byte.
    let sshd = Sshd::start();
    let mut session = sshd.open("wc -c").unwrap();
    let start = Instant::now();
    for _ in 0..200_000 {
        session.write_all(b"x").unwrap();
    }
    session.flush().unwrap();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(session.finish(), Some(0));
    assert_eq!(text(&mut *session).trim(), "200000");
}
