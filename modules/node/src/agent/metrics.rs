//! What the agent counts, in Prometheus' text format 0.0.4.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use homelab_linux::Synced;
use homelab_model::{LbBgp, LbReport, LbSession};
use prometheus::core::Collector;
use prometheus::{
    Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Of the format that [`Metrics::text`] writes.
pub(super) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From a look that finds nothing changed to tens of thousands of services.
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// All metrics; book/src/reference/metrics.md says what they mean.
pub(super) struct Metrics {
    registry: Registry,
    pub(super) repairs: IntCounter,
    pub(super) errors: IntGauge,
    /// By what was looked at.
    pub(super) checks: HistogramVec,
    pub(super) services: IntGauge,
    pub(super) endpoints: IntGauge,
    pub(super) elements: IntGauge,
    syncs: IntCounter,
    failures: IntCounter,
    durations: Histogram,
    last_success: Gauge,
    added: IntCounter,
    deleted: IntCounter,
    ended: IntCounter,
    released: IntCounter,
    /// By path and code.
    pub(super) requests: IntCounterVec,
    /// By why.
    freed: IntCounterVec,
    pub(super) moves: IntCounter,
    pub(super) conflicts: IntCounter,
    /// By how they stand.
    members: IntGaugeVec,
    /// By where they are.
    addresses: IntGaugeVec,
    /// By reason.
    refused: IntCounterVec,
    pub(super) bgp_changes: IntCounter,
    pub(super) bgp_failures: IntCounter,
    /// By peer, like the next two.
    bgp_up: IntGaugeVec,
    bgp_routes: IntGaugeVec,
    bgp_drops: IntGaugeVec,
    /// By what is watched, like the next four.
    pub(super) kubernetes_requests: IntCounterVec,
    pub(super) kubernetes_failures: IntCounterVec,
    pub(super) kubernetes_objects: IntGaugeVec,
    kubernetes_events: IntCounterVec,
    kubernetes_last: GaugeVec,
    pub(super) kubernetes_connected: IntGauge,
    memory: IntGauge,
}

impl Metrics {
    pub(super) fn new() -> Result<Metrics, Error> {
        let registry = Registry::new();
        let of = &registry;
        let build = Opts::new("homelab_build_info", "1, with the version of this binary.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        add(of, IntGauge::with_opts(build))?.set(1);
        // The names that all Prometheus clients have for these.
        let start =
            add(of, Gauge::new("process_start_time_seconds", "When the agent started, seconds since 1970."))?;
        start.set(unix(SystemTime::now()));
        let buckets = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        let counter = |name: &str, help: &str| add(of, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| add(of, IntGauge::new(name, help));
        let by_peer = |name: &str, help: &str| add(of, IntGaugeVec::new(Opts::new(name, help), &["peer"]));
        let count_by = |label: &str, name: &str, help: &str| {
            add(of, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let watched = "resource";
        Ok(Metrics {
            kubernetes_requests: count_by(
                watched,
                "homelab_kubernetes_requests_total",
                "Requests to the Kubernetes API: lists, and watches that begin.",
            )?,
            kubernetes_failures: count_by(
                watched,
                "homelab_kubernetes_failures_total",
                "Watches of the Kubernetes API that broke or could not begin.",
            )?,
            kubernetes_objects: add(
                of,
                IntGaugeVec::new(
                    Opts::new("homelab_kubernetes_objects", "Objects of the Kubernetes API that are known."),
                    &[watched],
                ),
            )?,
            kubernetes_events: count_by(
                watched,
                "homelab_kubernetes_events_total",
                "Objects and bookmarks that the Kubernetes API sent.",
            )?,
            kubernetes_last: add(
                of,
                GaugeVec::new(
                    Opts::new(
                        "homelab_kubernetes_last_event_timestamp_seconds",
                        "When the Kubernetes API last sent something, seconds since 1970.",
                    ),
                    &[watched],
                ),
            )?,
            kubernetes_connected: gauge(
                "homelab_kubernetes_connected",
                "1: all watches of the Kubernetes API are up.",
            )?,
            repairs: counter("homelab_repairs_total", "Objects repaired.")?,
            errors: gauge("homelab_errors", "Errors now, as the agent's report names them.")?,
            checks: add(
                of,
                HistogramVec::new(
                    buckets("homelab_check_duration_seconds", "How long checks took, repairs included."),
                    &["scope"],
                ),
            )?,
            services: gauge("homelab_services", "Services of the loaded configuration.")?,
            endpoints: gauge("homelab_endpoints", "Endpoints of all services, of all nodes.")?,
            elements: gauge("homelab_set_elements", "Elements that the sets of services hold.")?,
            syncs: counter("homelab_syncs_total", "Looks at the sets of services, failed ones included.")?,
            failures: counter("homelab_sync_failures_total", "Looks at the sets of services that failed.")?,
            durations: add(
                of,
                Histogram::with_opts(buckets(
                    "homelab_sync_duration_seconds",
                    "How long looks at the sets of services took, changes included.",
                )),
            )?,
            last_success: add(
                of,
                Gauge::new(
                    "homelab_sync_last_success_timestamp_seconds",
                    "When the sets of services last held what they should, seconds since 1970; 0: not yet.",
                ),
            )?,
            added: counter("homelab_elements_added_total", "Elements added to the sets of services.")?,
            deleted: counter(
                "homelab_elements_deleted_total",
                "Elements deleted from the sets of services.",
            )?,
            ended: counter(
                "homelab_connections_ended_total",
                "UDP and SCTP connections ended because their endpoint is gone.",
            )?,
            released: counter(
                "homelab_clients_released_total",
                "Clients with session affinity let go because their endpoint is gone.",
            )?,
            requests: add(
                of,
                IntCounterVec::new(
                    Opts::new("homelab_http_requests_total", "HTTP requests answered."),
                    &["path", "code"],
                ),
            )?,
            freed: add(
                of,
                IntCounterVec::new(
                    Opts::new(
                        "homelab_attachments_freed_total",
                        "Attachments of vanished pods that were freed.",
                    ),
                    &["reason"],
                ),
            )?,
            moves: counter("homelab_lb_moves_total", "Changes of the owners of load-balancer addresses.")?,
            conflicts: counter(
                "homelab_lb_conflicts_total",
                "Load-balancer addresses of this node that a foreign machine turned out to have.",
            )?,
            members: add(
                of,
                IntGaugeVec::new(
                    Opts::new("homelab_lb_members", "Nodes of the cluster, as this node sees them."),
                    &["standing"],
                ),
            )?,
            addresses: add(
                of,
                IntGaugeVec::new(
                    Opts::new("homelab_lb_addresses", "Load-balancer addresses, as this node sees them."),
                    &["state"],
                ),
            )?,
            refused: add(
                of,
                IntCounterVec::new(
                    Opts::new(
                        "homelab_lb_refused_total",
                        "Datagrams and frames of the speaker that were refused.",
                    ),
                    &["reason"],
                ),
            )?,
            bgp_changes: counter(
                "homelab_bgp_configurations_total",
                "Changes of the running configurations of FRR's daemons.",
            )?,
            bgp_failures: counter(
                "homelab_bgp_configuration_failures_total",
                "Looks at the running configurations of FRR's daemons that failed.",
            )?,
            bgp_up: by_peer("homelab_bgp_session_up", "1: the session with the router is established.")?,
            bgp_routes: by_peer("homelab_bgp_routes_sent", "Routes that the router was told.")?,
            bgp_drops: by_peer(
                "homelab_bgp_session_drops",
                "How often the session was lost since bgpd knows the router.",
            )?,
            memory: gauge("process_resident_memory_bytes", "Resident memory of the agent.")?,
            registry,
        })
    }

    /// Counts a look at the sets of services.
    pub(super) fn synced(&self, took: Duration, result: Result<Synced, ()>) {
        self.syncs.inc();
        self.durations.observe(took.as_secs_f64());
        let Ok(synced) = result else {
            self.failures.inc();
            return;
        };
        self.last_success.set(unix(SystemTime::now()));
        let count = |counter: &IntCounter, n: usize| counter.inc_by(u64::try_from(n).unwrap_or(u64::MAX));
        count(&self.added, synced.added);
        count(&self.deleted, synced.deleted);
        count(&self.ended, synced.ended);
        count(&self.released, synced.released);
    }

    /// Counts attachments that were freed because something of theirs is gone: `link`, `sandbox` or `returned`.
    pub(super) fn freed(&self, reason: &str, count: usize) {
        self.freed.with_label_values(&[reason]).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Takes over what the speaker says; None: there is none.
    pub(super) fn addresses(&self, report: Option<&LbReport>) {
        self.members.reset();
        self.addresses.reset();
        for member in report.iter().flat_map(|report| &report.members) {
            self.members.with_label_values(&[member.standing.as_str()]).inc();
        }
        for address in report.iter().flat_map(|report| &report.addresses) {
            self.addresses.with_label_values(&[address.state().as_str()]).inc();
        }
    }

    /// Takes over what is known of sessions with routers; None: there are none.
    pub(super) fn bgp(&self, report: Option<&LbBgp>) {
        for by_peer in [&self.bgp_up, &self.bgp_routes, &self.bgp_drops] {
            by_peer.reset();
        }
        for session in report.iter().flat_map(|report| &report.sessions) {
            let peer = [session.peer.as_str()];
            self.bgp_up.with_label_values(&peer).set(i64::from(session.state == LbSession::ESTABLISHED));
            self.bgp_routes.with_label_values(&peer).set(i64::from(session.routes_sent));
            self.bgp_drops.with_label_values(&peer).set(i64::from(session.dropped));
        }
    }

    /// Counts something that the Kubernetes API sent.
    pub(super) fn heard_of_kubernetes(&self, watched: &str) {
        self.kubernetes_events.with_label_values(&[watched]).inc();
        self.kubernetes_last.with_label_values(&[watched]).set(unix(SystemTime::now()));
    }

    /// Counts datagrams or frames of the speaker that were refused.
    pub(super) fn refused(&self, reason: &str, count: usize) {
        self.refused.with_label_values(&[reason]).inc_by(count.try_into().unwrap_or(u64::MAX));
    }

    /// All metrics as they are now.
    pub(super) fn text(&self) -> Result<String, Error> {
        if let Some(bytes) = resident() {
            self.memory.set(bytes);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// A count of things, for a gauge.
pub(super) fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn add<M: Collector + Clone + 'static>(registry: &Registry, metric: Result<M, Error>) -> Result<M, Error> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Resident memory of this process, bytes.
fn resident() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use homelab_model::{LbAddress, LbMember, LbStanding};
    use std::collections::BTreeSet;

    fn filled() -> Metrics {
        let metrics = Metrics::new().unwrap();
        metrics.checks.with_label_values(&["files"]).observe(0.002);
        metrics.requests.with_label_values(&["/healthz", "200"]).inc();
        let synced = Synced { added: 5, deleted: 4, ended: 3, released: 2, transactions: 1 };
        metrics.synced(Duration::from_millis(20), Ok(synced));
        metrics.synced(Duration::from_millis(20), Err(()));
        metrics.addresses(Some(&report()));
        metrics.refused("frame", 1);
        metrics.freed("sandbox", 2);
        metrics.heard_of_kubernetes("nodes");
        for by_resource in [&metrics.kubernetes_requests, &metrics.kubernetes_failures] {
            by_resource.with_label_values(&["nodes"]).inc();
        }
        metrics.kubernetes_objects.with_label_values(&["nodes"]).set(3);
        let state = LbSession::ESTABLISHED.to_owned();
        let session =
            LbSession { peer: "router".into(), state, routes_sent: 3, dropped: 2, ..LbSession::default() };
        metrics.bgp(Some(&LbBgp { sessions: vec![session], ..LbBgp::default() }));
        metrics
    }

    fn report() -> LbReport {
        let address = |last: u8, owner: Option<&str>| LbAddress {
            address: [192, 168, 50, last].into(),
            services: vec!["default/web".into()],
            pool: None,
            owner: owner.map(str::to_owned),
            since_unix_ms: None,
            moves: 0,
            conflict: None,
            interfaces: Vec::new(),
            unfit: Vec::new(),
        };
        let member = |name: &str, standing| LbMember {
            name: name.into(),
            standing,
            since_unix_ms: None,
            ready: true,
            cordoned: false,
            interfaces: Vec::new(),
        };
        LbReport {
            addresses: vec![address(200, Some("node2")), address(201, None), address(202, Some("node2"))],
            members: vec![member("node1", LbStanding::Itself), member("node2", LbStanding::Alive)],
            ..LbReport::default()
        }
    }

    #[test]
    fn a_sync_is_counted_once_and_a_failed_one_as_such() {
        let text = filled().text().unwrap();
        for line in [
            "homelab_syncs_total 2",
            "homelab_sync_failures_total 1",
            "homelab_sync_duration_seconds_count 2",
            "homelab_sync_duration_seconds_bucket{le=\"0.025\"} 2",
            "homelab_elements_added_total 5",
            "homelab_elements_deleted_total 4",
            "homelab_connections_ended_total 3",
            "homelab_clients_released_total 2",
            "homelab_http_requests_total{code=\"200\",path=\"/healthz\"} 1",
            "homelab_check_duration_seconds_bucket{scope=\"files\",le=\"0.0025\"} 1",
            "# TYPE homelab_check_duration_seconds histogram",
            "# TYPE homelab_repairs_total counter",
            "homelab_lb_addresses{state=\"elsewhere\"} 2",
            "homelab_lb_addresses{state=\"nobody\"} 1",
            "homelab_lb_members{standing=\"alive\"} 1",
            "homelab_lb_members{standing=\"itself\"} 1",
            "homelab_attachments_freed_total{reason=\"sandbox\"} 2",
            "homelab_lb_refused_total{reason=\"frame\"} 1",
            "homelab_bgp_session_up{peer=\"router\"} 1",
            "homelab_bgp_routes_sent{peer=\"router\"} 3",
            "homelab_bgp_session_drops{peer=\"router\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        let memory = text.lines().find_map(|l| l.strip_prefix("process_resident_memory_bytes ")).unwrap();
        assert!(memory.parse::<u64>().unwrap() > 1 << 20, "{memory}");
    }

    #[test]
    fn the_book_names_every_metric_with_its_type() {
        let text = filled().text().unwrap();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let metrics: BTreeSet<String> = types.map(str::to_owned).collect();
        let book = include_str!("../../../../book/src/reference/metrics.md");
        let (_, table) = book.split_once("## Metrics").unwrap();
        let rows = table.lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            Some(format!("{} {}", cells.next()?.split(['`', '{']).next()?, cells.next()?))
        });
        assert_eq!(rows.collect::<BTreeSet<String>>(), metrics);
        for name in metrics {
            assert!(name.starts_with("homelab_") || name.starts_with("process_"), "{name}");
        }
    }
}
