//! Whatever somebody alters on a node, plan shows exactly that, to the entry, and apply mends it.

use std::collections::BTreeSet;

use homelab_model::ours;
use homelab_tests::{Cluster, DISRUPTIVE, Plan, PlanNode, measured, run};
use ipnet::IpNet;

fn main() {
    run(
        "drift",
        &[
            ("links_and_addresses", |c| table(c, LINKS)),
            ("entries_for_peers", |c| table(c, ENTRIES)),
            ("sysctls_and_nftables", |c| table(c, RULES)),
            ("files_and_symbolic_links", |c| table(c, FILES)),
            ("binary", |c| table(c, BINARY)),
            ("unit_and_process", |c| table(c, UNIT)),
            ("everything_at_once_on_all_nodes", everything_at_once_on_all_nodes),
        ],
    )
}

/// A way to alter a node.
struct Row {
    name: &'static str,
    /// Whether the agent is stopped first, which is an entry of its own: [`UNIT_ENTRY`].
    stopped: bool,
    /// What is done on the node.
    script: &'static str,
    /// `action object`, all of them.
    expected: &'static [&'static str],
}

const fn row(name: &'static str, script: &'static str, expected: &'static [&'static str]) -> Row {
    Row { name, stopped: true, script, expected }
}

const fn live(name: &'static str, script: &'static str, expected: &'static [&'static str]) -> Row {
    Row { name, stopped: false, script, expected }
}

const LINKS: &[Row] = &[
    row("nothing but the stop", "true", &[]),
    row(
        "tunnel deleted",
        "ip link delete homelab.1",
        &[
            "create link homelab.1",
            "create sysctl net.ipv4.conf.homelab/1.rp_filter",
            "create sysctl net.ipv6.conf.homelab/1.accept_ra",
            "create address $NET.0/32 dev homelab.1",
            "create neighbour $NET2.0 dev homelab.1",
            "create neighbour $NET3.0 dev homelab.1",
            "create fdb $MAC2 dst $IP2 dev homelab.1",
            "create fdb $MAC3 dst $IP3 dev homelab.1",
            "create route $NET2.0/24",
            "create route $NET3.0/24",
        ],
    ),
    row(
        "tunnel down",
        "ip link set homelab.1 down",
        &[
            "update link homelab.1",
            // The kernel drops these with the carrier.
            "create neighbour $NET2.0 dev homelab.1",
            "create neighbour $NET3.0 dev homelab.1",
            "create route $NET2.0/24",
            "create route $NET3.0/24",
        ],
    ),
    row("tunnel mtu", "ip link set homelab.1 mtu 1400", &["update link homelab.1"]),
    row(
        "tunnel mac",
        "ip link set homelab.1 address 02:00:00:00:00:01",
        &[
            "update link homelab.1",
            "create neighbour $NET2.0 dev homelab.1",
            "create neighbour $NET3.0 dev homelab.1",
        ],
    ),
    row(
        "tunnel made by hand with another VNI",
        "ip link delete homelab.1
         ip link add homelab.1 address $MAC mtu 1450 type vxlan id 77 dstport 8472 local $IP nolearning
         ip link set homelab.1 alias homelab up",
        &[
            "replace link homelab.1",
            "replace sysctl net.ipv4.conf.homelab/1.rp_filter",
            "replace sysctl net.ipv6.conf.homelab/1.accept_ra",
            "create address $NET.0/32 dev homelab.1",
            "create neighbour $NET2.0 dev homelab.1",
            "create neighbour $NET3.0 dev homelab.1",
            "create fdb $MAC2 dst $IP2 dev homelab.1",
            "create fdb $MAC3 dst $IP3 dev homelab.1",
            "create route $NET2.0/24",
            "create route $NET3.0/24",
        ],
    ),
    row(
        "tunnel learns",
        "ip link set homelab.1 type vxlan learning",
        &[
            "replace link homelab.1",
            "replace sysctl net.ipv4.conf.homelab/1.rp_filter",
            "replace sysctl net.ipv6.conf.homelab/1.accept_ra",
            "replace address $NET.0/32 dev homelab.1",
            "replace neighbour $NET2.0 dev homelab.1",
            "replace neighbour $NET3.0 dev homelab.1",
            "replace fdb $MAC2 dst $IP2 dev homelab.1",
            "replace fdb $MAC3 dst $IP3 dev homelab.1",
            "replace route $NET2.0/24",
            "replace route $NET3.0/24",
        ],
    ),
    row("tunnel checksum offload", "ethtool -K homelab.1 tx off >/dev/null", &["update link homelab.1"]),
    row("tunnel alias lost", "ip link set homelab.1 alias ''", &["update link homelab.1"]),
    row(
        "bridge deleted",
        "ip link delete homelab0",
        &[
            "create link homelab0",
            "create sysctl net.ipv6.conf.homelab0.accept_ra",
            "create sysctl net.ipv6.conf.homelab0.accept_dad",
            "create sysctl net.ipv4.conf.homelab0.send_redirects",
            "create address $NET.1/24 dev homelab0",
        ],
    ),
    row("bridge down", "ip link set homelab0 down", &["update link homelab0"]),
    row("bridge mtu", "ip link set homelab0 mtu 1300", &["update link homelab0"]),
    row("bridge mac", "ip link set homelab0 address 02:00:00:00:00:02", &["update link homelab0"]),
    row("bridge spanning tree", "ip link set homelab0 type bridge stp_state 1", &["update link homelab0"]),
    row(
        "address deleted",
        "ip address delete $NET.0/32 dev homelab.1",
        &[
            "create address $NET.0/32 dev homelab.1",
            // The kernel drops these with a link's last IPv4 address.
            "create neighbour $NET2.0 dev homelab.1",
            "create neighbour $NET3.0 dev homelab.1",
            "create route $NET2.0/24",
            "create route $NET3.0/24",
        ],
    ),
    row(
        "address added",
        "ip address add 10.99.0.1/32 dev homelab.1",
        &["delete address 10.99.0.1/32 dev homelab.1"],
    ),
    row(
        "cni_306_bridge_has_another_address",
        "ip address delete $NET.1/24 dev homelab0; ip address add 10.244.9.1/24 dev homelab0",
        &["create address $NET.1/24 dev homelab0", "delete address 10.244.9.1/24 dev homelab0"],
    ),
];

const ENTRIES: &[Row] = &[
    row(
        "fdb deleted",
        "bridge fdb delete $MAC2 dev homelab.1 dst $IP2",
        &["create fdb $MAC2 dst $IP2 dev homelab.1"],
    ),
    row(
        "fdb altered",
        "bridge fdb replace $MAC2 dev homelab.1 dst 192.168.50.99 self permanent",
        &["create fdb $MAC2 dst $IP2 dev homelab.1", "delete fdb $MAC2 dst 192.168.50.99 dev homelab.1"],
    ),
    row(
        "fdb added",
        "bridge fdb append 02:00:00:00:99:99 dev homelab.1 dst 192.168.50.77 self permanent",
        &["delete fdb 02:00:00:00:99:99 dst 192.168.50.77 dev homelab.1"],
    ),
    row(
        "neighbour deleted",
        "ip neighbour delete $NET2.0 dev homelab.1",
        &["create neighbour $NET2.0 dev homelab.1"],
    ),
    row(
        "flannel_1155_neighbour_has_a_stale_mac",
        "ip neighbour replace $NET2.0 lladdr 02:00:00:00:00:99 nud permanent dev homelab.1",
        &["update neighbour $NET2.0 dev homelab.1"],
    ),
    row(
        "neighbour added",
        "ip neighbour add 10.244.9.0 lladdr 02:00:00:00:00:99 nud permanent dev homelab.1",
        &["delete neighbour 10.244.9.0 dev homelab.1"],
    ),
    row("route deleted", "ip route delete $NET2.0/24", &["create route $NET2.0/24"]),
    row(
        "route altered",
        "ip route change $NET2.0/24 via $NET3.0 dev homelab.1 onlink proto 104",
        &["update route $NET2.0/24"],
    ),
    row(
        "route without its mark",
        "ip route change $NET2.0/24 via $NET2.0 dev homelab.1 onlink proto static",
        &["create route $NET2.0/24"],
    ),
    row(
        "flannel_2554_stale_route_of_a_node_that_left",
        "ip route add 10.244.77.0/24 via $NET2.0 dev homelab.1 onlink proto 104",
        &["delete route 10.244.77.0/24"],
    ),
];

const RULES: &[Row] = &[
    row("forwarding off", "sysctl -qw net.ipv4.ip_forward=0", &["update sysctl net.ipv4.ip_forward"]),
    row(
        "rp_filter strict",
        "sysctl -qw net.ipv4.conf.homelab/1.rp_filter=1",
        &["update sysctl net.ipv4.conf.homelab/1.rp_filter"],
    ),
    row(
        "router advertisements accepted",
        "sysctl -qw net.ipv6.conf.homelab0.accept_ra=1",
        &["update sysctl net.ipv6.conf.homelab0.accept_ra"],
    ),
    row("rule added", "nft add rule inet homelab vtep-postrouting counter", &["$CHAIN"]),
    row("rule inserted", "nft insert rule inet homelab vtep-postrouting accept", &["$CHAIN"]),
    row("chain flushed", "nft flush chain inet homelab vtep-postrouting", &["$CHAIN"]),
    row(
        "rule replaced",
        "handle=$(nft -a list chain inet homelab vtep-postrouting | sed -n 's/.*masquerade.*handle //p')
         nft replace rule inet homelab vtep-postrouting handle $handle ip saddr $NET.0/24 masquerade",
        &["$CHAIN"],
    ),
    row(
        "policy drop",
        "nft add chain inet homelab vtep-postrouting '{ policy drop; }'",
        &["replace nft chain inet homelab vtep-postrouting"],
    ),
    row(
        "other priority",
        "rule=$(nft list chain inet homelab vtep-postrouting | grep masquerade)
         nft delete chain inet homelab vtep-postrouting
         nft add chain inet homelab vtep-postrouting '{ type nat hook postrouting priority 50; }'
         nft add rule inet homelab vtep-postrouting $rule",
        &["replace nft chain inet homelab vtep-postrouting"],
    ),
    row(
        "chain deleted",
        "nft delete chain inet homelab vtep-postrouting",
        &["create nft chain inet homelab vtep-postrouting"],
    ),
    row("extra chain", "nft add chain inet homelab extra", &["delete nft chain inet homelab extra"]),
    row(
        "table deleted",
        "nft delete table inet homelab",
        &[
            "create nft table inet homelab",
            "create nft chain inet homelab vtep-postrouting",
            "create nft chain inet homelab cni-output",
        ],
    ),
    row(
        "whole ruleset flushed",
        "nft flush ruleset",
        &[
            "create nft table inet homelab",
            "create nft chain inet homelab vtep-postrouting",
            "create nft chain inet homelab cni-output",
            "create nft table bridge homelab",
            "create nft chain bridge homelab cni-guard",
            "create nft chain bridge homelab cni-own",
            "create nft chain bridge homelab cni-own-target",
            "create nft chain bridge homelab cni-own6",
            "create nft chain bridge homelab cni-prerouting",
            "create nft table inet homelab-hostport",
            "create nft chain inet homelab-hostport guard",
            "create nft chain inet homelab-hostport hostports",
            "create nft chain inet homelab-hostport output",
            "create nft chain inet homelab-hostport own",
            "create nft chain inet homelab-hostport postrouting",
            "create nft chain inet homelab-hostport prerouting",
            "create nft table inet homelab-proxy",
        ],
    ),
    row(
        "rule of host ports by hand",
        "nft add rule inet homelab-hostport hostports ip saddr 1.2.3.4 accept",
        &["update nft chain inet homelab-hostport hostports"],
    ),
];

const FILES: &[Row] = &[
    row("conflist content", "sed -i s/1450/1400/ /etc/cni/net.d/05-homelab.conflist", &["$CONFLIST"]),
    row("conflist cut", ": > /etc/cni/net.d/05-homelab.conflist", &["$CONFLIST"]),
    row("conflist mode", "chmod 600 /etc/cni/net.d/05-homelab.conflist", &["$CONFLIST"]),
    row("conflist owner", "chown 1000:1000 /etc/cni/net.d/05-homelab.conflist", &["$CONFLIST"]),
    row(
        "conflist deleted",
        "rm /etc/cni/net.d/05-homelab.conflist",
        &["create file /etc/cni/net.d/05-homelab.conflist"],
    ),
    row(
        "conflist directory deleted",
        "mv /etc/cni/net.d /etc/cni/gone; rm -r /etc/cni/gone",
        &["create file /etc/cni/net.d/05-homelab.conflist"],
    ),
    row(
        "conflist a symbolic link to the same content",
        "cd /etc/cni/net.d; mv 05-homelab.conflist /root/; ln -s /root/05-homelab.conflist .",
        &["$CONFLIST"],
    ),
    row(
        "sysctl.d content",
        "echo '#' >> /etc/sysctl.d/90-homelab.conf",
        &["update file /etc/sysctl.d/90-homelab.conf"],
    ),
    row(
        "sysctl.d deleted",
        "rm /etc/sysctl.d/90-homelab.conf",
        &["create file /etc/sysctl.d/90-homelab.conf"],
    ),
    row(
        "sysctl.d mode",
        "chmod 666 /etc/sysctl.d/90-homelab.conf",
        &["update file /etc/sysctl.d/90-homelab.conf"],
    ),
    row(
        "spec content",
        "sed -i s/$PEER/node9/ /etc/homelab/node.json",
        &["update file /etc/homelab/node.json"],
    ),
    row("spec no JSON", "echo '{' > /etc/homelab/node.json", &["update file /etc/homelab/node.json"]),
    row("spec owner", "chown 1000 /etc/homelab/node.json", &["update file /etc/homelab/node.json"]),
    row(
        "all of our own configuration deleted",
        "rm -r /etc/homelab",
        &["create file /etc/homelab/membership.keys", "create file /etc/homelab/node.json"],
    ),
    row(
        "keys readable by all",
        "chmod 644 /etc/homelab/membership.keys",
        &["update file /etc/homelab/membership.keys"],
    ),
    row(
        "keys cut off",
        "truncate -s 20 /etc/homelab/membership.keys",
        &["update file /etc/homelab/membership.keys"],
    ),
    row("plugin deleted", "rm /opt/cni/bin/homelab", &["create symlink /opt/cni/bin/homelab"]),
    row(
        "plugin retargeted",
        "ln -sfn /bin/true /opt/cni/bin/homelab",
        &["update symlink /opt/cni/bin/homelab"],
    ),
    row(
        "plugin a file",
        "rm /usr/lib/cni/homelab; cp /bin/true /usr/lib/cni/homelab",
        &["update symlink /usr/lib/cni/homelab"],
    ),
];

const BINARY: &[Row] = &[
    row("binary longer", "echo >> $BIN", &["update binary $BIN"]),
    row("binary another program", "rm $BIN; cp /bin/true $BIN", &["update binary $BIN"]),
    row("binary empty", ": > $BIN", &["update binary $BIN"]),
    row("binary mode", "chmod 644 $BIN", &["update binary $BIN"]),
    row("binary writable by all", "chmod 777 $BIN", &["update binary $BIN"]),
    row("binary owner", "chown 1000 $BIN", &["update binary $BIN"]),
    row("binary deleted", "rm $BIN", &["create binary $BIN"]),
    row(
        "all binaries deleted",
        "rm -r /usr/local/lib/homelab",
        &["create binary $BIN", "create symlink /usr/local/lib/homelab/homelab-node"],
    ),
    row(
        "link to the binary retargeted",
        "ln -sfn /bin/true /usr/local/lib/homelab/homelab-node",
        &["update symlink /usr/local/lib/homelab/homelab-node"],
    ),
    live(
        "old version left",
        "mkdir /usr/local/lib/homelab/$OLD; cp $BIN /usr/local/lib/homelab/$OLD/",
        &["delete binary /usr/local/lib/homelab/$OLD/homelab-node"],
    ),
];

const UNIT_ENTRY: &str = "update unit homelab-node.service";

const UNIT: &[Row] = &[
    live("stopped", "systemctl stop homelab-node", &["$UNIT"]),
    live("disabled", "systemctl --quiet disable homelab-node", &["$UNIT"]),
    live("not reloaded", "touch /etc/systemd/system/homelab-node.service", &["$UNIT"]),
    live(
        "edited and not reloaded",
        "echo '# x' >> /etc/systemd/system/homelab-node.service",
        &["update file /etc/systemd/system/homelab-node.service", "$UNIT"],
    ),
    live(
        "edited and restarted",
        "sed -i s/RestartSec=1/RestartSec=9/ /etc/systemd/system/homelab-node.service
         systemctl daemon-reload; systemctl restart homelab-node",
        &["update file /etc/systemd/system/homelab-node.service"],
    ),
    live(
        "unit file deleted",
        "rm /etc/systemd/system/homelab-node.service; systemctl daemon-reload",
        &["create file /etc/systemd/system/homelab-node.service", "$UNIT"],
    ),
    // Both Ansible and pyinfra say "no change" here: every file is right, and yesterday's program runs.
    live(
        "old_process_under_a_right_file",
        "cp $BIN /usr/local/lib/old-node; echo >> /usr/local/lib/old-node
         mkdir /etc/systemd/system/homelab-node.service.d
         printf '[Service]\nExecStart=\nExecStart=/usr/local/lib/old-node agent\n' \
           > /etc/systemd/system/homelab-node.service.d/old.conf
         systemctl daemon-reload; systemctl restart homelab-node
         rm -r /etc/systemd/system/homelab-node.service.d; systemctl daemon-reload",
        &["$UNIT"],
    ),
    live(
        "failed",
        "mv $BIN /root/aside; cp /bin/false $BIN; systemctl kill -s KILL homelab-node; sleep 0.3
         mv -f /root/aside $BIN; systemctl stop homelab-node",
        &["$UNIT"],
    ),
];

/// Does every row, three at a time, each on a node of its own: alter, plan, compare, apply; tells of all rows that are
/// wrong.
fn table(cluster: &mut Cluster, rows: &[Row]) {
    cluster.apply();
    let nodes = cluster.nodes();
    let before = cluster.states();
    let names: Vec<Names> = nodes.iter().map(|node| names(cluster, node)).collect();
    let mut wrong = Vec::new();
    for rows in rows.chunks(nodes.len()) {
        let batch: Vec<_> =
            rows.iter().zip(&nodes).zip(&names).map(|((r, node), names)| (r, node, names)).collect();
        std::thread::scope(|scope| {
            for (row, node, names) in &batch {
                let stop = if row.stopped { "systemctl stop homelab-node" } else { "" };
                let script = format!("set -e\n{stop}\n{}", names.fill(row.script));
                let cluster = &cluster;
                scope.spawn(move || cluster.sh(node, &script));
            }
        });
        let titles: Vec<&str> = rows.iter().map(|row| row.name).collect();
        let output = cluster.homelab(&["plan", "--format", "json"]);
        match Plan::parse(&output.stdout) {
            Ok(plan) if output.success() => {
                for (row, node, names) in &batch {
                    wrong.extend(compare(row, names, plan.node(node)));
                }
            }
            _ => wrong.push(format!("{titles:?}: plan\n{}{}", output.stdout, output.stderr)),
        }
        let output = cluster.homelab(&["apply", "--yes", DISRUPTIVE]);
        if !output.success() {
            wrong.push(format!("{titles:?}: apply\n{}{}", output.stdout, output.stderr));
        }
    }
    cluster.everywhere("rm -f /usr/local/lib/old-node /root/aside /root/05-homelab.conflist");
    let plan = cluster.plan();
    if !plan.is_empty() {
        wrong.push(format!("something is left in the end:\n{plan}"));
    }
    for ((node, before), after) in nodes.iter().zip(&before).zip(cluster.states()) {
        // A directory that somebody took away is ours when it is made again.
        let own = ["/var/lib/homelab/directories.json"];
        let changed = before.clone().without_entries(&own).diff(&after.without_entries(&own));
        if !changed.is_empty() {
            wrong.push(format!("{node} is not what it was:\n{changed}"));
        }
    }
    measured(format_args!(
        "{} of {} kinds of drift are right",
        rows.len().saturating_sub(wrong.len()),
        rows.len()
    ));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is wrong with a node's part of the plan.
fn compare(row: &Row, names: &Names, found: &PlanNode) -> Option<String> {
    let mut expected: BTreeSet<String> = row.expected.iter().map(|e| names.fill(e)).collect();
    if row.stopped {
        expected.insert(UNIT_ENTRY.to_owned());
    }
    let entries = found.entries();
    let extra: Vec<_> = entries.difference(&expected).collect();
    let missing: Vec<_> = expected.difference(&entries).collect();
    (entries != expected)
        .then(|| format!("{}: missing {missing:?}, too many {extra:?}\n{:#?}", row.name, found.changes))
}

/// What stands for names that differ from node to node.
struct Names(Vec<(&'static str, String)>);

impl Names {
    fn fill(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }
}

fn names(cluster: &Cluster, node: &str) -> Names {
    let spec = cluster.spec(node);
    let [first, second] = &spec.peers[..] else { panic!("two peers: {spec:?}") };
    // `10.244.1`
    let net = |cidrs: &[IpNet]| cidrs[0].to_string().trim_end_matches(".0/24").to_owned();
    Names(vec![
        // Longer names first: $MAC2 begins with $MAC.
        ("$MAC2", first.mac.clone()),
        ("$MAC3", second.mac.clone()),
        ("$MAC", spec.vtep.mac.clone()),
        ("$NET2", net(&first.pod_cidrs)),
        ("$NET3", net(&second.pod_cidrs)),
        ("$NET", net(&spec.pod_cidrs)),
        ("$IP2", first.address.to_string()),
        ("$IP3", second.address.to_string()),
        ("$IP", spec.address.to_string()),
        ("$PEER", first.name.clone()),
        ("$BIN", ours::binary_path(&spec.binary_sha256)),
        ("$OLD", "0".repeat(64)),
        ("$CHAIN", "update nft chain inet homelab vtep-postrouting".to_owned()),
        ("$CONFLIST", "update file /etc/cni/net.d/05-homelab.conflist".to_owned()),
        ("$UNIT", UNIT_ENTRY.to_owned()),
    ])
}

/// Half a dozen kinds on every node: each node's part of the plan is its own, and one apply mends all.
fn everything_at_once_on_all_nodes(cluster: &mut Cluster) {
    cluster.apply();
    cluster.everywhere(
        "systemctl stop homelab-node; ip link delete homelab.1; nft flush ruleset; rm -r /etc/homelab; \
         rm /opt/cni/bin/homelab; chmod 600 /etc/cni/net.d/05-homelab.conflist; sysctl -qw net.ipv4.ip_forward=0",
    );
    cluster.sh("node3", "ip link delete homelab0");
    let plan = cluster.plan();
    for node in cluster.nodes() {
        let found = plan.node(&node).entries();
        assert_eq!(found.len(), 33 + usize::from(node == "node3") * 5, "{node}:\n{plan}");
    }
    cluster.apply();
    cluster.assert_converged();
    let pods = cluster.pods();
    cluster.assert_mesh(&pods);
}
