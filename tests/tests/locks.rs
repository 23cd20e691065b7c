//! Two laptops at once, runs that are interrupted: one at a time on a node, and nothing stays behind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use homelab_lab::Output;
use homelab_tests::{Background, Cluster, ClusterFile, Random, Signal, measured, run};
use serde_json::json;

fn main() {
    run(
        "locks",
        &[
            ("of_two_laptops_one_wins_and_the_other_names_it", two_laptops),
            ("racing_runs_leave_one_consistent_state", racing_runs),
            ("unlock_force_names_whom_it_displaces", unlock_force),
            ("lock_of_a_killed_laptop_is_free_at_once", killed_laptop),
            ("k0sctl_381_ctrl_c_at_random_moments_leaves_no_lock", ctrl_c),
            ("terraform_36695_sigterm_of_a_cancelled_job_leaves_no_lock", sigterm),
            ("second_ctrl_c_leaves_at_once_and_the_node_helps_itself", second_ctrl_c),
        ],
    )
}

/// How long anything may take before it counts as hung.
const HUNG: Duration = Duration::from_secs(60);

fn with_mtu(cluster: &Cluster, mtu: u32) -> ClusterFile {
    let mut file = cluster.file.clone();
    file.set("network.vxlan.mtu", json!(mtu));
    file
}

/// The tunnel's MTU on every node.
fn mtus(cluster: &Cluster) -> Vec<String> {
    cluster.everywhere("cat /sys/class/net/homelab.1/mtu")
}

fn said(output: &Output) -> String {
    format!("{} ended with {}\n{}{}", output.command, output.code, output.stdout, output.stderr)
}

/// Asserts that nothing of a run is left on any node, and gives how long its locks outlived it: a node hears of the
/// end of a connection a moment later.
#[track_caller]
fn assert_quiet(cluster: &Cluster, what: &str) -> Duration {
    let script = "cd /; ls -d var/lib/homelab/transaction usr/local/lib/homelab/recovery etc/systemd/system/homelab-recovery.service 2>/dev/null; true";
    let start = std::time::Instant::now();
    let locked = |node: &String| {
        let lock = cluster
            .on_node(node, "/run/homelab/session.lock")
            .and_then(|path| std::fs::File::open(path).ok());
        lock.is_some_and(|file| file.try_lock_shared().is_err())
    };
    let mut free = Duration::ZERO;
    while cluster.nodes().iter().any(locked) {
        free = start.elapsed();
        assert!(free < Duration::from_secs(1), "{what}: still locked");
        std::thread::sleep(Duration::from_millis(2));
    }
    for (node, left) in cluster.nodes().iter().zip(cluster.everywhere(script)) {
        assert_eq!(left, "", "{what}: left on {node}");
    }
    free
}

fn two_laptops(cluster: &mut Cluster) {
    cluster.with_fault_points();
    cluster.apply();
    // The first one is in the middle of its change when the second one comes.
    cluster.stop_at("node1", "effect.*");
    let first = cluster.start_from("client", &with_mtu(cluster, 1400), &["apply", "--yes"]);
    let stopped = cluster.reached("node1", HUNG).expect("the first one works on node1");
    for args in [
        &["apply", "--yes"][..],
        &["apply", "--yes", "--lock-timeout", "1s"],
        &["destroy", "--yes", "--allow-disruptive"],
    ] {
        let second = cluster.start_from("wan", &with_mtu(cluster, 1300), args).end(HUNG);
        assert_eq!(second.code, 1, "{}", said(&second));
        let text = said(&second);
        for word in ["node1", "root@client", "apply"] {
            assert!(text.contains(word), "`{word}` is missing:\n{text}");
        }
    }
    // A plan changes nothing, so it needs no lock; but it says that somebody is at work.
    let plan = cluster.homelab_from("wan", &["plan"]);
    assert!(plan.success() && said(&plan).contains("root@client"), "{}", said(&plan));
    // One that waits gets its turn, and plans anew.
    let patient =
        cluster.start_from("wan", &with_mtu(cluster, 1300), &["apply", "--yes", "--lock-timeout", "60s"]);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(mtus(cluster)[2], "1450", "neither has come to node3");
    cluster.go_on("node1", &stopped);
    let (first, patient) = (first.end(HUNG), patient.end(HUNG));
    assert!(first.success() && patient.success(), "{}\n{}", said(&first), said(&patient));
    assert_eq!(mtus(cluster), ["1300", "1300", "1300"], "the later one is last:\n{}", said(&patient));
    assert_quiet(cluster, "two laptops");
}

fn racing_runs(cluster: &mut Cluster) {
    cluster.apply();
    let (mut won, mut named) = (0, 0);
    for round in 0..6 {
        let patient = round % 2 == 1;
        let mut runs: BTreeMap<u32, Background> = BTreeMap::new();
        for number in 0..8 {
            let mtu = 1300 + round * 10 + number;
            let mut args = vec!["apply", "--yes"];
            if patient {
                args.extend(["--lock-timeout", "120s"]);
            }
            let host = if number % 2 == 0 { "client" } else { "wan" };
            runs.insert(mtu, cluster.start_from(host, &with_mtu(cluster, mtu), &args));
        }
        let ended: BTreeMap<u32, Output> =
            runs.into_iter().map(|(mtu, run)| (mtu, run.end(HUNG * 3))).collect();
        let winners: BTreeSet<String> =
            ended.iter().filter(|(_, o)| o.success()).map(|(mtu, _)| mtu.to_string()).collect();
        let losers: Vec<&Output> = ended.values().filter(|o| !o.success()).collect();
        let all: Vec<String> = ended.values().map(said).collect();
        assert!(!winners.is_empty(), "round {round}: nobody won:\n{}", all.join("\n"));
        if patient {
            assert!(losers.is_empty(), "round {round}: all wait for their turn:\n{}", all.join("\n"));
        }
        for loser in &losers {
            let text = said(loser);
            assert_eq!(loser.code, 1, "round {round}: {text}");
            assert!(text.contains("root@client") || text.contains("root@wan"), "it names no holder:\n{text}");
            named += 1;
        }
        won += winners.len();
        // Runs that mixed would leave nodes of different runs.
        let now: BTreeSet<String> = mtus(cluster).into_iter().collect();
        assert_eq!(now.len(), 1, "round {round}: {now:?}\n{}", all.join("\n"));
        assert!(now.is_subset(&winners), "round {round}: {now:?} is none of {winners:?}");
        assert_quiet(cluster, "a race");
        let mtu = now.first().and_then(|mtu| mtu.parse().ok()).unwrap_or_default();
        cluster.file = with_mtu(cluster, mtu);
        cluster.assert_converged();
    }
    measured(format_args!(
        "6 rounds of 8 racing runs: {won} won, {named} left with the holder's name, 0 mixed"
    ));
}

fn unlock_force(cluster: &mut Cluster) {
    cluster.with_fault_points();
    cluster.apply();
    let none = cluster.homelab_ok(&["unlock", "--force"]);
    assert!(!said(&none).contains("@client"), "nobody holds a lock:\n{}", said(&none));
    cluster.stop_at("node1", "effect.*");
    let args = ["apply", "--yes", "--confirm-timeout", "3s"];
    let first = cluster.start_from("client", &with_mtu(cluster, 1400), &args);
    cluster.reached("node1", HUNG).expect("the first one works on node1");
    let polite = cluster.homelab_from("wan", &["unlock"]);
    assert_eq!(polite.code, 1, "without --force nobody is displaced: {}", said(&polite));
    assert!(said(&polite).contains("root@client"), "{}", said(&polite));
    assert!(cluster.is_locked("node1"));
    let forced = cluster.homelab_from("wan", &["unlock", "--force"]);
    assert!(forced.success(), "{}", said(&forced));
    for node in cluster.nodes() {
        assert!(said(&forced).contains(&node), "{}", said(&forced));
        assert!(!cluster.is_locked(&node), "{node} is still locked");
    }
    assert!(said(&forced).contains("root@client"), "whom it displaced:\n{}", said(&forced));
    let first = first.end(HUNG);
    assert!([1, 3].contains(&first.code), "{}", said(&first));
    cluster.closed_within("node1", Duration::from_secs(5));
    cluster.disarm("node1");
    assert_eq!(mtus(cluster), ["1450", "1450", "1450"], "what the displaced one had begun is taken back");
    cluster.file = with_mtu(cluster, 1400);
    cluster.homelab_ok(&["apply", "--yes"]);
    assert_quiet(cluster, "unlock");
}

fn killed_laptop(cluster: &mut Cluster) {
    cluster.with_fault_points();
    cluster.apply();
    cluster.stop_at("node1", "arm.*");
    let args = ["apply", "--yes", "--confirm-timeout", "3s"];
    let mut first = cluster.start_from("client", &with_mtu(cluster, 1400), &args);
    cluster.reached("node1", HUNG).expect("it works on node1");
    for node in cluster.nodes() {
        assert!(cluster.is_locked(&node), "all nodes are locked before the first is changed: {node}");
    }
    first.signal(Signal::SIGKILL);
    let _ = first.end(HUNG);
    // Its TCP connections end with it: those nodes that stand still nowhere are free at once.
    let start = std::time::Instant::now();
    while ["node2", "node3"].iter().any(|node| cluster.is_locked(node)) {
        assert!(start.elapsed() < Duration::from_secs(10), "still locked");
        std::thread::sleep(Duration::from_millis(10));
    }
    measured(format_args!("locks of a killed laptop were free after {} ms", start.elapsed().as_millis()));
    cluster.file = with_mtu(cluster, 1400);
    let second = cluster.homelab_from("wan", &["apply", "--yes", "--nodes", "node2,node3"]);
    assert!(second.success(), "{}", said(&second));
    let stopped = cluster.reached("node1", Duration::from_secs(1));
    if let Some(stopped) = stopped {
        cluster.go_on("node1", &stopped);
    }
    cluster.closed_within("node1", Duration::from_secs(5));
    cluster.homelab_ok(&["apply", "--yes", "--lock-timeout", "5s"]);
    cluster.assert_converged();
    assert_quiet(cluster, "a killed laptop");
}

/// What came of many interrupted runs.
#[derive(Debug, Default)]
struct Tally {
    /// By exit code.
    codes: BTreeMap<i32, usize>,
    /// By how many nodes had the state that the run was to bring.
    changed: BTreeMap<usize, usize>,
    /// How long each run took from its start to its end, the signal included; the shortest first.
    took: Vec<Duration>,
    /// How long a lock outlived its run, at most.
    locked: Duration,
}

/// What an apply can change on a node, looked at in a fraction of a second: files of ours with their contents, links,
/// addresses, routes, rules, entries, tables, kernel parameters, the agent. The whole snapshot takes seconds.
const LOOK: &str = r#"
cd /
find etc/homelab etc/cni opt/cni etc/sysctl.d etc/systemd/system usr/local/lib/homelab var/lib/homelab ! -type d \
    ! -name '*.homelab-previous' ! -path var/lib/homelab/confirmed.json ! -path var/lib/homelab/reverted.json \
    -printf '%p %y %m %U:%G %l\n' -type f -exec sha256sum {} + 2>/dev/null | LC_ALL=C sort
for link in homelab0 homelab.1; do ip -details link show dev $link; ip address show dev $link; done |
    sed -E 's/^[0-9]+: //; s/ state [A-Z]+//; s/ [a-z_]*timer +[0-9.]+//g'
{ ip -4 route show table all; ip -6 route show table all; ip rule; ip -6 rule
  ip neighbour show nud permanent; bridge fdb show dev homelab.1; } | LC_ALL=C sort
nft --stateless list ruleset
sysctl --all --pattern '^net\.ipv[46]\.(conf\.(all|homelab.*)|ip_forward)' 2>/dev/null
systemctl show --property=ActiveState,SubState,UnitFileState,FragmentPath homelab-node
readlink /proc/$(systemctl show -P MainPID homelab-node)/exe
"#;

/// What two looks do not have in common.
fn difference(one: &str, other: &str) -> String {
    let missing = |sign: char, from: &str, of: &str| -> String {
        let lines = from.lines().filter(|line| !of.lines().any(|other| other == *line));
        lines.map(|line| format!("{sign} {line}\n")).collect()
    };
    let difference = missing('-', one, other) + &missing('+', other, one);
    if difference.is_empty() && one != other { "the order differs".to_owned() } else { difference }
}

/// Interrupts applies at random moments; after each, every node is to the letter as before or as wanted.
fn interrupt(cluster: &mut Cluster, signal: Signal, runs: usize) -> Tally {
    let mtu = [1450, 1400];
    let mut longest = Duration::ZERO;
    let mut settled = |cluster: &mut Cluster, side: usize| {
        cluster.file = with_mtu(cluster, mtu[side]);
        let start = std::time::Instant::now();
        cluster.homelab_ok(&["apply", "--yes"]);
        longest = start.elapsed();
        (cluster.everywhere(LOOK), cluster.states())
    };
    // The first apply of all keeps nothing for a rollback.
    settled(cluster, 1);
    let known = [settled(cluster, 0), settled(cluster, 1)];
    for (side, (looks, states)) in known.iter().enumerate() {
        let again = settled(cluster, side);
        for (index, node) in cluster.nodes().iter().enumerate() {
            let look = difference(&looks[index], &again.0[index]);
            let state = states[index].diff(&again.1[index]);
            let same = look.is_empty() && state.is_empty();
            assert!(same, "a state that is not always the same proves nothing: {node}\n{look}{state}");
            let other = difference(&known[0].0[index], &known[1].0[index]);
            assert!(other.lines().count() > 3, "the two states hardly differ: {other}");
        }
    }
    let mut random = Random::new();
    let mut tally = Tally::default();
    for number in 0..runs {
        // The one before took some nodes to the other side: this one goes back, and so has work.
        let wanted = number % 2;
        cluster.file = with_mtu(cluster, mtu[wanted]);
        let after = random.below(longest);
        let what =
            format!("run {number}, {signal} after {} ms of {}", after.as_millis(), longest.as_millis());
        let mut run = cluster.start(&["apply", "--yes", "--confirm-timeout", "5s"]);
        std::thread::sleep(after);
        run.signal(signal);
        let start = std::time::Instant::now();
        let output = run.end(HUNG);
        tally.took.push(after + start.elapsed());
        let expected = if signal == Signal::SIGINT { 130 } else { 143 };
        assert!([0, expected].contains(&output.code), "{what}: {}", said(&output));
        assert!(!output.stderr.contains("panicked"), "{what}: {}", said(&output));
        tally.locked = tally.locked.max(assert_quiet(cluster, &format!("{what}\n{}", said(&output))));
        let mut done = 0;
        for (index, (node, look)) in cluster.nodes().iter().zip(cluster.everywhere(LOOK)).enumerate() {
            let differs = [0, 1].map(|side| difference(&known[side].0[index], &look));
            let Some(side) = differs.iter().position(String::is_empty) else {
                panic!(
                    "{what}: {node} is neither as before nor as wanted. From MTU {}:\n{}\nfrom MTU {}:\n{}\n{}",
                    mtu[0],
                    differs[0],
                    mtu[1],
                    differs[1],
                    said(&output)
                );
            };
            // Everything else, every now and then.
            if number % 20 == 19 {
                cluster.assert_state(node, &known[side].1[index], &what);
            }
            done += usize::from(side == wanted);
        }
        assert!(output.code != 0 || done == cluster.nodes().len(), "{what}: {}", said(&output));
        *tally.codes.entry(output.code).or_default() += 1;
        *tally.changed.entry(done).or_default() += 1;
    }
    cluster.homelab_ok(&["apply", "--yes"]);
    cluster.assert_converged();
    tally.took.sort();
    tally
}

fn told(runs: usize, signal: Signal, tally: &Tally) {
    measured(format_args!(
        "{signal} at {runs} random moments: no lock left, no half state; exit codes {:?}, nodes done {:?}; \
         a run took {} ms (median), {} ms at most; a lock outlived its run by {} ms at most",
        tally.codes,
        tally.changed,
        tally.took[runs / 2].as_millis(),
        tally.took[runs - 1].as_millis(),
        tally.locked.as_millis(),
    ));
}

fn ctrl_c(cluster: &mut Cluster) {
    let runs = 200;
    let tally = interrupt(cluster, Signal::SIGINT, runs);
    told(runs, Signal::SIGINT, &tally);
    let stopped = tally.codes.get(&130).copied().unwrap_or_default();
    assert!(stopped > runs / 4, "most moments are in the middle: {tally:?}");
    assert!(tally.changed.keys().any(|done| (1..3).contains(done)), "some are between two nodes: {tally:?}");
}

fn sigterm(cluster: &mut Cluster) {
    let runs = 20;
    let tally = interrupt(cluster, Signal::SIGTERM, runs);
    told(runs, Signal::SIGTERM, &tally);
    assert!(tally.codes.contains_key(&143), "{tally:?}");
}

fn second_ctrl_c(cluster: &mut Cluster) {
    cluster.with_fault_points();
    cluster.apply();
    let before = cluster.states();
    cluster.stop_at("node1", "effect.*");
    let args = ["apply", "--yes", "--confirm-timeout", "3s"];
    let mut run = cluster.start_from("client", &with_mtu(cluster, 1400), &args);
    let stopped = cluster.reached("node1", HUNG).expect("it works on node1");
    run.signal(Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(500));
    assert!(!run.has_ended(), "the first one lets it finish the node in hand: {}", run.so_far());
    run.signal(Signal::SIGINT);
    let output = run.end(Duration::from_secs(1));
    assert_eq!(output.code, 130, "{}", said(&output));
    cluster.go_on("node1", &stopped);
    cluster.closed_within("node1", Duration::from_secs(5));
    cluster.assert_states(&before, &said(&output));
    assert_quiet(cluster, "a second Ctrl-C");
}
