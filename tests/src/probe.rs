//! Real packets between pods, nodes, the client and wan.

use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::cluster::said;
use crate::script::SCRIPT;
use crate::{Cluster, Pod};

/// The port of servers.
const PORT: u16 = 7000;

/// Starts a server in network namespace `$1` from script `$2` under name `$3`, and waits for it.
const DETACHED: &str = r#"log=/run/server-$3
setsid nsenter --net="$1" python3 -c "$2" serve "$3" >"$log" 2>&1 </dev/null &
for try in $(seq 200); do grep -q ready "$log" && exit 0; sleep 0.02; done
cat "$log"; exit 1
"#;

/// Where packets come from: a host, or a pod on it.
#[derive(Debug, Clone)]
pub struct Place {
    /// What it is called in messages and in a server's answers.
    pub name: String,
    /// `node1`, `client`, `wan`.
    pub host: String,
    /// Network namespace on that host; None: the host's own.
    pub netns: Option<String>,
}

impl Place {
    /// A host itself.
    pub fn host(name: &str) -> Place {
        Place { name: name.to_owned(), host: name.to_owned(), netns: None }
    }
}

impl From<&Pod> for Place {
    fn from(pod: &Pod) -> Place {
        Place { name: pod.name.clone(), host: pod.node.clone(), netns: Some(pod.netns.clone()) }
    }
}

/// A server that answers with its name and the address it sees: [`Cluster::serve`].
#[derive(Debug, Clone)]
pub struct Server {
    /// Name.
    pub name: String,
    /// Address.
    pub address: IpAddr,
}

/// A try to reach somebody.
#[derive(Debug, Clone)]
pub struct Check {
    /// `ping`, `tcp`, `udp` or `sctp`; for [`Cluster::clients`] also `held`.
    pub kind: &'static str,
    /// Who shall answer.
    pub to: Server,
    /// Port to send to.
    pub port: u16,
    /// Port to send UDP and SCTP from; 0: any.
    pub from_port: u16,
    /// Bytes to send; for `ping` the payload, sent with "don't fragment", unless 0.
    pub bytes: usize,
    /// Source address that the server must see, if it matters.
    pub source: Option<IpAddr>,
    /// Whether it shall succeed.
    pub works: bool,
}

impl Check {
    /// A check that shall succeed.
    pub fn new(kind: &'static str, to: &Server) -> Check {
        Check { kind, to: to.clone(), port: PORT, from_port: 0, bytes: 0, source: None, works: true }
    }

    /// `ping`, `tcp` and `udp`.
    pub fn all(to: &Server) -> Vec<Check> {
        ["ping", "tcp", "udp"].map(|kind| Check::new(kind, to)).into()
    }

    /// To this port instead of the servers' own.
    #[must_use]
    pub fn port(mut self, port: u16) -> Check {
        self.port = port;
        self
    }

    /// UDP and SCTP from this port, so that several checks are one connection.
    #[must_use]
    pub fn from_port(mut self, port: u16) -> Check {
        self.from_port = port;
        self
    }

    /// With a payload of this many bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: usize) -> Check {
        self.bytes = bytes;
        self
    }

    /// The server must see this source address.
    #[must_use]
    pub fn source(mut self, source: impl Into<IpAddr>) -> Check {
        self.source = Some(source.into());
        self
    }

    /// As the script reads it, with a limit in seconds.
    pub(crate) fn json(&self, limit: Value) -> Value {
        json!({
            "kind": self.kind, "to": self.to.address.to_string(), "port": self.port, "from_port": self.from_port,
            "bytes": self.bytes, "limit": limit,
        })
    }

    /// It must fail.
    #[must_use]
    pub fn fails(mut self) -> Check {
        self.works = false;
        self
    }
}

/// What came of a [`Check`].
#[derive(Debug, Clone)]
pub struct Answer {
    /// Why it failed; empty if it did not.
    pub error: String,
    /// The server's name.
    pub name: String,
    /// The source address that the server saw.
    pub peer: String,
    /// Time from the first packet to the answer's end, milliseconds.
    pub ms: f64,
}

impl Cluster {
    /// Starts a server at a place, until the end of the scenario.
    #[track_caller]
    pub fn serve(&mut self, place: &Place) {
        if place.host.starts_with("node") {
            // A child of the node's own init: `nsenter` would stop with its child when the node shuts down, and hold
            // that up.
            let netns = place.netns.as_deref().unwrap_or("/proc/1/ns/net");
            let args = ["sh", "-c", DETACHED, "sh", netns, SCRIPT, &place.name];
            let output = self.lab.exec(&place.host, &args).expect("a shell starts");
            assert!(output.success(), "the server at {} did not start: {}", place.name, said(&output));
            return;
        }
        let mut command = self.lab.command_in(&place.host).expect("the host is there");
        command.args(["python3", "-c", SCRIPT, "serve", &place.name]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 starts");
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        self.servers.push(child);
        assert_eq!(line.trim(), "ready", "the server at {} did not start", place.name);
    }

    /// Ends the servers on the client and on wan; those on nodes end with the nodes' reset.
    pub(crate) fn stop_servers(&mut self) {
        for mut server in self.servers.drain(..) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Does all checks from one place at once.
    #[track_caller]
    pub fn probe(&self, from: &Place, checks: &[Check]) -> Vec<Answer> {
        let list: Vec<Value> = checks
            .iter()
            // What shall fail is not waited for.
            .map(|check| check.json(json!(if check.works { 3 } else { 1 })))
            .collect();
        let enter = from.netns.as_ref().map(|netns| format!("--net={netns}"));
        let mut args = Vec::new();
        if let Some(enter) = &enter {
            args.extend(["nsenter", enter]);
        }
        args.extend(["python3", "-c", SCRIPT, "probe"]);
        let input = Value::from(list).to_string();
        let output = self.lab.exec_with_input(&from.host, &args, &input).expect("python3 starts");
        let answers: Value = serde_json::from_str(&output.stdout)
            .unwrap_or_else(|e| panic!("at {}: {e}\n{}", from.name, said(&output)));
        let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
        let answer = |v: &Value| Answer {
            error: text(v, "error"),
            name: text(v, "name"),
            peer: text(v, "peer"),
            ms: v["ms"].as_f64().unwrap_or_default(),
        };
        answers.as_array().map(|a| a.iter().map(answer).collect()).unwrap_or_default()
    }

    /// Does the checks of all places at once; gives one line for every check that did not come out as it shall.
    pub fn wrong(&self, all: &[(Place, Vec<Check>)]) -> Vec<String> {
        self.judged(all).into_iter().flatten().flatten().collect()
    }

    /// Does the checks of all places at once; says of every check what is wrong, if anything is.
    fn judged(&self, all: &[(Place, Vec<Check>)]) -> Vec<Vec<Option<String>>> {
        std::thread::scope(|scope| {
            let jobs: Vec<_> = all
                .iter()
                .map(|(from, checks)| scope.spawn(move || judge(from, checks, &self.probe(from, checks))))
                .collect();
            jobs.into_iter().map(|job| job.join().expect("the probe runs")).collect()
        })
    }

    /// Asserts that every check comes out as it shall at one of its attempts: packets get lost here, and of many
    /// checks at once some always fail.
    #[track_caller]
    pub fn assert_traffic_despite_loss(&self, all: &[(Place, Vec<Check>)], limit: std::time::Duration) {
        let start = std::time::Instant::now();
        let mut left = all.to_vec();
        loop {
            let judged = self.judged(&left);
            let wrong: Vec<String> = judged.iter().flatten().flatten().cloned().collect();
            if wrong.is_empty() {
                return;
            }
            assert!(start.elapsed() < limit, "after {limit:?}:\n{}", wrong.join("\n"));
            for ((_, checks), judged) in left.iter_mut().zip(&judged) {
                let mut judged = judged.iter();
                checks.retain(|_| judged.next().is_some_and(Option::is_some));
            }
            left.retain(|(_, checks)| !checks.is_empty());
        }
    }

    /// Asserts that all checks come out as they shall.
    #[track_caller]
    pub fn assert_traffic(&self, all: &[(Place, Vec<Check>)]) {
        let wrong = self.wrong(all);
        let count: usize = all.iter().map(|(_, checks)| checks.len()).sum();
        assert!(wrong.is_empty(), "{} of {count} checks are wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
}

/// Says of every check what is wrong, if anything is.
fn judge(from: &Place, checks: &[Check], answers: &[Answer]) -> Vec<Option<String>> {
    assert_eq!(checks.len(), answers.len());
    let one = |(check, answer): (&Check, &Answer)| {
        let Check { kind, to, bytes, .. } = check;
        let source = check.source.map(|s| s.to_string());
        let said = if check.works != answer.error.is_empty() {
            if check.works { answer.error.clone() } else { "works and should not".to_owned() }
        } else if !check.works || *kind == "ping" {
            return None;
        } else if answer.name != to.name {
            format!("{} answered", answer.name)
        } else if source.as_ref().is_some_and(|s| *s != answer.peer) {
            format!("seen from {}, not {}", answer.peer, source.unwrap_or_default())
        } else {
            return None;
        };
        Some(format!("{} -> {} {} {kind} {bytes} B: {said}", from.name, to.name, to.address))
    };
    checks.iter().zip(answers).map(one).collect()
}
