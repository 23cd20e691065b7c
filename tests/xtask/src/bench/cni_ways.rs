//! The ways to attach a pod that the CNI benchmark compares: a node in a network namespace for each.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::{dist, tools};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const REFERENCE: &str = "/usr/lib/cni";
/// Rate where one is asked for, bits per second.
pub(super) const RATE: u64 = 1_000_000_000;

/// Who homelab is compared with, in the order of the aims.
pub(super) const HOMELAB: &str = "homelab";
pub(super) const CHAIN: &str = "reference chain: bridge, host-local, portmap";
pub(super) const FLOOR: &str = "floor: same kernel operations";

/// What to attach.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pod {
    /// Its number, from 1.
    pub(super) number: usize,
    /// Ports of the node that lead to it, from 10000 + 10 x its number.
    pub(super) ports: usize,
    /// Whether both directions are limited to [`RATE`].
    pub(super) limited: bool,
}

/// One way to attach pods.
pub(super) struct Way {
    pub(super) who: &'static str,
    /// Name of the node's namespace.
    pub(super) node: &'static str,
    /// The programs to run in order for ADD; DEL runs them in reverse.
    plugins: Vec<(PathBuf, Value)>,
    /// Whether it takes seconds where it has many ports to open.
    pub(super) slow: bool,
}

/// A path that is the same in all threads.
pub(super) fn netns(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Runs a shell script; an error if it fails.
pub(super) fn shell(script: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", script]).output()?;
    if !output.status.success() {
        return Err(format!("{script}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Makes the nodes. The plugin is called by its own name.
pub(super) fn make(directory: &Path) -> Result<Vec<Way>> {
    let built = dist::built(std::env::consts::ARCH);
    let plugin = directory.join("homelab");
    std::os::unix::fs::symlink(built.join("homelab-node"), &plugin)?;
    let floor = built.join("examples/pod_floor");
    for node in ["ours", "chain", "flannel", "floor"] {
        shell(&format!(
            "ip netns add {node}; ip -n {node} link set lo up
            ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
        ))?;
    }
    // The service's pod is the second of the throughput's. The rules name the bridge's MAC address.
    let load = |node: &str| {
        shell(&format!("ip netns exec {node} {} rules 10.244.0.3:80", floor.display()))
            .map(|mac| mac.trim().to_owned())
    };
    let mac = load("ours")?;
    let gateway = format!(
        "ip link add homelab0 address {} mtu 1450 type bridge; ip link set homelab0 up
        ip addr add 10.244.0.1/16 dev homelab0; ip -6 addr add fd00:10:244::1/64 dev homelab0 nodad",
        load("floor")?
    );
    shell(&format!("ip netns exec floor sh -ec '{gateway}'"))?;
    let conf = |kind: &str, rest: Value| {
        let mut conf = json!({"cniVersion": "1.0.0", "name": "bench", "type": kind});
        if let (Some(conf), Value::Object(rest)) = (conf.as_object_mut(), rest) {
            conf.extend(rest);
        }
        conf
    };
    let capabilities = json!({"portMappings": true, "bandwidth": true});
    let ours = conf(
        "homelab",
        json!({
            "bridge": "homelab0", "bridgeMac": mac, "mtu": 1450, "ranges": ["10.244.0.0/16", "fd00:10:244::/64"],
            "dataDir": directory.join("ipam"), "capabilities": capabilities,
        }),
    );
    let bridge = |name: &str| {
        conf(
            "bridge",
            json!({"bridge": "cni0", "isDefaultGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1450, "ipam": {
                "type": "host-local", "ranges": [[{"subnet": "10.244.0.0/16"}], [{"subnet": "fd00:10:244::/64"}]],
                "dataDir": directory.join(name),
            }}),
        )
    };
    let others = || {
        ["portmap", "bandwidth"].map(|kind| {
            (Path::new(REFERENCE).join(kind), conf(kind, json!({"capabilities": {(kind): true}})))
        })
    };
    let chain = |first: (PathBuf, Value)| std::iter::once(first).chain(others()).collect();
    Ok(vec![
        Way { who: HOMELAB, node: "ours", plugins: vec![(plugin, ours)], slow: false },
        Way {
            who: CHAIN,
            node: "chain",
            plugins: chain((Path::new(REFERENCE).join("bridge"), bridge("chain"))),
            slow: true,
        },
        Way {
            who: "flannel's order: delegate, bridge, host-local, portmap",
            node: "flannel",
            plugins: chain((delegate(directory, &bridge("flannel"))?, conf("flannel", json!({})))),
            slow: true,
        },
        Way { who: FLOOR, node: "floor", plugins: vec![(floor, json!({}))], slow: false },
    ])
}

/// Debian has no flannel plugin. This stands in its place: it keeps the delegate's configuration in a file a pod and
/// becomes the delegate. A shell starts sooner than a Go program.
fn delegate(directory: &Path, bridge: &Value) -> Result<PathBuf> {
    let (path, state) = (directory.join("flannel.sh"), directory.join("flannel-state"));
    std::fs::create_dir_all(&state)?;
    let script = format!(
        "#!/bin/sh\nread -r conf\nstate={state}/$CNI_CONTAINERID\n\
         if [ \"$CNI_COMMAND\" = ADD ]; then echo '{bridge}' > $state; fi\n\
         exec < $state\nif [ \"$CNI_COMMAND\" = DEL ]; then rm $state; fi\nexec {REFERENCE}/bridge\n",
        state = state.display(),
    );
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

impl Way {
    /// Namespace of a pod.
    pub(super) fn pod(&self, number: usize) -> String {
        format!("{}-{number}", self.node)
    }

    /// Runs `work` on a thread in the node's namespace.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(File::open(netns(self.node))?, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            worker.join().unwrap_or_else(|_| Err("a thread ended".into()))
        })
    }

    /// ADD or DEL as a runtime does it; milliseconds. In the caller's namespace.
    pub(super) fn call(&self, verb: &str, pod: Pod) -> Result<f64> {
        let mut plugins: Vec<_> = self
            .plugins
            .iter()
            .filter(|(path, _)| pod.limited || !path.ends_with("bandwidth"))
            .map(|(path, conf)| (path, self.configured(conf, pod)))
            .collect();
        if verb == "DEL" {
            plugins.reverse();
        }
        let netns = netns(&self.pod(pod.number));
        let mut previous: Option<Value> = None;
        let start = Instant::now();
        for (program, mut conf) in plugins {
            if let (Some(previous), Some(conf)) = (&previous, conf.as_object_mut()) {
                conf.insert("prevResult".to_owned(), previous.clone());
            }
            let mut command = Command::new(program);
            command.env_clear().envs([
                ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", &format!("bench{}", pod.number)),
                ("CNI_NETNS", &netns.to_string_lossy()),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", REFERENCE),
                ("FLOOR_PORTS", &pod.ports.to_string()),
            ]);
            if pod.limited {
                command.env("FLOOR_RATE", (RATE / 8).to_string());
            }
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // The floor does not read it.
                let _ = stdin.write_all(conf.to_string().as_bytes());
            }
            let output = child.wait_with_output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                return Err(format!("{} {verb}: {said}", program.display()).into());
            }
            previous = serde_json::from_slice(&output.stdout).ok();
        }
        Ok(start.elapsed().as_secs_f64() * 1000.0)
    }

    /// The configuration with what the runtime gives those that can do it.
    fn configured(&self, conf: &Value, pod: Pod) -> Value {
        let mut conf = conf.clone();
        let able = |what: &str| conf["capabilities"][what] == json!(true);
        let mut given = serde_json::Map::new();
        if able("portMappings") || able("portmap") {
            let mappings: Vec<Value> = (0..pod.ports)
                .map(|port| {
                    let host = 10_000 + 10 * pod.number + port;
                    json!({"hostPort": host, "containerPort": 80, "protocol": "tcp"})
                })
                .collect();
            given.insert("portMappings".to_owned(), json!(mappings));
        }
        if pod.limited && able("bandwidth") {
            let burst = 8 << 20;
            let rates =
                json!({"ingressRate": RATE, "ingressBurst": burst, "egressRate": RATE, "egressBurst": burst});
            given.insert("bandwidth".to_owned(), rates);
        }
        if let Some(conf) = conf.as_object_mut().filter(|_| !given.is_empty()) {
            conf.insert("runtimeConfig".to_owned(), given.into());
        }
        conf
    }
}

/// Mounts and directories of the benchmark's own; none of them is the machine's.
pub(super) fn stage() -> Result<()> {
    std::fs::create_dir_all("/run/netns")?;
    tools::run(Command::new("sh").args(["-ec", "mount -t tmpfs none /run/netns; ip link set lo up"]))
        .map_err(|error| error.to_string().into())
}
