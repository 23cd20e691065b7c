//! Test programs side by side: those with a lab wait most of their time, for reboots and for timers that run out.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::Value;

use crate::tools;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How many run at once.
const LANES: usize = 2;
/// The package whose programs boot labs.
const LABS: &str = "homelab-tests";
/// Programs that take minutes begin first, so that none is left alone at the end.
const LONG: [&str; 5] = ["locks", "rollback", "bgp", "services", "openssh"];

/// A test program that cargo built.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    package: String,
    name: String,
    executable: PathBuf,
    /// Where cargo would run it: the package's directory.
    directory: PathBuf,
}

impl Program {
    /// The program that one line of `cargo test --no-run --message-format=json` tells of, if it tells of one.
    fn told(line: &str) -> Option<Program> {
        let message: Value = serde_json::from_str(line).ok()?;
        let kinds = message["target"]["kind"].as_array()?;
        let is_test = message["reason"] == "compiler-artifact" && kinds.iter().any(|kind| kind == "test");
        let directory = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
        let id = message["package_id"].as_str()?;
        // `path+file:///somewhere/tests#homelab-tests@0.1.0`; without a name it is the directory's.
        let (path, version) = id.rsplit_once('#')?;
        let package = match version.split_once('@') {
            Some((name, _)) => name,
            None => path.rsplit('/').next()?,
        };
        is_test.then(|| Program {
            package: package.to_owned(),
            name: message["target"]["name"].as_str().unwrap_or_default().to_owned(),
            executable: message["executable"].as_str().unwrap_or_default().into(),
            directory,
        })
    }

    /// Sort key: long ones, then those with labs, then the rest.
    fn rank(&self) -> (usize, bool) {
        let long = LONG.iter().position(|name| *name == self.name && self.boots_or_is_alone());
        (long.unwrap_or(LONG.len()), self.package != LABS)
    }

    /// Other packages have short programs of the same names.
    fn boots_or_is_alone(&self) -> bool {
        self.package == LABS || self.name == "openssh"
    }

    /// Runs it to its end: all it said, and whether it passed.
    fn run(&self) -> Result<(String, bool)> {
        let mut log = tempfile::tempfile()?;
        let status = Command::new(&self.executable)
            .current_dir(&self.directory)
            .env("CARGO_MANIFEST_DIR", &self.directory)
            .env("CARGO_PKG_NAME", &self.package)
            .env("RUST_TEST_THREADS", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .status()
            .map_err(|error| format!("{}: {error}", self.executable.display()))?;
        let mut said = Vec::new();
        std::io::Seek::rewind(&mut log)?;
        std::io::Read::read_to_end(&mut log, &mut said)?;
        Ok((String::from_utf8_lossy(&said).into_owned(), status.success()))
    }
}

/// How much of what a program said is kept when it fails, lines.
const KEPT: usize = 150;

/// The end of what a program said that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Package and name.
    pub(crate) program: String,
    /// Its last lines.
    pub(crate) end: String,
}

impl Failed {
    fn of(program: &Program, said: &str) -> Failed {
        let lines: Vec<&str> = said.lines().collect();
        let end = lines[lines.len().saturating_sub(KEPT)..].join("\n");
        Failed { program: format!("{} {}", program.package, program.name), end }
    }
}

/// Runs all integration tests of the workspace, and gives `hear` every line that they say, a program at a time; what
/// failed.
pub(crate) fn run(hear: &mut (dyn FnMut(&str) + Send)) -> Result<Vec<Failed>> {
    let mut programs = built()?;
    programs.sort_by_key(Program::rank);
    eprintln!("+ {} test programs, {LANES} at a time", programs.len());
    let queue = Mutex::new(VecDeque::from(programs));
    let outcome = Mutex::new((hear, Vec::new()));
    std::thread::scope(|threads| {
        for _ in 0..LANES {
            threads.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(program) = next else { break };
                    let start = Instant::now();
                    let result = program.run();
                    let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
                    let (said, passed) = result.unwrap_or_else(|error| (error.to_string(), false));
                    let Program { package, name, .. } = &program;
                    (outcome.0)(&format!("     Running {package} {name}"));
                    said.lines().for_each(|line| (outcome.0)(line));
                    let word = if passed { "passed" } else { "FAILED" };
                    (outcome.0)(&format!(
                        "     {package} {name} {word} in {:.1} s",
                        start.elapsed().as_secs_f64()
                    ));
                    if !passed {
                        outcome.1.push(Failed::of(&program, &said));
                    }
                }
            });
        }
    });
    Ok(outcome.into_inner().unwrap_or_else(PoisonError::into_inner).1)
}

/// The integration tests of the workspace, as cargo has built them.
fn built() -> Result<Vec<Program>> {
    let mut cargo =
        tools::cargo(&["test", "--no-run", "--workspace", "--test", "*", "--message-format=json"]);
    let output = cargo.stderr(Stdio::inherit()).stdin(Stdio::null()).output()?;
    let programs: Vec<_> =
        String::from_utf8_lossy(&output.stdout).lines().filter_map(Program::told).collect();
    if !output.status.success() || programs.is_empty() {
        return Err("the integration tests cannot be built".into());
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &str, package: &str, name: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"path+file:///x/{package}","manifest_path":"/x/p/Cargo.toml","target":{{"kind":["{kind}"],"name":"{name}"}},"executable":"/x/{name}"}}"#
        )
    }

    #[test]
    fn cargo_tells_of_programs() {
        let told = |text: &str| Program::told(text).map(|program| (program.package, program.name));
        let of = |package: &str| Some((package.to_owned(), "locks".to_owned()));
        assert_eq!(told(&message("test", "tests#homelab-tests@0.1.0", "locks")), of("homelab-tests"));
        assert_eq!(told(&message("test", "xtask#0.1.0", "locks")), of("xtask"));
        assert_eq!(told(&message("lib", "xtask#0.1.0", "locks")), None);
        assert_eq!(told("     Running something else"), None);
    }

    #[test]
    fn of_what_failed_the_end_is_kept() {
        let program =
            Program::told(&message("test", "tests#homelab-tests@0.1.0", "locks")).expect("a program");
        let said: Vec<String> = (0..KEPT + 7).map(|n| n.to_string()).collect();
        let failed = Failed::of(&program, &said.join("\n"));
        assert_eq!(failed.program, "homelab-tests locks");
        assert_eq!(failed.end.lines().map(str::to_owned).collect::<Vec<_>>(), said[7..]);
        assert_eq!(Failed::of(&program, "short\nlines\n").end, "short\nlines");
    }

    #[test]
    fn long_programs_begin_and_labs_come_before_the_rest() {
        let program = |package: &str, name: &str| {
            Program::told(&message("test", &format!("{package}#{package}@0.1.0"), name)).expect("a program")
        };
        let mut all = [
            program("homelab-linux", "bgp"),
            program("homelab-tests", "changes"),
            program("homelab-ssh", "openssh"),
            program("homelab-tests", "locks"),
        ];
        all.sort_by_key(Program::rank);
        assert_eq!(all.map(|program| program.name), ["locks", "openssh", "changes", "bgp"]);
    }
}
