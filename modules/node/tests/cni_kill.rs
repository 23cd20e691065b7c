//! The plugin is killed before every system call of ADD and of DEL by which anything outside of it changes: what comes then
//! finds its way, nothing is left, and no address is on two pods.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;
mod stage;

use std::io::{Read, Write};

use homelab_cni::GUARD_SETS;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pods::{Answer, Node, Pod, addresses, ruleset, run};
use serde_json::{Value, json};
use stage::{Stage, assert_clean, elements, on_a_stage, web};

/// System calls that change what is outside of a process, or say that it is done. An `openat` is one if it may make a file.
const CHANGES: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_ftruncate,
    libc::SYS_setns,
    libc::SYS_exit_group,
];

/// Whether a process stands before a system call that changes something.
fn before_a_change(pid: Pid) -> bool {
    let registers = ptrace::getregs(pid).expect("registers");
    // What is in the register of the result until there is one.
    let entering = registers.rax.cast_signed() == -i64::from(libc::ENOSYS);
    let call = registers.orig_rax.cast_signed();
    let makes = registers.rdx & u64::from(libc::O_CREAT.cast_unsigned()) != 0;
    entering && CHANGES.contains(&call) && (call != libc::SYS_openat || makes)
}

/// A request that is killed before its change number `at`, from 0; its answer if it has fewer.
#[allow(clippy::zombie_processes, reason = "waitpid does it")]
fn killed(node: &Node, command: &str, pod: &Pod, conf: &Value, at: usize) -> Option<Answer> {
    let mut child = node.command(command, pod, None).spawn().expect("plugin");
    let pid = Pid::from_raw(child.id().try_into().expect("a process"));
    // Until it has its configuration it does nothing.
    ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).expect("seize");
    ptrace::interrupt(pid).expect("interrupt");
    let wait = || waitpid(pid, Some(WaitPidFlag::__WALL)).expect("wait");
    assert!(matches!(wait(), WaitStatus::PtraceEvent(..)));
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(conf.to_string().as_bytes()).expect("write");
    drop(stdin);
    let mut changes = 0;
    let status = loop {
        ptrace::syscall(pid, None).expect("go on");
        match wait() {
            WaitStatus::PtraceSyscall(_) => {}
            WaitStatus::Exited(_, status) => break status,
            other => panic!("{other:?}"),
        }
        if !before_a_change(pid) {
            continue;
        }
        if changes == at {
            kill(pid, Signal::SIGKILL).expect("kill");
            assert!(matches!(wait(), WaitStatus::Signaled(..)));
            return None;
        }
        changes += 1;
    };
    let mut text = String::new();
    child.stdout.take().expect("stdout").read_to_string(&mut text).expect("answer");
    Some(Answer { status: Some(status), text })
}

/// What comes after a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// DEL, as runtimes do after an ADD that failed.
    Del,
    /// Another container with the same port, then the same one again.
    Others,
    /// The same again, then another one.
    Again,
    /// The network namespace goes.
    Vanish,
    /// GC for a runtime that knows of no container.
    Gc,
}

const THEN: [Then; 5] = [Then::Del, Then::Others, Then::Again, Then::Vanish, Then::Gc];

/// Dual stack, a port of the node, both rates, isolated, guarded.
fn conf(stage: &Stage<'_>) -> Value {
    let mut conf = stage.conf(&web(8080, json!({ "protocol": "udp" })));
    conf["runtimeConfig"]["bandwidth"] = json!({ "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000 });
    (conf["portIsolation"], conf["macspoofchk"]) = (json!(true), json!(true));
    conf
}

/// Elements of the guard.
fn guarded() -> usize {
    GUARD_SETS.iter().map(|set| ruleset::elements_of(&format!("set bridge homelab {set}"))).sum()
}

/// An ADD may be refused for what a killed one left, in these words. What a pod has then by the kernel.
fn add_or_words(stage: &Stage<'_>, pod: &Pod, conf: &Value, at: &str) -> Vec<String> {
    let answer = stage.node.call("ADD", pod, conf);
    if answer.status == Some(0) {
        return addresses(&answer.ok());
    }
    let words = ["is attached already", "is taken by"];
    assert!(words.iter().any(|words| answer.text.contains(words)), "{at}: {}", answer.text);
    assert!([102, 110].contains(&answer.code()), "{at}");
    let shown = pod.run("ip -o addr show scope global");
    let of = |line: &str| line.split_whitespace().nth(3)?.split('/').next().map(str::to_owned);
    shown.lines().filter_map(of).collect()
}

/// What comes after a kill, up to the point where nothing is left.
fn then(stage: &Stage<'_>, pod: Pod, conf: &Value, what: Then, at: &str) {
    let node = stage.node;
    let other = Pod::new("other");
    let apart = |one: &[String], two: &[String]| {
        assert!(!one.iter().any(|address| two.contains(address)), "{at}: {one:?} and {two:?}");
    };
    match what {
        Then::Del => {}
        Then::Others => {
            let others = add_or_words(stage, &other, conf, at);
            apart(&others, &add_or_words(stage, &pod, conf, at));
            node.call("DEL", &other, conf).ok();
        }
        Then::Again => {
            let own = add_or_words(stage, &pod, conf, at);
            apart(&own, &add_or_words(stage, &other, conf, at));
            node.call("DEL", &other, conf).ok();
        }
        Then::Vanish => {
            let id = pod.id.clone();
            drop(pod);
            node.call("DEL", &Pod::new(&id), conf).ok();
            return nothing_left(stage, at);
        }
        Then::Gc => {
            let mut gc = conf.clone();
            gc["cni.dev/valid-attachments"] = json!([]);
            node.call("GC", &pod, &gc).ok();
            nothing_left(stage, at);
        }
    }
    node.call("DEL", &pod, conf).ok();
    assert_eq!(pod.run("ip -o link").lines().count(), 1, "{at}: lo");
    nothing_left(stage, at);
}

fn nothing_left(stage: &Stage<'_>, at: &str) {
    let ports: Vec<String> = stage.node.ports().into_iter().filter(|port| port != "lan").collect();
    let left = (ports, stage.node.entries(), elements(), guarded());
    assert_eq!(left, (vec![], vec![], 0, 0), "{at}");
}

/// Kills a request at every point; `before` makes what it works on.
fn at_every_point(command: &str, least: usize, before: impl Fn(&Stage<'_>, &Pod, &Value) + Sync) {
    on_a_stage(|stage| {
        let conf = conf(stage);
        let mut points = 0;
        'points: loop {
            // ADD has many points: what comes then takes turns.
            let all = if command == "DEL" { &THEN[..] } else { &THEN[points % THEN.len()..][..1] };
            for what in all {
                let at = format!("{command} killed before change {points}, then {what:?}");
                let pod = Pod::new("c1");
                before(stage, &pod, &conf);
                if let Some(answer) = killed(stage.node, command, &pod, &conf, points) {
                    answer.ok();
                    stage.node.call("DEL", &pod, &conf).ok();
                    break 'points;
                }
                then(stage, pod, &conf, *what, &at);
            }
            points += 1;
        }
        eprintln!("{command}: {points} points");
        assert!(points >= least, "{points}");
        // The port can be had.
        let last = Pod::new("last");
        stage.node.call("ADD", &last, &conf).ok();
        stage.node.call("DEL", &last, &conf).ok();
        assert_clean(stage);
    });
}

#[test]
fn add_killed_at_every_point() {
    at_every_point("ADD", 20, |_, _, _| {});
}

/// The same where everything is still to be made: bridge, directories, files.
#[test]
fn the_first_add_killed_at_every_point() {
    at_every_point("ADD", 30, |stage, _, _| {
        run("ip link show dev homelab0 >/dev/null 2>&1 && ip link del homelab0 || true");
        run(&format!("find {} -mindepth 1 -delete", stage.node.data.path().display()));
    });
}

#[test]
fn del_killed_at_every_point() {
    at_every_point("DEL", 10, |stage, pod, conf| {
        stage.node.call("ADD", pod, conf).ok();
    });
}
