//! The servers on loopback addresses, with clients of all kinds. Clients are blocking sockets on threads of their own;
//! the servers run in the test's runtime, as they do in the agent's.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream as Client};
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::task::spawn_blocking;

use super::*;

const PORT: u16 = 10256;
const CHECK: u16 = 30200;
/// A client that waits longer than this hangs.
const HANG: Duration = Duration::from_secs(60);
/// Nothing ends by itself.
const PATIENT: Limits = Limits { header: HANG, connection: HANG, connections: 64, healthy: HANG };

/// A loopback address that no other test has: neither of this process nor of another.
fn loopback() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x80, low, NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

fn check(name: &str, local_endpoints: usize) -> HealthCheck {
    HealthCheck { namespace: "web".to_owned(), name: name.to_owned(), local_endpoints }
}

fn http(limits: Limits) -> Http {
    Http::new(Arc::new(Metrics::new().unwrap()), limits)
}

/// The agent's server with services in place.
async fn agent(limits: Limits) -> (Http, SocketAddr) {
    let at = SocketAddr::new(loopback(), PORT);
    let mut http = http(limits);
    http.want(Some(at), None, BTreeMap::new());
    http.in_place(Moment::now());
    http.listen().await;
    assert_eq!(http.errors().collect::<Vec<_>>(), Vec::<&String>::new());
    (http, at)
}

fn connect(to: SocketAddr) -> Client {
    let client = Client::connect(to).unwrap();
    client.set_read_timeout(Some(HANG)).unwrap();
    client
}

/// What comes until the server closes the connection.
fn rest(mut client: Client) -> String {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        // A server that closes before it has read all resets the connection.
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    String::from_utf8(bytes).unwrap()
}

async fn say(to: SocketAddr, bytes: impl Into<Vec<u8>>) -> String {
    let bytes = bytes.into();
    let talk = move || {
        let mut client = connect(to);
        client.write_all(&bytes).unwrap();
        rest(client)
    };
    spawn_blocking(talk).await.unwrap()
}

async fn get(to: SocketAddr, path: &str) -> String {
    say(to, format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await
}

fn code(response: &str) -> &str {
    response.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or(response)
}

async fn is_open(at: SocketAddr) -> bool {
    spawn_blocking(move || Client::connect(at).is_ok()).await.unwrap()
}

#[tokio::test]
async fn answers_and_counts_requests() {
    let (_http, at) = agent(PATIENT).await;
    assert_eq!(code(&get(at, "/healthz").await), "200");
    assert_eq!(code(&get(at, "/livez?verbose").await), "200");
    assert_eq!(code(&get(at, "/").await), "404");
    assert_eq!(code(&say(at, "DELETE /metrics HTTP/1.1\r\nConnection: close\r\n\r\n").await), "405");
    let metrics = get(at, "/metrics").await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4\r\n"), "{metrics}");
    for line in [
        r#"homelab_http_requests_total{code="200",path="/healthz"} 1"#,
        r#"homelab_http_requests_total{code="404",path="other"} 1"#,
        r#"homelab_http_requests_total{code="405",path="/metrics"} 1"#,
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn a_head_is_an_answer_without_its_body() {
    let (_http, at) = agent(PATIENT).await;
    let head = say(at, "HEAD /livez HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    let (headers, body) = head.split_once("\r\n\r\n").unwrap();
    assert_eq!((code(headers), body), ("200", ""));
    let length = headers.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    assert!(length.parse::<usize>().unwrap() > 0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (_http, at) = agent(PATIENT).await;
    let answers = say(
        at,
        "GET /healthz HTTP/1.1\r\n\r\nGET /none HTTP/1.1\r\n\r\nHEAD /livez HTTP/1.1\r\n\r\n\
         GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n",
    )
    .await;
    let codes: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(codes, ["200", "404", "200", "200"]);
}

#[tokio::test]
async fn garbage_and_endless_headers_end_the_connection_and_nothing_else() {
    let (_http, at) = agent(PATIENT).await;
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec();
    assert_eq!(code(&say(at, tls).await), "400");
    assert_eq!(code(&say(at, "GET / HTTP/9.9\r\n\r\n").await), "400");
    assert_eq!(code(&say(at, "GET /healthz HTTP/1.1\r\nContent-Length: x\r\n\r\n").await), "400");
    let long = format!("GET /healthz HTTP/1.1\r\nX: {}", "x".repeat(2 * BUFFER));
    assert_eq!(code(&say(at, long).await), "431");
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(200));
    assert_eq!(code(&say(at, many).await), "431");
    assert_eq!(code(&get(at, "/healthz").await), "200");
}

#[tokio::test]
async fn a_client_that_says_nothing_or_half_a_request_is_sent_away() {
    let (_http, at) = agent(Limits { header: Duration::from_millis(50), ..PATIENT }).await;
    for slow in ["", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nHost: a\r\n"] {
        let waiting = tokio::spawn(say(at, slow));
        // Nobody waits for it.
        assert_eq!(code(&get(at, "/healthz").await), "200");
        assert!(!waiting.await.unwrap().starts_with("HTTP/1.1 200"), "{slow:?}");
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_sent_away() {
    let (_http, at) = agent(Limits { connection: Duration::from_millis(200), ..PATIENT }).await;
    let flood = move || {
        let mut client = connect(at);
        client.set_write_timeout(Some(HANG)).unwrap();
        let requests = "GET /metrics HTTP/1.1\r\n\r\n".repeat(1000);
        // Until the buffers of both sides are full, and then until the server gives up.
        loop {
            if let Err(error) = client.write_all(requests.as_bytes()) {
                return error.kind();
            }
        }
    };
    let flooding = spawn_blocking(flood);
    assert_eq!(code(&get(at, "/healthz").await), "200");
    let ended = flooding.await.unwrap();
    assert!(matches!(ended, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{ended}");
    assert_eq!(code(&get(at, "/healthz").await), "200");
}

#[tokio::test]
async fn beyond_the_limit_the_oldest_connection_goes() {
    let (_http, at) = agent(Limits { connections: 3, ..PATIENT }).await;
    // Each is known to be served before the next comes.
    let visit = move || {
        let mut client = connect(at);
        client.write_all(b"GET /livez HTTP/1.1\r\n\r\n").unwrap();
        let mut first = [0; 12];
        client.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        client
    };
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(spawn_blocking(visit).await.unwrap());
    }
    assert_eq!(code(&get(at, "/healthz").await), "200");
    let mut clients = clients.into_iter();
    let oldest = clients.next().unwrap();
    assert!(spawn_blocking(move || rest(oldest)).await.unwrap().contains("lastUpdated"));
    for mut client in clients {
        let again = move || {
            client.write_all(b"GET /none HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
            rest(client)
        };
        assert!(spawn_blocking(again).await.unwrap().contains("HTTP/1.1 404"));
    }
}

#[tokio::test]
async fn sockets_follow_what_is_wanted() {
    let address = loopback();
    let [one, two, agent] = [CHECK, CHECK + 1, PORT].map(|port| SocketAddr::new(address, port));
    let mut http = http(PATIENT);
    http.want(None, None, [(one, check("front", 2)), (two, check("back", 0))].into());
    assert!(!is_open(one).await);
    http.listen().await;
    // The proxy has not yet looked at services.
    assert_eq!(code(&get(one, "/").await), "503");
    http.in_place(Moment::now());
    let front = get(one, "/any").await;
    assert_eq!(code(&front), "200");
    assert!(front.contains("x-load-balancing-endpoint-weight: 2\r\n"), "{front}");
    assert_eq!(code(&get(two, "/").await), "503");

    // Endpoints and services come and go behind a socket that stays: so does a connection to it.
    let mut kept = spawn_blocking(move || connect(one)).await.unwrap();
    http.want(Some(agent), None, [(one, check("other", 1))].into());
    http.listen().await;
    let ask = move || {
        kept.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        rest(kept)
    };
    assert!(spawn_blocking(ask).await.unwrap().contains(r#""name":"other""#));
    assert!(!is_open(two).await);
    assert_eq!(code(&get(agent, "/healthz").await), "200");

    // A port that changes hands speaks for the new one; one that moves to all addresses is free at once.
    http.want(Some(one), None, BTreeMap::new());
    http.listen().await;
    assert_eq!(code(&get(one, "/none").await), "404");
    assert!(!is_open(agent).await);
    let all = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), CHECK);
    for wanted in [all, one] {
        http.want(Some(wanted), None, BTreeMap::new());
        http.listen().await;
        assert_eq!(http.errors().collect::<Vec<_>>(), Vec::<&String>::new());
        assert_eq!(code(&get(one, "/livez").await), "200");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_tried_again() {
    let address = loopback();
    let [at, other] = [CHECK, CHECK + 1].map(|port| SocketAddr::new(address, port));
    let holder = std::net::TcpListener::bind(at).unwrap();
    let mut http = http(PATIENT);
    http.in_place(Moment::now());
    http.want(None, None, [(at, check("front", 1)), (other, check("back", 1))].into());
    http.listen().await;
    http.listen().await;
    let errors: Vec<&String> = http.errors().collect();
    let [error] = errors[..] else { panic!("{errors:?}") };
    for part in
        [&at.to_string(), "web/front", "in use", "ss -Hltnp sport = 30200", "another healthCheckNodePort"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
    // The others do not wait for it.
    assert_eq!(code(&get(other, "/").await), "200");
    drop(holder);
    http.listen().await;
    assert_eq!(http.errors().count(), 0);
    assert_eq!(code(&get(at, "/").await), "200");

    // What is no longer wanted is no error.
    let nowhere: SocketAddr = "192.0.2.1:10256".parse().unwrap();
    http.want(Some(nowhere), None, BTreeMap::new());
    http.listen().await;
    let error = http.errors().next().unwrap();
    assert!(error.contains("/healthz") && error.contains("does not have this address"), "{error}");
    http.want(None, None, BTreeMap::new());
    http.listen().await;
    assert_eq!(http.errors().count(), 0);
}
