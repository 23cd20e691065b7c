//! Network namespaces for tests. They end with the thread that made them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub(crate) mod objects;
pub(crate) mod place;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod wire;

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;

use nix::sched::{CloneFlags, setns, unshare};

fn must_be_root() {
    assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces: run them as root");
}

/// Runs `work` on a thread in a network namespace of its own.
pub(crate) fn in_new_netns<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    must_be_root();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            work()
        });
        match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A network namespace held by a thread of its own.
pub(crate) struct OtherNetns {
    pub(crate) path: PathBuf,
    end: Option<mpsc::Sender<()>>,
    holder: Option<std::thread::JoinHandle<()>>,
}

impl OtherNetns {
    pub(crate) fn new() -> OtherNetns {
        must_be_root();
        let (say, hear) = mpsc::channel();
        let (end, wait) = mpsc::channel();
        let holder = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            say.send(nix::unistd::gettid()).unwrap();
            let _ = wait.recv();
        });
        let tid = hear.recv().unwrap();
        OtherNetns {
            path: PathBuf::from(format!("/proc/self/task/{tid}/ns/net")),
            end: Some(end),
            holder: Some(holder),
        }
    }
}

impl Drop for OtherNetns {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(holder) = self.holder.take() {
            let _ = holder.join();
        }
    }
}

/// Runs work in another namespace, on a thread of its own.
pub(crate) fn in_netns_of<T: Send>(other: &OtherNetns, work: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(&other.path).unwrap();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        worker.join().unwrap()
    })
}

/// Runs a command in the caller's network namespace and gives what it prints.
pub(crate) fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Has nft load a file, in the caller's network namespace.
pub(crate) fn load(text: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    run(&format!("nft -f {}", file.path().display()));
}

/// Tables and chains of `objects` as nft prints them, in the caller's network namespace. Desired objects must be in these
/// very words, or a plan would never be empty.
pub(crate) fn nft_canonical(objects: &[homelab_model::NodeObject]) -> homelab_linux::nft::Tables {
    use homelab_linux::nft::{Tables, parse_tables, rules, script};
    let changes: Vec<_> =
        objects.iter().map(|object| homelab_model::Change::Create { after: object.clone() }).collect();
    let script = script(&changes.iter().collect::<Vec<_>>(), &Tables::new()).unwrap();
    load(&script.text);
    let mut socket = homelab_linux::netlink::Socket::netfilter().unwrap();
    for (table, rules) in &script.by_netlink {
        rules::append(&mut socket, table, rules).unwrap();
    }
    parse_tables(&run("nft --stateless --numeric list ruleset")).unwrap()
}
