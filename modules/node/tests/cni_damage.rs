//! What is on the disk is damaged, or of an earlier boot: no command panics or waits for ever, DEL and GC leave nothing, and
//! what is refused is refused in words that name the file.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;
mod stage;

use std::fs;
use std::path::{Path, PathBuf};

use pods::{Node, Pod, on_a_node, run};
use serde_json::{Value, json};
use stage::{NODE, Stage, assert_clean, elements, load, on_a_stage, web};

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot").trim().to_owned()
}

/// The one file in a directory.
fn only(directory: &Path) -> PathBuf {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).expect("directory").map(|entry| entry.expect("entry").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

/// Does it to the file at a path.
type Damage = fn(&Path);

/// What may be in the place of a file of ours.
fn damages() -> Vec<(&'static str, Damage)> {
    vec![
        ("empty", |path| fs::write(path, "").expect("write")),
        ("truncated", |path| {
            let text = fs::read(path).unwrap_or_else(|_| b"{\"owner\"".to_vec());
            fs::write(path, &text[..text.len() / 2]).expect("write");
        }),
        ("garbage", |path| fs::write(path, [0, 255, b'{', 10, 128]).expect("write")),
        ("directory", |path| {
            fs::remove_file(path).expect("remove");
            fs::create_dir_all(path.join("inside")).expect("directory");
        }),
        ("pipe", |path| {
            fs::remove_file(path).expect("remove");
            run(&format!("mkfifo {}", path.display()));
        }),
        ("owner", |path| run(&format!("chown 65534:65534 {0} && chmod 0 {0}", path.display())).clear()),
    ]
}

/// A note of ports in any state: CHECK says that it is damaged, DEL takes the elements that nobody can read any more from
/// the kernel, and another pod's stay.
#[test]
fn damaged_notes_of_ports() {
    on_a_stage(|stage| {
        let neighbour = Pod::new("neighbour");
        stage.add(&neighbour, &web(9090, json!({})));
        let theirs = only(&notes(stage));
        let before = elements();
        for (name, damage) in damages() {
            let pod = Pod::new(name);
            let mut conf = stage.conf(&web(8080, json!({})));
            conf["prevResult"] = stage.try_add(&pod, &web(8080, json!({}))).ok();
            damage(&other(&notes(stage), &theirs));
            let check = stage.node.call("CHECK", &pod, &conf);
            if name != "owner" {
                assert!(
                    check.text.contains("damaged") && check.text.contains(".hostports/"),
                    "{}",
                    check.text
                );
                assert_eq!(check.code(), 104, "{name}");
            }
            // Nobody else gets the port while the pod is there.
            let late = Pod::new("late");
            let refused = stage.try_add(&late, &web(8080, json!({})));
            assert!(refused.text.contains(&format!("home/{name}")), "{}", refused.text);
            assert_eq!(refused.code(), 110, "{name}");
            stage.del(&pod);
            stage.del(&pod);
            assert_eq!((elements(), only(&notes(stage))), (before, theirs.clone()), "{name}");
            // The port is free.
            stage.add(&late, &web(8080, json!({})));
            stage.del(&late);
        }
        stage.del(&neighbour);
        assert_clean(stage);
    });
}

fn notes(stage: &Stage<'_>) -> PathBuf {
    stage.node.data.path().join(".hostports").join(boot())
}

/// The file beside another.
fn other(directory: &Path, beside: &Path) -> PathBuf {
    let mut files = fs::read_dir(directory).expect("directory").map(|entry| entry.expect("entry").path());
    files.find(|path| path != beside).expect("a file")
}

/// A note that says what another pod's says: DEL takes away no port that is another's.
#[test]
fn a_copied_note_of_ports() {
    on_a_stage(|stage| {
        let (copied, victim) = (Pod::new("copied"), Pod::new("victim"));
        stage.add(&victim, &web(9090, json!({})));
        let original = only(&notes(stage));
        stage.add(&copied, &web(8080, json!({})));
        fs::copy(&original, other(&notes(stage), &original)).expect("copy");
        let before = elements();
        stage.del(&copied);
        assert_eq!(elements(), before - 4, "its own are gone, and the victim's are there");
        let mut conf = stage.conf(&json!([]));
        conf["cni.dev/valid-attachments"] = json!([]);
        stage.node.call("GC", &victim, &conf).ok();
        assert_clean(stage);
    });
}

/// Notes that belong to no pod, of this boot and of another: the next ADD that wants their ports gets them, and GC or a
/// full range, which sweep, are not stopped by any.
#[test]
fn notes_without_pods() {
    on_a_stage(|stage| {
        let pod = Pod::new("p");
        stage.add(&pod, &web(8080, json!({})));
        let note = fs::read_to_string(only(&notes(stage))).expect("note");
        stage.del(&pod);
        let old = stage.node.data.path().join(".hostports/0123");
        for directory in [&old, &notes(stage)] {
            fs::create_dir_all(directory).expect("directory");
            for (number, (_, damage)) in damages().into_iter().enumerate() {
                let path = directory.join(format!("hl{number:013}"));
                fs::write(&path, &note).expect("write");
                damage(&path);
            }
        }
        let mut conf = stage.conf(&web(8080, json!({})));
        conf["ranges"] = json!(["10.244.0.0/30"]);
        for round in 0..3 {
            // The range has room for one: the pod before it vanished, and a sweep goes over everything.
            let pod = Pod::new(&format!("r{round}"));
            stage.node.call("ADD", &pod, &conf).ok();
            run(&format!(
                "ip link del {}",
                stage.node.ports().iter().find(|p| p.starts_with("hl")).expect("port")
            ));
        }
        conf["runtimeConfig"] = Value::Null;
        conf["cni.dev/valid-attachments"] = json!([]);
        stage.node.call("GC", &pod, &conf).ok();
        assert_eq!(elements(), 0, "{}", run("nft list table inet homelab-hostport"));
        assert!(tcp_refused(stage));
    });
}

fn tcp_refused(stage: &Stage<'_>) -> bool {
    pods::talk::tcp(Some(&stage.client), &format!("{NODE}:8080"), false).is_none()
}

/// An entry of the addresses in any state: its name says everything, so that CHECK, the next ADD and DEL go by that.
#[test]
fn damaged_entries_of_addresses() {
    on_a_node(|node| {
        for (name, damage) in damages() {
            let pod = Pod::new("c1");
            let mut conf = node.conf("1.1.0");
            conf["prevResult"] = node.add(&pod);
            let entry = entry(node);
            fs::remove_file(&entry).expect("the link");
            fs::write(&entry, "").expect("write");
            damage(&entry);
            node.call("CHECK", &pod, &conf).ok();
            // The address is taken, whatever the entry is.
            let late = Pod::new("c2");
            let mut asks = node.conf("1.1.0");
            asks["runtimeConfig"] = json!({ "ips": [pods::addresses(&conf["prevResult"])[0]] });
            let refused = node.call("ADD", &late, &asks);
            assert!(refused.text.contains("belongs to link hl"), "{}", refused.text);
            assert_eq!(refused.code(), 105, "{name}");
            node.del(&pod);
            node.assert_clean();
            assert!(!entry.exists(), "{name}");
        }
    });
}

fn entry(node: &Node) -> PathBuf {
    only(&node.data.path().join("home").join(boot()))
}

/// Files of nobody in the store harm nothing, and what must be a directory and is none is named.
#[test]
fn strangers_in_the_store() {
    on_a_node(|node| {
        let pod = Pod::new("c1");
        let mut conf = node.conf("1.1.0");
        conf["prevResult"] = node.add(&pod);
        let (network, boot) = (node.data.path().join("home"), boot());
        let entries = network.join(&boot);
        for name in
            ["x", "hl1", "hl1,", "hl1,10.244.1.900", ",10.244.1.9", "hl1,10.244.1.9,", "a\nb,10.244.1.9x"]
        {
            fs::write(entries.join(name), "").expect("write");
        }
        fs::write(entries.join(std::ffi::OsStr::new("\u{fffd}")), "").expect("write");
        fs::create_dir(network.join("earlier boot")).expect("directory");
        fs::write(network.join("last_reserved_ip.0"), "10.244.1.9").expect("write");
        // The last offset is nonsense, or of a larger range.
        for last in ["", "x", "-1", "4294967295\n", "99999999999999999999", "\0\0\0\0"] {
            fs::write(network.join("lock"), last).expect("write");
            let late = Pod::new("c2");
            node.call("ADD", &late, &node.conf("1.1.0")).ok();
            node.call("CHECK", &pod, &conf).ok();
            node.del(&late);
        }
        let mut gc = node.conf("1.1.0");
        gc["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }]);
        node.call("GC", &pod, &gc).ok();
        assert!(pod.can("ping -c1 -W5 10.244.1.1"));
        // A file in the place of the directory, of the boot and of the network: the pod goes, and its file is named.
        for place in [&entries, &network] {
            fs::remove_dir_all(place).expect("remove");
            fs::write(place, "").expect("write");
            let pod = Pod::new("c3");
            for command in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
                let mut conf = conf.clone();
                conf["cni.dev/valid-attachments"] = json!([]);
                let answer = node.call(command, &pod, &conf);
                let text = answer.text.clone();
                assert_eq!(answer.code(), 5, "{command}: {text}");
                assert!(
                    text.contains(&entries.display().to_string()) || text.contains("home/lock"),
                    "{command}: {text}"
                );
                assert!(text.contains("Not a directory"), "{command}: {text}");
            }
            fs::remove_file(place).expect("remove");
            fs::create_dir_all(&network).expect("directory");
        }
        // What is left of the first pod goes without an entry.
        node.del(&pod);
        node.assert_clean();
    });
}

/// `names` is a wish: a file in its place, or anything in it, keeps no pod from its address.
#[test]
fn damaged_memory_of_names() {
    on_a_node(|node| {
        let mut conf = node.conf("1.1.0");
        conf["sticky"] = json!(true);
        let names = node.data.path().join("home/names");
        fs::create_dir_all(names.parent().expect("parent")).expect("directory");
        fs::write(&names, "").expect("write");
        let pod = Pod::new("c1");
        node.call("ADD", &pod, &conf).ok();
        node.call("DEL", &pod, &conf).ok();
        fs::remove_file(&names).expect("remove");
        fs::create_dir_all(names.join("0123456789abcdef0123456789abcdef,10.244.1.3,fd00:10:1::3"))
            .expect("directory");
        fs::write(names.join("x"), "").expect("write");
        let given = pods::addresses(&node.call("ADD", &pod, &conf).ok());
        assert_ne!(given[0], "10.244.1.3", "it is remembered for another");
        node.call("DEL", &pod, &conf).ok();
        assert_eq!(node.ports(), Vec::<String>::new());
    });
}

/// Entries and notes of an earlier boot, damaged or not, whose links a stranger could have: DEL, CHECK and GC of the new boot
/// go by the new boot's alone.
#[test]
fn an_earlier_boot_with_damage() {
    on_a_stage(|stage| {
        let old = Pod::new("old");
        let mut conf = stage.conf(&web(8080, json!({})));
        conf["prevResult"] = stage.try_add(&old, &web(8080, json!({}))).ok();
        run("nft flush ruleset");
        for port in stage.node.ports().iter().filter(|port| port.starts_with("hl")) {
            run(&format!("ip link del {port}"));
        }
        load();
        let data = stage.node.data.path();
        // What the disk had when the power went.
        fs::rename(data.join("home").join(boot()), data.join("home/0000-old")).expect("rename");
        fs::rename(notes(stage), data.join(".hostports/0000-old")).expect("rename");
        fs::write(only(&data.join(".hostports/0000-old")), "{\"owner\":").expect("write");
        assert_eq!(stage.node.call("CHECK", &old, &conf).code(), 3, "nothing is known of it");
        let mut gc = stage.conf(&json!([]));
        gc["cni.dev/valid-attachments"] = json!([]);
        stage.node.call("GC", &old, &gc).ok();
        stage.del(&old);
        let new = Pod::new("new");
        stage.add(&new, &web(8080, json!({})));
        assert!(!data.join("home/0000-old").exists() && !data.join(".hostports/0000-old").exists());
        stage.del(&old);
        stage.del(&new);
        assert_clean(stage);
    });
}
