//! Real runtimes: containerd by CRI and by `ctr`, and podman. Nothing of a pod is left behind, whatever dies.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use homelab_tests::{Check, Cluster, Place, PortMapping, Server, run_on_stage, sandbox};

fn main() {
    run_on_stage(
        "runtimes",
        set,
        &[
            ("cri_sandboxes_come_go_and_come_again", come_and_go),
            ("a_hundred_cri_sandboxes_at_once", a_hundred_at_once),
            ("a_runtime_that_forgets_a_sandbox_frees_it_and_no_other", forgetful_runtime),
            ("containerd_and_its_shim_are_killed_in_the_middle", killed_in_the_middle),
            ("ctr_with_cni", ctr),
            ("podman_with_its_cni_backend", podman),
            ("k8s_108121_addresses_are_free_after_a_power_cut", power_cut),
        ],
    )
}

/// The binary with fault points looks for forgotten pods every few seconds instead of minutes.
fn set(cluster: &mut Cluster) {
    cluster.with_fault_points();
    cluster.apply();
}

/// What there is of pods: reservations, claims of ports (the count of all stays) and their elements, links.
const TRACES: &str = r#"
find /var/lib/homelab/ipam -type l -not -path '*/names/*' -printf '%f -> %l\n'
find /var/lib/homelab/ipam/.hostports -type f -not -name lock -not -name ports 2>/dev/null
nft list table inet homelab-hostport | grep elements -A 9
ip -o link show type veth | grep -o ' hl[0-9a-f]*'
true
"#;

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(240), "{what}: not in time");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Nothing of any pod is left on a node, at once.
#[track_caller]
fn assert_clean(cluster: &Cluster, node: &str) {
    assert_eq!(cluster.sh(node, TRACES), "", "left on {node}");
}

/// Nothing of any pod is left on a node, once the agent has looked.
#[track_caller]
fn until_clean(cluster: &Cluster, node: &str) {
    let mut left = String::new();
    until("pods leave nothing", || {
        let before = std::mem::replace(&mut left, cluster.sh(node, TRACES));
        if left != before && !left.is_empty() {
            eprintln!("  left: {}", left.lines().count());
        }
        left.is_empty()
    });
}

fn ports() -> Vec<PortMapping> {
    let port =
        |protocol| PortMapping { protocol, container_port: 7000, host_port: 8080, host_ip: String::new() };
    vec![port(0), port(1)]
}

fn come_and_go(cluster: &mut Cluster, (): &mut ()) {
    let (first, second) = (cluster.cri("node1"), cluster.cri("node2"));
    let (peer_id, peer) = cluster.sandbox(&second, sandbox("peer", 0));
    let node1: IpAddr = cluster.lab.address("node1").expect("address").into();
    let mut seen = BTreeSet::new();
    for attempt in 0..2 {
        let mut config = sandbox("web", attempt);
        config.port_mappings = ports();
        let rates = [("ingress", "10M"), ("egress", "20M")];
        let rates = rates.map(|(way, rate)| (format!("kubernetes.io/{way}-bandwidth"), rate.to_owned()));
        config.annotations = rates.into();
        let (id, web) = cluster.sandbox(&first, config);
        assert!(seen.insert(web.addresses[0]), "an address that was just given back rests");
        // One to the other, and the port from the LAN, another node, and a pod there.
        cluster.assert_mesh(&[web.clone(), peer.clone()]);
        let port = |kind| Check::new(kind, &Server { name: "web".to_owned(), address: node1 }).port(8080);
        let checks = || vec![port("tcp"), port("udp")];
        cluster.assert_traffic(&[
            (Place::host("client"), checks()),
            (Place::host("node3"), checks()),
            (Place::from(&peer), checks()),
        ]);
        // The annotations reached the buckets at both ends.
        let buckets = cluster.sh("node1", "tc qdisc show | grep -c 'tbf.* rate 10Mbit'");
        assert_eq!(buckets, "1", "to the pod");
        let inside = cluster.sh("node1", &format!("nsenter --net={} tc qdisc show dev eth0", web.netns));
        assert!(inside.contains("tbf") && inside.contains("rate 20Mbit"), "from the pod: {inside}");
        first.remove(&[id]);
        assert_clean(cluster, "node1");
        let refused =
            Check::new("tcp", &Server { name: "web".to_owned(), address: node1 }).port(8080).fails();
        cluster.assert_traffic(&[(Place::host("client"), vec![refused])]);
    }
    second.remove(&[peer_id]);
    assert_clean(cluster, "node2");
    assert_eq!(cluster.sh("node1", "ls /run/netns"), "");
}

fn a_hundred_at_once(cluster: &mut Cluster, (): &mut ()) {
    let cri = cluster.cri("node1");
    let start = Instant::now();
    let configs = (0..100).map(|n| sandbox(&format!("pod{n}"), 0)).collect();
    let ids: Vec<String> = cri.run_all(configs).into_iter().map(|id| id.expect("a sandbox")).collect();
    let made = start.elapsed();
    let addresses: BTreeSet<IpAddr> = ids.iter().flat_map(|id| cri.status(id).0).collect();
    assert_eq!(addresses.len(), 100, "no address twice");
    let start = Instant::now();
    cri.remove(&ids);
    homelab_tests::measured(format_args!(
        "100 sandboxes: made in {:.1} s, removed in {:.1} s",
        made.as_secs_f64(),
        start.elapsed().as_secs_f64()
    ));
    assert_clean(cluster, "node1");
    assert_eq!(cluster.sh("node1", "ls /run/netns"), "");
}

/// A sandbox whose record is lost while its namespace is there: no DEL ever comes. Those of others stay, also while
/// containerd does not answer.
fn forgetful_runtime(cluster: &mut Cluster, (): &mut ()) {
    let cri = cluster.cri("node1");
    let (keeper_id, keeper) = cluster.sandbox(&cri, sandbox("keeper", 0));
    let (lost, forgotten) = cluster.sandbox(&cri, sandbox("forgotten", 0));
    let plain = cluster.container("node1", "plain");
    // containerd's CRI plugin reads the records when it starts.
    cluster.sh(
        "node1",
        &format!(
            "set -e; export CONTAINERD_NAMESPACE=k8s.io
             ctr tasks kill -s KILL {lost}
             for try in $(seq 600); do ctr tasks rm {lost} >/dev/null 2>&1 && break; sleep 0.1; done
             ctr containers rm {lost}
             systemctl stop containerd"
        ),
    );
    let says = |cluster: &Cluster, words: &str| {
        let journal = cluster.sh("node1", "journalctl --unit=homelab-node --output=cat --no-pager");
        journal.lines().any(|line| line.contains(words))
    };
    until("the agent says that containerd does not answer", || {
        says(cluster, "does not say which pods it knows")
    });
    let holds =
        |cluster: &Cluster, address: IpAddr| cluster.sh("node1", TRACES).contains(&format!("{address} ->"));
    let all = [keeper.addresses[0], forgotten.addresses[0], plain.addresses[0]];
    assert!(all.iter().all(|address| holds(cluster, *address)), "{}", cluster.sh("node1", TRACES));
    cluster.sh("node1", "systemctl start containerd");
    let listed = cri.answers();
    assert!(listed.contains(&keeper_id) && !listed.contains(&lost), "{listed:?}");
    assert_ne!(cluster.sh("node1", "ls /run/netns | wc -l"), "1", "the forgotten namespace is still there");
    until("the forgotten sandbox is freed", || !holds(cluster, forgotten.addresses[0]));
    assert!(says(cluster, "pods that their runtime does not know are detached"));
    assert!(holds(cluster, keeper.addresses[0]) && holds(cluster, plain.addresses[0]));
    cluster.assert_mesh(&[keeper, plain]);
    cri.remove(&[keeper_id]);
    cluster.sh("node1", "ctr tasks kill -s KILL plain; for try in $(seq 600); do ctr containers rm plain 2>/dev/null && break; sleep 0.1; done");
    cluster.sh("node1", "pkill -f ' serve (keeper|forgotten|plain)$'; true");
    until_clean(cluster, "node1");
}

fn killed_in_the_middle(cluster: &mut Cluster, (): &mut ()) {
    let cri = cluster.cri("node1");
    let (steady_id, steady) = cluster.sandbox(&cri, sandbox("steady", 0));
    let configs: Vec<_> = (0..20).map(|n| sandbox(&format!("storm{n}"), 0)).collect();
    let results = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            cluster.sh(
                "node1",
                "for try in $(seq 6000); do
                   test $(find /var/lib/homelab/ipam -type l -not -path '*/names/*' | wc -l) -ge 8 && break; sleep 0.01
                 done
                 kill -9 $(pidof containerd)",
            )
        });
        let results = cri.run_all(configs);
        killer.join().expect("containerd is killed");
        results
    });
    let failed = results.iter().filter(|result| result.is_err()).count();
    assert!(failed > 0, "the kill came too late");
    let listed = cri.answers();
    assert!(listed.contains(&steady_id));
    cluster.assert_traffic(&[(Place::host("node2"), steady.servers().iter().flat_map(Check::all).collect())]);
    // A shim dies, and containerd goes on.
    let shim = "kill -9 $(pgrep -f \"containerd-shim.* -id $1 \")";
    let killed = cluster.lab.exec("node1", &["sh", "-c", shim, "sh", &steady_id]).expect("a shell starts");
    assert!(killed.success(), "{}", killed.stderr);
    homelab_tests::measured(format_args!("{failed} of 20 sandboxes failed, {} are listed", listed.len()));
    cri.remove(&listed);
    cluster.sh("node1", "pkill -f ' serve steady$'; true");
    // What those left whose making was cut off goes by the agent.
    until_clean(cluster, "node1");
    let (id, again) = cluster.sandbox(&cri, sandbox("again", 0));
    cluster.assert_traffic(&[(Place::host("node2"), again.servers().iter().flat_map(Check::all).collect())]);
    cri.remove(&[id]);
    assert_clean(cluster, "node1");
}

fn ctr(cluster: &mut Cluster, (): &mut ()) {
    let image = cluster.lab.containerd("node3").expect("containerd starts");
    // In the foreground ctr calls DEL.
    for _ in 0..2 {
        let address =
            cluster.sh("node3", &format!("ctr run --rm --cni {image} once ip -4 -o address show dev eth0"));
        assert!(address.contains("inet 10.244."), "{address}");
        assert_clean(cluster, "node3");
    }
    // Detached, nobody calls it: the namespace goes with the task, and the agent sees that.
    let pod = cluster.container("node3", "detached");
    cluster.assert_traffic(&[(Place::host("node1"), pod.servers().iter().flat_map(Check::all).collect())]);
    let end = "pkill -f ' serve detached$'; ctr tasks kill -s KILL detached
               for try in $(seq 600); do ctr containers rm detached 2>/dev/null && exit 0; sleep 0.1; done; exit 1";
    cluster.sh("node3", end);
    until_clean(cluster, "node3");
}

fn podman(cluster: &mut Cluster, (): &mut ()) {
    let network = cluster.sh("node3", "jq -r .name /etc/cni/net.d/05-homelab.conflist");
    let info = cluster.sh("node3", "podman info --format '{{.Host.NetworkBackend}}'");
    assert_eq!(info, "cni");
    cluster.sh("node3", "podman load --quiet --input /opt/images/lab.tar");
    cluster.sh(
        "node3",
        &format!("podman run --quiet --detach --name web --network {network} --publish 8090:8080 docker.io/library/lab:1"),
    );
    let node3 = cluster.lab.address("node3").expect("address");
    let address = |cluster: &Cluster| {
        let text = cluster.sh("node3", "podman exec web ip -4 -o address show dev eth0");
        text.split_whitespace().find_map(|word| word.split_once("/24")).map(|(address, _)| address.to_owned())
    };
    for _ in 0..2 {
        let address = address(cluster).expect("an address of the node's range");
        let get =
            |url: &str| format!("curl --silent --fail --max-time 20 --retry 5 --retry-connrefused {url}");
        assert_eq!(cluster.sh("node1", &get(&format!("http://{address}:8080/"))), "lab");
        assert_eq!(cluster.sh("client", &get(&format!("http://{node3}:8090/"))), "lab");
        cluster.sh("node3", "podman restart --time 1 web");
    }
    cluster.sh("node3", "podman rm --force --time 1 web");
    assert_clean(cluster, "node3");
}

/// k8s#108121: what pods of the last boot had is free, and the DELs for them that come late free nothing of the new ones.
fn power_cut(cluster: &mut Cluster, (): &mut ()) {
    let cri = cluster.cri("node2");
    let mut config = sandbox("before", 0);
    config.port_mappings = ports();
    cluster.sandbox(&cri, config);
    let others = (0..5).map(|n| sandbox(&format!("old{n}"), 0)).collect();
    assert!(cri.run_all(others).iter().all(Result::is_ok));
    cluster.lab.power_cut(&["node2"]).expect("the node is off");
    cluster.lab.start("node2").expect("the node boots");
    let cri = cluster.cri("node2");
    let old = cri.answers();
    let mut config = sandbox("before", 1);
    config.port_mappings = ports();
    let (id, pod) = cluster.sandbox(&cri, config);
    cri.remove(&old);
    let node2: IpAddr = cluster.lab.address("node2").expect("address").into();
    let port = Check::new("tcp", &Server { name: "before".to_owned(), address: node2 }).port(8080);
    cluster.assert_traffic(&[
        (Place::host("node1"), pod.servers().iter().flat_map(Check::all).collect()),
        (Place::host("client"), vec![port]),
    ]);
    let held = cluster.sh("node2", "find /var/lib/homelab/ipam -type l -not -path '*/names/*' | wc -l");
    assert_eq!(held, "1", "only the new pod holds an address");
    cri.remove(&[id]);
    assert_clean(cluster, "node2");
}
