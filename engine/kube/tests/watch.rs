//! What a world comes to behind an API server that fails in every way.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod agent;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent::{Client, eventually, spec};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use homelab_kube::{Link, Patience, renewed};
use homelab_model::Token;
use homelab_test_api::{Api, Resource};
use serde_json::{Value, json};

/// A client of these servers.
fn start(servers: &[SocketAddr], token: &Path) -> Client {
    Client::start(spec(servers.iter().map(|server| format!("http://{server}")).collect()), token)
}

/// What stands before an API server.
#[derive(Debug, Clone, PartialEq)]
enum Mode {
    /// Everything goes through.
    Open,
    /// Connections are taken, and nothing is said.
    Mute,
    /// This is said instead.
    Say(String),
    /// Only who has this token comes through.
    Token(String),
}

struct Front {
    address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
    api: Arc<Mutex<SocketAddr>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Front {
    fn before(api: SocketAddr) -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let front = Front {
            address: listener.local_addr().unwrap(),
            mode: Arc::new(Mutex::new(Mode::Open)),
            api: Arc::new(Mutex::new(api)),
            open: Arc::default(),
        };
        let (mode, api, open) = (Arc::clone(&front.mode), Arc::clone(&front.api), Arc::clone(&front.open));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                open.lock().unwrap().push(stream.try_clone().unwrap());
                let (mode, api) = (mode.lock().unwrap().clone(), *api.lock().unwrap());
                std::thread::spawn(move || serve(stream, api, mode));
            }
        });
        front
    }

    /// Has another history behind the same address for whatever is asked from now on.
    fn lead_to(&self, api: SocketAddr) {
        *self.api.lock().unwrap() = api;
    }

    /// From now on; what is open is cut off.
    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
        for stream in self.open.lock().unwrap().drain(..) {
            // It may be gone.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// One connection. What goes wrong with it is part of the play.
fn serve(mut stream: TcpStream, api: SocketAddr, mode: Mode) {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(1..) if mode == Mode::Mute => {}
            Ok(read @ 1..) => head.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
    match mode {
        Mode::Say(text) => {
            let _ = stream.write_all(text.as_bytes());
            return;
        }
        Mode::Token(token) if !String::from_utf8_lossy(&head).contains(&format!("Bearer {token}\r\n")) => {
            let body = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "Unauthorized", "reason": "Unauthorized", "code": 401,
            })
            .to_string();
            let _ = write!(
                stream,
                "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            return;
        }
        _ => {}
    }
    let Ok(mut server) = TcpStream::connect(api) else { return };
    // One request only, so that the next one may be led elsewhere.
    if let Some(end) = head.windows(2).position(|end| end == b"\r\n") {
        head.splice(end..end, *b"\r\nconnection: close");
    }
    if server.write_all(&head).is_err() {
        return;
    }
    let (mut up, mut down) = (stream.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut up, &mut server);
        let _ = server.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut down, &mut stream);
    let _ = stream.shutdown(Shutdown::Both);
}

fn service(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{ "port": 80 }] },
    })
}

fn add(api: &Api, name: &str) {
    api.create(&Resource::SERVICES, service(name)).unwrap();
}

fn remove(api: &Api, name: &str) {
    api.delete(&Resource::SERVICES, Some("default"), name).unwrap();
}

fn token(directory: &tempfile::TempDir, text: &str) -> std::path::PathBuf {
    let path = directory.path().join("token");
    std::fs::write(&path, format!("{text}\n")).unwrap();
    path
}

/// A server with two services, what stands before it, and a client that has seen both.
fn play(work: impl FnOnce(&Api, &Front, &Client)) {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::start("127.0.0.1:0").unwrap();
    add(&api, "a");
    add(&api, "b");
    let front = Front::before(api.address());
    let client = start(&[front.address], &token(&directory, "token"));
    client.comes_to(&["a", "b"]);
    work(&api, &front, &client);
}

#[test]
fn changes_come_as_they_happen_and_watches_go_on_where_they_ended() {
    play(|api, _, client| {
        eventually("the first list", || client.lists() == 1);
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut number = 0;
        // Over several watches, of two seconds each.
        while Instant::now() < deadline {
            number += 1;
            add(api, &format!("c{number}"));
            eventually("a new service", || client.services().len() == 3);
            remove(api, &format!("c{number}"));
            client.comes_to(&["a", "b"]);
            std::thread::sleep(Duration::from_millis(50));
        }
        // None of them was broken, and none began with a list.
        assert_eq!((client.lists(), client.troubled("")), (1, false));
    });
}

#[test]
fn a_lost_connection_empties_nothing_and_hides_nothing() {
    play(|api, front, client| {
        for mode in [
            Mode::Say(String::new()),
            Mode::Mute,
            Mode::Say("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\nhelp".into()),
            Mode::Say("220 mail.example.org ESMTP\r\n".into()),
            // A list that breaks off after nothing, and one that is none.
            Mode::Say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".into()),
            Mode::Say(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{\"a\": 1}\n"
                    .into(),
            ),
            Mode::Say(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}".into(),
            ),
        ] {
            client.forget_troubles();
            front.set(mode.clone());
            remove(api, "b");
            add(api, "c");
            eventually(&format!("{mode:?} is told"), || client.troubled(""));
            assert_eq!(client.services(), ["a", "b"], "{mode:?}");
            front.set(Mode::Open);
            client.comes_to(&["a", "c"]);
            remove(api, "c");
            add(api, "b");
            client.comes_to(&["a", "b"]);
        }
    });
}

#[test]
fn a_server_that_has_forgotten_is_asked_for_everything() {
    play(|api, front, client| {
        front.set(Mode::Mute);
        remove(api, "a");
        api.compact();
        front.set(Mode::Open);
        client.comes_to(&["b"]);
        // Also while the connection is there: the next watch is refused.
        let before = client.lists();
        add(api, "c");
        client.comes_to(&["b", "c"]);
        api.compact();
        add(api, "d");
        client.comes_to(&["b", "c", "d"]);
        assert!(client.lists() >= before);
    });
}

#[test]
fn a_server_that_was_restored_from_an_older_time_counts() {
    let directory = tempfile::tempdir().unwrap();
    let (new, old) = (Api::start("127.0.0.1:0").unwrap(), Api::start("127.0.0.1:0").unwrap());
    for number in 0..50 {
        add(&new, &format!("n{number:02}"));
    }
    add(&old, "o1");
    let front = Front::before(new.address());
    let client = start(&[front.address], &token(&directory, "token"));
    eventually("all", || client.services().len() == 50);
    // No connection breaks: the watch ends in good order, at its time.
    front.lead_to(old.address());
    client.comes_to(&["o1"]);
    add(&old, "o2");
    client.comes_to(&["o1", "o2"]);
}

/// Its versions have grown beyond ours before we ask for them, as on a real one with three kubelets within seconds.
#[test]
fn a_server_that_was_restored_and_has_overtaken_us_counts() {
    let directory = tempfile::tempdir().unwrap();
    let (new, old) = (Api::start("127.0.0.1:0").unwrap(), Api::start("127.0.0.1:0").unwrap());
    add(&new, "a");
    add(&new, "lost");
    for number in 0..50 {
        add(&old, &format!("o{number:02}"));
        remove(&old, &format!("o{number:02}"));
    }
    add(&old, "a");
    let front = Front::before(new.address());
    let client = start(&[front.address], &token(&directory, "token"));
    client.comes_to(&["a", "lost"]);
    front.lead_to(old.address());
    new.end_watches();
    client.comes_to(&["a"]);
    add(&old, "o2");
    client.comes_to(&["a", "o2"]);
}

#[test]
fn a_token_is_read_again_when_it_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::start("127.0.0.1:0").unwrap();
    add(&api, "a");
    let front = Front::before(api.address());
    front.set(Mode::Token("second".into()));
    let path = token(&directory, "first");
    let client = start(&[front.address], &path);
    eventually("the token is refused", || client.troubled("token is refused"));
    assert!(!client.troubled("first"));
    token(&directory, "second");
    client.comes_to(&["a"]);
    // It goes out of use while watches run: nothing is lost, and the next one counts.
    client.forget_troubles();
    front.set(Mode::Token("third".into()));
    eventually("the token is refused again", || client.troubled("token is refused"));
    std::fs::remove_file(&path).unwrap();
    eventually("there is none", || client.troubled("run homelab apply"));
    add(&api, "b");
    assert_eq!(client.services(), ["a"]);
    token(&directory, "third");
    client.comes_to(&["a", "b"]);
}

#[test]
fn of_several_servers_one_that_answers_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::start("127.0.0.1:0").unwrap();
    add(&api, "a");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mute = Front::before(api.address());
    mute.set(Mode::Mute);
    let front = Front::before(api.address());
    let client = start(&[nobody, mute.address, front.address], &token(&directory, "token"));
    client.comes_to(&["a"]);
    // The one in use hangs, and another has come back meanwhile.
    mute.set(Mode::Open);
    front.set(Mode::Mute);
    add(&api, "b");
    client.comes_to(&["a", "b"]);
}

/// A token of an account, as the API server makes them.
fn jwt(account: &str, issued: u64) -> String {
    let claims = json!({
        "iat": issued, "exp": issued + 3600,
        "kubernetes.io": { "namespace": "homelab-system", "serviceaccount": { "name": account, "uid": "4f0c" } },
    });
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

#[test]
fn a_token_is_renewed_for_its_own_account_alone() {
    let directory = tempfile::tempdir().unwrap();
    let front = Front::before("127.0.0.1:1".parse().unwrap());
    let old = jwt("homelab-node1", 1000);
    let path = token(&directory, &old);
    let told = spec(vec![format!("http://{}", front.address)]);
    let ask = |status: &str, body: String| {
        let length = body.len();
        front.set(Mode::Say(format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let link = Link::new(told.clone(), path.clone(), Patience::default());
        runtime.block_on(async {
            let (_, client) = link.client().unwrap();
            renewed(&client, &told, &Token::parse(&old).unwrap()).await
        })
    };
    let answer = |token: &str| {
        json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "audiences": [] },
            "status": { "token": token, "expirationTimestamp": "2026-01-01T00:00:00Z" },
        })
        .to_string()
    };
    let good = jwt("homelab-node1", 4000);
    assert_eq!(ask("201 Created", answer(&good)).unwrap().secret(), good);
    let other = jwt("homelab-node2", 4000);
    for (status, body) in [
        ("201 Created", answer(&other)),
        ("201 Created", answer("")),
        ("201 Created", format!("\"{other}\"")),
        ("403 Forbidden", "{}".to_owned()),
    ] {
        let error = ask(status, body).unwrap_err().to_string();
        assert!(!error.contains("c2ln"), "{error}");
    }
}
