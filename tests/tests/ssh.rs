//! Everything that goes wrong between the laptop and a node.

use std::process::Stdio;
use std::time::{Duration, Instant};

use homelab_lab::Output;
use homelab_tests::{Cluster, DISRUPTIVE, run, spy_while};
use serde_json::json;

fn main() {
    run(
        "ssh",
        &[
            ("wrong_key", wrong_key),
            ("unknown_host_key", unknown_host_key),
            ("changed_host_key", changed_host_key),
            ("proxy_jump_through_the_router", proxy_jump),
            ("user_with_sudo_and_no_password", user_without_password),
            ("user_with_sudo_password", user_with_password),
            ("one_node_is_down", one_node_is_down),
            ("node_that_accepts_and_says_nothing", silent_node),
            ("connection_dropped_in_the_middle_of_plan", dropped_in_plan),
            ("connection_dropped_in_the_middle_of_apply", dropped_in_apply),
            ("laptop_killed_in_the_middle_of_apply", laptop_killed),
            ("two_applies_at_once", two_applies_at_once),
        ],
    )
}

#[track_caller]
fn assert_fails(output: &Output, words: &[&str]) {
    let text = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, 1, "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing:\n{text}");
    }
}

fn wrong_key(cluster: &mut Cluster) {
    let key = cluster.lab.home().join("wrong");
    let key = key.to_string_lossy().into_owned();
    cluster.sh("client", &format!("rm -f {key}; ssh-keygen -q -t ed25519 -N '' -f {key}"));
    cluster.file.set("ssh.identity", json!(key));
    // As with `ssh -i`, keys of the user's own configuration would be tried too.
    let config = cluster.lab.home().join("no-keys.conf").to_string_lossy().into_owned();
    let known = cluster.lab.known_hosts_path();
    std::fs::write(&config, format!("UserKnownHostsFile {}\n", known.display())).expect("ssh config");
    let output = cluster.homelab(&["plan", "--ssh-config", &config]);
    assert_fails(&output, &["node1", "node2", "node3", "root", "~/wrong"]);
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
}

fn unknown_host_key(cluster: &mut Cluster) {
    let known = cluster.lab.known_hosts_path();
    let text = std::fs::read_to_string(&known).expect("known_hosts");
    let rest: String = text.lines().filter(|l| !l.contains("node2")).map(|l| format!("{l}\n")).collect();
    std::fs::write(&known, &rest).expect("known_hosts");
    let fingerprint = cluster.sh("node2", "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2");
    let output = cluster.homelab(&["plan"]);
    assert_fails(&output, &["node2", &fingerprint, "--accept-new-host-keys"]);
    assert!(output.stdout.contains("homelab.1"), "the other nodes are planned:\n{}", output.stdout);
    assert_eq!(std::fs::read_to_string(&known).expect("known_hosts"), rest, "nothing was added");
    cluster.homelab_ok(&["plan", "--accept-new-host-keys"]);
    let added = std::fs::read_to_string(&known).expect("known_hosts");
    assert!(added.starts_with(&rest) && added.len() > rest.len(), "one line more:\n{added}");
    cluster.homelab_ok(&["plan"]);
}

fn changed_host_key(cluster: &mut Cluster) {
    cluster.lab.change_host_keys("node2").expect("new keys");
    let known = cluster.lab.known_hosts_path();
    let before = std::fs::read_to_string(&known).expect("known_hosts");
    let fingerprint = cluster.sh("node2", "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2");
    for flag in [&[][..], &["--accept-new-host-keys"]] {
        let output = cluster.homelab(&[&["plan"], flag].concat());
        assert_fails(&output, &["node2", &fingerprint, "ssh-keygen", "-R"]);
    }
    assert_eq!(before, std::fs::read_to_string(&known).expect("known_hosts"));
}

fn proxy_jump(cluster: &mut Cluster) {
    // Seen from wan, the LAN is behind the router's sshd alone.
    cluster.sh("router", "nft -f - <<END
table inet wall { chain forward { type filter hook forward priority 0; policy accept; iifname wan ct state new drop; }; }
END");
    let output = cluster.homelab_from("wan", &["plan", "--connect-timeout", "2"]);
    assert_fails(&output, &["node1", "node2", "node3"]);
    cluster.file.set("ssh.jump", json!("root@192.0.2.1"));
    let output = cluster.homelab_from("wan", &["apply", "--yes"]);
    assert!(output.success(), "{}{}", output.stdout, output.stderr);
    // The user's own configuration does as well.
    cluster.file.set("ssh.jump", json!(null));
    let path = cluster.lab.ssh_config_path();
    let config = std::fs::read_to_string(&path).expect("ssh config");
    std::fs::write(&path, format!("Match host 192.168.50.*\n  ProxyJump gateway\n\n{config}"))
        .expect("ssh config");
    let output = cluster.homelab_from("wan", &["plan", "--detailed-exitcode"]);
    cluster.sh("router", "nft delete table inet wall");
    assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
}

fn user_without_password(cluster: &mut Cluster) {
    cluster.file.set("ssh.user", json!("debian"));
    cluster.apply();
    cluster.assert_converged();
    let owners = cluster.sh("node1", "find /etc/homelab /usr/local/lib/homelab /var/lib/homelab ! -uid 0");
    assert_eq!(owners, "", "all is root's");
    cluster.homelab_ok(&["destroy", "--yes"]);
}

fn user_with_password(cluster: &mut Cluster) {
    let password = cluster.lab.sudo_password();
    cluster.file.set("ssh.user", json!("pw"));
    let output = cluster.homelab(&["plan"]);
    assert_fails(&output, &["sudo", "pw", "--become-password-file"]);

    let file = cluster.lab.home().join("password");
    let file = file.to_string_lossy().into_owned();
    std::fs::write(&file, "not it\n").expect("password file");
    let start = Instant::now();
    let output = cluster.homelab(&["plan", "--become-password-file", &file]);
    assert_fails(&output, &["sudo", "node1", "node2", "node3"]);
    assert!(start.elapsed() < Duration::from_secs(90), "it took {:?}", start.elapsed());

    std::fs::write(&file, format!("{password}\n")).expect("password file");
    // Every command line and environment, again and again while it works.
    let nodes = cluster.nodes();
    let (output, seen) = spy_while(&[password], || {
        cluster.homelab(&["apply", "--yes", "--verbose", "--become-password-file", &file])
    });
    assert!(output.success(), "{}{}", output.stdout, output.stderr);
    assert!(seen.is_empty(), "the password was seen in {seen:?}");
    assert!(!(output.stdout + &output.stderr).contains(password), "the password is in the output");
    for node in &nodes {
        let found =
            cluster.sh(node, &format!("journalctl --no-pager 2>/dev/null | grep -cF {password} || true"));
        assert_eq!(found, "0", "the password is in the journal of {node}");
        let found = cluster.sh(
            node,
            &format!("grep -rlF {password} /etc/homelab /var/lib/homelab /run/homelab /tmp /var/tmp || true"),
        );
        assert_eq!(found, "", "the password is in a file on {node}");
    }
    let output = cluster.homelab(&["plan", "--detailed-exitcode", "--become-password-file", &file]);
    assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
}

fn one_node_is_down(cluster: &mut Cluster) {
    cluster.lab.power_cut(&["node2"]).expect("the power goes");
    let start = Instant::now();
    let output = cluster.homelab(&["apply", "--yes", "--connect-timeout", "3"]);
    assert_fails(&output, &["node2", "192.168.50.12"]);
    assert!(start.elapsed() < Duration::from_secs(60), "it took {:?}", start.elapsed());
    for node in ["node1", "node3"] {
        assert_eq!(cluster.sh(node, "systemctl is-active homelab-node"), "active", "the rest is done");
    }
    let pods = vec![cluster.pod("node1", "a"), cluster.pod("node3", "b")];
    cluster.assert_mesh(&pods);
    // The others need not wait for it, and are done.
    cluster.homelab_ok(&["plan", "--detailed-exitcode", "--nodes", "node1,node3", "--connect-timeout", "2"]);
    cluster.lab.start("node2").expect("node2 boots");
    cluster.homelab_ok(&["apply", "--yes", "--nodes", "node2"]);
    cluster.assert_converged();
    let pods = vec![pods[0].clone(), cluster.pod("node2", "c"), pods[1].clone()];
    cluster.assert_mesh(&pods);
}

fn silent_node(cluster: &mut Cluster) {
    // A new listener in sshd's place that never says a word, and one that stops after the banner.
    for (what, answer) in [("nothing", "sleep 60"), ("a banner", "echo SSH-2.0-Silence; sleep 60")] {
        cluster.sh("node2", "systemctl stop ssh");
        cluster.sh(
            "node2",
            &format!("setsid socat TCP-LISTEN:22,reuseaddr,fork SYSTEM:'{answer}' </dev/null >/dev/null 2>&1 & echo $! >/run/silent"),
        );
        std::thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        let output = cluster.homelab(&["apply", "--yes", "--connect-timeout", "2"]);
        assert_fails(&output, &["node2", "192.168.50.12"]);
        assert!(start.elapsed() < Duration::from_secs(55), "{what}: it took {:?}", start.elapsed());
        assert_eq!(cluster.sh("node3", "systemctl is-active homelab-node"), "active", "the rest is done");
        cluster.sh("node2", "kill $(cat /run/silent); systemctl start ssh");
    }
    // A node that stops in the middle of a session: its kernel still answers.
    cluster.lab.freeze("node2").expect("node2 stands still");
    let start = Instant::now();
    let output = cluster.homelab(&["plan", "--connect-timeout", "2"]);
    cluster.lab.thaw("node2").expect("node2 goes on");
    assert_fails(&output, &["node2"]);
    assert!(start.elapsed() < Duration::from_secs(15), "it took {:?}", start.elapsed());
    cluster.apply();
    cluster.assert_converged();
}

/// Starts `homelab`, waits a little, does something on the network, and waits for the end.
fn meanwhile(
    cluster: &Cluster,
    args: &[&str],
    after: Duration,
    what: impl FnOnce(&Cluster),
) -> (Output, Duration) {
    std::thread::scope(|scope| {
        let start = Instant::now();
        let job = scope.spawn(|| cluster.homelab(args));
        std::thread::sleep(after);
        what(cluster);
        (job.join().expect("homelab ends"), start.elapsed())
    })
}

fn dropped_in_plan(cluster: &mut Cluster) {
    // A slow cable, so that there is a middle.
    let slow = homelab_lab::Impairment { delay_ms: 100.0, ..Default::default() };
    cluster.lab.impair("node2", slow).expect("the cable is slow");
    for after in [300, 700, 1100] {
        let (output, time) = meanwhile(cluster, &["plan"], Duration::from_millis(after), |cluster| {
            cluster.cut_connections("node2");
        });
        assert!(time < Duration::from_secs(30), "dropped after {after} ms: {time:?}");
        if !output.success() {
            assert_fails(&output, &["node2"]);
            assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
        }
    }
    cluster.lab.unimpair("node2").expect("the cable is good");
    let left = cluster.sh("node2", "sleep 0.5; ls -d /run/homelab* /tmp/homelab* /var/tmp/homelab* 2>/dev/null || true; pgrep -xa homelab-node || true");
    assert_eq!(left, "", "nothing stays on the node");
    cluster.homelab_ok(&["plan"]);
}

fn dropped_in_apply(cluster: &mut Cluster) {
    cluster
        .lab
        .impair("node2", homelab_lab::Impairment { delay_ms: 30.0, ..Default::default() })
        .expect("slow");
    let mut failed = 0;
    for (round, after) in [300, 700, 1100].into_iter().enumerate() {
        let (output, time) =
            meanwhile(cluster, &["apply", "--yes"], Duration::from_millis(after), |cluster| {
                cluster.cut_connections("node2");
            });
        assert!(time < Duration::from_secs(30), "dropped after {after} ms: {time:?}");
        if !output.success() {
            failed += 1;
            assert_fails(&output, &["node2"]);
        }
        // A later run finishes, whatever the first one came to.
        cluster.homelab_ok(&["apply", "--yes", DISRUPTIVE]);
        cluster.assert_converged();
        if round < 2 {
            cluster.homelab_ok(&["destroy", "--yes"]);
        }
    }
    homelab_tests::measured(format_args!("{failed} of 3 runs lost their connection"));
    cluster.lab.unimpair("node2").expect("good");
    // The whole LAN goes away at once, and comes back.
    cluster.homelab_ok(&["destroy", "--yes"]);
    let (output, _) = meanwhile(
        cluster,
        &["apply", "--yes", "--connect-timeout", "2"],
        Duration::from_millis(150),
        |cluster| {
            cluster.lab.partition("node2").expect("cut off");
        },
    );
    cluster.lab.heal("node2").expect("back");
    if !output.success() {
        assert_fails(&output, &["node2"]);
    }
    cluster.apply();
    cluster.assert_converged();
    let pods = cluster.pods();
    cluster.assert_mesh(&pods);
}

fn laptop_killed(cluster: &mut Cluster) {
    for after in [100, 200, 300, 500] {
        let path = cluster.write_file();
        let mut command = cluster.homelab_command("client", &["-f", &path, "apply", "--yes"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("homelab starts");
        std::thread::sleep(Duration::from_millis(after));
        let _ = child.kill();
        let _ = child.wait();
        cluster.apply();
        cluster.assert_converged();
        cluster.homelab_ok(&["destroy", "--yes"]);
    }
}

fn two_applies_at_once(cluster: &mut Cluster) {
    let codes: Vec<Output> = std::thread::scope(|scope| {
        let run = || cluster.homelab(&["apply", "--yes"]);
        let jobs = [scope.spawn(run), scope.spawn(run)];
        jobs.into_iter().map(|job| job.join().expect("homelab ends")).collect()
    });
    assert!(codes.iter().any(Output::success), "{codes:#?}");
    cluster.apply();
    cluster.assert_converged();
}
