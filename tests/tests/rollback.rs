//! Whatever goes wrong in the middle of a change: the node is as before, or as wanted, by itself and in time.

use std::time::{Duration, Instant};

use homelab_lab::{Impairment, NodeSnapshot, Output};
use homelab_tests::{Background, Cluster, Fault, Signal, Stopped, measured, run};
use serde_json::json;

fn main() {
    run(
        "rollback",
        &[
            ("kill_anywhere", kill_anywhere),
            ("kill_in_the_middle_of_a_rollback", kill_in_a_rollback),
            ("change_that_cuts_ssh_comes_back", change_that_cuts_ssh),
            ("deploy_rs_214_a_rollback_is_an_error_to_the_caller", rollback_is_an_error),
            ("deploy_rs_38_a_healthy_slow_node_is_not_rolled_back", healthy_slow_node),
            ("deploy_rs_86_first_apply_can_roll_back", first_apply_can_roll_back),
            ("network_154_a_leftover_transaction_does_not_block_the_next_run", leftover_transaction),
            ("power_cut_rolls_back_before_the_agent_starts", power_cut_before_agent),
        ],
    )
}

/// What the tests give to `--confirm-timeout`.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How much longer it may take a node to be as before.
const GRACE: Duration = Duration::from_secs(2);
/// The node that is changed.
const NODE: &str = "node2";
/// A change of this node alone.
const APPLY: [&str; 6] = ["apply", "--yes", "--nodes", NODE, "--confirm-timeout", "3s"];
/// How long anything may take before it counts as hung.
const HUNG: Duration = Duration::from_secs(40);

/// Two MTUs, one of which the node has; every change is from one to the other.
struct Switch {
    states: [NodeSnapshot; 2],
    now: usize,
    /// Number of the last effect.
    last: usize,
}

const MTUS: [u32; 2] = [1450, 1400];

impl Switch {
    fn new(cluster: &mut Cluster) -> Switch {
        cluster.with_fault_points();
        cluster.file.set("network.vxlan.mtu", json!(MTUS[1]));
        cluster.apply();
        let second = cluster.state(NODE);
        cluster.file.set("network.vxlan.mtu", json!(MTUS[0]));
        let last = cluster.plan_of_node(NODE).node(NODE).changes.len() - 1;
        assert!(last >= 3, "the change has a middle");
        cluster.apply();
        Switch { states: [cluster.state(NODE), second], now: 0, last }
    }

    /// The name of a point: MID and LAST stand for effects.
    fn point(&self, name: &str) -> String {
        name.replace("MID", &(self.last / 2).to_string()).replace("LAST", &self.last.to_string())
    }

    /// Starts a change and waits for the node's program to come to a point of it.
    #[track_caller]
    fn start(&self, cluster: &mut Cluster, point: &str) -> (Background, Stopped) {
        cluster.file.set("network.vxlan.mtu", json!(MTUS[1 - self.now]));
        cluster.stop_at(NODE, point);
        let mut apply = cluster.start(&APPLY);
        let limit = Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(stopped) = cluster.reached(NODE, Duration::ZERO) {
                return (apply, stopped);
            }
            assert!(!apply.has_ended(), "it never came to {point}:\n{}", apply.so_far());
            assert!(Instant::now() < limit, "it hangs before {point}:\n{}", apply.so_far());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asserts that the node is as before or as wanted, that the laptop knows it, and that the next apply finishes.
    #[track_caller]
    fn judge(&mut self, cluster: &Cluster, what: &str, output: Option<&Output>) -> bool {
        let said = output.map_or_else(String::new, |o| format!("{}{}", o.stdout, o.stderr));
        let state = cluster.state(NODE);
        let diffs = [self.now, 1 - self.now].map(|which| self.states[which].diff(&state));
        let [old, new] = [diffs[0].is_empty(), diffs[1].is_empty()];
        assert!(
            old || new,
            "{what}: lost; against the old state\n{}against the new state\n{}{said}",
            diffs[0],
            diffs[1]
        );
        if let Some(output) = output {
            assert!(!output.stderr.contains("panicked"), "{what}: {said}");
            assert_eq!(output.code == 0, output.code == 0 && new, "{what}: a success that is none:\n{said}");
            assert!([0, 1, 3].contains(&output.code), "{what}: exit code {}\n{said}", output.code);
        }
        assert_eq!(cluster.sh(NODE, "systemctl is-active homelab-node"), "active", "{what}");
        cluster.disarm(NODE);
        let next = cluster.homelab(&APPLY);
        assert!(next.success(), "{what}: the next apply:\n{}{}\nafter\n{said}", next.stdout, next.stderr);
        let diff = self.states[1 - self.now].diff(&cluster.state(NODE));
        assert!(diff.is_empty(), "{what}: the next apply does not converge:\n{diff}");
        self.now = 1 - self.now;
        new
    }
}

/// Does something bad to the node, or to the laptop's `homelab`.
#[track_caller]
fn inject(cluster: &Cluster, fault: Fault, apply: &mut Background, stopped: &Stopped) {
    match fault {
        Fault::LaptopKilled => apply.signal(Signal::SIGKILL),
        Fault::ConnectionCut => cluster.cut_connections(NODE),
        Fault::NodeProgramKilled => {
            cluster.sh(NODE, &format!("kill -KILL {}", stopped.pid));
        }
        Fault::PowerCut => {
            cluster.lab.power_cut(&[NODE]).expect("the power goes");
            cluster.lab.start(NODE).expect("the node boots");
        }
        Fault::DiskFull => cluster.lab.fill_disk(NODE).expect("the disk is full"),
        Fault::Partition => cluster.lab.partition(NODE).expect("cut off"),
    }
}

fn mend(cluster: &Cluster, fault: Fault) {
    match fault {
        Fault::DiskFull => cluster.lab.free_disk(NODE).expect("the disk is free"),
        Fault::Partition => cluster.lab.heal(NODE).expect("back"),
        _ => {}
    }
}

/// Injects a fault where the node's program stands; gives how long the node then took to end the transaction.
#[track_caller]
fn strike(cluster: &Cluster, fault: Fault, mut apply: Background, stopped: &Stopped) -> (Duration, Output) {
    inject(cluster, fault, &mut apply, stopped);
    let start = Instant::now();
    if fault != Fault::PowerCut {
        cluster.go_on(NODE, stopped);
    }
    // The program may not even have begun what is to end.
    let gone = |apply: &mut Background| {
        apply.has_ended()
            || cluster.on_node(NODE, &format!("/proc/{}", stopped.pid)).is_none_or(|path| !path.exists())
    };
    while !gone(&mut apply) && start.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(5));
    }
    cluster.closed_within(NODE, (TIMEOUT + GRACE).saturating_sub(start.elapsed()));
    let time = start.elapsed();
    mend(cluster, fault);
    let output = apply.end(HUNG);
    assert!(!cluster.is_open(NODE), "{fault:?} at {}: open again", stopped.point);
    (time, output)
}

/// A spread of points, each with some faults. (All points with all faults are done in the node's own tests.)
fn spread() -> Vec<(&'static str, Vec<Fault>)> {
    use Fault::{ConnectionCut, DiskFull, LaptopKilled, NodeProgramKilled, Partition, PowerCut};
    vec![
        ("arm.timer.after", vec![NodeProgramKilled, PowerCut, DiskFull]),
        ("journal.begin.after", vec![LaptopKilled, PowerCut]),
        ("effect.0.before", vec![ConnectionCut, NodeProgramKilled]),
        ("effect.MID.after", Fault::ALL.to_vec()),
        ("effect.LAST.after", vec![NodeProgramKilled, PowerCut, DiskFull]),
        ("journal.applied.before", vec![PowerCut, DiskFull]),
        ("journal.applied.after", Fault::ALL.to_vec()),
        ("confirm.record.before", vec![LaptopKilled, NodeProgramKilled, PowerCut, DiskFull, Partition]),
        ("confirm.record.after", vec![ConnectionCut, NodeProgramKilled, PowerCut]),
    ]
}

fn kill_anywhere(cluster: &mut Cluster) {
    let mut switch = Switch::new(cluster);
    let others = [cluster.pod("node1", "pod1"), cluster.pod("node3", "pod3")];
    let flow = cluster.flow(&[&others[0], &others[1]]);
    let (mut count, mut new, mut slowest) = (0, 0, Duration::ZERO);
    let mut faults = std::collections::BTreeSet::new();
    let spread = spread();
    for (name, some) in &spread {
        let point = switch.point(name);
        for fault in some {
            let what = format!("{fault:?} at {point}");
            let (apply, stopped) = switch.start(cluster, &point);
            let (time, output) = strike(cluster, *fault, apply, &stopped);
            let killed = *fault == Fault::LaptopKilled;
            let became_new = switch.judge(cluster, &what, (!killed).then_some(&output));
            measured(format_args!(
                "{what}: {} after {} ms",
                if became_new { "new" } else { "old" },
                time.as_millis()
            ));
            slowest = slowest.max(time);
            count += 1;
            new += usize::from(became_new);
            faults.insert(*fault);
        }
    }
    let sent = flow.none_lost("pods of the other nodes");
    assert_eq!(faults.len(), Fault::ALL.len());
    measured(format_args!(
        "{count} of {} points x {} faults, 0 lost: {new} new, {} old, at most {} ms with a timeout of {} ms; \
         0 of {sent} packets of the other nodes lost",
        spread.len(),
        faults.len(),
        count - new,
        slowest.as_millis(),
        TIMEOUT.as_millis(),
    ));
}

fn kill_in_a_rollback(cluster: &mut Cluster) {
    let mut switch = Switch::new(cluster);
    let mut count = 0;
    let points =
        ["rollback.begin.after", "rollback.0.after", "rollback.record.before", "rollback.journal.after"];
    for point in points {
        for fault in [Fault::NodeProgramKilled, Fault::PowerCut, Fault::DiskFull] {
            let what = format!("{fault:?} at {point}");
            let (mut apply, stopped) = switch.start(cluster, "journal.applied.after");
            apply.signal(Signal::SIGKILL);
            let _ = apply.end(HUNG);
            cluster.stop_at(NODE, point);
            cluster.go_on(NODE, &stopped);
            let stopped = cluster.reached(NODE, TIMEOUT + GRACE);
            let stopped = stopped.unwrap_or_else(|| panic!("{what}: it is not taken back"));
            let mut nobody = cluster.start(&["validate"]);
            inject(cluster, fault, &mut nobody, &stopped);
            if fault != Fault::PowerCut {
                cluster.go_on(NODE, &stopped);
            }
            cluster.closed_within(NODE, TIMEOUT + GRACE);
            mend(cluster, fault);
            let became_new = switch.judge(cluster, &what, None);
            assert!(!became_new, "{what}: nobody confirmed it");
            count += 1;
        }
    }
    measured(format_args!("{} points of a rollback x 3 faults = {count}, 0 lost", points.len()));
}

/// The laptop comes from behind the router, and the pod range of a node is changed to one that covers its address: a
/// mistake that no file shows. The node's answers to the laptop then go to its pods' bridge. (The other nodes would send
/// theirs into the tunnel, to that node.)
fn change_that_cuts_ssh(cluster: &mut Cluster) {
    let laptop = cluster.lab.address("wan").expect("wan has an address").to_string();
    cluster.file.set("network.podCIDR", json!("192.0.0.0/16"));
    for (index, range) in ["192.0.11.0/24", "192.0.12.0/24", "192.0.13.0/24"].into_iter().enumerate() {
        cluster.file.set(&format!("nodes.{index}.podCIDR"), json!(range));
    }
    cluster.apply();
    let before = cluster.states();
    let others = [cluster.pod("node2", "pod2"), cluster.pod("node3", "pod3")];
    let flow = cluster.flow(&[&others[0], &others[1]]);
    let good = cluster.file.clone();
    cluster.file.set("nodes.0.podCIDR", json!("192.0.2.0/24"));
    let link = |cluster: &Cluster| {
        let route = cluster.sh("node1", &format!("ip route get {laptop}"));
        route.split_once(" dev ").and_then(|(_, rest)| rest.split_whitespace().next().map(str::to_owned))
    };
    assert_eq!(link(cluster).as_deref(), Some("eth0"));
    let args = ["apply", "--yes", "--allow-disruptive", "--confirm-timeout", "3s", "--connect-timeout", "2"];
    let mut apply = cluster.start_from("wan", &cluster.file, &args);
    let wait = |cluster: &Cluster, wanted: &str, apply: &mut Background, limit: Duration| {
        let start = Instant::now();
        while link(cluster).as_deref() != Some(wanted) {
            assert!(start.elapsed() < limit, "no route by {wanted} after {limit:?}:\n{}", apply.so_far());
            std::thread::sleep(Duration::from_millis(5));
        }
        start.elapsed()
    };
    wait(cluster, "homelab0", &mut apply, HUNG);
    let time = wait(cluster, "eth0", &mut apply, TIMEOUT + GRACE);
    cluster.closed_within("node1", GRACE);
    measured(format_args!(
        "SSH cut by the change: back after {} ms with a timeout of {} ms",
        time.as_millis(),
        TIMEOUT.as_millis()
    ));
    let output = apply.end(HUNG);
    let text = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, 3, "a rollback has its own exit code:\n{text}");
    for word in ["node1", "rolled back"] {
        assert!(text.contains(word), "`{word}` is missing:\n{text}");
    }
    let sent = flow.none_lost("pods of nodes that were not begun");
    assert!(sent > 100, "{sent} packets");
    for pod in &others {
        cluster.remove_pod(pod);
    }
    cluster.assert_state("node1", &before[0], &text);
    // The others were not begun, are not locked, and take the next change.
    for node in cluster.nodes() {
        assert!(!cluster.is_open(&node) && !cluster.is_locked(&node), "{node}:\n{text}");
    }
    cluster.file = good;
    cluster.file.set("nodes.0.podCIDR", json!("192.0.14.0/24"));
    let output = cluster.homelab_from("wan", &["apply", "--yes", "--allow-disruptive"]);
    assert!(output.success(), "{}{}", output.stdout, output.stderr);
    cluster.assert_converged();
}

fn rollback_is_an_error(cluster: &mut Cluster) {
    let mut switch = Switch::new(cluster);
    // The link goes away after the last change, and comes back when the node has helped itself.
    let (apply, stopped) = switch.start(cluster, "journal.applied.after");
    let (time, output) = strike(cluster, Fault::Partition, apply, &stopped);
    let text = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, 3, "{text}");
    assert!(text.contains(NODE) && text.contains("rolled back"), "{text}");
    measured(format_args!(
        "cut link to restored node: {} ms, timeout {} ms",
        time.as_millis(),
        TIMEOUT.as_millis()
    ));
    // The next plan says it too.
    let plan = cluster.homelab_ok(&["plan"]);
    let text = plan.stdout + &plan.stderr;
    assert!(text.contains(NODE) && text.contains("taken back"), "{text}");
    assert!(!switch.judge(cluster, "partition", Some(&output)), "it was taken back");
    let plan = cluster.homelab_ok(&["plan"]);
    let text = plan.stdout + &plan.stderr;
    assert!(!text.contains("taken back"), "what was confirmed since is what counts:\n{text}");
    // A change that fails on the node is taken back at once.
    let (apply, stopped) = switch.start(cluster, "effect.0.before");
    cluster.sh(NODE, "mount --bind /etc/homelab /etc/homelab && mount -o remount,bind,ro /etc/homelab");
    cluster.go_on(NODE, &stopped);
    let output = apply.end(HUNG);
    cluster.sh(NODE, "umount /etc/homelab");
    let text = format!("{}{}", output.stdout, output.stderr);
    if output.code != 0 {
        assert_eq!(output.code, 3, "{text}");
        assert!(text.contains("/etc/homelab"), "it names what failed:\n{text}");
    }
    cluster.closed_within(NODE, TIMEOUT + GRACE);
    assert!(!switch.judge(cluster, "a file that cannot be written", Some(&output)), "{text}");
}

fn healthy_slow_node(cluster: &mut Cluster) {
    cluster
        .lab
        .impair(NODE, Impairment { delay_ms: 150.0, rate_mbit: 4.0, ..Default::default() })
        .expect("slow");
    let start = Instant::now();
    let args = ["apply", "--yes", "--confirm-timeout", "8s"];
    let output = cluster.homelab_ok(&args);
    measured(format_args!("a slow node's first apply: {:.1} s", start.elapsed().as_secs_f64()));
    assert!(start.elapsed() > Duration::from_secs(8), "the node is slower than the timeout");
    cluster.file.set("network.vxlan.mtu", json!(1400));
    cluster.homelab_ok(&args);
    std::thread::sleep(Duration::from_secs(8) + GRACE);
    assert!(!cluster.is_open(NODE));
    cluster.lab.unimpair(NODE).expect("good");
    cluster.assert_converged();
    assert_eq!(cluster.sh(NODE, "cat /sys/class/net/homelab.1/mtu"), "1400", "{}", output.stdout);
}

fn first_apply_can_roll_back(cluster: &mut Cluster) {
    let empty = cluster.snapshots();
    cluster.with_fault_points();
    let args = ["apply", "--yes", "--confirm-timeout", "3s"];
    for (point, fault) in [
        ("effect.3.after", Fault::NodeProgramKilled),
        ("journal.applied.after", Fault::LaptopKilled),
        ("journal.applied.after", Fault::PowerCut),
    ] {
        cluster.stop_at(NODE, point);
        let apply = cluster.start(&[&args[..], &["--nodes", NODE]].concat());
        let stopped = cluster.reached(NODE, HUNG).unwrap_or_else(|| panic!("{point}:\n{}", apply.so_far()));
        let (time, output) = strike(cluster, fault, apply, &stopped);
        measured(format_args!("first apply, {fault:?} at {point}: gone after {} ms", time.as_millis()));
        assert_ne!(output.code, 0, "{}{}", output.stdout, output.stderr);
        let left: Vec<_> =
            empty[1].clone().without_idle_units().diff(&cluster.snapshot(NODE).without_idle_units()).entries;
        let left: Vec<_> = left.into_iter().filter(|entry| !entry.1.starts_with("/run/homelab")).collect();
        assert!(left.is_empty(), "{fault:?} at {point}: something of ours is left:\n{left:#?}");
    }
    cluster.disarm(NODE);
    cluster.homelab_ok(&args);
    cluster.assert_converged();
}

fn leftover_transaction(cluster: &mut Cluster) {
    let mut switch = Switch::new(cluster);
    // An hour: nothing but the next run can end it.
    let long = ["apply", "--yes", "--nodes", NODE, "--confirm-timeout", "3600s"];
    for point in [switch.point("effect.MID.after"), "journal.applied.after".to_owned()] {
        cluster.file.set("network.vxlan.mtu", json!(MTUS[1 - switch.now]));
        cluster.stop_at(NODE, &point);
        let mut apply = cluster.start(&long);
        let stopped = cluster.reached(NODE, HUNG).unwrap_or_else(|| panic!("{point}:\n{}", apply.so_far()));
        apply.signal(Signal::SIGKILL);
        let _ = apply.end(HUNG);
        cluster.sh(NODE, &format!("kill -KILL {}", stopped.pid));
        assert!(cluster.is_open(NODE), "it is left over");
        let plan = cluster.homelab_ok(&["plan"]);
        let text = plan.stdout + &plan.stderr;
        assert!(text.contains(NODE) && text.contains("root@client"), "plan names whose it is:\n{text}");
        let next = cluster.homelab(&APPLY);
        assert!(next.success(), "{point}: it blocks the next run:\n{}{}", next.stdout, next.stderr);
        switch.judge(cluster, &point, None);
    }
}

fn power_cut_before_agent(cluster: &mut Cluster) {
    let mut switch = Switch::new(cluster);
    for point in [switch.point("effect.MID.after"), "journal.applied.after".to_owned()] {
        let (mut apply, _) = switch.start(cluster, &point);
        apply.signal(Signal::SIGKILL);
        cluster.lab.power_cut(&[NODE]).expect("the power goes");
        cluster.lab.start(NODE).expect("the node boots");
        cluster.lab.wait_settled(NODE).expect("the node is up");
        cluster.closed_within(NODE, GRACE);
        let journal = cluster.sh(
            NODE,
            "journalctl --boot --no-pager --output cat -u homelab-recovery.service -u homelab-node.service",
        );
        let place = |words: &str| {
            journal
                .find(words)
                .unwrap_or_else(|| panic!("{point}: `{words}` is not in the journal:\n{journal}"))
        };
        let undone = place("Finished homelab-recovery.service");
        assert!(undone < place("Starting homelab-node.service"), "{point}: the agent was first:\n{journal}");
        assert!(!switch.judge(cluster, &point, None), "{point}: nobody confirmed it");
    }
}
