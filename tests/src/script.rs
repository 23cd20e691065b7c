//! The tests' Python program at a place, and what is said to it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Stdio};

use crate::{Cluster, Place};

/// Both ends of the tests' traffic.
pub(crate) const SCRIPT: &str = concat!(
    include_str!("../files/sctp.py"),
    include_str!("../files/boom.py"),
    include_str!("../files/gaps.py"),
    include_str!("../files/lan.py"),
    include_str!("../files/net.py")
);

/// The script while it runs. It ends with its input.
#[derive(Debug)]
pub(crate) struct Script {
    /// Name of its place.
    pub(crate) name: String,
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Cluster {
    /// Starts the script at a place.
    pub(crate) fn script(&self, place: &Place, args: &[&str]) -> Script {
        let mut command = self.lab.command_in(&place.host).expect("the host is there");
        if let Some(netns) = &place.netns {
            command.args(["nsenter", &format!("--net={netns}")]);
        }
        command.args(["python3", "-c", SCRIPT]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 starts");
        let said = BufReader::new(child.stdout.take().expect("a pipe"));
        Script { name: place.name.clone(), child, said }
    }
}

impl Script {
    /// Writes a line to it.
    #[track_caller]
    pub(crate) fn say(&mut self, line: &str) {
        let pipe = self.child.stdin.as_mut().expect("a pipe");
        writeln!(pipe, "{line}").and_then(|()| pipe.flush()).expect("the script reads");
    }

    /// The next line of it.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("the script writes");
        line
    }

    /// The next line of it is this one.
    #[track_caller]
    pub(crate) fn expect(&mut self, word: &str) {
        let line = self.line();
        assert_eq!(line.trim(), word, "the script at {}", self.name);
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
