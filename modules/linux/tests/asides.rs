//! What a transaction replaces or removes comes back as it was: inode, times, mode and owner, on a full disk too.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use common::place::{Place, apply, binary, file, link, observe};
use common::{in_new_netns, run};
use homelab_linux::transaction::{
    Shelf, free_reserve, is_open, read_journal, remove_transaction, reserve, write_journal, write_record,
};
use homelab_linux::{Error, Node, digest_of_self, read_secret};
use homelab_model::{Backend, Change, Content, File, KeyRing, Module, NodeObject, Spec, diff, ours};

fn keys(ring: &KeyRing) -> NodeObject {
    let content = Content::Secret(ring.summary());
    let file = File { path: ours::KEYS.into(), mode: 0o600, owner: "0:0".into(), content };
    NodeObject { module: Module::Agent, spec: Spec::File(file) }
}

fn secrets(ring: &KeyRing) -> BTreeMap<String, String> {
    BTreeMap::from([(ring.summary(), ring.to_text())])
}

fn old_ring() -> KeyRing {
    KeyRing::first([0x5a; 32])
}

fn new_ring() -> KeyRing {
    old_ring().adding([0xc3; 32])
}

const OLD: &str = "abababababababababababababababababababababababababababababababab";

/// A place where something of every kind is, and where it will be something else.
fn before(place: &Place) -> Vec<NodeObject> {
    for directory in ["/etc/homelab", "/etc/a", &format!("{}/{OLD}", ours::LIB)] {
        fs::create_dir_all(place.path(directory)).unwrap();
    }
    let old = place.path(&ours::binary_path(OLD));
    fs::write(&old, "an old binary").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    symlink(format!("{OLD}/homelab-node"), place.path(ours::BINARY)).unwrap();
    fs::write(place.path(ours::KEYS), old_ring().to_text()).unwrap();
    fs::set_permissions(place.path(ours::KEYS), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(place.path("/etc/a/text"), "old text\n").unwrap();
    fs::set_permissions(place.path("/etc/a/text"), fs::Permissions::from_mode(0o4751)).unwrap();
    chown(place.path("/etc/a/text"), Some(7), Some(8)).unwrap();
    fs::write(place.path("/etc/a/gone"), "goes\n").unwrap();
    fs::write(place.path("/etc/a/bytes"), [0xff, 0, 1]).unwrap();
    symlink("/somewhere", place.path("/etc/a/link")).unwrap();
    run(&format!("mkfifo {}", place.path("/etc/a/pipe").display()));
    // Of long ago, so that a copy would show.
    run(&format!("find {} -exec touch -h -d '2001-02-03 04:05:06.789' {{}} +", place.path("/").display()));
    let paths = ["/etc/a/text", "/etc/a/gone", "/etc/a/bytes", "/etc/a/pipe"];
    let mut scope: Vec<NodeObject> = paths.iter().map(|path| file(path, "")).collect();
    scope.extend([link("/etc/a/link", ""), link(ours::BINARY, ""), keys(&old_ring())]);
    let found = observe(&mut place.node(), &scope);
    assert_eq!(found.len(), 8, "{found:#?}");
    found
}

fn after() -> Vec<NodeObject> {
    let own = digest_of_self().unwrap();
    vec![
        binary(&own),
        link(ours::BINARY, &format!("{own}/homelab-node")),
        keys(&new_ring()),
        file("/etc/a/text", "new text\n"),
        file("/etc/a/bytes", "words\n"),
        file("/etc/a/pipe", "no pipe\n"),
        file("/etc/new/directory/file", "new\n"),
        link("/etc/a/link", "/elsewhere"),
        link("/etc/new/link", "/elsewhere"),
    ]
}

/// A place's inodes: every file with what identifies it.
fn inodes(place: &Place) -> String {
    let root = place.path("/");
    run(&format!(
        "cd {} && find . ! -type d -printf '%i %n %y %m %U:%G %T@ %p %l\\n' | sort -k7",
        root.display()
    ))
}

fn begin(node: &mut Node, place: &Place, plan: &[Change<NodeObject>]) {
    write_journal(&place.root(), b"{}").unwrap();
    reserve(&place.root()).unwrap();
    node.keep_asides(plan).unwrap();
    node.set_secrets(secrets(&new_ring()));
}

/// What a process does that knows the journal and nothing else.
fn roll_back(place: &Place, plan: &[Change<NodeObject>], before: &[NodeObject]) {
    let mut node = place.node();
    node.adopt_asides(plan);
    free_reserve(&place.root()).unwrap();
    let scope = [before, &after()].concat();
    let now = observe(&mut node, &scope);
    apply(&mut node, &diff(&now, before));
    assert_eq!(diff(&observe(&mut node, &scope), before), []);
    node.drop_asides().unwrap();
    remove_transaction(&place.root()).unwrap();
}

#[test]
fn everything_comes_back_with_its_inode_from_every_moment() {
    in_new_netns(|| {
        let steps = diff(&before(&Place::new()), &after()).len();
        for done in 0..=steps {
            let place = Place::new();
            let before = before(&place);
            let (all, inodes_before) = (place.all(), inodes(&place));
            let plan = diff(&before, &after());
            let mut node = place.node();
            begin(&mut node, &place, &plan);
            apply(&mut node, &plan[..done]);
            if done == steps {
                let now = observe(&mut node, &after());
                assert_eq!(diff(&now, &after()), [], "nothing that is kept is seen");
                assert_eq!(observe(&mut place.node(), &after()), now, "by nobody");
            }
            // The process is killed.
            std::mem::forget(node);
            roll_back(&place, &plan, &before);
            assert_eq!(place.all(), all, "after {done} changes");
            assert_eq!(inodes(&place), inodes_before, "after {done} changes");
        }
    });
}

#[test]
fn a_rollback_may_be_killed_and_made_again() {
    in_new_netns(|| {
        let steps = diff(&after(), &before(&Place::new())).len();
        for done in 0..=steps {
            let place = Place::new();
            let before = before(&place);
            let inodes_before = inodes(&place);
            let plan = diff(&before, &after());
            let mut node = place.node();
            begin(&mut node, &place, &plan);
            apply(&mut node, &plan);
            let mut first = place.node();
            first.adopt_asides(&plan);
            let undo = diff(&observe(&mut first, &[&before[..], &after()].concat()), &before);
            apply(&mut first, &undo[..done.min(undo.len())]);
            std::mem::forget((node, first));
            roll_back(&place, &plan, &before);
            assert_eq!(inodes(&place), inodes_before, "after {done} changes");
        }
    });
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    let mut size = 1 << 16;
    loop {
        match file.write_all(&vec![7; size]) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::StorageFull && size > 1 => size /= 2,
            Err(e) if e.kind() == std::io::ErrorKind::StorageFull => return,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_full_disk_does_not_keep_anything_from_coming_back() {
    in_new_netns(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        run("mount --make-rprivate /");
        let size = fs::metadata("/proc/self/exe").unwrap().len() + (2 << 20);
        for confirmed in [false, true] {
            let place = Place::new();
            let directory = place.path("/");
            run(&format!("mount -t tmpfs -o size={size} none {}", directory.display()));
            let before = before(&place);
            let (all, inodes_before) = (place.all(), inodes(&place));
            let plan = diff(&before, &after());
            let mut node = place.node();
            begin(&mut node, &place, &plan);
            apply(&mut node, &plan);
            fill(&place.path("/full"));
            let error = fs::write(place.path("/more"), "more").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
            fs::remove_file(place.path("/more")).unwrap();
            assert!(matches!(write_journal(&place.root(), &[b'x'; 9000]), Err(Error::Io { .. })));
            assert_eq!(read_journal(&place.root()).unwrap().unwrap(), b"{}", "the old one stays whole");
            if confirmed {
                free_reserve(&place.root()).unwrap();
                write_record(&place.root(), Shelf::Disk, "confirmed.json", &[b'x'; 9000]).unwrap();
                node.retire_asides("aa").unwrap();
                remove_transaction(&place.root()).unwrap();
                assert_eq!(diff(&observe(&mut node, &after()), &after()), []);
            } else {
                std::mem::forget(node);
                roll_back(&place, &plan, &before);
                fs::remove_file(place.path("/full")).unwrap();
                assert_eq!(place.all(), all);
                assert_eq!(inodes(&place), inodes_before);
            }
            run(&format!("umount {}", directory.display()));
        }
    });
}

#[test]
fn what_has_no_words_is_kept_until_the_next_confirmation() {
    in_new_netns(|| {
        let place = Place::new();
        let before = before(&place);
        let before_all = place.all();
        let plan = diff(&before, &after());
        let scope = [&before[..], &after()].concat();
        let mut node = place.node();
        begin(&mut node, &place, &plan);
        apply(&mut node, &plan);
        node.retire_asides("aa").unwrap();
        // The process was killed before the journal went, and the next one does it again.
        node.adopt_asides(&plan);
        node.retire_asides("aa").unwrap();
        remove_transaction(&place.root()).unwrap();
        let kept =
            run(&format!("find {} -name '*.homelab-*' -printf '%f\\n' | sort", place.path("/").display()));
        assert_eq!(
            kept.split_whitespace().collect::<Vec<_>>(),
            [
                ".bytes.homelab-previous",
                ".homelab-node.homelab-previous",
                ".membership.keys.homelab-previous",
                ".pipe.homelab-previous"
            ]
        );
        let confirmed = observe(&mut place.node(), &scope);
        assert_eq!(diff(&confirmed, &after()), [], "no plan shows it");

        // `homelab rollback` is a transaction of its own, and can be taken back like any other.
        let back = diff(&confirmed, &before);
        for killed in [true, false] {
            let mut node = place.node();
            write_journal(&place.root(), b"{}").unwrap();
            node.keep_asides(&back).unwrap();
            apply(&mut node, &back);
            assert_eq!(diff(&observe(&mut node, &scope), &before), []);
            if killed {
                let mut node = place.node();
                node.adopt_asides(&back);
                let now = observe(&mut node, &scope);
                apply(&mut node, &diff(&now, &after()));
                node.drop_asides().unwrap();
                assert_eq!(diff(&observe(&mut node, &scope), &after()), []);
            } else {
                node.retire_asides("bb").unwrap();
            }
            remove_transaction(&place.root()).unwrap();
        }
        assert_eq!(diff(&observe(&mut place.node(), &scope), &before), []);

        // The next confirmed transaction keeps nothing of it: here it has nothing to keep.
        let mut node = place.node();
        let text = [Change::Create { after: file("/etc/a/later", "x") }];
        write_journal(&place.root(), b"{}").unwrap();
        node.keep_asides(&text).unwrap();
        apply(&mut node, &text);
        node.retire_asides("cc").unwrap();
        remove_transaction(&place.root()).unwrap();
        node.apply(&text[0].invert()).unwrap();
        let now = place.all();
        assert!(!now.contains(".homelab-"), "{now}");
        // But for the times and inodes of directories all is as it was.
        assert_eq!(now, before_all);
    });
}

#[test]
fn destroy_leaves_nothing_whatever_was_kept() {
    in_new_netns(|| {
        let place = Place::new();
        let fresh = place.all();
        let scope = after();
        let mut node = place.node();
        let first = diff(&[], &after());
        begin(&mut node, &place, &first);
        apply(&mut node, &first);
        node.retire_asides("aa").unwrap();
        remove_transaction(&place.root()).unwrap();
        // Another key comes, so that something is kept.
        let other = new_ring().switched();
        let second = [Change::Update { before: keys(&new_ring()), after: keys(&other) }];
        write_journal(&place.root(), b"{}").unwrap();
        node.keep_asides(&second).unwrap();
        node.set_secrets(secrets(&other));
        apply(&mut node, &second);
        node.retire_asides("bb").unwrap();
        remove_transaction(&place.root()).unwrap();
        write_record(&place.root(), Shelf::Disk, "confirmed.json", b"{}").unwrap();
        assert!(place.all().contains("homelab-previous"));

        let now = observe(&mut node, &scope);
        let last = diff(&now, &[]);
        write_journal(&place.root(), b"{}").unwrap();
        node.keep_asides(&last).unwrap();
        apply(&mut node, &last);
        assert!(is_open(&place.root()));
        node.farewell().unwrap();
        assert_eq!(place.all(), fresh);
    });
}

#[test]
fn strays_of_dead_processes_are_seen_and_go() {
    in_new_netns(|| {
        for (name, in_transaction) in [("aside", false), ("aside", true), ("undo", false), ("undo", true)] {
            let place = Place::new();
            let directory = place.path(&format!("{}/{OLD}", ours::LIB));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(format!(".homelab-node.homelab-{name}")), "an old binary").unwrap();
            let mut node = place.node();
            let found = observe(&mut node, &[]);
            assert!(format!("{found:?}").contains("(left behind)"), "{name}: {found:?}");
            let plan = diff(&found, &[]);
            if in_transaction {
                write_journal(&place.root(), b"{}").unwrap();
                node.keep_asides(&plan).unwrap();
                assert_eq!(observe(&mut node, &[]), found, "{name}: nothing has changed yet");
            }
            apply(&mut node, &plan);
            assert_eq!(observe(&mut node, &[]), []);
            if in_transaction {
                let mut other = place.node();
                other.adopt_asides(&plan);
                apply(&mut other, &diff(&[], &found));
                assert_eq!(observe(&mut other, &[]), found, "{name}: it can be taken back");
                apply(&mut other, &plan);
                other.retire_asides("aa").unwrap();
                remove_transaction(&place.root()).unwrap();
                other.drop_previous().unwrap();
            }
            assert!(!directory.exists(), "{name} {in_transaction}");
        }
    });
}

#[test]
fn a_repair_leaves_alone_what_a_transaction_keeps() {
    in_new_netns(|| {
        let place = Place::new();
        let before = before(&place);
        let inodes_before = inodes(&place);
        let plan = diff(&before, &after());
        let mut node = place.node();
        begin(&mut node, &place, &plan);
        apply(&mut node, &plan);
        // Somebody puts something in the place of the new files, and the agent repairs that.
        for path in ["/etc/a/text", "/etc/a/pipe"] {
            fs::write(place.path(path), [0xff, 0xfe]).unwrap();
        }
        let mut agent = place.node();
        let drift = diff(&observe(&mut agent, &after()), &after());
        assert_eq!(drift.len(), 2);
        drift.iter().for_each(|change| agent.apply(change).unwrap());
        drop(agent);
        std::mem::forget(node);
        roll_back(&place, &plan, &before);
        assert_eq!(inodes(&place), inodes_before);
    });
}

#[test]
fn what_cannot_be_kept_is_an_error_before_anything_changes() {
    in_new_netns(|| {
        let place = Place::new();
        fs::create_dir_all(place.path("/etc/a/inner")).unwrap();
        let mut node = place.node();
        let plan = diff(&observe(&mut node, &[file("/etc/a", "x")]), &[file("/etc/a", "x")]);
        assert!(matches!(node.keep_asides(&plan), Err(Error::Foreign(_))));
        node.drop_asides().unwrap();
        assert!(place.path("/etc/a/inner").is_dir());
    });
}

#[test]
fn leftovers_of_a_killed_writer_go_with_the_transaction() {
    in_new_netns(|| {
        let place = Place::new();
        let fresh = place.all();
        let plan = [Change::Create { after: file("/etc/deep/down/text", "x") }];
        let mut node = place.node();
        begin(&mut node, &place, &plan);
        apply(&mut node, &plan);
        let path = place.path("/etc/deep/down/text");
        // Killed before the rename: only the temporary file is there.
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        fs::rename(&path, path.with_file_name(format!(".text.homelab-{}-0", ended.id()))).unwrap();
        let alive = path.with_file_name(format!(".text.homelab-{}-0", std::process::id()));
        fs::write(&alive, "of a process that lives").unwrap();
        let process = place.proc(&std::process::id().to_string());
        fs::create_dir(&process).unwrap();
        let mut other = place.node();
        other.adopt_asides(&plan);
        other.drop_asides().unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "that of the living stays");
        fs::remove_dir(process).unwrap();
        other.adopt_asides(&plan);
        other.drop_asides().unwrap();
        remove_transaction(&place.root()).unwrap();
        assert_eq!(place.all(), fresh);
    });
}

#[test]
fn a_secret_is_written_and_read_and_never_shown() {
    in_new_netns(|| {
        let place = Place::new();
        let ring = new_ring();
        let mut node = place.node();
        let create = Change::Create { after: keys(&ring) };
        let shown = |node: &Node, text: &str| {
            let all = format!("{node:?} {text}");
            assert!(!all.contains("5a5a5a") && !all.contains("c3c3c3"), "{all}");
        };
        let error = node.apply(&create).unwrap_err().to_string();
        assert!(error.contains("was not kept"), "{error}");
        // Another text than the object says, and one that is none.
        for text in [old_ring().to_text(), ring.to_text().replace("homelab-keys", "homelab-kaes")] {
            node.set_secrets(BTreeMap::from([(ring.summary(), text)]));
            let error = node.apply(&create).unwrap_err();
            shown(&node, &format!("{error} {error:?}"));
            assert!(!place.path(ours::KEYS).exists());
        }
        node.set_secrets(secrets(&ring));
        let mut open = keys(&ring);
        if let Spec::File(file) = &mut open.spec {
            file.mode = 0o640;
        }
        assert!(node.apply(&Change::Create { after: open }).is_err(), "others could read it");
        node.apply(&create).unwrap();
        let meta = fs::metadata(place.path(ours::KEYS)).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, 0));
        assert_eq!(fs::read_to_string(place.path(ours::KEYS)).unwrap(), ring.to_text());
        let found = observe(&mut node, &[keys(&ring)]);
        assert_eq!(found, [keys(&ring)]);
        shown(&node, &format!("{found:?} {}", serde_json::to_string(&found).unwrap()));
        assert_eq!(read_secret(&place.root(), ours::KEYS).unwrap(), Some((ring.summary(), ring.to_text())));
        assert!(read_secret(&place.root(), "/etc/shadow").is_err());

        fs::write(place.path(ours::KEYS), ring.to_text().replace("generation", "generations")).unwrap();
        let found = observe(&mut node, &[keys(&ring)]);
        assert!(format!("{found:?}").contains("damaged keys, sha256"), "{found:?}");
        shown(&node, &format!("{found:?}"));
        let error = read_secret(&place.root(), ours::KEYS).unwrap_err();
        shown(&node, &format!("{error} {error:?}"));
        fs::remove_file(place.path(ours::KEYS)).unwrap();
        assert_eq!(read_secret(&place.root(), ours::KEYS).unwrap(), None);
    });
}
