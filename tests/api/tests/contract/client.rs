//! A client of either server: curl, which speaks TLS so that nothing of ours must.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use homelab_test_api::Api;
use serde_json::{Value, json};

/// What has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the server is, and how to be let in.
pub(crate) struct Client<'a> {
    pub(crate) base: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) side: Side<'a>,
}

/// Where the server keeps what it knows.
#[derive(Clone, Copy)]
pub(crate) enum Side<'a> {
    Ours(&'a Api),
    /// The base of etcd's own API.
    Etcd(&'a str),
}

/// Where the tests' config maps are.
pub(crate) const MAPS: &str = "/api/v1/namespaces/default/configmaps";

impl<'a> Client<'a> {
    pub(crate) fn of(api: &'a Api) -> Client<'a> {
        let base = format!("http://{}", api.address());
        Client { base, arguments: Vec::new(), side: Side::Ours(api) }
    }

    /// Has the server forget what was before a version.
    pub(crate) fn compact(&self, version: u64) {
        match self.side {
            Side::Ours(api) => api.compact(),
            Side::Etcd(base) => {
                let etcd = Client { base: base.to_owned(), arguments: Vec::new(), ..*self };
                etcd.must("POST", "/v3/kv/compaction", &json!({ "revision": version.to_string() }));
            }
        }
    }

    pub(crate) fn curl(&self, path: &str) -> Command {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--http1.1"]).args(&self.arguments);
        command.arg(format!("{}{path}", self.base)).stdout(Stdio::piped());
        command
    }

    /// The HTTP status, and the answer.
    pub(crate) fn raw(&self, method: &str, path: &str, kind: &str, body: &str) -> (u16, Value) {
        let mut command = self.curl(path);
        command.args(["--request", method, "--write-out", "\n%{http_code}", "--max-time", "60"]);
        if method != "GET" {
            command.args(["--header", &format!("Content-Type: {kind}"), "--data-binary", "@-"]);
        }
        let mut child = command.stdin(Stdio::piped()).spawn().expect("curl");
        let mut stdin = child.stdin.take().unwrap();
        if method != "GET" {
            stdin.write_all(body.as_bytes()).unwrap();
        }
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (answer, code) = text.rsplit_once('\n').unwrap();
        assert!(output.status.success(), "{method} {path}: {}", output.status);
        let answer = serde_json::from_str(answer).unwrap_or_else(|_| json!(answer));
        (code.parse().unwrap(), answer)
    }

    pub(crate) fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.raw(method, path, "application/json", &body.to_string())
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", path, &json!({}))
    }

    /// Carries out what must be possible.
    pub(crate) fn must(&self, method: &str, path: &str, body: &Value) -> Value {
        let (code, answer) = self.ask(method, path, body);
        assert!((200..300).contains(&code), "{method} {path}: {code} {answer}");
        answer
    }

    /// Asks for what is refused; checks what is said.
    pub(crate) fn refused(&self, method: &str, path: &str, body: &Value, code: u16, reason: &str) -> Value {
        let (said, answer) = self.ask(method, path, body);
        assert_refusal(said, &answer, code, reason);
        answer
    }

    /// Begins to watch; `query` begins with `&` if it is not empty.
    pub(crate) fn watch(&self, path: &str, query: &str) -> Watch {
        let mut child =
            self.curl(&format!("{path}?watch=1{query}")).arg("--no-buffer").spawn().expect("curl");
        let (say, hear) = channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let event = serde_json::from_str(&line.unwrap()).unwrap();
                if say.send(event).is_err() {
                    return;
                }
            }
        });
        Watch { child, events: hear }
    }
}

/// Checks a `Status` of a refusal.
pub(crate) fn assert_refusal(said: u16, answer: &Value, code: u16, reason: &str) {
    assert_eq!(said, code, "{answer}");
    assert_eq!(answer["kind"], "Status", "{answer}");
    assert_eq!(answer["status"], "Failure", "{answer}");
    assert_eq!(answer["code"], code, "{answer}");
    assert_eq!(answer["reason"], reason, "{answer}");
}

/// Events as they come.
pub(crate) struct Watch {
    child: Child,
    events: Receiver<Value>,
}

impl Watch {
    /// The next event: its type and object.
    pub(crate) fn next(&self) -> (String, Value) {
        let mut event = self.events.recv_timeout(PATIENCE).expect("no event came");
        (event["type"].as_str().unwrap().to_owned(), event["object"].take())
    }

    /// The next event must be of this type and about the object of this name.
    pub(crate) fn expect(&self, kind: &str, name: &str) -> Value {
        let (said, object) = self.next();
        assert_eq!((said.as_str(), object["metadata"]["name"].as_str()), (kind, Some(name)), "{object}");
        object
    }

    /// The server must end the watch, and say nothing more.
    pub(crate) fn ends(&self) {
        assert_eq!(self.events.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A name that no other test has.
pub(crate) fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A config map with the label `test` and one value.
pub(crate) fn map(name: &str, test: &str, value: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { "test": test } }, "data": { "a": value } })
}

/// The path of a config map.
pub(crate) fn map_path(name: &str) -> String {
    format!("{MAPS}/{name}")
}

/// The parameter that selects a test's objects.
pub(crate) fn of_test(test: &str) -> String {
    format!("&labelSelector=test%3D{test}")
}

/// A resource version as the number that it is.
pub(crate) fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}
