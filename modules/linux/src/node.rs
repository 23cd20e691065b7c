//! The node: everything that homelab holds on this machine, read and changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;

use homelab_model::{
    Change, Facts, History, Key, Link, Module, NftTable, NodeObject, NodeSpec, Object, Observed, Scope, Spec,
    ours,
};

use homelab_proxy::Elements;

use crate::asides::Kept;
use crate::error::{Error, netlink};
use crate::files::{self, Records};
use crate::kernel::{Kernel, Snapshot, is_link_local};
use crate::netlink::{Foreign, Socket, foreign, nfnetlink};
use crate::nft::Tables;
use crate::root::Root;
use crate::ruleset::{Ruleset, Started};
use crate::services::{Connections, Proxy, Synced};
use crate::unit::{Jobs, Shown};
use crate::{facts, nft, package, sysctl};

/// Which kinds of objects to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds {
    /// Links, addresses, neighbours, forwarding entries, routes: a few system calls.
    pub links: bool,
    /// The nftables tables. Starts `nft` if any ruleset changed since the last look.
    pub nft: bool,
    /// Services: all elements of the proxy's sets. Reads them if any ruleset changed since the last look.
    pub services: bool,
    /// Kernel parameters: one small file each.
    pub sysctls: bool,
    /// Files, symbolic links, node binaries.
    pub files: bool,
    /// systemd units and packages. Starts `systemctl`.
    pub units: bool,
}

impl Kinds {
    /// None of them.
    pub const NONE: Kinds =
        Kinds { links: false, nft: false, services: false, sysctls: false, files: false, units: false };
    /// All of them.
    pub const ALL: Kinds =
        Kinds { links: true, nft: true, services: true, sysctls: true, files: true, units: true };
    /// What lives in the kernel and is lost at a reboot, but for services.
    pub const KERNEL: Kinds =
        Kinds { links: true, nft: true, services: false, sysctls: true, files: false, units: false };
}

/// The real node, in the network namespace of the thread that opened it. Use it on that thread.
pub struct Node {
    pub(crate) root: Root,
    pub(crate) kernel: Kernel,
    pub(crate) netfilter: Option<Socket>,
    ruleset: Ruleset,
    pub(crate) proxy: Proxy,
    pub(crate) records: Records,
    /// Unit files that were written since systemd last read them.
    pub(crate) reload_pending: BTreeSet<String>,
    /// The files of the open transaction that this node works on, if it works on one.
    pub(crate) kept: Option<Kept>,
    /// Texts of secrets, by what objects say of them ([`homelab_model::Content::Secret`]). Never shown.
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) jobs: Jobs,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets are never printed.
        f.debug_struct("Node").field("root", &self.root).field("kept", &self.kept).finish_non_exhaustive()
    }
}

/// The modules of the objects in a scope.
struct Modules<'a>(BTreeMap<&'a Key, Module>);

impl<'a> Modules<'a> {
    fn of(scope: &'a Scope) -> Modules<'a> {
        Modules(scope.keys.iter().map(|(key, module)| (key, *module)).collect())
    }

    fn object(&self, spec: Spec, otherwise: Module) -> NodeObject {
        let module = self.0.get(&spec.key()).copied().unwrap_or(otherwise);
        NodeObject { module, spec }
    }
}

impl Node {
    /// Opens the node. Changes nothing.
    pub fn open(root: Root) -> Result<Node, Error> {
        let kernel = Kernel::open()?;
        let records = Records::load(&root)?;
        Ok(Node {
            root,
            kernel,
            netfilter: nfnetlink(),
            ruleset: Ruleset::default(),
            proxy: Proxy::default(),
            records,
            reload_pending: BTreeSet::new(),
            kept: None,
            secrets: BTreeMap::new(),
            jobs: Jobs::Wait,
        })
    }

    /// The texts of secrets that changes may ask for, by what objects say of them
    /// ([`homelab_model::Content::Secret`]).
    pub fn set_secrets(&mut self, secrets: BTreeMap<String, String>) {
        self.secrets = secrets;
    }

    /// From now on, work for units is only queued: at boot, a job waits for the very unit that asks for it. Whether a
    /// unit starts is then not checked.
    pub fn at_boot(&mut self) {
        self.jobs = Jobs::Queue;
    }

    /// The node, its surroundings and everything on it that is ours; also links under names of ours that do not have
    /// our mark, with what hangs on them: [`Observed::our_links`] tells which of them are ours.
    pub fn observe(&mut self, scope: &Scope) -> Result<Observed, Error> {
        let (objects, snapshot) = self.look(scope, Kinds::ALL, true)?;
        let foreign = self.foreign()?;
        let facts = snapshot.map(|s| facts::facts(&self.root, &s, foreign)).unwrap_or_default();
        Ok(Observed { facts, objects, spec: self.spec(), history: History::default() })
    }

    /// What is ours, of some kinds. Links without our mark are among them as in [`Node::observe`].
    pub fn observe_objects(&mut self, scope: &Scope, kinds: Kinds) -> Result<Vec<NodeObject>, Error> {
        Ok(self.look(scope, kinds, false)?.0)
    }

    /// The node and its surroundings alone.
    pub fn facts(&mut self) -> Result<Facts, Error> {
        let snapshot = self.kernel.snapshot(true)?;
        let foreign = self.foreign()?;
        Ok(facts::facts(&self.root, &snapshot, foreign))
    }

    fn foreign(&mut self) -> Result<Foreign, Error> {
        let Some(socket) = &mut self.netfilter else { return Ok(Foreign::default()) };
        netlink("reading nftables chains", foreign(socket))
    }

    /// Indices of our links, for [`crate::netlink::Events::watch_neighbours_of`].
    pub fn our_links(&mut self) -> Result<Vec<u32>, Error> {
        let links = self.kernel.snapshot(false)?.links;
        Ok(links.into_iter().filter(|l| l.alias == ours::LINK_ALIAS).map(|l| l.index).collect())
    }

    /// Addresses of a link, those of its own scope left out: sources for [`crate::probe`]. Empty if there is no
    /// such link.
    pub fn addresses_of(&mut self, link: &str) -> Result<Vec<IpAddr>, Error> {
        let snapshot = self.kernel.snapshot(false)?;
        let index = snapshot.links.iter().find(|l| l.name == link).map(|l| l.index);
        let own = snapshot.addresses.iter().filter(|(at, a)| Some(*at) == index && !is_link_local(a));
        Ok(own.map(|(_, address)| address.addr()).collect())
    }

    /// What the last apply left as [`ours::NODE_SPEC`], if it can be read.
    pub fn spec(&self) -> Option<NodeSpec> {
        let bytes = fs::read(self.root.path(ours::NODE_SPEC)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn look(
        &mut self,
        scope: &Scope,
        kinds: Kinds,
        surroundings: bool,
    ) -> Result<(Vec<NodeObject>, Option<Snapshot>), Error> {
        let modules = Modules::of(scope);
        let names = our_names(scope);
        let units: Vec<&str> = scope
            .keys
            .iter()
            .filter_map(|(key, _)| if let Key::Unit(name) = key { Some(name.as_str()) } else { None })
            .collect();
        // Other processes are at work while this one reads the rest.
        let shown = if kinds.units { Some(Shown::start(&self.root, &units)?) } else { None };
        let listing = if kinds.nft { Some(self.start_listing()?) } else { None };
        if kinds.sysctls || kinds.files {
            self.records = Records::load(&self.root)?;
        }
        let (root, kernel) = (&self.root, &mut self.kernel);
        let mut objects = Vec::new();
        let (from_files, from_kernel) = std::thread::scope(|threads| {
            // Digests of binaries take the longest.
            let files = kinds.files.then(|| threads.spawn(|| look_at_files(root, scope)));
            let kernel = (kinds.links || kinds.sysctls || surroundings).then(|| {
                let snapshot = kernel.snapshot(surroundings)?;
                let specs = if kinds.links { kernel.objects(&snapshot, &names)? } else { Vec::new() };
                Ok::<_, Error>((specs, snapshot))
            });
            let files = files.map(|thread| {
                thread.join().unwrap_or_else(|_| Err(Error::Invalid("reading files failed".to_owned())))
            });
            (files.unwrap_or(Ok(Vec::new())), kernel)
        });
        let mut snapshot = None;
        if let Some(result) = from_kernel {
            let (specs, read) = result?;
            let cni: BTreeSet<String> = specs
                .iter()
                .filter_map(|s| match s {
                    Spec::Link(link) if matches!(link.kind, homelab_model::LinkKind::Bridge { .. }) => {
                        Some(link.name.clone())
                    }
                    _ => None,
                })
                .collect();
            for spec in specs {
                let link = match &spec {
                    Spec::Link(o) => Some(o.name.as_str()),
                    Spec::Address(o) => Some(o.link.as_str()),
                    _ => None,
                };
                let module = if link.is_some_and(|l| cni.contains(l)) { Module::Cni } else { Module::Vtep };
                objects.push(modules.object(spec, module));
            }
            snapshot = Some(read);
        }
        if let (true, Some(snapshot)) = (kinds.sysctls, &snapshot) {
            for spec in self.look_at_sysctls(scope, snapshot)? {
                objects.push(modules.object(spec, Module::Vtep));
            }
        }
        for spec in from_files? {
            objects.push(modules.object(spec, Module::Agent));
        }
        if let Some(listing) = listing {
            for (name, table) in self.finish_listing(listing)? {
                let module = table_module(&name);
                let spec = Spec::NftTable(NftTable { name, sets: table.sets });
                objects.push(modules.object(spec, module));
                for chain in table.chains {
                    let module = if chain.name.starts_with("cni-") { Module::Cni } else { module };
                    objects.push(modules.object(Spec::NftChain(chain), module));
                }
            }
        }
        if let (true, Some(socket)) = (kinds.services, &mut self.netfilter) {
            let services = self.proxy.held(socket)?.objects();
            objects.extend(services.into_iter().map(|spec| modules.object(spec, Module::Proxy)));
        }
        if let Some(shown) = shown {
            let units = shown.finish(&self.root)?.into_iter().map(Spec::Unit);
            objects.extend(units.map(|spec| modules.object(spec, Module::Agent)));
            let packages = scope.keys.iter().filter_map(|(key, _)| match key {
                Key::Package(name) => package::observe(&self.root, name).map(Spec::Package),
                _ => None,
            });
            objects.extend(packages.map(|spec| modules.object(spec, Module::Agent)));
        }
        Ok((objects, snapshot))
    }

    fn look_at_sysctls(&self, scope: &Scope, snapshot: &Snapshot) -> Result<Vec<Spec>, Error> {
        let mut wanted: BTreeSet<(Option<&str>, &str)> = BTreeSet::new();
        // A link of that name may have lost its mark.
        let exists = |name: &str| snapshot.links.iter().any(|l| l.name == name);
        for (key, _) in &scope.keys {
            if let Key::LinkSysctl(link, key) = key
                && exists(link)
            {
                wanted.insert((Some(link), key));
            }
        }
        // Others are ours only once we have changed them.
        wanted.extend(self.records.sysctls().map(|key| (None, key)));
        let mut found = Vec::new();
        for (link, key) in wanted {
            if let Some(value) = sysctl::read(&self.root, key)? {
                let link = link.map(str::to_owned);
                found.push(Spec::Sysctl(homelab_model::Sysctl { key: key.to_owned(), link, value }));
            }
        }
        Ok(found)
    }

    /// Starts reading our tables, unless what is known of them still holds.
    fn start_listing(&mut self) -> Result<Option<Started>, Error> {
        match &mut self.netfilter {
            Some(socket) => self.ruleset.start(socket, &self.root),
            None => Ok(None),
        }
    }

    fn finish_listing(&mut self, started: Option<Started>) -> Result<Tables, Error> {
        match &mut self.netfilter {
            Some(socket) => self.ruleset.finish(socket, &self.root, started),
            None => Ok(Tables::new()),
        }
    }

    /// Our tables.
    pub(crate) fn tables(&mut self) -> Result<Tables, Error> {
        let started = self.start_listing()?;
        self.finish_listing(started)
    }

    /// Notes what was read of our tables, so that the next process need not start `nft` for it.
    pub fn note_ruleset(&mut self) -> Result<(), Error> {
        self.ruleset.note(&self.root)
    }

    /// Carries out changes of our tables in one transaction. What is known of services stays so.
    pub(crate) fn change_tables(&mut self, changes: &[&Change<NodeObject>]) -> Result<(), Error> {
        let now = self.tables()?;
        let transactions = nft::apply(changes, &now)?;
        let spared = !changes.iter().any(|change| {
            !matches!(change, Change::Update { .. })
                && matches!(change.key(), Key::NftTable(table) if table == ours::PROXY_TABLE)
        });
        if spared {
            self.proxy.count(transactions);
        } else {
            self.proxy.forget();
        }
        Ok(())
    }

    /// Carries out changes of services in one transaction.
    pub(crate) fn change_services(&mut self, changes: &[&Change<NodeObject>]) -> Result<(), Error> {
        let change = |proxy: &mut Proxy, socket: &mut Socket| {
            let target = crate::services::target(proxy.held(socket)?, changes)?;
            proxy.sync(socket, &target, Connections::OfChange)
        };
        self.change_elements(change).map(drop)
    }

    /// Makes the proxy's sets hold `target` and nothing else, and ends connections that this leaves stale.
    pub fn sync_services(&mut self, target: &Elements, connections: Connections) -> Result<Synced, Error> {
        self.change_elements(|proxy, socket| proxy.sync(socket, target, connections))
    }

    /// The same for the services of `changed` alone, whatever the number of others: they are taken to be as they were
    /// last seen. A service without elements is gone. What somebody else did to the sets is for
    /// [`Node::sync_services`] to find.
    pub fn sync_changed_services(&mut self, changed: &Elements) -> Result<Synced, Error> {
        self.change_elements(|proxy, socket| proxy.sync_changed(socket, changed))
    }

    fn change_elements(
        &mut self,
        change: impl FnOnce(&mut Proxy, &mut Socket) -> Result<Synced, Error>,
    ) -> Result<Synced, Error> {
        let Some(socket) = &mut self.netfilter else {
            return Err(Error::Invalid("the kernel has no nf_tables".to_owned()));
        };
        let before = self.proxy.generation();
        let synced = change(&mut self.proxy, socket)?;
        // Elements are no part of what is listed of the tables.
        if self.ruleset.generation() == before {
            self.ruleset.count(synced.transactions);
        }
        Ok(synced)
    }

    /// The port of the socket by which services are changed, for [`crate::netlink::Events::ignore_services_of`].
    pub fn port(&self) -> u32 {
        self.netfilter.as_ref().map_or(0, Socket::port)
    }
}

/// Takes links without our mark, and what hangs on them, out of `observed`, unless they are what `desired` says in
/// name, type and MAC address: then somebody took the mark away.
pub fn without_strangers(mut observed: Vec<NodeObject>, desired: &[NodeObject]) -> Vec<NodeObject> {
    let same = |a: &Link, b: &Link| {
        (&a.name, &a.mac) == (&b.name, &b.mac)
            && std::mem::discriminant(&a.kind) == std::mem::discriminant(&b.kind)
    };
    let is_desired = |link: &Link| desired.iter().any(|o| matches!(&o.spec, Spec::Link(d) if same(link, d)));
    let strangers: BTreeSet<Key> = observed
        .iter()
        .filter(|o| matches!(&o.spec, Spec::Link(l) if l.alias != ours::LINK_ALIAS && !is_desired(l)))
        .map(Object::key)
        .collect();
    observed.retain(|o| !strangers.contains(&o.key()) && o.parent().is_none_or(|p| !strangers.contains(&p)));
    observed
}

/// Whose a table of ours is; of their chains, those of pods begin with `cni-`.
fn table_module(name: &str) -> Module {
    match name {
        ours::PROXY_TABLE => Module::Proxy,
        ours::BRIDGE_TABLE | ours::HOSTPORT_TABLE => Module::Cni,
        _ => Module::Vtep,
    }
}

/// Names that only links of ours should have.
fn our_names(scope: &Scope) -> BTreeSet<&str> {
    let of_scope = scope.keys.iter().filter_map(|(key, _)| match key {
        Key::Link(name) => Some(name.as_str()),
        _ => None,
    });
    of_scope.chain([scope.device.as_str(), ours::BRIDGE]).collect()
}

/// Files, symbolic links and binaries of the scope, and all versions of the node binary.
fn look_at_files(root: &Root, scope: &Scope) -> Result<Vec<Spec>, Error> {
    let mut found = Vec::new();
    let mut binaries: BTreeSet<String> = files::binaries(root)?.into_iter().collect();
    for (key, _) in &scope.keys {
        match key {
            Key::File(path) => found.extend(files::file(root, path)?.map(Spec::File)),
            Key::Symlink(path) => found.extend(files::symlink(root, path)?.map(Spec::Symlink)),
            Key::Binary(path) => {
                binaries.insert(path.clone());
            }
            _ => {}
        }
    }
    for path in binaries {
        found.extend(files::binary(root, &path)?.map(Spec::Binary));
    }
    Ok(found)
}
