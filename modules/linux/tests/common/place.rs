//! A place for the files of a test, and objects to put there.

use std::fs;
use std::path::PathBuf;

use homelab_linux::{Kinds, Node, Root};
use homelab_model::{Binary, Change, Content, File, Module, NodeObject, Object, Scope, Spec, Symlink, ours};

use super::run;

const KINDS: Kinds = Kinds { sysctls: true, files: true, ..Kinds::NONE };

/// A root directory and some sysctls.
pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place::at(tempfile::tempdir().unwrap())
    }

    /// On the file system of the test binary.
    pub(crate) fn beside_executable() -> Place {
        let executable = fs::read_link("/proc/self/exe").unwrap();
        Place::at(tempfile::tempdir_in(executable.parent().unwrap()).unwrap())
    }

    fn at(directory: tempfile::TempDir) -> Place {
        for key in ["net/ipv4/ip_forward", "kernel/x"] {
            let path = directory.path().join("proc/sys").join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "7\n").unwrap();
        }
        fs::create_dir_all(directory.path().join("root/etc")).unwrap();
        Place { directory }
    }

    pub(crate) fn root(&self) -> Root {
        Root::at(self.directory.path().join("root")).with_proc(self.directory.path().join("proc"))
    }

    pub(crate) fn node(&self) -> Node {
        Node::open(self.root()).unwrap()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path.trim_start_matches('/'))
    }

    pub(crate) fn proc(&self, path: &str) -> PathBuf {
        self.directory.path().join("proc").join(path)
    }

    /// Everything there is: type, mode, owner, path, target, content.
    pub(crate) fn all(&self) -> String {
        let directory = self.directory.path().display();
        run(&format!(
            "cd {directory} && find . -printf '%y %m %U:%G %p %l\\n' | sort && find . -type f | sort | xargs sha256sum"
        ))
    }
}

pub(crate) fn file(path: &str, text: &str) -> NodeObject {
    let content = Content::Text(text.into());
    let file = File { path: path.into(), mode: 0o640, owner: "3:4".into(), content };
    NodeObject { module: Module::Agent, spec: Spec::File(file) }
}

pub(crate) fn link(path: &str, target: &str) -> NodeObject {
    let link = Symlink { path: path.into(), target: target.into() };
    NodeObject { module: Module::Agent, spec: Spec::Symlink(link) }
}

pub(crate) fn binary(sha256: &str) -> NodeObject {
    let path = ours::binary_path(sha256);
    let binary = Binary { path, sha256: sha256.into(), mode: 0o755, owner: "0:0".into() };
    NodeObject { module: Module::Agent, spec: Spec::Binary(binary) }
}

pub(crate) fn observe(node: &mut Node, scope: &[NodeObject]) -> Vec<NodeObject> {
    let mut found = node.observe_objects(&Scope::of(scope, ""), KINDS).unwrap();
    found.sort_by_key(Object::key);
    found
}

pub(crate) fn apply(node: &mut Node, changes: &[Change<NodeObject>]) {
    node.apply_all(changes, &mut |_| {}).unwrap_or_else(|e| panic!("{e}\n{changes:#?}"));
}
