//! What is answered, as a value: no socket and no clock here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use homelab_proxy::HealthCheck;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Response, StatusCode};
use jiff::Timestamp;
use serde::Serialize;

use super::super::metrics;

/// A time by the clock that nobody sets, and by the one that people read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(super) steady: Instant,
    pub(super) clock: Timestamp,
}

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment { steady: Instant::now(), clock: Timestamp::now() }
    }
}

/// What decides the answers.
#[derive(Debug, Default)]
pub(super) struct State {
    /// When services were last seen to be in place.
    pub(super) in_place: Option<Moment>,
    /// The node is about to go: load balancers are to leave it out.
    pub(super) leaving: bool,
    /// What is said at each `healthCheckNodePort`.
    pub(super) checks: BTreeMap<SocketAddr, HealthCheck>,
}

impl State {
    /// Whether the proxy can be relied on.
    fn healthy(&self, now: Moment, within: Duration) -> bool {
        self.in_place.is_some_and(|then| now.steady.saturating_duration_since(then.steady) <= within)
    }
}

/// Of what somebody asks: that follows from where the socket listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// The agent.
    Agent,
    /// What kube-proxy answers at its `metricsBindAddress`.
    Proxy,
    /// A service, at its `healthCheckNodePort`.
    Service,
}

/// A request, as far as answers depend on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) subject: Subject,
    /// Where the socket listens.
    pub(super) at: SocketAddr,
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
}

impl Question<'_> {
    /// The path for a metric: one of few, whatever clients ask for.
    pub(super) fn label(&self) -> &'static str {
        match (self.subject, self.path) {
            (Subject::Service, _) => "healthCheckNodePort",
            (Subject::Agent, HEALTHZ) => HEALTHZ,
            (Subject::Agent, LIVEZ) => LIVEZ,
            (Subject::Agent | Subject::Proxy, METRICS) => METRICS,
            (Subject::Proxy, HEALTHZ) => HEALTHZ,
            (Subject::Proxy, PROXY_MODE) => PROXY_MODE,
            (Subject::Agent | Subject::Proxy, _) => "other",
        }
    }
}

const HEALTHZ: &str = "/healthz";
const LIVEZ: &str = "/livez";
const METRICS: &str = "/metrics";
const PROXY_MODE: &str = "/proxyMode";
/// The mode of kube-proxy that this is a replacement of.
const MODE: &str = "nftables";

/// As kube-proxy writes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AgentHealth {
    last_updated: Option<String>,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
}

/// As kube-proxy writes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceHealth<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// Says that everything is in place only if services were no longer ago than `within`.
pub(super) fn answer(
    question: Question<'_>,
    state: &State,
    now: Moment,
    within: Duration,
    metrics: impl FnOnce() -> Result<String, prometheus::Error>,
) -> Response<String> {
    let healthy = state.healthy(now, within);
    if question.subject == Subject::Service {
        return of_service(state.checks.get(&question.at), healthy);
    }
    let of_agent = |node_eligible: Option<bool>| {
        let last_updated = state.in_place.map(|then| then.clock.to_string());
        let well = healthy && node_eligible.unwrap_or(true);
        json(well, &AgentHealth { last_updated, current_time: now.clock.to_string(), node_eligible })
    };
    let (paths, help): (&[&str], _) = match question.subject {
        Subject::Proxy => {
            (&[HEALTHZ, METRICS, PROXY_MODE], "Not here. There are /proxyMode, /metrics and /healthz.\n")
        }
        _ => (&[HEALTHZ, LIVEZ, METRICS], "Not here. There are /healthz, /livez and /metrics.\n"),
    };
    if !paths.contains(&question.path) {
        return plain(StatusCode::NOT_FOUND, help);
    }
    if !matches!(*question.method, Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Ask with GET or HEAD.\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match question.path {
        PROXY_MODE => plain(StatusCode::OK, MODE),
        // There it says only that somebody answers.
        HEALTHZ if question.subject == Subject::Proxy => plain(StatusCode::OK, "ok"),
        HEALTHZ => of_agent(Some(!state.leaving)),
        LIVEZ => of_agent(None),
        _ => match metrics() {
            Ok(text) => with_type(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        },
    }
}

/// Any path and any method, as with kube-proxy.
fn of_service(check: Option<&HealthCheck>, healthy: bool) -> Response<String> {
    let Some(check) = check else {
        // Asked on a connection that is older than the configuration.
        return plain(StatusCode::SERVICE_UNAVAILABLE, "No service has this port any more.\n");
    };
    let body = ServiceHealth {
        service: Name { namespace: &check.namespace, name: &check.name },
        local_endpoints: check.local_endpoints,
        service_proxy_healthy: healthy,
    };
    let mut response = json(check.local_endpoints > 0 && healthy, &body);
    response
        .headers_mut()
        .insert("x-load-balancing-endpoint-weight", HeaderValue::from(check.local_endpoints));
    response
}

fn json(well: bool, body: &impl Serialize) -> Response<String> {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    with_type(status, "application/json", serde_json::to_string(body).unwrap_or_default())
}

fn plain(status: StatusCode, text: &str) -> Response<String> {
    with_type(status, "text/plain; charset=utf-8", text.to_owned())
}

fn with_type(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "192.0.2.1:30200";

    fn state(in_place: Option<Moment>, local_endpoints: usize) -> State {
        let check = HealthCheck { namespace: "web".to_owned(), name: "front".to_owned(), local_endpoints };
        State { in_place, leaving: false, checks: [(AT.parse().unwrap(), check)].into() }
    }

    fn ask(subject: Subject, method: Method, path: &str, state: &State, now: Moment) -> Response<String> {
        let question = Question { subject, at: AT.parse().unwrap(), method: &method, path };
        answer(question, state, now, Duration::from_secs(120), || Ok("metrics".to_owned()))
    }

    fn later(then: Moment, seconds: u64) -> Moment {
        Moment {
            steady: then.steady + Duration::from_secs(seconds),
            clock: then.clock + Duration::from_secs(seconds),
        }
    }

    fn moment() -> Moment {
        Moment { steady: Instant::now(), clock: "2026-01-02T03:04:05Z".parse().unwrap() }
    }

    #[test]
    fn health_ends_when_the_last_good_look_is_too_long_ago() {
        let then = moment();
        let state = state(Some(then), 0);
        for (seconds, status) in [(0, 200), (120, 200), (121, 503)] {
            for path in [HEALTHZ, LIVEZ] {
                let response = ask(Subject::Agent, Method::GET, path, &state, later(then, seconds));
                assert_eq!(response.status(), status, "{path} after {seconds} s");
            }
        }
        let response = ask(Subject::Agent, Method::GET, HEALTHZ, &state, later(then, 121));
        let body = r#"{"lastUpdated":"2026-01-02T03:04:05Z","currentTime":"2026-01-02T03:06:06Z","nodeEligible":true}"#;
        assert_eq!(response.body(), body);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        let response = ask(Subject::Agent, Method::GET, LIVEZ, &state, then);
        let body = r#"{"lastUpdated":"2026-01-02T03:04:05Z","currentTime":"2026-01-02T03:04:05Z"}"#;
        assert_eq!(response.body(), body);
    }

    #[test]
    fn nothing_is_well_before_the_first_good_look() {
        let state = state(None, 3);
        let response = ask(Subject::Agent, Method::GET, LIVEZ, &state, moment());
        assert_eq!(response.status(), 503);
        assert_eq!(response.body(), r#"{"lastUpdated":null,"currentTime":"2026-01-02T03:04:05Z"}"#);
        assert_eq!(ask(Subject::Service, Method::GET, "/", &state, moment()).status(), 503);
    }

    #[test]
    fn a_service_is_well_with_local_endpoints_and_a_healthy_proxy() {
        let then = moment();
        for (endpoints, age, status, healthy) in
            [(2, 0, 200, true), (0, 0, 503, true), (2, 121, 503, false), (0, 121, 503, false)]
        {
            let state = state(Some(then), endpoints);
            // Whatever path and method.
            for (method, path) in [(Method::GET, "/"), (Method::POST, "/x/y"), (Method::HEAD, METRICS)] {
                let response = ask(Subject::Service, method, path, &state, later(then, age));
                assert_eq!(response.status(), status);
                let headers = response.headers();
                assert_eq!(headers["X-Load-Balancing-Endpoint-Weight"], endpoints.to_string());
                assert_eq!(headers["Content-Type"], "application/json");
                assert_eq!(headers["X-Content-Type-Options"], "nosniff");
                let body = format!(
                    r#"{{"service":{{"namespace":"web","name":"front"}},"localEndpoints":{endpoints},"serviceProxyHealthy":{healthy}}}"#
                );
                assert_eq!(*response.body(), body);
            }
        }
    }

    #[test]
    fn a_node_that_is_about_to_go_is_not_well_but_alive() {
        let then = moment();
        let state = State { leaving: true, ..state(Some(then), 2) };
        let response = ask(Subject::Agent, Method::GET, HEALTHZ, &state, then);
        assert_eq!(response.status(), 503);
        assert!(response.body().ends_with(r#""nodeEligible":false}"#), "{}", response.body());
        assert_eq!(ask(Subject::Agent, Method::GET, LIVEZ, &state, then).status(), 200);
        // Load balancers of services with local endpoints ask elsewhere, as with kube-proxy.
        assert_eq!(ask(Subject::Service, Method::GET, "/", &state, then).status(), 200);
    }

    #[test]
    fn what_kube_proxy_says_of_itself() {
        let state = state(None, 0);
        let said = |path| {
            let response = ask(Subject::Proxy, Method::GET, path, &state, moment());
            (response.status().as_u16(), response.body().clone())
        };
        assert_eq!(said(PROXY_MODE), (200, "nftables".to_owned()));
        assert_eq!(said(METRICS), (200, "metrics".to_owned()));
        assert_eq!(said(HEALTHZ), (200, "ok".to_owned()));
        assert_eq!(said(LIVEZ).0, 404);
        assert_eq!(ask(Subject::Agent, Method::GET, PROXY_MODE, &state, moment()).status(), 404);
    }

    #[test]
    fn a_port_that_no_service_has_any_more_sends_clients_elsewhere() {
        let state = State { in_place: Some(moment()), ..State::default() };
        assert_eq!(ask(Subject::Service, Method::GET, "/", &state, moment()).status(), 503);
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let then = moment();
        let state = state(Some(then), 1);
        let status = |method, path| ask(Subject::Agent, method, path, &state, then).status();
        assert_eq!(status(Method::GET, "/"), 404);
        assert_eq!(status(Method::GET, "/healthz/"), 404);
        assert_eq!(status(Method::GET, "/metrics/../etc"), 404);
        assert_eq!(status(Method::POST, "/nowhere"), 404);
        assert_eq!(status(Method::HEAD, HEALTHZ), 200);
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let response = ask(Subject::Agent, method, METRICS, &state, then);
            assert_eq!(
                (response.status().as_u16(), &response.headers()[ALLOW]),
                (405, &"GET, HEAD".parse().unwrap())
            );
        }
        let response = ask(Subject::Agent, Method::GET, METRICS, &state, then);
        assert_eq!((response.status().as_u16(), response.body().as_str()), (200, "metrics"));
        assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; version=0.0.4");
    }

    #[test]
    fn clients_cannot_make_new_series() {
        let label =
            |subject, path| Question { subject, at: AT.parse().unwrap(), method: &Method::GET, path }.label();
        assert_eq!(label(Subject::Agent, LIVEZ), LIVEZ);
        assert_eq!(label(Subject::Agent, "/random"), "other");
        assert_eq!(label(Subject::Service, LIVEZ), "healthCheckNodePort");
    }
}
