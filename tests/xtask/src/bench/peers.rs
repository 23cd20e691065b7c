//! Ansible and pyinfra, from PyPI into a virtual environment of their own, managing what homelab manages.

use std::path::{Path, PathBuf};
use std::process::Command;

use homelab_lab::Lab;
use serde_json::{Map, Value, json};

use crate::tools;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const PACKAGES: [&str; 2] = ["ansible-core>=2.15,<2.20", "pyinfra>=3,<4"];

/// The peers' files for one lab.
pub(super) struct Peers {
    directory: PathBuf,
    bin: PathBuf,
}

impl Peers {
    /// Installs the peers once and writes their inventories for `lab`.
    pub(super) fn new(lab: &Lab, node_binary: &Path) -> Result<Peers> {
        let venv = tools::root().join("target/bench/venv");
        if !venv.join("bin/pyinfra").exists() {
            tools::run(Command::new("python3").arg("-m").arg("venv").arg(&venv))?;
            tools::run(Command::new(venv.join("bin/pip")).args(["install", "--quiet"]).args(PACKAGES))?;
        }
        let directory = lab.dir().join("bench-peers");
        std::fs::create_dir_all(&directory)?;
        let sources = tools::root().join("tests/bench/peers");
        for file in ["playbook.yml", "deploy.py"] {
            std::fs::copy(sources.join(file), directory.join(file))?;
        }
        let mut hosts = Map::new();
        let mut python = String::from("nodes = [\n");
        for node in lab.nodes() {
            let vars = variables(lab, node, node_binary)?;
            python.push_str(&format!("    ({:?}, {}),\n", node, pythonic(&vars)));
            hosts.insert(node.clone(), vars);
        }
        python.push_str("]\n");
        // YAML is a superset of JSON.
        let inventory = json!({"all": {"hosts": hosts}});
        std::fs::write(directory.join("inventory.yml"), inventory.to_string())?;
        std::fs::write(directory.join("inventory.py"), python)?;
        std::fs::write(
            directory.join("ansible.cfg"),
            "[defaults]\nforks = 10\ninterpreter_python = auto_silent\nhost_key_checking = true\n\
             [ssh_connection]\npipelining = true\n",
        )?;
        Ok(Peers { directory, bin: venv.join("bin") })
    }

    /// `ansible-playbook`, on the client.
    pub(super) fn ansible(&self, lab: &Lab, check: bool) -> Result<Command> {
        let mut command = self.on_client(lab, "ansible-playbook")?;
        command.arg("-i").arg(self.directory.join("inventory.yml")).arg(self.directory.join("playbook.yml"));
        if check {
            command.arg("--check");
        }
        Ok(command)
    }

    /// `pyinfra`, on the client.
    pub(super) fn pyinfra(&self, lab: &Lab, dry: bool) -> Result<Command> {
        let mut command = self.on_client(lab, "pyinfra")?;
        command.arg("-y").arg(self.directory.join("inventory.py")).arg(self.directory.join("deploy.py"));
        if dry {
            command.arg("--dry");
        }
        Ok(command)
    }

    fn on_client(&self, lab: &Lab, program: &str) -> Result<Command> {
        let mut command = lab.command_in("client")?;
        command.arg("env").arg(format!("HOME={}", lab.home().display()));
        command
            .arg("ANSIBLE_SSH_ARGS=-o ControlMaster=auto -o ControlPersist=60s")
            .arg(self.bin.join(program));
        command.current_dir(&self.directory);
        Ok(command)
    }
}

fn variables(lab: &Lab, node: &str, node_binary: &Path) -> Result<Value> {
    let number = |name: &str| lab.nodes().iter().position(|n| n == name).unwrap_or(0);
    let own = number(node);
    let mut converge = vec![
        "ip link del peer.1 2>/dev/null || true".to_owned(),
        format!(
            "ip link add peer.1 address 02:50:00:00:00:{own:02x} mtu 1450 type vxlan id 1 dstport 8472 nolearning local {}",
            lab.address(node)?
        ),
        "ip link set peer.1 up".to_owned(),
        format!("ip addr replace 10.244.{own}.0/32 dev peer.1"),
        "ip link show peer0 >/dev/null 2>&1 || ip link add peer0 type bridge".to_owned(),
        "ip link set peer0 mtu 1450 up".to_owned(),
        format!("ip addr replace 10.244.{own}.1/24 dev peer0"),
        "sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.peer/1.rp_filter=2".to_owned(),
    ];
    let mut expected = vec!["1".to_owned(), "2".to_owned()];
    let mut peers: Vec<&String> = lab.nodes().iter().filter(|n| *n != node).collect();
    peers.sort();
    for peer in peers {
        let index = number(peer);
        let (mac, address) = (format!("02:50:00:00:00:{index:02x}"), lab.address(peer)?);
        converge.push(format!("bridge fdb replace {mac} dev peer.1 dst {address}"));
        converge.push(format!("ip neigh replace 10.244.{index}.0 lladdr {mac} dev peer.1 nud permanent"));
        converge.push(format!(
            "ip route replace 10.244.{index}.0/24 via 10.244.{index}.0 dev peer.1 onlink proto 105"
        ));
        expected.push(format!("{mac} {address} 10.244.{index}.0/24"));
    }
    converge.push(format!(
        "nft 'add table inet peer; add chain inet peer post {{ type nat hook postrouting priority srcnat; }}; flush chain inet peer post; \
         add rule inet peer post ip saddr 10.244.{own}.0/24 ip daddr != 10.244.0.0/16 masquerade fully-random'"
    ));
    expected.push("masquerade".to_owned());
    // Prints what `expected` says when all is in place.
    let mut observe = "cat /proc/sys/net/ipv4/ip_forward; cat /proc/sys/net/ipv4/conf/peer.1/rp_filter 2>/dev/null; \
                       for r in $(ip route show proto 105 | cut -d' ' -f1 | sort -V); do v=${r%/*}; \
                       m=$(ip neigh show $v dev peer.1 | sed -n 's/.*lladdr \\([^ ]*\\).*/\\1/p'); \
                       d=$(bridge fdb show dev peer.1 | sed -n \"s/^$m dst \\([^ ]*\\).*/\\1/p\"); echo \"$m $d $r\"; done; "
        .to_owned();
    observe.push_str("nft list table inet peer 2>/dev/null | grep -o masquerade || true");
    Ok(json!({
        "ansible_host": lab.address(node)?, "ansible_user": "root", "ssh_user": "root", "ssh_hostname": lab.address(node)?.to_string(),
        "ssh_key": lab.key_path(), "ssh_known_hosts_file": lab.known_hosts_path(), "ssh_strict_host_key_checking": "yes",
        "binary": node_binary, "node_json": format!("{}\n", json!({"node": node})), "sysctl": "net.ipv4.ip_forward = 1\n",
        "conflist": "{\"cniVersion\": \"1.0.0\", \"name\": \"peer\", \"plugins\": []}\n ",
        "unit": "[Unit]\nDescription=peer\n[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n",
        "observe": observe, "converge": converge.join(" && "), "expected": expected.join("\n"),
    }))
}

/// A JSON object of strings and paths is a Python dict as it stands.
fn pythonic(value: &Value) -> String {
    value.to_string()
}
