//! Journal, arming, locks, probes: what a transaction needs besides its files.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::place::{Place, apply, binary, file};
use common::{OtherNetns, in_new_netns, run};
use homelab_linux::transaction::{
    Shelf, arm, can_arm, disarm, has_state, is_open, is_reserved, read_journal, read_record, rearm,
    remove_record, remove_transaction, reserve, write_journal, write_record,
};
use homelab_linux::{
    Node, Root, displace, kill_apply, lock, lock_apply, probe, progress_age, session_holder, session_lock,
    touch_progress,
};
use homelab_model::{Change, Holder, ours};

/// What [`child_process`] is to do; then the root directory.
const ROLE: &str = "HOMELAB_TEST_ROLE";
const ROOT: &str = "HOMELAB_TEST_ROOT";

fn holder(who: &str) -> Holder {
    Holder { who: who.into(), pid: 7, command: "apply".into(), since: 1_700_000_000 }
}

/// A process of its own: this very test binary under another name.
struct Other {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Other {
    fn start(role: &str, root: &Path, name: &str) -> Other {
        Other::start_with(role, root, name, false)
    }

    fn start_with(role: &str, root: &Path, name: &str, deaf: bool) -> Other {
        // A link and no copy: a file that was written a moment ago may still be open for writing in a process that
        // another test starts, and then it cannot be run.
        let own = fs::read_link("/proc/self/exe").unwrap();
        let directory = tempfile::tempdir_in(own.parent().unwrap()).unwrap();
        let executable = directory.path().join(name);
        fs::hard_link(own, &executable).unwrap();
        // A signal that is ignored stays so for the next program.
        let command = if deaf { "trap '' TERM; exec \"$0\" \"$@\"" } else { "exec \"$0\" \"$@\"" };
        let child = Command::new("sh")
            .args(["-c", command])
            .arg(executable)
            .args(["--exact", "child_process", "--nocapture"])
            .envs([(ROLE, role.as_ref()), (ROOT, root.as_os_str())])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Other { child, _directory: directory }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn has_ended(&mut self) -> bool {
        // What is left of it may take a moment to go.
        std::thread::sleep(Duration::from_millis(100));
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test of its own: what [`Other`] runs. Without a role there is nothing to do.
#[test]
fn child_process() {
    let (Ok(role), Some(root)) = (std::env::var(ROLE), std::env::var_os(ROOT)) else { return };
    let root = Root::at(PathBuf::from(root));
    match role.as_str() {
        "session" => {
            let _lock = session_lock(&root, &holder("child"), Duration::ZERO).unwrap().unwrap();
            std::thread::sleep(Duration::from_secs(60));
        }
        "apply" => {
            // Who tries whether the lock is taken has it for that moment.
            let _lock = lock_apply(&root, Duration::from_secs(20)).unwrap();
            std::thread::sleep(Duration::from_secs(60));
        }
        "journal" => {
            // Every writer has its own.
            let first = usize::try_from(std::process::id()).unwrap() * 1_000_003;
            for count in first.. {
                write_journal(&root, &journal(count)).unwrap();
            }
        }
        other => panic!("no such role: {other}"),
    }
}

fn journal(count: usize) -> Vec<u8> {
    let mut text = format!("{count}:").into_bytes();
    text.extend(std::iter::repeat_n(b'x', 3000 + count % 7000));
    text
}

fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let count = text.split(':').next().and_then(|n| n.parse().ok());
    count.is_some_and(|count| journal(count) == bytes)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_journal_is_old_or_new_and_never_between() {
    let place = tempfile::tempdir().unwrap();
    let root = Root::at(place.path());
    assert_eq!(read_journal(&root).unwrap(), None);
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..25_u64 {
        let mut writer = Other::start("journal", place.path(), "writer");
        let before = read_journal(&root).unwrap();
        until("a new journal", || read_journal(&root).unwrap() != before);
        let end = Instant::now() + Duration::from_micros(700 * round);
        while Instant::now() < end {
            assert!(is_whole(&read_journal(&root).unwrap().expect("it is always there")));
        }
        writer.kill();
        let left = read_journal(&root).unwrap().unwrap();
        assert!(is_whole(&left));
        seen.insert(left);
    }
    assert_eq!(seen.len(), 25, "every writer left one");
    let meta = fs::metadata(place.path().join("var/lib/homelab/transaction/journal.json")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    assert!(is_open(&root));
    remove_transaction(&root).unwrap();
    remove_transaction(&root).unwrap();
    assert!(!is_open(&root) && !has_state(&root));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "what dead writers left went too");
}

/// Commands of systemd's that write down how they were called, and do what `systemd-run` says.
fn pretend_systemd(place: &Place) {
    fs::create_dir_all(place.path("/usr/bin")).unwrap();
    fs::create_dir_all(place.path("/run/systemd/system")).unwrap();
    for name in ["systemd-run", "systemctl"] {
        let path = place.path(&format!("/usr/bin/{name}"));
        let log = place.proc("calls").display().to_string();
        let script = format!("#!/bin/sh\nprintf '%s ' {name} \"$@\" >> {log}\necho >> {log}\n");
        executable(&path, &script);
    }
}

/// Writes a script, from a process of its own for the reason given at [`Other::start_with`].
fn executable(path: &Path, script: &str) {
    let write = "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"";
    assert!(Command::new("sh").args(["-c", write, "sh", script]).arg(path).status().unwrap().success());
}

fn calls(place: &Place) -> Vec<String> {
    let log = place.proc("calls");
    let text = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_fresh_node_keeps_no_trace_of_a_transaction() {
    in_new_netns(|| {
        let place = Place::new();
        pretend_systemd(&place);
        let root = place.root();
        let before = place.all();
        let own = homelab_linux::digest_of_self().unwrap();
        let plan: Vec<Change<_>> =
            [binary(&own), file("/etc/homelab/node.json", "{}\n"), file("/etc/systemd/system/x.service", "")]
                .into_iter()
                .map(|after| Change::Create { after })
                .collect();
        let mut node = place.node();
        write_journal(&root, b"{}").unwrap();
        assert!(!is_reserved(&root));
        reserve(&root).unwrap();
        assert!(is_reserved(&root));
        let reserve = fs::metadata(place.path(&format!("{}/reserve", ours::TRANSACTION))).unwrap();
        assert!(reserve.blocks() * 512 >= 64 << 10, "{} blocks", reserve.blocks());
        node.keep_asides(&plan).unwrap();
        can_arm(&root).unwrap();
        arm(&root, "0a1b", Duration::from_secs(60)).unwrap();
        let called = calls(&place);
        assert_eq!(called.len(), 1, "{called:?}");
        for word in [
            "systemd-run",
            "--collect",
            "--unit=homelab-revert-0a1b",
            "--on-active=60000ms",
            "--timer-property=AccuracySec=100ms",
            "-- /usr/local/lib/homelab/recovery/homelab-node revert --id 0a1b",
        ] {
            assert!(called[0].contains(word), "{word} is not in {called:?}");
        }
        let unit = fs::read_to_string(place.path("/etc/systemd/system/homelab-recovery.service")).unwrap();
        for line in [
            "ExecStart=/usr/local/lib/homelab/recovery/homelab-node revert --boot",
            "Type=oneshot",
            "Before=homelab-node.service containerd.service crio.service kubelet.service",
            "After=local-fs.target systemd-sysctl.service",
        ] {
            assert!(unit.lines().any(|l| l == line), "{line} is not in {unit}");
        }
        let enabled = place.path("/etc/systemd/system/multi-user.target.wants/homelab-recovery.service");
        assert_eq!(fs::read_to_string(enabled).unwrap(), unit, "the link leads to the unit");
        let recovery = place.path(ours::RECOVERY);
        assert_eq!(homelab_linux::file_digest(&recovery).unwrap(), own);
        assert_eq!(fs::metadata(&recovery).unwrap().mode() & 0o7777, 0o755);
        apply(&mut node, &plan);
        // Again, over what is there.
        arm(&root, "0a1b", Duration::from_secs(60)).unwrap();
        rearm(&root, "0a1b", Duration::from_secs(600)).unwrap();
        let called = calls(&place);
        assert!(called[1].contains("--unit=homelab-revert-0a1b-") && called[1].contains("=600000ms"));
        std::mem::forget(node);

        let mut node = place.node();
        node.adopt_asides(&plan);
        let back: Vec<Change<_>> = plan.iter().rev().map(Change::invert).collect();
        apply(&mut node, &back);
        node.drop_asides().unwrap();
        disarm(&root, "0a1b").unwrap();
        assert_eq!(
            calls(&place),
            ["systemctl stop -- homelab-revert-0a1b*.timer homelab-revert-0a1b*.service"]
        );
        remove_transaction(&root).unwrap();
        assert!(!has_state(&root));
        write_record(&root, Shelf::Run, "reverted.json", b"{}").unwrap();
        assert_eq!(read_record(&root, "reverted.json").unwrap().unwrap(), b"{}");
        remove_record(&root, "reverted.json").unwrap();
        fs::remove_dir_all(place.path(ours::RUN)).unwrap();
        disarm(&root, "0a1b").unwrap();
        calls(&place);
        assert_eq!(place.all(), before, "byte for byte");
    });
}

#[test]
fn after_a_farewell_disarming_leaves_nothing() {
    in_new_netns(|| {
        let place = Place::new();
        pretend_systemd(&place);
        // Every machine with systemd has these.
        for directory in ["/etc/systemd/system/multi-user.target.wants", "/usr/local/lib"] {
            fs::create_dir_all(place.path(directory)).unwrap();
        }
        let before = place.all();
        let mut node = place.node();
        arm(&place.root(), "aa", Duration::from_secs(60)).unwrap();
        write_journal(&place.root(), b"{}").unwrap();
        node.farewell().unwrap();
        node.farewell().unwrap();
        disarm(&place.root(), "aa").unwrap();
        calls(&place);
        assert_eq!(place.all(), before);
    });
}

#[test]
fn the_installed_binary_gets_another_name_instead_of_a_copy() {
    let own = homelab_linux::digest_of_self().unwrap();
    let place = Place::beside_executable();
    pretend_systemd(&place);
    let installed = place.path(&ours::binary_path(&own));
    fs::create_dir_all(installed.parent().unwrap()).unwrap();
    // The running binary itself is under that name.
    fs::hard_link(fs::read_link("/proc/self/exe").unwrap(), &installed).unwrap();
    arm(&place.root(), "aa", Duration::from_secs(60)).unwrap();
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&installed), inode(&place.path(ours::RECOVERY)));
    disarm(&place.root(), "aa").unwrap();
    assert!(installed.exists() && !place.path(ours::RECOVERY).exists());
}

#[test]
fn what_cannot_be_armed_is_said_before() {
    let place = Place::new();
    let root = place.root();
    assert!(can_arm(&root).unwrap_err().contains("systemd does not run here"));
    fs::create_dir_all(place.path("/run/systemd/system")).unwrap();
    assert!(can_arm(&root).unwrap_err().contains("systemd-run is missing"));
    pretend_systemd(&place);
    for id in ["", "A0", "0x", "a b", "../a", "-a", "a;b", "é", &"a".repeat(65)] {
        assert!(arm(&root, id, Duration::ZERO).is_err(), "{id:?}");
        assert!(rearm(&root, id, Duration::ZERO).is_err(), "{id:?}");
        assert!(disarm(&root, id).is_err(), "{id:?}");
    }
    assert_eq!(calls(&place), [] as [&str; 0]);
    // A failure is told in systemd's words.
    executable(&place.path("/usr/bin/systemd-run"), "#!/bin/sh\necho no timers today >&2\nexit 1\n");
    let error = arm(&root, "aa", Duration::ZERO).unwrap_err().to_string();
    assert!(error.contains("no timers today"), "{error}");
    executable(&place.path("/usr/bin/systemd-run"), "#!/bin/sh\nexit 3\n");
    let error = arm(&root, "aa", Duration::ZERO).unwrap_err().to_string();
    assert!(error.contains("exit status: 3"), "{error}");
}

#[test]
fn records_are_on_one_shelf_at_a_time() {
    let place = Place::new();
    let root = place.root();
    let before = place.all();
    assert_eq!(read_record(&root, "a.json").unwrap(), None);
    write_record(&root, Shelf::Disk, "a.json", b"1").unwrap();
    let path = place.path("/var/lib/homelab/a.json");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert!(has_state(&root));
    write_record(&root, Shelf::Run, "a.json", b"2").unwrap();
    assert!(!path.exists());
    assert_eq!(read_record(&root, "a.json").unwrap().unwrap(), b"2");
    write_record(&root, Shelf::Disk, "a.json", b"3").unwrap();
    assert!(!place.path("/run/homelab/a.json").exists());
    remove_record(&root, "a.json").unwrap();
    remove_record(&root, "a.json").unwrap();
    fs::remove_dir_all(place.path("/run")).unwrap();
    assert_eq!(place.all(), before);
}

#[test]
fn a_session_lock_names_its_holder_and_ends_with_the_process() {
    let place = tempfile::tempdir().unwrap();
    let root = Root::at(place.path());
    assert_eq!(session_holder(&root), None);
    let mut other = Other::start("session", place.path(), "homelab-node");
    until("a holder", || session_holder(&root).is_some());
    assert_eq!(session_holder(&root), Some((holder("child"), other.child.id())));
    let start = Instant::now();
    let busy = session_lock(&root, &holder("me"), Duration::from_millis(150)).unwrap().unwrap_err();
    assert_eq!(busy, (holder("child"), other.child.id()));
    assert!(start.elapsed() >= Duration::from_millis(150));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| session_lock(&root, &holder("me"), Duration::from_secs(20)));
        std::thread::sleep(Duration::from_millis(80));
        other.kill();
        let mine = waiter.join().unwrap().unwrap().unwrap();
        assert!(mine.waited());
        assert_eq!(session_holder(&root), None, "I am no other");
        // Another session in this process does not get it either.
        let busy = session_lock(&root, &holder("twin"), Duration::ZERO).unwrap().unwrap_err();
        assert_eq!(busy, (holder("me"), std::process::id()));
        drop(mine);
    });
    let mine = session_lock(&root, &holder("me"), Duration::ZERO).unwrap().unwrap();
    assert!(!mine.waited());
    drop(mine);
    // What a dead or another process of that id has left says nothing.
    let path = place.path().join("run/homelab/session.lock");
    let left = |pid: u32| {
        let text = format!(
            "{{\"holder\":{},\"pid\":{pid},\"started\":1}}",
            serde_json::to_string(&holder("ghost")).unwrap()
        );
        fs::write(&path, text).unwrap();
        assert_eq!(session_holder(&root), None);
        assert_eq!(displace(&root).unwrap(), None);
    };
    left(1);
    left(4_000_000);
    assert!(session_lock(&root, &holder("me"), Duration::ZERO).unwrap().is_ok());
}

#[test]
fn many_sessions_race_and_one_has_it() {
    let place = tempfile::tempdir().unwrap();
    let root = Root::at(place.path());
    let (inside, most) = (std::sync::atomic::AtomicUsize::new(0), std::sync::atomic::AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for who in 0..8 {
            let (root, inside, most) = (&root, &inside, &most);
            scope.spawn(move || {
                for _ in 0..10 {
                    let me = holder(&format!("laptop{who}"));
                    let lock = session_lock(root, &me, Duration::from_secs(60)).unwrap().unwrap();
                    let now = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                    most.fetch_max(now, std::sync::atomic::Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(1));
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    drop(lock);
                }
            });
        }
    });
    assert_eq!(most.into_inner(), 1);
}

#[test]
fn a_holder_is_displaced_if_it_is_one_of_ours() {
    let place = tempfile::tempdir().unwrap();
    let root = Root::at(place.path());
    assert_eq!(displace(&root).unwrap(), None);
    let mut other = Other::start("session", place.path(), "homelab-node");
    until("a holder", || session_holder(&root).is_some());
    assert_eq!(displace(&root).unwrap(), Some(holder("child")));
    until("an end", || other.has_ended());
    assert!(session_lock(&root, &holder("me"), Duration::ZERO).unwrap().is_ok());
    // Its file is gone, as after an upgrade.
    let mut deleted = Other::start("session", place.path(), "homelab-node");
    until("a holder", || session_holder(&root).is_some());
    fs::remove_file(deleted._directory.path().join("homelab-node")).unwrap();
    assert_eq!(displace(&root).unwrap(), Some(holder("child")));
    until("an end", || deleted.has_ended());

    let mut stranger = Other::start("session", place.path(), "something-else");
    until("a holder", || session_holder(&root).is_some());
    let error = displace(&root).unwrap_err().to_string();
    assert!(error.contains("is no homelab-node"), "{error}");
    assert!(!stranger.has_ended());
    // Never itself.
    stranger.kill();
    let _mine = session_lock(&root, &holder("me"), Duration::ZERO).unwrap().unwrap();
    assert_eq!(displace(&root).unwrap(), None);
}

#[test]
fn an_apply_that_hangs_is_ended_even_if_it_is_deaf() {
    let place = tempfile::tempdir().unwrap();
    let root = Root::at(place.path());
    assert_eq!(kill_apply(&root).unwrap(), None);
    let mut other = Other::start_with("apply", place.path(), "homelab-node", true);
    until("a lock", || lock_apply(&root, Duration::ZERO).is_err());
    until("a signed lock", || kill_apply(&root).unwrap() == Some(other.child.id()));
    until("an end", || other.has_ended());
    let _lock = lock_apply(&root, Duration::ZERO).unwrap();
    assert_eq!(kill_apply(&root).unwrap(), None, "not itself");
    drop(lock(&root, Duration::ZERO).unwrap());
}

#[test]
fn progress_has_an_age() {
    let place = tempfile::tempdir().unwrap();
    let root = Root::at(place.path());
    assert_eq!(progress_age(&root), None);
    touch_progress(&root).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let age = progress_age(&root).unwrap();
    assert!((30..5_000).contains(&age.as_millis()), "{age:?}");
    touch_progress(&root).unwrap();
    assert!(progress_age(&root).unwrap() < age);
}

#[test]
fn probes_tell_who_answers() {
    in_new_netns(|| {
        let other = OtherNetns::new();
        let other_path = other.path.display().to_string().replace("self", &std::process::id().to_string());
        run(&format!("ip link add v0 type veth peer name v1 && ip link set v1 netns {other_path}"));
        let there = |command: &str| run(&format!("nsenter --net={other_path} {command}"));
        run("ip addr add 10.0.0.1/24 dev v0 && ip addr add fd00::1/64 dev v0 nodad && ip link set v0 up");
        there(
            "sh -c 'ip addr add 10.0.0.2/24 dev v1; ip addr add fd00::2/64 dev v1 nodad; ip link set v1 up'",
        );
        let mut node = Node::open(Root::system()).unwrap();
        let sources = node.addresses_of("v0").unwrap();
        assert_eq!(sources.len(), 2, "{sources:?}");
        let ask_for = |time, targets: &[&str]| {
            let targets: Vec<_> = targets.iter().map(|t| t.parse().unwrap()).collect();
            let start = Instant::now();
            let answers = probe(&targets, &sources, time);
            (answers, start.elapsed())
        };
        let ask = |targets: &[&str]| ask_for(Duration::from_secs(1), targets);
        let (answers, took) = ask_for(Duration::from_secs(90), &["10.0.0.2", "fd00::2"]);
        assert_eq!(answers, [true, true]);
        assert!(took < Duration::from_secs(60), "{took:?}: it does not wait when all have answered");
        // Nobody there, no route, somebody, and one that is silent.
        there("nft add table inet t");
        there("nft 'add chain inet t c { type filter hook input priority 0; }'");
        there("nft add rule inet t c ip6 daddr fd00::2 udp dport 9 drop");
        let (answers, took) = ask(&["10.0.0.9", "192.0.2.1", "10.0.0.2", "fd00::2", "fd99::1"]);
        assert_eq!(answers, [false, false, true, false, false]);
        assert!(took >= Duration::from_millis(900), "{took:?}: it waits for those that are silent");
        assert_eq!(ask(&[]).0, [] as [bool; 0]);
        // It comes up while we ask.
        run("ip link set v0 down");
        assert_eq!(ask(&["10.0.0.2"]).0, [false]);
        std::thread::sleep(Duration::from_secs(2));
        std::thread::scope(|scope| {
            let here = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                run(&format!("nsenter --net={here} ip link set v0 up"));
            });
            assert_eq!(ask(&["10.0.0.2"]).0, [true]);
        });
    });
}
