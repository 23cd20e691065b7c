//! A small client of the Container Runtime Interface (CRI): pod sandboxes, and nothing about containers and images.
//!
//! The agent asks containerd and CRI-O which sandboxes they know; tests make and remove some. A call is gRPC's plainest
//! form, one HTTP/2 stream over a unix socket
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>): a message is a byte 0, its length in four bytes and
//! itself; the trailer `grpc-status` says how it went.

mod messages;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::http::HeaderMap;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
pub use messages::{
    Config, Linux, Listed, Metadata, NetworkStatus, PodIp, PortMapping, Status, StatusResponse,
};
use messages::{Id, List, Nothing, Run};
use prost::Message;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// Longest answer, bytes: gRPC's limit in kubelet (`maxMsgSize`).
const ANSWER_MAX: usize = 16 << 20;
/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there, or we may not.
    #[error("{}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("{}: no answer within {} s", path.display(), limit.as_secs())]
    Late {
        /// The socket.
        path: PathBuf,
        /// The time that it had.
        limit: Duration,
    },
    /// The connection broke, or is none of HTTP/2.
    #[error("HTTP/2: {0}")]
    Http(#[from] hyper::Error),
    /// The runtime says no.
    #[error("{method}: {message} (gRPC code {code})")]
    Refused {
        /// The call.
        method: &'static str,
        /// gRPC's code, 12 where there is no CRI.
        code: u32,
        /// The runtime's words.
        message: String,
    },
    /// Not what gRPC allows.
    #[error("{method}: the answer is not gRPC: {what}")]
    Malformed {
        /// The call.
        method: &'static str,
        /// What is wrong.
        what: String,
    },
}

/// A runtime. Every call is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    limit: Duration,
}

/// The sandboxes of a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandboxes {
    /// Process that listens at the socket, where the kernel says it.
    pub pid: Option<i32>,
    /// All of them, ready or not.
    pub items: Vec<Listed>,
}

impl Client {
    /// The runtime that listens at a socket, where each call may take as long as `limit`.
    pub fn new(path: impl Into<PathBuf>, limit: Duration) -> Client {
        Client { path: path.into(), limit }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All sandboxes, ready or not.
    pub async fn list(&self) -> Result<Sandboxes, Error> {
        let (pid, List { items }) = self.call("ListPodSandbox", &Nothing {}).await?;
        Ok(Sandboxes { pid, items })
    }

    /// Makes a sandbox; gives its id.
    pub async fn run(&self, config: Config) -> Result<String, Error> {
        let (_, Id { id, .. }) = self.call("RunPodSandbox", &Run { config: Some(config) }).await?;
        Ok(id)
    }

    /// Stops a sandbox and takes its network away. A second time, too.
    pub async fn stop(&self, id: &str) -> Result<(), Error> {
        let (_, Nothing {}) = self.call("StopPodSandbox", &of(id)).await?;
        Ok(())
    }

    /// Removes a sandbox. A second time, too.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        let (_, Nothing {}) = self.call("RemovePodSandbox", &of(id)).await?;
        Ok(())
    }

    /// What the runtime knows of a sandbox, the verbose part included.
    pub async fn status(&self, id: &str) -> Result<StatusResponse, Error> {
        Ok(self.call("PodSandboxStatus", &Id { verbose: true, ..of(id) }).await?.1)
    }

    async fn call<A: Message + Default>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<(Option<i32>, A), Error> {
        let body = framed(request);
        match tokio::time::timeout(self.limit, self.exchange(method, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Late { path: self.path.clone(), limit: self.limit }),
        }
    }

    async fn exchange<A: Message + Default>(
        &self,
        method: &'static str,
        body: Bytes,
    ) -> Result<(Option<i32>, A), Error> {
        let failed = |source| Error::Connect { path: self.path.clone(), source };
        let stream = UnixStream::connect(&self.path).await.map_err(failed)?;
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let tasks = Tasks::default();
        let _ends = Ends(tasks.clone());
        let (mut sender, connection) = http2::handshake(tasks.clone(), TokioIo::new(stream)).await?;
        // How it ends is told to those who wait for an answer.
        tasks.spawn(async move { drop(connection.await) });
        let malformed = |what: String| Error::Malformed { method, what };
        let request = Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(body))
            .map_err(|error| malformed(error.to_string()))?;
        let response = sender.send_request(request).await?;
        answer(method, response).await.map(|message| (pid, message))
    }
}

fn of(id: &str) -> Id {
    Id { id: id.to_owned(), verbose: false }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
}

async fn answer<A: Message + Default>(
    method: &'static str,
    response: Response<Incoming>,
) -> Result<A, Error> {
    let malformed = |what: String| Error::Malformed { method, what };
    if response.status() != 200 {
        return Err(malformed(format!("HTTP status {}", response.status())));
    }
    // A refusal without a message comes in the first header.
    let head = status_of(method, response.headers());
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(|error| malformed(error.to_string()))?;
    let status = body.trailers().and_then(|trailers| status_of(method, trailers)).or(head);
    status.ok_or_else(|| malformed("no grpc-status".to_owned()))??;
    let bytes = body.to_bytes();
    let (prefix, message) =
        bytes.split_at_checked(PREFIX).ok_or_else(|| malformed("no message".to_owned()))?;
    let length = prefix.iter().skip(1).fold(0, |length, byte| length << 8 | usize::from(*byte));
    if prefix.first() != Some(&0) || length != message.len() {
        return Err(malformed("not one message without compression".to_owned()));
    }
    A::decode(message).map_err(|error| malformed(error.to_string()))
}

/// What `grpc-status` says, if it is there.
fn status_of(method: &'static str, headers: &HeaderMap) -> Option<Result<(), Error>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code: u32 = text("grpc-status")?.parse().ok()?;
    if code == 0 {
        return Some(Ok(()));
    }
    let message = text("grpc-message").unwrap_or_default().to_owned();
    Some(Err(Error::Refused { method, code, message }))
}

/// The tasks of one connection.
#[derive(Debug, Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(async move { drop(task.await) });
    }
}

/// Ends them with the call: a runtime that hangs keeps none of them.
struct Ends(Tasks);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}
