//! Calls against a runtime of our own, which answers as it should and as it should not.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use homelab_cri::{Client, Config, Error, Linux, Metadata, PortMapping};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::http::{HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::net::UnixListener;

/// What the runtime answers: body, headers and trailers.
#[derive(Clone, Copy, Default)]
struct Says {
    body: &'static [u8],
    headers: &'static [(&'static str, &'static str)],
    trailers: &'static [(&'static str, &'static str)],
    /// Never.
    hangs: bool,
}

/// A call as the runtime sees it: path, content type, body.
type Heard = (String, String, Vec<u8>);

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pairs = pairs.iter();
    pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

/// Listens once; gives the socket and what it hears.
fn runtime(directory: &TempDir, says: Says) -> (PathBuf, tokio::task::JoinHandle<Vec<Heard>>) {
    let path = directory.path().join("cri.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let service = service_fn(move |request: Request<Incoming>| {
            let sender = sender.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("a body").to_bytes().to_vec();
                let kind = head.headers["content-type"].to_str().expect("text").to_owned();
                sender.send((head.uri.path().to_owned(), kind, body)).expect("somebody listens");
                if says.hangs {
                    std::future::pending::<()>().await;
                }
                let trailers = headers(says.trailers);
                let body = Full::new(Bytes::from_static(says.body))
                    .with_trailers(async move { Some(Ok::<_, Infallible>(trailers)) });
                let mut response = Response::new(body);
                response.headers_mut().extend(headers(says.headers));
                Ok::<_, Infallible>(response)
            }
        });
        let _ =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        let mut heard = Vec::new();
        while let Ok(call) = receiver.try_recv() {
            heard.push(call);
        }
        heard
    });
    (path, task)
}

const FINE: &[(&str, &str)] = &[("grpc-status", "0")];

#[tokio::test]
async fn sandboxes_are_listed_and_unknown_fields_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    // Two sandboxes: `ab`, of the pod p of the namespace n, not ready, with a creation time; `c`.
    let body = b"\0\0\0\0\x18\
        \x0a\x11\x0a\x02ab\x12\x06\x0a\x01p\x1a\x01n\x18\x01\x20\xac\x02\
        \x0a\x03\x0a\x01c";
    let says = Says { body, trailers: FINE, ..Says::default() };
    let (path, task) = runtime(&directory, says);
    let found = Client::new(&path, Duration::from_secs(60)).list().await.unwrap();
    assert_eq!(found.pid, i32::try_from(std::process::id()).ok());
    let ids: Vec<(&str, i32)> = found.items.iter().map(|item| (item.id.as_str(), item.state)).collect();
    assert_eq!(ids, [("ab", 1), ("c", 0)]);
    let metadata = found.items[0].metadata.clone().unwrap();
    assert_eq!((metadata.namespace.as_str(), metadata.name.as_str()), ("n", "p"));
    let call =
        ("/runtime.v1.RuntimeService/ListPodSandbox".to_owned(), "application/grpc".to_owned(), vec![0; 5]);
    assert_eq!(task.await.unwrap(), [call]);
}

#[tokio::test]
async fn a_sandbox_is_asked_for_in_the_fields_of_the_specification() {
    let directory = tempfile::tempdir().unwrap();
    let (path, task) =
        runtime(&directory, Says { body: b"\0\0\0\0\x04\x0a\x02id", trailers: FINE, ..Says::default() });
    let config = Config {
        metadata: Some(Metadata { name: "p".into(), uid: "u".into(), namespace: "n".into(), attempt: 3 }),
        port_mappings: vec![PortMapping {
            protocol: 1,
            container_port: 53,
            host_port: 5353,
            host_ip: "::".into(),
        }],
        annotations: [("a".to_owned(), "b".to_owned())].into(),
        linux: Some(Linux {}),
        ..Config::default()
    };
    assert_eq!(Client::new(&path, Duration::from_secs(60)).run(config).await.unwrap(), "id");
    let heard = task.await.unwrap();
    assert_eq!(heard[0].0, "/runtime.v1.RuntimeService/RunPodSandbox");
    assert_eq!(
        heard[0].2,
        b"\0\0\0\0\x26\x0a\x24\
          \x0a\x0b\x0a\x01p\x12\x01u\x1a\x01n\x20\x03\
          \x2a\x0b\x08\x01\x10\x35\x18\xe9\x29\x22\x02::\
          \x3a\x06\x0a\x01a\x12\x01b\
          \x42\x00"
    );
}

#[tokio::test]
async fn a_refusal_comes_with_its_words() {
    let none = &[("grpc-status", "12"), ("grpc-message", "unknown service runtime.v1.RuntimeService")];
    // In the header alone, or after half an answer.
    for says in [
        Says { headers: none, ..Says::default() },
        Says { body: b"\0\0\0\0\0", trailers: none, ..Says::default() },
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (path, _task) = runtime(&directory, says);
        let error = Client::new(&path, Duration::from_secs(60)).list().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "ListPodSandbox: unknown service runtime.v1.RuntimeService (gRPC code 12)"
        );
    }
}

/// None of these is an empty list.
#[tokio::test]
async fn what_is_not_an_answer_is_an_error() {
    for (says, what) in [
        (Says { body: b"\0\0\0\0\0", ..Says::default() }, "no grpc-status"),
        (Says { trailers: FINE, ..Says::default() }, "no message"),
        (Says { body: b"\0\0\0\0\x02\x0a", trailers: FINE, ..Says::default() }, "not one message"),
        (Says { body: b"\x01\0\0\0\0", trailers: FINE, ..Says::default() }, "not one message"),
        (Says { body: b"\0\0\0\0\0\0\0\0\0\0", trailers: FINE, ..Says::default() }, "not one message"),
        (Says { body: b"\0\0\0\0\x02\x0a\x09", trailers: FINE, ..Says::default() }, "buffer"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (path, _task) = runtime(&directory, says);
        let error = Client::new(&path, Duration::from_secs(60)).list().await.unwrap_err();
        let Error::Malformed { what: said, .. } = &error else { panic!("{error}") };
        assert!(said.contains(what), "{said} for {what}");
    }
}

#[tokio::test]
async fn a_runtime_that_is_not_there_or_hangs_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let nobody = directory.path().join("nobody.sock");
    let error = Client::new(&nobody, Duration::from_secs(60)).list().await.unwrap_err();
    assert!(matches!(&error, Error::Connect { path, .. } if *path == nobody), "{error}");
    let (path, task) = runtime(&directory, Says { hangs: true, ..Says::default() });
    let error = Client::new(&path, Duration::from_millis(200)).list().await.unwrap_err();
    assert!(matches!(error, Error::Late { .. }), "{error}");
    // The connection has ended with the call.
    assert!(task.await.unwrap().len() <= 1);
}
