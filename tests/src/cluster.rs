//! The lab's nodes and the file that describes them.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use homelab_lab::{LabGuard, NodeSnapshot, Output};
use homelab_model::NodeSpec;

use crate::background::exit_code;
use crate::{ClusterFile, DISRUPTIVE, Plan};

/// A lab, its `homelab.yaml`, and the `homelab` program.
///
/// Methods panic when what they do cannot be done: a test goes no further then, and the message shows all that was
/// said.
#[derive(Debug)]
pub struct Cluster {
    /// The lab.
    pub lab: LabGuard,
    /// What `homelab.yaml` says; written at every call of [`Cluster::homelab`].
    pub file: ClusterFile,
    /// Servers on the client and on wan.
    pub(crate) servers: Vec<Child>,
    /// The client's ssh files as the lab made them.
    home: Vec<(PathBuf, Vec<u8>)>,
    /// Directory of other node binaries than those beside `homelab`: [`Cluster::with_fault_points`].
    pub(crate) binaries: Option<PathBuf>,
}

impl Cluster {
    pub(crate) fn new(lab: LabGuard) -> Result<Self, String> {
        let mut home = Vec::new();
        for path in [lab.known_hosts_path(), lab.ssh_config_path()] {
            let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            home.push((path, text));
        }
        let file = ClusterFile::of(&lab);
        Ok(Cluster { lab, file, servers: Vec::new(), home, binaries: None })
    }

    /// Says what must be built first, if something is missing.
    pub(crate) fn check_programs() -> Result<(), String> {
        let program = program()?;
        if !program.is_file() {
            return Err(format!("{} is missing: run cargo build --bin homelab", program.display()));
        }
        let beside = program.parent().map(PathBuf::from).unwrap_or_default();
        let binaries = std::env::var_os("HOMELAB_NODE_BINARIES").map_or(beside, PathBuf::from);
        let manifest = binaries.join("homelab-node.json");
        if !manifest.is_file() {
            return Err(format!("{} is missing: run cargo xtask dist", manifest.display()));
        }
        Ok(())
    }

    /// Nodes, file and ssh files as they were at first.
    pub(crate) fn reset(&mut self) -> homelab_lab::Result<()> {
        self.stop_servers();
        self.lab.unblock_all()?;
        self.lab.sh("lan", "ip link set client up")?.ok()?;
        self.lab.reset(&[])?;
        for (path, text) in &self.home {
            // A later node's host key may have been added: the lab writes these anew then, and so do we.
            let _ = std::fs::write(path, text);
        }
        self.file = ClusterFile::of(&self.lab);
        self.binaries = None;
        Ok(())
    }

    /// Names of the lab's nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.lab.nodes().to_vec()
    }

    /// Runs `homelab` on the client with our file, whatever comes out.
    pub fn homelab(&self, args: &[&str]) -> Output {
        self.homelab_from("client", args)
    }

    /// The same from another host.
    pub fn homelab_from(&self, host: &str, args: &[&str]) -> Output {
        let path = self.write_file();
        let mut command = self.homelab_command(host, &[&["-f", &path], args].concat());
        let done = command.stdin(Stdio::null()).output().expect("homelab starts");
        Output {
            command: format!("homelab {}", args.join(" ")),
            code: exit_code(done.status),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        }
    }

    /// `homelab` on a host.
    pub fn homelab_command(&self, host: &str, args: &[&str]) -> Command {
        let mut command = self.lab.command_in(host).expect("the host is there");
        // A shell that runs the tests in the background makes all below it ignore Ctrl-C.
        command.args(["env", "--default-signal"]).arg(program().expect("checked at the start")).args(args);
        if let Some(directory) = &self.binaries {
            command.env("HOMELAB_NODE_BINARIES", directory);
        }
        command
    }

    /// Where `cargo xtask dist` puts the node binary with fault points.
    pub(crate) fn fault_binaries() -> Result<PathBuf, String> {
        let program = program()?;
        Ok(program.parent().map(|beside| beside.join("faults")).unwrap_or_default())
    }

    /// Has `homelab` take its node binaries from `directory`, until the end of the scenario.
    pub fn with_binaries(&mut self, directory: PathBuf) {
        self.binaries = Some(directory);
    }

    /// Directory of the node binaries that `homelab` takes now.
    pub fn binaries(&self) -> PathBuf {
        let beside =
            || program().ok().and_then(|program| program.parent().map(PathBuf::from)).unwrap_or_default();
        self.binaries
            .clone()
            .or_else(|| std::env::var_os("HOMELAB_NODE_BINARIES").map(PathBuf::from))
            .unwrap_or_else(beside)
    }

    /// Writes a cluster file under a name of its own; gives its path.
    pub(crate) fn write_other(&self, file: &ClusterFile) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.lab.dir().join(format!("test-{count}.yaml"));
        std::fs::write(&path, file.text()).expect("homelab.yaml can be written");
        path.to_string_lossy().into_owned()
    }

    /// Writes `homelab.yaml`; gives its path.
    pub fn write_file(&self) -> String {
        let path = self.lab.dir().join("test.yaml");
        std::fs::write(&path, self.file.text()).expect("homelab.yaml can be written");
        path.to_string_lossy().into_owned()
    }

    /// Runs `homelab`, which must succeed.
    #[track_caller]
    pub fn homelab_ok(&self, args: &[&str]) -> Output {
        let output = self.homelab(args);
        assert!(output.success(), "{}", said(&output));
        output
    }

    /// The plan.
    #[track_caller]
    pub fn plan(&self) -> Plan {
        self.plan_of(&[])
    }

    /// The plan with further arguments.
    #[track_caller]
    pub fn plan_of(&self, args: &[&str]) -> Plan {
        let output = self.homelab_ok(&[&["plan", "--format", "json"], args].concat());
        Plan::parse(&output.stdout).unwrap_or_else(|e| panic!("{e}\n{}", said(&output)))
    }

    /// Applies, disruptive changes too; says nothing if it went well.
    #[track_caller]
    pub fn apply(&self) -> Output {
        self.homelab_ok(&["apply", "--yes", DISRUPTIVE])
    }

    /// Asserts that `homelab plan` finds nothing to do.
    #[track_caller]
    pub fn assert_converged(&self) {
        let plan = self.plan();
        assert!(plan.is_empty(), "the plan should be empty:\n{plan}");
        let output = self.homelab(&["plan", "--detailed-exitcode"]);
        assert_eq!(output.code, 0, "{}", said(&output));
    }

    /// Runs a shell script on a host, which must succeed; gives its trimmed output.
    #[track_caller]
    pub fn sh(&self, host: &str, script: &str) -> String {
        let output = self.lab.sh(host, script).expect("a shell starts");
        assert!(output.success(), "on {host}: {}", said(&output));
        output.text().to_owned()
    }

    /// Runs a shell script on every node at once.
    #[track_caller]
    pub fn everywhere(&self, script: &str) -> Vec<String> {
        self.of_all(|node| self.sh(node, script))
    }

    /// Asks all nodes at once.
    #[track_caller]
    pub(crate) fn of_all<T: Send>(&self, ask: impl Fn(&str) -> T + Sync) -> Vec<T> {
        let (nodes, ask) = (self.nodes(), &ask);
        std::thread::scope(|scope| {
            let jobs: Vec<_> = nodes.iter().map(|node| scope.spawn(move || ask(node))).collect();
            jobs.into_iter()
                .map(|job| job.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    /// A node without what differs between two ways to the same state: times, and the agent's own report.
    #[track_caller]
    pub fn snapshot(&self, node: &str) -> NodeSnapshot {
        let snapshot = self.lab.snapshot(node).expect("the node answers").without_times();
        // A new disk has a new one of these; the agent's report has its process id; IPAM keeps its empty directories.
        let mut names = vec!["/etc/machine-id".to_owned(), "/run/homelab/agent.json".to_owned()];
        let ipam = |name: &&str| name.starts_with("/var/lib/homelab/ipam");
        names.extend(snapshot.section("file").map(|(name, _)| name).filter(ipam).map(str::to_owned));
        snapshot.without_entries(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Snapshots of all nodes, taken at once.
    #[track_caller]
    pub fn snapshots(&self) -> Vec<NodeSnapshot> {
        self.of_all(|node| self.snapshot(node))
    }

    /// What a node knows of the cluster.
    #[track_caller]
    pub fn spec(&self, node: &str) -> NodeSpec {
        let text = self.sh(node, "cat /etc/homelab/node.json");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("node.json of {node}: {e}\n{text}"))
    }

    /// What the agents wrote, for messages.
    pub fn journals(&self) -> String {
        let mut text = String::new();
        for node in self.lab.nodes() {
            let script = "echo agent: $(systemctl is-active homelab-node); \
                          journalctl --no-pager --boot --unit homelab-node --output cat --lines 12 2>&1; ip route";
            let output = self.lab.sh(node, script).map_or_else(|e| e.to_string(), |o| o.stdout + &o.stderr);
            text += &format!("--- {node}\n{output}\n");
        }
        text
    }
}

/// The `homelab` program: `$HOMELAB_BIN`, else the one that cargo built into our target directory.
fn program() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("HOMELAB_BIN") {
        return Ok(path.into());
    }
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let target = exe.ancestors().nth(2).ok_or("no target directory")?;
    Ok(target.join("homelab"))
}

/// All that a program said, for messages.
pub(crate) fn said(output: &Output) -> String {
    format!("{}\nended with {}\n{}{}", output.command, output.code, output.stdout, output.stderr)
}
