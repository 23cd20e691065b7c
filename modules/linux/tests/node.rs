//! The whole backend on the real kernel, with what the modules really want.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::objects::{objects, spec};
use common::{in_new_netns, run};
use homelab_linux::{Kinds, Node, Root};
use homelab_model::{Change, NodeObject, Scope, diff, invert};

/// A node whose files are under a temporary directory and whose sysctls are plain files there.
fn node(directory: &Path) -> Node {
    let proc = directory.join("proc");
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        let path = proc.join("sys").join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "0\n").unwrap();
    }
    // Sysctls of links are the kernel's.
    for family in ["ipv4", "ipv6"] {
        for link in ["homelab.vx", "homelab0"] {
            let path = proc.join(format!("sys/net/{family}/conf/{link}"));
            let _ = std::fs::create_dir_all(path.parent().unwrap());
            std::os::unix::fs::symlink(
                format!("/proc/thread-self/root/proc/sys/net/{family}/conf/{link}"),
                path,
            )
            .unwrap();
        }
    }
    std::fs::create_dir_all(directory.join("root")).unwrap();
    Node::open(Root::at(directory.join("root")).with_proc(proc)).unwrap()
}

fn apply(node: &mut Node, changes: &[Change<NodeObject>]) {
    let mut done = 0;
    node.apply_all(changes, &mut |n| done = n).unwrap_or_else(|e| panic!("{e}\n{changes:#?}"));
    assert_eq!(done, changes.len());
}

fn observe(node: &mut Node, scope: &Scope) -> Vec<NodeObject> {
    node.observe(scope).unwrap().objects
}

#[test]
fn the_modules_objects_come_stay_and_go() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = node(directory.path());
        let wanted = objects(&spec(3));
        let scope = Scope::of(&wanted, "homelab.vx");
        let before = observe(&mut node, &scope);
        assert_eq!(before, [], "a fresh node has nothing of ours");

        let plan = diff(&before, &wanted);
        apply(&mut node, &plan);
        let after = observe(&mut node, &scope);
        assert_eq!(diff(&after, &wanted), [], "nothing is left to do");
        assert_eq!(diff(&wanted, &after), []);
        // A second time, over what is there already.
        apply(&mut node, &plan);
        assert_eq!(diff(&observe(&mut node, &scope), &wanted), []);

        let kernel = node.observe_objects(&scope, Kinds::KERNEL).unwrap();
        assert!(kernel.iter().all(|o| after.contains(o)) && kernel.len() > 10);

        apply(&mut node, &invert(&plan));
        assert_eq!(observe(&mut node, &scope), []);
        apply(&mut node, &invert(&plan));
        let left = run(&format!("find {} -mindepth 1", directory.path().join("root").display()));
        assert_eq!(left, "", "no file and no directory stays");
        assert_eq!(
            std::fs::read_to_string(directory.path().join("proc/sys/net/ipv4/ip_forward")).unwrap().trim(),
            "0"
        );
    });
}
