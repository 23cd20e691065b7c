//! The real machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use homelab_linux::transaction::{self as store, Shelf};
use homelab_linux::{Error, Kinds, Node, Root};
use homelab_model::service::Service;
use homelab_model::{
    Change, Holder, LbNode, NodeObject, NodeSpec, Observed, PoolRange, Scanned, Scope, ServiceReport, Spec,
    TracePacket, TraceReport, ours,
};
use homelab_protocol::Secret;
use homelab_proxy::report::{self, HeldState};

use crate::agent::kubernetes::known;
use crate::host::{ApplyFailure, Guard, Host, Locking, Marker, Record};

/// How long an apply waits for the agent to finish a check.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How long other nodes have to answer a probe.
const PROBE: Duration = Duration::from_secs(1);
/// A name that no transaction has: to take away what is armed for none.
const NOBODY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Our tables alone.
const RULES: Kinds = Kinds { nft: true, ..Kinds::NONE };

/// The machine that this process runs on.
pub(crate) struct Machine {
    root: Root,
    node: Node,
    /// Homelab has said goodbye: its directories must not come back.
    gone: bool,
}

impl Machine {
    /// Opens it. Changes nothing.
    pub(crate) fn open() -> Result<Self, String> {
        let node = Node::open(Root::system()).map_err(text)?;
        Ok(Machine { root: Root::system(), node, gone: false })
    }

    /// Does what writes the records that the agent writes, too. An agent that does not let go is no reason not to.
    fn apart<T>(&self, work: impl FnOnce(&Root) -> Result<T, Error>) -> Result<T, String> {
        let _lock = if self.gone { None } else { homelab_linux::lock(&self.root, LOCK_WAIT).ok() };
        work(&self.root).map_err(text)
    }

    fn apart_with_node<T>(&mut self, work: impl FnOnce(&mut Node) -> Result<T, Error>) -> Result<T, String> {
        let _lock = homelab_linux::lock(&self.root, LOCK_WAIT).ok();
        work(&mut self.node).map_err(text)
    }
}

fn text(error: Error) -> String {
    error.to_string()
}

impl Record {
    fn name(self) -> &'static str {
        match self {
            Record::Confirmed => "confirmed.json",
            Record::Reverted => "reverted.json",
        }
    }
}

impl Host for Machine {
    fn observe(&mut self, scope: &Scope) -> Result<Observed, String> {
        let mut observed = self.node.observe(scope).map_err(text)?;
        let links: BTreeSet<&str> = observed.facts.links.iter().map(|link| link.name.as_str()).collect();
        let mut attachments = crate::cni::attachments(Path::new(ours::IPAM));
        // Others ended without a DEL.
        attachments.retain(|attachment| links.contains(attachment.link.as_str()));
        observed.facts.attachments = attachments;
        observed.facts.containers = crate::agent::containers::kept().unwrap_or_default();
        leave_out_live(&mut observed);
        Ok(observed)
    }

    fn apply(
        &mut self,
        changes: &[Change<NodeObject>],
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), ApplyFailure> {
        let root = &self.root;
        let mut done = |n| {
            let _ = homelab_linux::touch_progress(root);
            progress(n);
        };
        self.node.apply_all(changes, &mut done).map_err(|error| ApplyFailure {
            object: error.object.to_string(),
            message: error.source.to_string(),
        })
    }

    fn reload_if_needed(&mut self) -> Result<(), String> {
        self.node.reload_if_needed().map_err(text)
    }

    fn farewell(&mut self) -> Result<(), String> {
        self.gone = true;
        self.node.farewell().map_err(text)
    }

    fn binary_sha256(&self) -> Result<String, String> {
        homelab_linux::digest_of_self().map_err(|e| e.to_string())
    }

    fn lock_apply(&mut self, wait: Duration) -> Result<Option<Guard>, String> {
        match homelab_linux::lock_apply(&self.root, wait) {
            Ok(lock) => Ok(Some(Box::new(lock))),
            Err(Error::Locked(_)) => Ok(None),
            Err(error) => Err(text(error)),
        }
    }

    fn lock(&mut self) -> Result<Guard, String> {
        homelab_linux::lock(&self.root, LOCK_WAIT).map(|lock| Box::new(lock) as Guard).map_err(text)
    }

    fn touch_progress(&mut self) {
        let _ = homelab_linux::touch_progress(&self.root);
    }

    fn progress_age(&mut self) -> Option<Duration> {
        homelab_linux::progress_age(&self.root)
    }

    fn kill_apply(&mut self) {
        let _ = homelab_linux::kill_apply(&self.root);
    }

    fn session_lock(&mut self, holder: &Holder, wait: Duration) -> Result<Locking, String> {
        match homelab_linux::session_lock(&self.root, holder, wait).map_err(text)? {
            Ok(lock) => {
                let waited = lock.waited();
                Ok(Locking::Held { guard: Box::new(lock), waited })
            }
            Err((other, _)) => Ok(Locking::Busy(other)),
        }
    }

    fn session_holder(&mut self) -> Option<Holder> {
        homelab_linux::session_holder(&self.root).map(|(holder, _)| holder)
    }

    fn displace(&mut self) -> Result<Option<Holder>, String> {
        homelab_linux::displace(&self.root).map_err(text)
    }

    fn read_journal(&mut self) -> Result<Option<Vec<u8>>, String> {
        store::read_journal(&self.root).map_err(text)
    }

    fn write_journal(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.apart(|root| store::write_journal(root, bytes))
    }

    fn reserve(&mut self) -> Result<(), String> {
        self.apart(store::reserve)
    }

    fn reserved(&mut self) -> bool {
        store::is_reserved(&self.root)
    }

    fn free_reserve(&mut self) -> Result<(), String> {
        store::free_reserve(&self.root).map_err(text)
    }

    fn remove_transaction(&mut self) -> Result<(), String> {
        if self.gone {
            // It went with all the rest.
            return Ok(());
        }
        self.apart(store::remove_transaction)
    }

    fn read_record(&mut self, record: Record) -> Result<Option<Vec<u8>>, String> {
        store::read_record(&self.root, record.name()).map_err(text)
    }

    fn write_record(&mut self, record: Record, lasting: bool, bytes: &[u8]) -> Result<(), String> {
        let shelf = if lasting { Shelf::Disk } else { Shelf::Run };
        self.apart(|root| store::write_record(root, shelf, record.name(), bytes))
    }

    fn remove_record(&mut self, record: Record) -> Result<(), String> {
        self.apart(|root| store::remove_record(root, record.name()))
    }

    fn can_arm(&mut self) -> Result<(), String> {
        store::can_arm(&self.root)
    }

    fn arm(&mut self, id: &str, seconds: u64) -> Result<(), String> {
        self.apart(|root| store::arm(root, id, Duration::from_secs(seconds)))
    }

    fn rearm(&mut self, id: &str, seconds: u64) -> Result<(), String> {
        store::rearm(&self.root, id, Duration::from_secs(seconds)).map_err(text)
    }

    fn disarm(&mut self, id: Option<&str>) -> Result<(), String> {
        self.apart(|root| store::disarm(root, id.unwrap_or(NOBODY)))
    }

    fn install(&mut self, package: &str) -> Result<(), String> {
        homelab_linux::install_package(&self.root, package).map_err(text)
    }

    fn secrets(&mut self, texts: &BTreeMap<String, String>) {
        self.node.set_secrets(texts.clone());
    }

    fn read_secret(&mut self, path: &str) -> Result<Secret, String> {
        match homelab_linux::read_secret(&self.root, path).map_err(text)? {
            Some((summary, text)) => Ok(Secret { summary, text }),
            None => Err(format!("{} is not there", Path::new(path).display())),
        }
    }

    fn keep_asides(&mut self, changes: &[Change<NodeObject>]) -> Result<(), String> {
        self.node.keep_asides(changes).map_err(text)
    }

    fn adopt_asides(&mut self, changes: &[Change<NodeObject>]) {
        self.node.adopt_asides(changes);
    }

    fn drop_asides(&mut self) -> Result<(), String> {
        self.apart_with_node(Node::drop_asides)
    }

    fn retire_asides(&mut self, id: &str) -> Result<(), String> {
        self.apart_with_node(|node| node.retire_asides(id))
    }

    fn at_boot(&mut self) {
        self.node.at_boot();
    }

    fn probe(&mut self, targets: &[IpAddr]) -> Result<Vec<bool>, String> {
        let device = self.node.spec().map(|spec| spec.vtep.device);
        let sources = match &device {
            Some(device) => self.node.addresses_of(device).map_err(text)?,
            None => Vec::new(),
        };
        Ok(homelab_linux::probe(targets, &sources, PROBE))
    }

    fn scan(&mut self, ranges: &[PoolRange]) -> Result<Vec<Scanned>, String> {
        crate::scan::scan(ranges)
    }

    fn services(&mut self) -> Result<Vec<ServiceReport>, String> {
        let held = self.node.held_services().map_err(text)?;
        let connections = self.node.service_connections(&held.elements).map_err(text)?;
        let strays = held.stray_lines();
        let state = HeldState { elements: &held.elements, strays: &strays, connections: &connections };
        let told = self.node.spec();
        let mut reports = report::services(told.clone().map(followed).as_ref(), &state);
        report::absent(&mut reports, told.as_ref(), &crate::agent::containers::kept().unwrap_or_default());
        Ok(reports)
    }

    fn load_balancers(&mut self) -> Result<LbNode, String> {
        let agent = homelab_linux::agent_runs(&self.root);
        Ok(LbNode {
            time_unix_ms: homelab_linux::unix_seconds().saturating_mul(1000),
            cordoned: homelab_linux::cordoned(&self.root),
            told: self.node.spec().is_some_and(|spec| spec.speaker.is_some()),
            agent,
            report: homelab_linux::lb_report(&self.root).filter(|_| agent),
        })
    }

    fn set_cordoned(&mut self, by: Option<&Holder>) -> Result<(), String> {
        if by.is_some() && self.node.spec().is_none() {
            return Err(crate::serve::untold());
        }
        self.apart(|root| homelab_linux::set_cordoned(root, by))
    }

    fn tell_agent(&mut self) -> Result<(), String> {
        homelab_linux::tell_agent(&self.root).map_err(text)
    }

    fn trace(&mut self, packet: &TracePacket) -> Result<TraceReport, String> {
        let spec = self.node.spec().map(followed).ok_or_else(crate::serve::untold)?;
        let own = self.node.addresses().map_err(text)?;
        let held = self.node.held_services().map_err(text)?;
        let remembered = self.node.remembered_clients().map_err(text)?;
        let observed = self.node.observe_objects(&Scope::default(), RULES).map_err(text)?;
        let mut traced = report::trace(&spec, &own, &held.elements, &remembered, packet);
        traced.warnings = crate::serve::altered_rules(&spec, &observed);
        Ok(traced)
    }

    fn now_ms(&mut self) -> u64 {
        homelab_linux::boottime_ms()
    }

    fn boot_id(&mut self) -> String {
        homelab_linux::boot_id(&self.root)
    }

    fn unix_seconds(&mut self) -> u64 {
        homelab_linux::unix_seconds()
    }

    fn sleep(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn marker(&self) -> Marker {
        Rc::new(|name| homelab_linux::fault::point(name))
    }
}

/// The spec with what its agent knows beyond it: of containers, and of Kubernetes.
fn followed(mut spec: NodeSpec) -> NodeSpec {
    let containers = crate::agent::containers::kept().unwrap_or_default();
    spec.services = containers.follow(&spec.services, &spec.containers);
    known(spec)
}

/// Leaves out what is the agent's business alone: services of Kubernetes, peers that are its Nodes, and where containers are
/// that services name. The laptop neither plans nor deletes them.
pub(crate) fn leave_out_live(observed: &mut Observed) {
    if let (Some(spec), Some(known)) = (&observed.spec, crate::agent::containers::kept()) {
        homelab_proxy::as_told(&mut observed.objects, spec, &known);
    }
    if let Some(peers) = crate::agent::peers::kept() {
        homelab_desired::without_peers(&mut observed.objects, observed.spec.as_ref(), &peers);
    }
    let Some(spec) = observed.spec.as_ref().filter(|spec| spec.kubernetes.is_some()) else { return };
    let told: BTreeSet<String> = spec.services.iter().map(Service::full_name).collect();
    observed.objects.retain(|object| match &object.spec {
        Spec::Service(service) => told.contains(&service.name),
        _ => true,
    });
}
