//! A machine: a map of objects for a kernel, and the books of its transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use homelab_model::{
    AddressFact, AttachmentFact, Change, CniRuntime, Confirmed, Content, Facts, FrrFact, History, Holder,
    Key, LbNode, LinkFact, LinkKind, NodeObject, NodeSpec, Object, Observed, OpenTransaction, Package, Phase,
    Previous, Reverted, Scope, ServiceReport, Spec, TraceReport, ours,
};
use homelab_protocol::{Failure, Fault as Kind, Request, Response, Transaction};

/// What a broken or malicious node does instead of answering.
#[derive(Clone, Copy)]
pub(crate) struct Evil(pub(crate) fn(&Request) -> Option<Trick>);

impl std::fmt::Debug for Evil {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Evil")
    }
}

/// A trick.
pub(crate) enum Trick {
    /// Says this.
    Say(Vec<Response>),
    /// Says this again and again until the laptop has enough.
    Forever(Response),
    /// Sends these bytes.
    Bytes(Vec<u8>),
    /// Sends a byte of an endless frame now and then.
    Drip,
    /// Says nothing.
    Silence,
    /// Ends the session before anything is done.
    HangUp,
    /// Does what was asked for, and says this.
    Lie(Response),
}

/// How a node misbehaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fault {
    /// Nobody answers.
    pub(crate) down: bool,
    /// Nobody answers until then.
    pub(crate) down_until: Option<Instant>,
    /// The change with this number fails, and what was done is undone.
    pub(crate) fail_at: Option<usize>,
    /// What the login shell prints first.
    pub(crate) noise: Vec<u8>,
    /// Bytes instead of frames.
    pub(crate) garbage: Option<Vec<u8>>,
    /// Another protocol version.
    pub(crate) protocol: Option<u32>,
    /// The installed binary reports this digest.
    pub(crate) tampered: bool,
    /// Changes are reported as made, and are not.
    pub(crate) lazy: bool,
    /// Sessions end before the first transaction is begun; only the first one does.
    pub(crate) drop_once: bool,
    /// All changes are made, then the node is out of reach for so long.
    pub(crate) lost_after_run: Option<Duration>,
    /// So many confirmations are lost on their way to the laptop.
    pub(crate) lost_confirmations: usize,
    /// Time that every change takes.
    pub(crate) slow: Duration,
    /// Tricks.
    pub(crate) evil: Option<Evil>,
}

/// A transaction that is open.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) transaction: Transaction,
    pub(crate) phase: Phase,
    pub(crate) deadline: Instant,
    before: State,
}

/// What a transaction changes, and a rollback restores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) objects: BTreeMap<Key, NodeObject>,
    pub(crate) sysctls: BTreeMap<String, String>,
    originals: BTreeMap<String, String>,
}

/// A machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) hostname: String,
    pub(crate) address: IpAddr,
    pub(crate) mtu: u32,
    pub(crate) kernel: String,
    pub(crate) objects: BTreeMap<Key, NodeObject>,
    /// Kernel parameters of the machine itself.
    pub(crate) sysctls: BTreeMap<String, String>,
    /// Their values before homelab.
    pub(crate) originals: BTreeMap<String, String>,
    pub(crate) fault: Fault,
    pub(crate) runtimes: Vec<CniRuntime>,
    /// Uploads of the binary.
    pub(crate) uploads: usize,
    /// Sessions opened.
    pub(crate) sessions: u64,
    /// Who holds the lock: session and holder.
    pub(crate) lock: Option<(u64, Holder)>,
    /// apt-get works here.
    pub(crate) apt: bool,
    /// It only looks as if it did.
    pub(crate) says_apt: bool,
    /// FRR that somebody else installed.
    pub(crate) own_frr: Option<FrrFact>,
    /// Sessions that were ended by `Unlock`.
    pub(crate) killed: BTreeSet<u64>,
    pub(crate) open: Option<Open>,
    pub(crate) reverted: Option<Reverted>,
    pub(crate) previous: Option<Previous>,
    /// Texts of secrets, by what objects say of them.
    pub(crate) texts: BTreeMap<String, String>,
    /// What a second of a transaction's timeout takes here.
    pub(crate) second: Duration,
    /// Machines whose tunnel is not reached.
    pub(crate) walls: BTreeSet<IpAddr>,
    /// Requests: session and name.
    pub(crate) log: Vec<(u64, String)>,
    /// The transaction whose changes are being made.
    pub(crate) worker: Option<String>,
    /// Two transactions met.
    pub(crate) collisions: usize,
    /// Transactions confirmed.
    pub(crate) confirms: usize,
    /// What it says of its services.
    pub(crate) services: Vec<ServiceReport>,
    /// What it does with packets, by their destination.
    pub(crate) traces: BTreeMap<IpAddr, TraceReport>,
    /// What it says of load-balancer addresses, and whether it is cordoned.
    pub(crate) balancers: LbNode,
    /// Machines of the LAN that answer when it asks.
    pub(crate) neighbours: Vec<homelab_model::Scanned>,
    /// Interfaces that CNI ADD made.
    pub(crate) attachments: Vec<AttachmentFact>,
}

impl Machine {
    pub(crate) fn new(hostname: &str, address: &str) -> Machine {
        Machine {
            hostname: hostname.to_owned(),
            address: address.parse().unwrap(),
            mtu: 1500,
            kernel: "6.1.0".to_owned(),
            objects: BTreeMap::new(),
            sysctls: BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "0".to_owned())]),
            originals: BTreeMap::new(),
            fault: Fault::default(),
            runtimes: Vec::new(),
            uploads: 0,
            sessions: 0,
            apt: true,
            says_apt: false,
            own_frr: None,
            lock: None,
            killed: BTreeSet::new(),
            open: None,
            reverted: None,
            previous: None,
            texts: BTreeMap::new(),
            second: Duration::from_secs(1),
            walls: BTreeSet::new(),
            log: Vec::new(),
            worker: None,
            collisions: 0,
            confirms: 0,
            services: Vec::new(),
            traces: BTreeMap::new(),
            balancers: LbNode::default(),
            neighbours: Vec::new(),
            attachments: Vec::new(),
        }
    }

    pub(crate) fn state(&self) -> State {
        let Machine { objects, sysctls, originals, .. } = self.clone();
        State { objects, sysctls, originals }
    }

    fn restore(&mut self, state: State) {
        self.objects = state.objects;
        self.sysctls = state.sysctls;
        self.originals = state.originals;
    }

    /// The armed timer: takes a transaction back whose time is over.
    pub(crate) fn tick(&mut self) {
        let due = self.open.as_ref().is_some_and(|o| o.deadline <= Instant::now() && self.worker.is_none());
        if due {
            self.roll_back("nobody confirmed it in time");
        }
    }

    pub(super) fn roll_back(&mut self, reason: &str) {
        let Some(open) = self.open.take() else { return };
        self.restore(open.before);
        let Transaction { id, by, .. } = open.transaction;
        self.reverted = Some(Reverted { id, by, at: 5000, reason: reason.to_owned(), left: Vec::new() });
    }

    fn history(&self, token: u64) -> History {
        let holder = self.lock.as_ref().filter(|(owner, _)| *owner != token).map(|(_, h)| h.clone());
        let open = self.open.as_ref().map(|o| OpenTransaction {
            id: o.transaction.id.clone(),
            by: o.transaction.by.clone(),
            phase: o.phase,
            remaining: o.deadline.saturating_duration_since(Instant::now()).as_secs(),
            changes: o.transaction.changes.len(),
        });
        let confirmed = self.previous.as_ref().map(|p| p.confirmed.clone());
        History { holder, open, reverted: self.reverted.clone(), confirmed }
    }

    fn refuse(fault: Kind, message: &str, left: Vec<String>) -> Response {
        let message = message.to_owned();
        Response::Failed(Failure { fault, object: String::new(), message, undone: false, left })
    }

    pub(super) fn begin(&mut self, transaction: Transaction, token: u64) -> Response {
        if self.worker.is_some() {
            self.collisions += 1;
        }
        if self.lock.as_ref().is_none_or(|(owner, _)| *owner != token) {
            return Self::refuse(Kind::NotLocked, "the session does not hold the lock", Vec::new());
        }
        match &self.open {
            Some(open) if open.phase == Phase::Held => {
                return Self::refuse(Kind::Open, "another change is being tried out", Vec::new());
            }
            Some(_) => self.roll_back("another one began"),
            None => {}
        }
        let now: Vec<NodeObject> = self.observe(&transaction.scope, token).objects;
        let find = |key: &Key| now.iter().find(|o| o.key() == *key);
        let stale = |change: &&Change<NodeObject>| {
            let have = find(&change.key());
            have != change.before() && have != change.after()
        };
        let left: Vec<String> =
            transaction.changes.iter().filter(stale).map(|c| c.key().to_string()).collect();
        // What is deleted and made again is there in between only.
        if !left.is_empty() {
            let twice = |name: &String| {
                transaction.changes.iter().filter(|c| c.key().to_string() == *name).count() > 1
            };
            let left: Vec<String> = left.into_iter().filter(|n| !twice(n)).collect();
            if !left.is_empty() {
                return Self::refuse(Kind::Stale, "the node has changed", left);
            }
        }
        let timeout = u32::try_from(transaction.timeout).unwrap();
        let deadline = Instant::now() + self.second * timeout;
        self.open = Some(Open { transaction, phase: Phase::Armed, deadline, before: self.state() });
        Response::Armed
    }

    /// Makes one change of the open transaction.
    pub(super) fn advance(&mut self, done: usize) -> Result<(), Failure> {
        let Some(open) = self.open.clone() else { return Err(fail("it was taken back", false)) };
        let change = &open.transaction.changes[done];
        if self.fault.fail_at == Some(done) {
            self.roll_back("out of luck");
            return Err(Failure { object: change.key().to_string(), ..fail("out of luck", true) });
        }
        if let Some(Spec::File(file)) = change.after().map(|o| &o.spec)
            && let Content::Secret(summary) = &file.content
        {
            if let Some(text) = open.transaction.secrets.get(summary) {
                self.texts.insert(summary.clone(), text.clone());
            }
            if !self.texts.contains_key(summary) {
                self.roll_back("a secret without its text");
                return Err(fail("a secret without its text", true));
            }
        }
        if !self.fault.lazy {
            self.change(change);
        }
        Ok(())
    }

    pub(super) fn applied(&mut self) {
        if let Some(open) = &mut self.open {
            open.phase = Phase::Applied;
            open.deadline = Instant::now() + self.second * u32::try_from(open.transaction.timeout).unwrap();
        }
    }

    pub(super) fn confirm(&mut self, id: &str) -> Response {
        match &self.open {
            Some(o) if o.transaction.id == id && matches!(o.phase, Phase::Applied | Phase::Held) => {}
            _ if self.previous.as_ref().is_some_and(|p| p.confirmed.id == id) => return Response::Confirmed,
            _ => return Self::refuse(Kind::NoTransaction, "there is no such transaction", Vec::new()),
        }
        let open = self.open.take().unwrap();
        self.confirms += 1;
        self.reverted = None;
        if open.transaction.farewell {
            self.previous = None;
            self.texts.clear();
            self.balancers = LbNode::default();
            return Response::Confirmed;
        }
        let Transaction { id, by, .. } = open.transaction;
        let revertible = by.command != "rollback";
        let confirmed = Confirmed { id, by, at: 5000, spec: self.spec(), revertible };
        let mut before: Vec<NodeObject> = open.before.objects.into_values().collect();
        for name in open.before.originals.keys() {
            let value = open.before.sysctls[name].clone();
            let spec = Spec::Sysctl(homelab_model::Sysctl { key: name.clone(), link: None, value });
            before.push(NodeObject { module: homelab_model::Module::Vtep, spec });
        }
        self.previous = Some(Previous { confirmed, before });
        Response::Confirmed
    }

    pub(super) fn hold(&mut self, id: &str, seconds: u64) -> Response {
        let second = self.second;
        match &mut self.open {
            Some(open) if open.transaction.id == id && open.phase != Phase::Armed => {
                open.phase = Phase::Held;
                open.deadline = Instant::now() + second * u32::try_from(seconds).unwrap();
                Response::Confirmed
            }
            _ => Self::refuse(Kind::NoTransaction, "there is no such transaction", Vec::new()),
        }
    }

    pub(super) fn take_back(&mut self, id: &str, reason: &str) -> Response {
        match &self.open {
            Some(open) if open.transaction.id == id => {
                self.roll_back(reason);
                Response::RolledBack { left: Vec::new() }
            }
            _ => Self::refuse(Kind::NoTransaction, "there is no such transaction", Vec::new()),
        }
    }

    /// Network, port and addresses of the tunnel.
    pub(super) fn tunnel(&self) -> Option<((u32, u16), Vec<IpAddr>)> {
        let place = self.objects.values().find_map(|o| match &o.spec {
            Spec::Link(l) => match l.kind {
                LinkKind::Vxlan { vni, port, .. } => Some((l.name.clone(), (vni, port))),
                _ => None,
            },
            _ => None,
        });
        let (name, place) = place?;
        let address = |o: &NodeObject| match &o.spec {
            Spec::Address(a) if a.link == name => Some(a.address.addr()),
            _ => None,
        };
        Some((place, self.objects.values().filter_map(address).collect()))
    }

    /// What the key file says.
    pub(crate) fn key_summary(&self) -> Option<String> {
        self.secret_summary(ours::KEYS)
    }

    /// What a secret file says.
    pub(crate) fn secret_summary(&self, path: &str) -> Option<String> {
        match &self.objects.get(&Key::File(path.to_owned()))?.spec {
            Spec::File(homelab_model::File { content: Content::Secret(summary), .. }) => {
                Some(summary.clone())
            }
            _ => None,
        }
    }

    /// Installs a package, if it can.
    pub(super) fn install(&mut self, package: &str) -> Response {
        if !self.apt {
            return Response::Failed(fail("package frr: E: Unable to locate package frr", true));
        }
        let spec = Spec::Package(Package { name: package.to_owned() });
        self.objects.insert(spec.key(), NodeObject { module: homelab_model::Module::Agent, spec });
        Response::Installed
    }

    /// FRR, if we or its owner installed it.
    fn frr(&self) -> Option<FrrFact> {
        let ours = self.objects.contains_key(&Key::Package(ours::FRR_PACKAGE.to_owned()));
        let fact = FrrFact { ours, bfd: true, ..FrrFact::default() };
        self.own_frr.clone().or(ours.then_some(fact))
    }

    /// Whether nothing of ours is left.
    pub(crate) fn is_bare(&self) -> bool {
        self.objects.is_empty() && self.originals.is_empty() && self.open.is_none()
    }

    pub(crate) fn spec(&self) -> Option<NodeSpec> {
        match &self.objects.get(&Key::File(ours::NODE_SPEC.to_owned()))?.spec {
            Spec::File(f) => match &f.content {
                Content::Text(text) => serde_json::from_str(text).ok(),
                Content::Opaque(_) | Content::Secret(_) => None,
            },
            _ => None,
        }
    }

    pub(super) fn installed(&self, digest: &str) -> bool {
        self.objects.contains_key(&Key::Binary(ours::binary_path(digest)))
    }

    pub(super) fn observe(&self, scope: &Scope, token: u64) -> Observed {
        // Files are found only where somebody said to look; the kernel's objects carry a mark of ours.
        let found = |key: &Key| match key {
            Key::Symlink(_) | Key::File(_) | Key::Unit(_) => scope.keys.iter().any(|(k, _)| k == key),
            _ => true,
        };
        let mut objects: Vec<NodeObject> =
            self.objects.iter().filter(|(key, _)| found(key)).map(|(_, o)| o.clone()).collect();
        // Parameters of the machine itself are ours only once we have changed them.
        for name in self.originals.keys() {
            let value = self.sysctls[name].clone();
            let spec = homelab_model::Sysctl { key: name.clone(), link: None, value };
            objects.push(NodeObject { module: homelab_model::Module::Vtep, spec: Spec::Sysctl(spec) });
        }
        let link =
            |name: &str, mtu: u32| LinkFact { name: name.to_owned(), mtu, up: true, ..LinkFact::default() };
        let mut links = vec![link("lo", 65536), link("eth0", self.mtu)];
        for object in self.objects.values() {
            if let Spec::Link(l) = &object.spec {
                links.push(LinkFact { alias: l.alias.clone(), ..link(&l.name, l.mtu) });
            }
        }
        let held = ipnet::IpNet::new(self.address, 24).unwrap();
        Observed {
            facts: Facts {
                hostname: self.hostname.clone(),
                arch: "x86_64".into(),
                kernel: self.kernel.clone(),
                boot_id: self.hostname.clone(),
                systemd: Some("252".into()),
                nft: Some("1.0.6".into()),
                links,
                addresses: vec![AddressFact { link: "eth0".into(), address: held }],
                runtimes: self.runtimes.clone(),
                attachments: self.attachments.clone(),
                cordoned: self.balancers.cordoned.clone(),
                frr: self.frr(),
                apt: self.apt || self.says_apt,
                ..Facts::default()
            },
            objects,
            spec: self.spec(),
            history: self.history(token),
        }
    }

    pub(super) fn change(&mut self, change: &Change<NodeObject>) {
        if let Key::Sysctl(name) = change.key() {
            match change.after().map(|o| &o.spec) {
                Some(Spec::Sysctl(s)) => {
                    let old = self.sysctls.insert(name.clone(), s.value.clone()).unwrap_or_default();
                    self.originals.entry(name).or_insert(old);
                }
                _ => {
                    if let Some(original) = self.originals.remove(&name) {
                        self.sysctls.insert(name, original);
                    }
                }
            }
            return;
        }
        match change.after() {
            Some(after) => drop(self.objects.insert(after.key(), after.clone())),
            None => drop(self.objects.remove(&change.key())),
        }
    }
}

fn fail(message: &str, undone: bool) -> Failure {
    Failure {
        fault: Kind::Error,
        object: String::new(),
        message: message.to_owned(),
        undone,
        left: Vec::new(),
    }
}
