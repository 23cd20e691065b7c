//! Answers over HTTP: the agent's health and metrics, and the health checks of load balancers.
//!
//! In the agent's own runtime, which is also how an agent that hangs stops to answer. What a client can take is
//! bounded, so that none keeps the agent from its work: 8 KiB of header in [`Limits::header`], a connection for
//! [`Limits::connection`], and [`Limits::connections`] of them, where a new one ends the oldest.

mod answer;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use homelab_proxy::HealthCheck;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::metrics::Metrics;
pub(super) use answer::Moment;
use answer::{Question, State, Subject, answer};

/// What clients may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Time for a request's header, from the beginning of the connection or the end of the request before.
    header: Duration,
    /// Time for a connection, however many requests it carries and however slowly it is read.
    connection: Duration,
    /// Connections at once, at all ports together.
    connections: usize,
    /// How long after services were last seen in place they are still taken to be.
    healthy: Duration,
}

impl Limits {
    /// For real clients, which ask from the LAN and at once. `healthy` is said by who knows how often services are
    /// looked at.
    pub(super) fn new(healthy: Duration) -> Limits {
        Limits {
            header: Duration::from_secs(5),
            connection: Duration::from_secs(60),
            connections: 64,
            healthy,
        }
    }
}

/// The bytes that hyper keeps of a connection: its own minimum.
const BUFFER: usize = 8192;
/// How long to wait if no connection can be accepted: the process has no file descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// The servers.
pub(super) struct Http {
    desk: Arc<Desk>,
    wanted: BTreeMap<SocketAddr, Subject>,
    open: BTreeMap<SocketAddr, (Subject, JoinHandle<()>)>,
    /// Why a wanted server does not listen.
    errors: BTreeMap<SocketAddr, String>,
}

/// What all connections share.
struct Desk {
    state: Mutex<State>,
    metrics: Arc<Metrics>,
    limits: Limits,
    /// Oldest first.
    visitors: Mutex<VecDeque<AbortHandle>>,
}

impl Http {
    /// No servers so far.
    pub(super) fn new(metrics: Arc<Metrics>, limits: Limits) -> Http {
        let desk = Desk { state: Mutex::default(), metrics, limits, visitors: Mutex::default() };
        Http { desk: Arc::new(desk), wanted: BTreeMap::new(), open: BTreeMap::new(), errors: BTreeMap::new() }
    }

    /// From now on answers for the agent at `agent`, as kube-proxy at `proxy`, and for services at `checks`, once [`Http::listen`] has opened
    /// what is new.
    pub(super) fn want(
        &mut self,
        agent: Option<SocketAddr>,
        proxy: Option<SocketAddr>,
        checks: BTreeMap<SocketAddr, HealthCheck>,
    ) {
        self.wanted = checks.keys().map(|address| (*address, Subject::Service)).collect();
        self.wanted.extend(proxy.map(|address| (address, Subject::Proxy)));
        self.wanted.extend(agent.map(|address| (address, Subject::Agent)));
        self.desk.state().checks = checks;
    }

    /// Whether load balancers are to leave this node out, because it is about to go.
    pub(super) fn leaving(&self, leaving: bool) {
        self.desk.state().leaving = leaving;
    }

    /// Services have been seen to be in place.
    pub(super) fn in_place(&self, at: Moment) {
        self.desk.state().in_place = Some(at);
    }

    /// Closes servers that are wanted no more and tries to open those that are wanted and not open.
    pub(super) async fn listen(&mut self) {
        let wanted = &self.wanted;
        let gone: Vec<SocketAddr> = self
            .open
            .iter()
            .filter(|(at, (subject, _))| wanted.get(at) != Some(subject))
            .map(|(at, _)| *at)
            .collect();
        for at in gone {
            if let Some((_, task)) = self.open.remove(&at) {
                // The port is free once the task has ended, and a new server may want it.
                task.abort();
                let _ = task.await;
                info!(%at, "no longer listening");
            }
        }
        self.errors.retain(|at, _| wanted.contains_key(at));
        for (at, subject) in wanted {
            if self.open.contains_key(at) {
                continue;
            }
            match open(*at) {
                Ok(listener) => {
                    let task = tokio::spawn(accept(listener, *at, *subject, Arc::clone(&self.desk)));
                    self.open.insert(*at, (*subject, task));
                    self.errors.remove(at);
                    info!(%at, "listening");
                }
                Err(error) => {
                    let message = self.explain(*at, *subject, &error);
                    if self.errors.get(at) != Some(&message) {
                        warn!("{message}");
                        self.errors.insert(*at, message);
                    }
                }
            }
        }
    }

    /// Why servers do not listen.
    pub(super) fn errors(&self) -> impl Iterator<Item = &String> {
        self.errors.values()
    }

    fn explain(&self, at: SocketAddr, subject: Subject, error: &std::io::Error) -> String {
        let (what, key) = match (subject, self.desk.state().checks.get(&at)) {
            (Subject::Service, Some(check)) => {
                (format!("healthCheckNodePort of {}/{}", check.namespace, check.name), "healthCheckNodePort")
            }
            (Subject::Proxy, _) => ("/proxyMode and /metrics".to_owned(), "kubernetes.metricsPort"),
            _ => ("/healthz, /livez and /metrics".to_owned(), "agent.port"),
        };
        let help = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                let port = at.port();
                format!(
                    "ss -Hltnp sport = {port} says who has it; free it or set another {key} in homelab.yaml"
                )
            }
            std::io::ErrorKind::AddrNotAvailable => "the node does not have this address (yet)".to_owned(),
            _ => "it is tried again with every check".to_owned(),
        };
        format!("cannot listen on {at} for {what}: {error}; {help}")
    }
}

fn open(at: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn accept(listener: TcpListener, at: SocketAddr, subject: Subject, desk: Arc<Desk>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => admit(stream, at, subject, &desk),
            Err(error) => {
                debug!(%at, %error, "cannot accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Serves a connection beside all others. If there are too many the oldest goes: it had the most time.
fn admit(stream: TcpStream, at: SocketAddr, subject: Subject, desk: &Arc<Desk>) {
    let mut visitors = desk.visitors.lock().unwrap_or_else(PoisonError::into_inner);
    visitors.retain(|visitor| !visitor.is_finished());
    while visitors.len() >= desk.limits.connections {
        let Some(oldest) = visitors.pop_front() else { break };
        oldest.abort();
    }
    visitors.push_back(tokio::spawn(serve(stream, at, subject, Arc::clone(desk))).abort_handle());
}

async fn serve(stream: TcpStream, at: SocketAddr, subject: Subject, desk: Arc<Desk>) {
    let limits = desk.limits;
    let service = service_fn(move |request: Request<Incoming>| {
        let response = desk.answer(&request, at, subject);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    // What goes wrong with a connection is its client's business.
    let _ = timeout(limits.connection, connection).await;
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: &Request<Incoming>, at: SocketAddr, subject: Subject) -> Response<String> {
        let question = Question { subject, at, method: request.method(), path: request.uri().path() };
        let metrics = || self.metrics.text();
        let response = answer(question, &self.state(), Moment::now(), self.limits.healthy, metrics);
        self.metrics.requests.with_label_values(&[question.label(), response.status().as_str()]).inc();
        response
    }
}
