//! Files, symbolic links, the binary, sysctls, records and the lock, under a directory of the test's own.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use common::place::{Place, apply, binary, file, link, observe};
use common::{in_new_netns, run};
use homelab_linux::transaction::write_journal;
use homelab_linux::{Error, Node, Root, digest_of_self, lock};
use homelab_model::{Backend, Change, Key, Module, NodeObject, Object, Spec, Sysctl, diff, invert, ours};

fn sysctl(key: &str, value: &str) -> NodeObject {
    let sysctl = Sysctl { key: key.into(), link: None, value: value.into() };
    NodeObject { module: Module::Vtep, spec: Spec::Sysctl(sysctl) }
}

#[test]
fn everything_comes_and_goes_with_its_directories_and_nothing_else() {
    in_new_netns(|| {
        let place = Place::new();
        fs::create_dir_all(place.path("/opt")).unwrap();
        fs::write(place.path("/opt/theirs"), "x").unwrap();
        let before = place.all();
        let mut node = place.node();
        let own = digest_of_self().unwrap();
        let wanted = [
            binary(&own),
            link(ours::BINARY, &format!("{own}/homelab-node")),
            link("/opt/cni/bin/homelab", ours::BINARY),
            file("/etc/homelab/node.json", "{}\n"),
            file("/etc/cni/net.d/05-homelab.conflist", "ünïcode\n"),
            sysctl("net.ipv4.ip_forward", "1"),
            sysctl("kernel.x", "7"),
        ];
        assert_eq!(observe(&mut node, &wanted), [], "nothing is ours yet, a sysctl neither");
        let plan = diff(&[], &wanted);
        apply(&mut node, &plan);
        assert_eq!(diff(&observe(&mut node, &wanted), &wanted), []);
        let meta = fs::metadata(place.path("/etc/homelab/node.json")).unwrap();
        assert_eq!((meta.permissions().mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 3, 4));
        assert_eq!(fs::metadata(place.path("/opt/cni/bin")).unwrap().mode() & 0o7777, 0o755);
        assert!(!place.all().contains(".homelab-"), "no temporary file stays");
        apply(&mut node, &plan);

        // Another process finds what this one recorded.
        drop(node);
        let mut node = place.node();
        let found = observe(&mut node, &wanted);
        apply(&mut node, &diff(&found, &[]));
        assert_eq!(observe(&mut node, &wanted), []);
        node.reload_if_needed().unwrap();
        assert_eq!(place.all(), before, "byte for byte");
    });
}

#[test]
fn a_directory_that_others_use_stays() {
    in_new_netns(|| {
        let place = Place::new();
        let mut node = place.node();
        let plan = diff(&[], &[file("/etc/cni/net.d/05-homelab.conflist", "x"), file("/etc/homelab/a", "x")]);
        apply(&mut node, &plan);
        fs::write(place.path("/etc/cni/net.d/10-theirs.conf"), "y").unwrap();
        apply(&mut node, &invert(&plan));
        assert!(place.path("/etc/cni/net.d/10-theirs.conf").exists());
        assert!(!place.path("/etc/homelab").exists());
        // It was ours, and goes when it is empty.
        fs::remove_file(place.path("/etc/cni/net.d/10-theirs.conf")).unwrap();
        node.farewell().unwrap();
        assert!(
            !place.path("/etc/cni").exists() && !place.path("/var").exists() && place.path("/etc").exists()
        );
    });
}

#[test]
fn sysctls_are_put_back_to_what_they_were_first() {
    in_new_netns(|| {
        let place = Place::new();
        let value = || fs::read_to_string(place.directory.path().join("proc/sys/kernel/x")).unwrap();
        let mut node = place.node();
        let create = Change::Create { after: sysctl("kernel.x", "8") };
        node.apply(&create).unwrap();
        node.apply(&create).unwrap();
        fs::write(place.directory.path().join("proc/sys/kernel/x"), "99\n").unwrap();
        let wanted = [sysctl("kernel.x", "8")];
        let drift = diff(&observe(&mut node, &wanted), &wanted);
        assert!(matches!(&drift[..], [Change::Update { before, .. }] if *before == sysctl("kernel.x", "99")));
        apply(&mut node, &drift);
        let other_scope: [NodeObject; 0] = [];
        assert_eq!(observe(&mut node, &other_scope), wanted, "found by its record alone");
        node.apply(&create.invert()).unwrap();
        assert_eq!(value().trim(), "7");
        assert_eq!(observe(&mut node, &wanted), []);
        assert!(!place.path(ours::VAR).exists());
        let missing = Change::Create { after: sysctl("kernel.none", "1") };
        assert!(node.apply(&missing).unwrap_err().to_string().contains("no such parameter"));
        node.apply(&missing.invert()).unwrap();
        assert!(!place.path(ours::VAR).exists(), "nothing was recorded");
    });
}

#[test]
fn forwarding_is_put_back_on_every_link() {
    // What is set before homelab comes, and what somebody sets while it is there: that stays.
    const CASES: [(&str, &str); 4] = [
        ("ip_forward=0 conf.b0.forwarding=1 conf.all.accept_redirects=0", ""),
        ("ip_forward=0 conf.all.accept_redirects=1", ""),
        ("ip_forward=0 conf.b0.forwarding=1", "conf.b0.forwarding=0"),
        ("ip_forward=1 conf.b1.forwarding=0", "conf.b0.forwarding=0"),
    ];
    for (first, meanwhile) in CASES {
        in_new_netns(|| {
            let pairs =
                |settings: &'static str| settings.split_whitespace().filter_map(|s| s.split_once('='));
            let path = |key: &str| format!("ipv4/{}", key.replace('.', "/"));
            let write = |settings| {
                for (key, value) in pairs(settings) {
                    fs::write(format!("/proc/sys/net/{}", path(key)), value).unwrap();
                }
            };
            let all = || -> BTreeMap<String, String> {
                let text = run(
                    "cd /proc/sys/net && grep -r . ipv4/ip_forward ipv4/conf ipv6/conf 2>/dev/null || true",
                );
                let lines = text.lines().filter_map(|line| line.split_once(':'));
                lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
            };
            run("ip link add b0 type bridge && ip link add b1 type bridge");
            write(first);
            run("echo 1 > /proc/sys/net/ipv6/conf/b1/forwarding");
            let mut expected = all();
            assert!(expected.len() > 100);
            expected.extend(pairs(meanwhile).map(|(key, value)| (path(key), value.to_owned())));
            let place = Place::new();
            let mut node = Node::open(Root::at(place.directory.path().join("root"))).unwrap();
            let wanted = [sysctl("net.ipv4.ip_forward", "1"), sysctl("net.ipv6.conf.all.forwarding", "1")];
            let plan = diff(&[], &wanted);
            apply(&mut node, &plan);
            assert_eq!(diff(&observe(&mut node, &wanted), &wanted), []);
            // Links that come and go meanwhile do not matter.
            run("ip link add later type bridge && ip link del later");
            write(meanwhile);
            apply(&mut node, &invert(&plan));
            assert_eq!(all(), expected, "{first}, then {meanwhile}");
        });
    }
}

#[test]
fn other_things_in_our_places_are_shown_replaced_and_brought_back() {
    in_new_netns(|| {
        let place = Place::new();
        let wanted = [
            file("/etc/a/link", "new"),
            file("/etc/a/binary", "new"),
            file("/etc/a/large", "new"),
            link("/etc/a/file", "/new"),
            link("/etc/a/stale", "/new"),
        ];
        fs::create_dir_all(place.path("/etc/a")).unwrap();
        symlink("/somewhere", place.path("/etc/a/link")).unwrap();
        symlink("/somewhere", place.path("/etc/a/stale")).unwrap();
        fs::write(place.path("/etc/a/binary"), [0xff, 0, 1]).unwrap();
        fs::write(place.path("/etc/a/large"), "x".repeat(300 << 10)).unwrap();
        fs::write(place.path("/etc/a/file"), "precious").unwrap();
        let before = place.all();
        let mut node = place.node();
        let found = observe(&mut node, &wanted);
        let shown = format!("{found:?}");
        for word in
            ["symbolic link to /somewhere", "binary file, sha256", "large file, sha256", "(regular file)"]
        {
            assert!(shown.contains(word), "{word} is not in {shown}");
        }
        let plan = diff(&found, &wanted);
        assert_eq!(plan.len(), 5);
        node.keep_asides(&plan).unwrap();
        apply(&mut node, &plan);
        assert_eq!(diff(&observe(&mut node, &wanted), &wanted), []);
        apply(&mut node, &invert(&plan));
        node.drop_asides().unwrap();
        assert_eq!(place.all(), before);
        // Outside a transaction nothing is kept.
        apply(&mut node, &plan);
        drop(node);
        let now = place.all();
        assert!(!now.contains("homelab-"), "{now}");
    });
}

#[test]
fn a_directory_in_our_place_is_an_error_and_stays() {
    in_new_netns(|| {
        let place = Place::new();
        fs::create_dir_all(place.path("/etc/a/inner")).unwrap();
        let mut node = place.node();
        for object in [file("/etc/a", "x"), link("/etc/a", "/x")] {
            let found = observe(&mut node, std::slice::from_ref(&object));
            assert!(format!("{found:?}").contains("directory"), "{found:?}");
            let changes = diff(&found, std::slice::from_ref(&object));
            let error = node.apply_all(&changes, &mut |_| {}).unwrap_err();
            assert!(matches!(*error.source, Error::Foreign(_)), "{error}");
            assert!(place.path("/etc/a/inner").is_dir());
        }
        // Something above us that is no directory.
        fs::write(place.path("/etc/b"), "").unwrap();
        assert_eq!(observe(&mut node, &[file("/etc/b/c", "x")]), []);
        assert!(node.apply(&Change::Create { after: file("/etc/b/c", "x") }).is_err());
    });
}

#[test]
fn an_old_binary_comes_back_although_another_runs() {
    in_new_netns(|| {
        let place = Place::new();
        let old = "ab".repeat(32);
        let path = place.path(&ours::binary_path(&old));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "an old binary").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let own = digest_of_self().unwrap();
        let mut node = place.node();
        let found = observe(&mut node, &[]);
        // Its content is not what its directory says: that is drift, and it goes all the same.
        assert!(matches!(&found[..], [o] if o.key() == Key::Binary(ours::binary_path(&old))));
        let wanted = [binary(&own)];
        let plan = diff(&found, &wanted);
        write_journal(&place.root(), b"{}").unwrap();
        node.keep_asides(&plan).unwrap();
        apply(&mut node, &plan);
        assert_eq!(diff(&observe(&mut node, &wanted), &wanted), [], "what is kept is not seen");
        apply(&mut node, &invert(&plan));
        assert_eq!(fs::read_to_string(&path).unwrap(), "an old binary");
        assert_eq!(observe(&mut node, &[]), found);
    });
}

#[test]
fn a_damaged_binary_is_seen_and_replaced_while_it_runs() {
    in_new_netns(|| {
        let place = Place::new();
        let own = digest_of_self().unwrap();
        let wanted = [binary(&own)];
        let mut node = place.node();
        apply(&mut node, &diff(&[], &wanted));
        let path = place.path(&ours::binary_path(&own));
        // A running file cannot be written to: only a rename replaces it.
        fs::write(&path, "#!/bin/sh\nsleep 5\n").unwrap();
        let drift = diff(&observe(&mut node, &wanted), &wanted);
        assert!(matches!(&drift[..], [Change::Update { .. }]), "{drift:?}");
        apply(&mut node, &drift);
        assert_eq!(diff(&observe(&mut node, &wanted), &wanted), []);
        let other = Change::Create { after: binary(&"0".repeat(64)) };
        let error = node.apply(&other).unwrap_err().to_string();
        assert!(error.contains("the running binary is"), "{error}");
        node.apply(&other.invert()).unwrap();
    });
}

#[test]
fn a_reader_finds_the_old_or_the_new_text_and_nothing_between() {
    in_new_netns(|| {
        let place = Place::new();
        let mut node = place.node();
        let texts = ["a".repeat(100_000), "b".repeat(200_000)];
        let state = |i: usize| file("/etc/homelab/text", &texts[i]);
        apply(&mut node, &[Change::Create { after: state(0) }]);
        let path = place.path("/etc/homelab/text");
        let end = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0;
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    let text = fs::read_to_string(&path).expect("it is always there");
                    assert!(texts.contains(&text), "{} bytes", text.len());
                    reads += 1;
                }
                reads
            });
            for round in 0..60 {
                apply(
                    &mut node,
                    &[Change::Update { before: state(round % 2), after: state((round + 1) % 2) }],
                );
            }
            end.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(reader.join().expect("the reader") > 0);
        });
    });
}

#[test]
fn only_one_holds_the_lock() {
    let place = Place::new();
    let root = place.root();
    let held = lock(&root, Duration::ZERO).unwrap();
    let waited = std::time::Instant::now();
    let error = lock(&root, Duration::from_millis(120)).unwrap_err();
    assert!(matches!(error, Error::Locked(_)) && waited.elapsed() >= Duration::from_millis(120));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| lock(&root, Duration::from_secs(20)).is_ok());
        std::thread::sleep(Duration::from_millis(60));
        // Even if the file itself goes meanwhile.
        fs::remove_dir_all(place.path(ours::RUN)).unwrap();
        drop(held);
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn a_damaged_record_is_an_error_that_names_it() {
    let place = Place::new();
    fs::create_dir_all(place.path(ours::VAR)).unwrap();
    fs::write(place.path("/var/lib/homelab/originals.json"), "{").unwrap();
    let error = Node::open(place.root()).unwrap_err().to_string();
    assert!(error.contains("originals.json cannot be understood"), "{error}");
}
