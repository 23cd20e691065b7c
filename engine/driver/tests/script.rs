//! The start script in the shells that nodes have.
#![cfg(test)]

mod fake;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use fake::PROGRAM;
use homelab_driver::{Places, script};
use homelab_model::sha256_hex;

/// Every shell of this machine that a node could have as `sh`.
fn shells() -> Vec<Vec<&'static str>> {
    let all = [vec!["sh"], vec!["dash"], vec!["bash", "--posix"], vec!["busybox", "sh"]];
    let works = |shell: &&Vec<&str>| {
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).args(["-c", "exit 0"]);
        command.status().is_ok_and(|s| s.success())
    };
    all.iter().filter(works).cloned().collect()
}

/// Sends `junk` at once, and `upload` when the script asks for it, as the laptop does.
fn run(shell: &[&str], text: &str, junk: &[u8], upload: &[u8]) -> Output {
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).args(["-c", text]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(junk).unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut said = Vec::new();
    while !said.ends_with(b"\n") || said.len() < 2 {
        if stdout.read_until(b'\n', &mut said).unwrap() == 0 {
            break;
        }
    }
    // A script that gives up early closes the pipe.
    let _ = stdin.write_all(upload);
    drop(stdin);
    stdout.read_to_end(&mut said).unwrap();
    let mut output = child.wait_with_output().unwrap();
    output.stdout = said;
    output
}

fn arch() -> String {
    let output = Command::new("uname").arg("-m").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn places(directory: &Path) -> Places {
    let scratch = directory.join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    Places {
        lib: directory.join("lib").display().to_string(),
        scratch: vec![directory.join("absent").display().to_string(), scratch.display().to_string()],
    }
}

/// What the laptop answers when it is asked for the binary.
fn upload(directory: &Path) -> Vec<u8> {
    let packed = std::fs::read(directory.join(format!("homelab-node-{}.gz", arch()))).unwrap();
    let mut input = format!("{} {}\n", sha256_hex(PROGRAM), packed.len()).into_bytes();
    input.extend_from_slice(&packed);
    input
}

fn leftovers(places: &Places) -> usize {
    std::fs::read_dir(&places.scratch[1]).unwrap().count()
}

#[test]
fn an_installed_binary_is_run_at_once() {
    for shell in shells() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(directory.path());
        let binaries = fake::binaries(directory.path(), &arch());
        let home = format!("{}/{}", places.lib, sha256_hex(PROGRAM));
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(format!("{home}/homelab-node"), PROGRAM).unwrap();
        Command::new("chmod").args(["755", &format!("{home}/homelab-node")]).status().unwrap();
        let output = run(&shell, &script(&binaries, &places, 7, false), b"", b"");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, format!("\nhomelab-serve {} installed\nit runs: serve ", arch()), "{shell:?}");
    }
}

#[test]
fn a_missing_binary_is_asked_for_checked_and_run() {
    for shell in shells() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(directory.path());
        let binaries = fake::binaries(directory.path(), &arch());
        let input = upload(directory.path());
        let output = run(&shell, &script(&binaries, &places, 7, false), b"1234567", &input);
        let text = String::from_utf8(output.stdout).unwrap();
        let start = format!(
            "\nhomelab-need {arch}\n\nhomelab-serve {arch} temporary\nit runs: serve --temporary",
            arch = arch()
        );
        assert_eq!(text, start, "{shell:?} {:?}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn damage_and_a_lost_connection_leave_nothing() {
    for shell in shells() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(directory.path());
        let binaries = fake::binaries(directory.path(), &arch());
        let text = script(&binaries, &places, 0, true);
        let whole = upload(directory.path());
        let mut damaged = whole.clone();
        damaged[0] = if damaged[0] == b'0' { b'1' } else { b'0' };
        for (input, words) in [(&damaged[..], "arrived damaged"), (&whole[..whole.len() - 9], ""), (b"", "")]
        {
            let output = run(&shell, &text, b"", input);
            assert!(!output.status.success(), "{shell:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(words));
            assert!(!String::from_utf8_lossy(&output.stdout).contains("homelab-serve"));
            assert_eq!(leftovers(&places), 0, "{shell:?}");
        }
    }
}

#[test]
fn no_place_for_a_program_is_said() {
    for shell in shells() {
        let directory = tempfile::tempdir().unwrap();
        let mut places = places(directory.path());
        places.scratch.truncate(1);
        let binaries = fake::binaries(directory.path(), &arch());
        let output = run(&shell, &script(&binaries, &places, 0, false), b"", &upload(directory.path()));
        assert_eq!(output.status.code(), Some(4));
        assert!(String::from_utf8_lossy(&output.stderr).contains("can hold a program"));
    }
}
