//! A lab as a whole: up, open, down, status.

use crate::fault::Impairment;
use crate::process::Process;
use crate::{Error, Result, cgroup, disk, home, host, image, lan, node, paths, router, supervisor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What lab to make.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Name: 1 to 20 lower-case letters, digits and hyphens. Labs with different names do not meet.
    pub name: String,
    /// How many nodes, 1 to 80.
    pub nodes: usize,
}

impl LabOptions {
    /// Three nodes.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), nodes: 3 }
    }

    /// Three nodes under a name no other process has: the prefix and our pid, and a number if asked again.
    pub fn unique(prefix: &str) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Self::new(format!("{prefix}{}-{count}", std::process::id()))
    }

    /// The same with another number of nodes.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        if !(1..=node::MOST).contains(&self.nodes) {
            return Err(Error::Usage(format!("{} nodes: a lab has 1 to {}", self.nodes, node::MOST)));
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=20).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('-') {
        return Ok(());
    }
    Err(Error::Usage(format!("lab name `{name}`: use 1 to 20 of a-z, 0-9 and -")))
}

/// What is kept on disk of a lab.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    nodes: Vec<String>,
    image: PathBuf,
    /// Whoever takes the lab down at its end, if it is not meant to outlive that process.
    owner: Option<Process>,
    /// Processes that hold the namespaces of client, wan and router.
    pub(crate) holders: BTreeMap<String, Process>,
}

/// A lab that is up. Dropping it leaves the lab as it is; see [`crate::LabGuard`] for the other way.
#[derive(Debug)]
pub struct Lab {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) nodes: Vec<String>,
    pub(crate) image: PathBuf,
    pub(crate) holders: BTreeMap<String, Process>,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It has no processes.
    Off,
    /// It runs, or is about to.
    On,
    /// Its processes stand still.
    Frozen,
}

/// One node's state.
#[derive(Debug, Clone, Serialize)]
pub struct NodeStatus {
    /// Name.
    pub name: String,
    /// IPv4 address on the LAN.
    pub address: std::net::Ipv4Addr,
    /// IPv6 address on the LAN.
    pub address6: std::net::Ipv6Addr,
    /// On, off or frozen.
    pub state: NodeState,
    /// Process id of its init on this machine.
    pub leader: Option<i32>,
    /// Boots since it was last turned on.
    pub boots: u32,
    /// Whether its cable is cut.
    pub partitioned: bool,
    /// What its cable does to packets.
    pub impairment: Option<Impairment>,
}

/// A lab's state.
#[derive(Debug, Clone, Serialize)]
pub struct LabStatus {
    /// Name.
    pub name: String,
    /// The user's home directory on the client: ssh key, ssh configuration, `known_hosts`.
    pub home: PathBuf,
    /// The generated `homelab.yaml`.
    pub config: PathBuf,
    /// All nodes, in order.
    pub nodes: Vec<NodeStatus>,
}

impl Lab {
    /// Makes a lab and boots its nodes; returns when every node's sshd answers. Whatever is left of a lab of the
    /// same name is taken down first. Installs missing Debian packages and builds the image when it must.
    pub fn up(options: LabOptions) -> Result<Self> {
        Self::up_owned(options, None)
    }

    pub(crate) fn up_owned(options: LabOptions, owner: Option<Process>) -> Result<Self> {
        options.check()?;
        host::ensure_packages()?;
        let image = image::ensure()?;
        Self::down_name(&options.name)?;
        let dir = paths::lab_dir(&options.name);
        let nodes: Vec<String> = (1..=options.nodes).map(|number| format!("node{number}")).collect();
        let mut lab = Self { name: options.name, dir, nodes, image, holders: BTreeMap::new() };
        // Nobody will use half a lab, but its logs are worth reading: down is the caller's.
        lab.build(owner)?;
        Ok(lab)
    }

    fn build(&mut self, owner: Option<Process>) -> Result<()> {
        paths::make_dir(&self.dir)?;
        self.save(owner)?;
        lan::up(&self.name)?;
        home::create(&self.dir)?;
        let mut hosts = self.nodes.clone();
        hosts.push("router".into());
        home::make_host_keys(&self.dir, &hosts)?;
        self.write_home()?;
        self.start_holders()?;
        self.save(owner)?;
        for node in &self.nodes {
            self.power_on(node)?;
        }
        router::start(self)?;
        self.save(owner)?;
        self.nodes.iter().try_for_each(|node| self.wait_ready(node))
    }

    /// A lab that is up already.
    pub fn open(name: &str) -> Result<Self> {
        check_name(name)?;
        let dir = paths::lab_dir(name);
        let state: State = paths::read_json(&dir.join("lab.json")).ok_or_else(|| {
            Error::Usage(format!("no lab `{name}` is up: cargo xtask lab --name {name} up"))
        })?;
        Ok(Self { name: name.into(), dir, nodes: state.nodes, image: state.image, holders: state.holders })
    }

    /// Takes this lab down: every process, mount, namespace and file of it.
    pub fn down(self) -> Result<()> {
        Self::down_name(&self.name)
    }

    /// Takes down whatever there is of a lab by this name; nothing to do is no error.
    pub fn down_name(name: &str) -> Result<()> {
        check_name(name)?;
        let dir = paths::lab_dir(name);
        let nodes: Vec<PathBuf> = entries(&dir.join("nodes"));
        let names = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let mut waiting = Vec::new();
        for path in &nodes {
            if let Some(relay) = paths::read_json::<Process>(&path.join("relay.pid.json")) {
                relay.kill();
            }
            paths::write(&node::off_flag(path), "")?;
            if let (Some(node), Some(state)) = (names(path), supervisor::read(path)) {
                waiting.push((node, state));
            }
        }
        let gone = || {
            let left = waiting.iter().filter(|(_, state)| state.supervisor.alive());
            // Killed again and again: a node in the middle of a reboot has nothing to kill for a moment.
            left.inspect(|(node, _)| cgroup::kill(name, node)).count() == 0
        };
        if !crate::command::wait_until(std::time::Duration::from_secs(10), gone) {
            // A supervisor that hangs: end it, then the rest of its cgroup goes below.
            for (_, state) in &waiting {
                state.supervisor.kill();
                state.nspawn.into_iter().for_each(Process::kill);
            }
        }
        cgroup::remove_lab(name)?;
        if let Some(state) = paths::read_json::<State>(&dir.join("lab.json")) {
            state.holders.values().for_each(|holder| holder.kill());
        }
        lan::down(name)?;
        for path in nodes.iter().chain(&[dir.join("router")]) {
            disk::Disk::of(path).destroy()?;
        }
        for kind in ["propagate", "unix-export"] {
            for node in nodes.iter().filter_map(names) {
                let left = Path::new("/run/systemd/nspawn").join(kind).join(format!("{name}-{node}"));
                disk::unmount(&left)?;
                let _ = std::fs::remove_dir(&left);
            }
        }
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("remove", &dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Names of all labs on this machine.
    pub fn list() -> Vec<String> {
        entries(Path::new(paths::RUN))
            .iter()
            .filter(|path| path.join("lab.json").exists())
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect()
    }

    /// Takes down labs whose owner, a test process, ended without doing so.
    pub(crate) fn clear_orphans() -> Result<()> {
        paths::make_dir(Path::new(paths::RUN))?;
        let path = Path::new(paths::RUN).join(".lock");
        let lock = std::fs::File::create(&path).map_err(Error::file("open", &path))?;
        // Two that clear the same lab would trip over each other.
        lock.lock().map_err(Error::file("lock", &path))?;
        for name in Self::list() {
            let state: Option<State> = paths::read_json(&paths::lab_dir(&name).join("lab.json"));
            if state.and_then(|state| state.owner).is_some_and(|owner| !owner.alive()) {
                Self::down_name(&name)?;
            }
        }
        Ok(())
    }

    /// Adds a node with the next number, boots it, and tells the client's `known_hosts` and `homelab.yaml`.
    pub fn add_node(&mut self) -> Result<String> {
        if self.nodes.len() >= node::MOST {
            return Err(Error::Usage(format!("a lab has at most {} nodes", node::MOST)));
        }
        let node = format!("node{}", self.nodes.len() + 1);
        let state: Option<State> = paths::read_json(&self.dir.join("lab.json"));
        home::make_host_keys(&self.dir, std::slice::from_ref(&node))?;
        self.nodes.push(node.clone());
        self.save(state.and_then(|state| state.owner))?;
        self.write_home()?;
        self.start(&node)?;
        Ok(node)
    }

    /// State of the lab and each of its nodes.
    pub fn status(&self) -> Result<LabStatus> {
        let nodes = self.nodes.iter().map(|node| self.node_status(node)).collect::<Result<_>>()?;
        Ok(LabStatus { name: self.name.clone(), home: self.home(), config: self.config_path(), nodes })
    }

    fn node_status(&self, node: &str) -> Result<NodeStatus> {
        let dir = self.dir_of(node)?;
        let supervised = supervisor::read(&dir);
        let frozen = cgroup::node_group(&self.name, node).join("payload/cgroup.freeze");
        let state = match supervised {
            None => NodeState::Off,
            Some(_) if std::fs::read_to_string(frozen).is_ok_and(|text| text.trim() == "1") => {
                NodeState::Frozen
            }
            Some(_) => NodeState::On,
        };
        Ok(NodeStatus {
            name: node.into(),
            address: self.address(node)?,
            address6: self.address6(node)?,
            state,
            leader: self.leader(node).ok(),
            boots: supervised.map_or(0, |state| state.boots),
            partitioned: node::partition_flag(&dir).exists(),
            impairment: paths::read_json(&node::impair_file(&dir)),
        })
    }

    /// Name of this lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of its nodes, in order.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// Directory of this lab, for files that shall go when it goes down.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The read-only root directory all nodes share.
    pub fn image(&self) -> &Path {
        &self.image
    }

    fn save(&self, owner: Option<Process>) -> Result<()> {
        let state = State {
            nodes: self.nodes.clone(),
            image: self.image.clone(),
            owner,
            holders: self.holders.clone(),
        };
        paths::write_json(&self.dir.join("lab.json"), &state)
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    list.sort();
    list
}
