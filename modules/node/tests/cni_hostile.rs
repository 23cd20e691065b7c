//! Names, paths and configurations that mean harm, or are broken: the whole request, to the real kernel and disk. An error of
//! the right code that names what is wrong, in bounded size; and nothing is made.
#![allow(clippy::disallowed_methods, reason = "tests")]

mod pods;
mod stage;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use pods::{Answer, Node, Pod, addresses, on_a_node, run, start_with};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use stage::{CLIENT, NODE, assert_clean, elements, on_a_stage, said, web};

/// A request with a variable of any bytes.
fn with_bytes(node: &Node, command: &str, pod: &Pod, (name, value): (&str, &[u8])) -> Answer {
    let mut process = node.command(command, pod, None);
    process.env(name, OsStr::from_bytes(value));
    node.finish(pods::start(process, &node.conf("1.1.0")))
}

/// A request with any standard input.
fn with_input(node: &Node, command: &str, pod: &Pod, input: &[u8]) -> Answer {
    node.finish(start_with(node.command(command, pod, None), input))
}

#[test]
fn variables_of_any_bytes() {
    on_a_node(|node| {
        let pod = Pod::new("c1");
        let long = [b'a'; 600];
        let cases: &[(&str, &[u8])] = &[
            ("CNI_CONTAINERID", b"\xff"),
            ("CNI_CONTAINERID", b"c1\xc3"),
            ("CNI_CONTAINERID", b"../../../etc/passwd"),
            ("CNI_CONTAINERID", b"..\\c1"),
            ("CNI_CONTAINERID", b"c1\n"),
            ("CNI_CONTAINERID", b"c1\x1b[2J"),
            ("CNI_CONTAINERID", "c\u{202e}1".as_bytes()),
            ("CNI_CONTAINERID", "\u{ff0f}c1".as_bytes()),
            ("CNI_CONTAINERID", &long),
            ("CNI_IFNAME", b"\xfe"),
            ("CNI_IFNAME", b"eth0\xff"),
            ("CNI_IFNAME", b"../all"),
            ("CNI_IFNAME", b"all"),
            ("CNI_IFNAME", b"default"),
            ("CNI_IFNAME", b"eth\x7f"),
            ("CNI_IFNAME", "eth\u{a0}0".as_bytes()),
            ("CNI_IFNAME", b"%d"),
            ("CNI_NETNS", b"/proc/\xff/ns/net"),
            ("CNI_ARGS", b"IP=10.244.1.9\xff"),
            ("CNI_ARGS", b"K8S_POD_NAME=\xc3\x28"),
            ("CNI_ARGS", b"=;=;="),
            ("CNI_COMMAND", b"AD\xff"),
        ];
        for (name, value) in cases {
            let answer = with_bytes(node, "ADD", &pod, (name, value));
            let text = answer.text.clone();
            assert!(text.contains(name), "{name} {}: {text}", value.escape_ascii());
            assert_eq!(answer.code(), 4, "{name} {}: {text}", value.escape_ascii());
            assert!(text.len() < 3000);
        }
        assert_eq!(with_bytes(node, "ADD", &pod, ("CNI_IFNAME", b"lo")).code(), 102, "it is there");
        node.assert_clean();
        // What DEL has no use for does not keep a container.
        node.add(&pod);
        for (name, value) in
            [("CNI_ARGS", &b"\xff"[..]), ("CNI_NETNS", b"\xff"), ("CNI_PATH", b"\xff"), ("LANG", b"\xff")]
        {
            with_bytes(node, "DEL", &pod, (name, value)).ok();
        }
        node.assert_clean();
    });
}

/// What `CNI_NETNS` may be instead of a network namespace. A pipe would be waited for and a device opened.
#[test]
fn namespaces_that_are_none() {
    on_a_node(|node| {
        let pod = Pod::new("c1");
        let place = tempfile::tempdir().expect("directory");
        let path = |name: &str| place.path().join(name).display().to_string();
        run(&format!("mkfifo {}", path("pipe")));
        fs::write(path("file"), "x").expect("file");
        std::os::unix::fs::symlink("/run/netns/gone", path("dangling")).expect("link");
        std::os::unix::fs::symlink(path("loop"), path("loop")).expect("link");
        std::os::unix::fs::symlink(pod.path(), path("link")).expect("link");
        let listener = std::os::unix::net::UnixListener::bind(path("socket")).expect("socket");
        let long = format!("/{}", "a/".repeat(3000));
        let mine = format!("/proc/{}/ns", std::process::id());
        for netns in [
            path("pipe"),
            path("file"),
            path("dangling"),
            path("loop"),
            path("socket"),
            place.path().display().to_string(),
            "/".to_owned(),
            "/dev/null".to_owned(),
            "/dev/full".to_owned(),
            "/proc/self/mem".to_owned(),
            "/proc/self/fd/0".to_owned(),
            format!("{mine}/mnt"),
            format!("{mine}/user"),
            format!("{mine}/uts"),
            "/run/netns/../netns/gone\n".to_owned(),
            "run/netns/relative".to_owned(),
            long,
        ] {
            for command in ["ADD", "CHECK"] {
                let mut conf = node.conf("1.1.0");
                conf["prevResult"] = json!({ "interfaces": [{ "name": "eth0", "sandbox": "/x" }] });
                if command == "ADD" {
                    conf["prevResult"] = Value::Null;
                }
                let answer = node.call_with(command, &pod, &conf, &[("CNI_NETNS", &netns)]);
                let text = answer.text.clone();
                assert!(text.contains("CNI_NETNS"), "{netns}: {text}");
                assert_eq!(answer.code(), 4, "{command} {netns}: {text}");
            }
        }
        drop(listener);
        assert_eq!(run("ip -o link show type bridge"), "", "nothing was made");
        node.assert_clean();
        // By a symbolic link, as /var/run is one.
        node.call_with("ADD", &pod, &node.conf("1.1.0"), &[("CNI_NETNS", &path("link"))]).ok();
        node.del(&pod);
        node.assert_clean();
    });
}

#[test]
fn configurations_that_are_broken() {
    on_a_node(|node| {
        let pod = Pod::new("c1");
        let good = node.conf("1.1.0").to_string();
        let wrap = |inner: &str| good.replacen('{', &format!("{{{inner},"), 1).into_bytes();
        let deep = |open: &str, close: &str| format!("{}{}", open.repeat(50_000), close.repeat(50_000));
        let big = "x".repeat(20 << 20);
        let many = format!("\"exclude\":[{}]", vec!["\"?\""; 100_000].join(","));
        let cases: Vec<(u64, Vec<u8>)> = vec![
            (6, Vec::new()),
            (6, b"\0".to_vec()),
            (6, good.as_bytes()[..good.len() - 1].to_vec()),
            (6, [good.as_bytes(), b"x"].concat()),
            (6, [b"\xef\xbb\xbf", good.as_bytes()].concat()),
            (6, good.replace("home", "ho\u{1}me").into_bytes()),
            (6, good.as_bytes().iter().map(|b| if *b == b'h' { 0xff } else { *b }).collect()),
            (6, deep("[", "]").into_bytes()),
            (6, wrap(&format!("\"args\":{}", deep("{\"cni\":", "}")))),
            (6, wrap(&format!("\"dns\":{}", deep("[", "]")))),
            // Longer than is read.
            (6, wrap(&format!("\"dns\":{{\"domain\":\"{big}\"}}"))),
            (6, wrap("\"args\":1e999")),
            (7, wrap(&many)),
            (2, wrap(&format!("\"{}\":1", "k".repeat(1 << 20)))),
            (7, good.replace("home", "home\\u0000").into_bytes()),
            (7, good.replace("homelab0", "homelab0\\u0000").into_bytes()),
            (7, good.replace("homelab0", "all").into_bytes()),
            (7, good.replace("\"dataDir\":\"", "\"dataDir\":\"/\\u0000").into_bytes()),
            (7, good.replace("1450", "-1450").into_bytes()),
            (7, good.replace("1450", "1450.5").into_bytes()),
            (7, good.replace("1450", "18446744073709551616").into_bytes()),
            (7, wrap("\"runtimeConfig\":{\"portMappings\":[[[]]]}")),
            (7, wrap("\"runtimeConfig\":{\"portMappings\":[{\"hostPort\":1e3,\"containerPort\":80}]}")),
            (7, wrap("\"runtimeConfig\":{\"bandwidth\":{\"ingressRate\":-0.0}}")),
        ];
        for (code, input) in cases {
            let answer = with_input(node, "ADD", &pod, &input);
            let text = answer.text.clone();
            let shown = String::from_utf8_lossy(&input[..input.len().min(200)]).into_owned();
            assert!(text.len() < 6000, "{} bytes for {shown}", text.len());
            assert_eq!(answer.code(), code, "{shown}: {text}");
        }
        assert_eq!(run("ip -o link show type bridge"), "", "nothing was made");
        node.assert_clean();
        assert_eq!(fs::read_dir(node.data.path()).expect("directory").count(), 0);
    });
}

/// Ten thousand ports of the node in one request, and rates as high as numbers go: made and taken away.
#[test]
fn as_much_as_can_be_asked_for() {
    on_a_stage(|stage| {
        let pod = Pod::new("greedy");
        let all: Vec<Value> = (1..=10_000)
            .map(|port| json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0" }))
            .collect();
        let mut conf = stage.conf(&json!(all));
        let most = u64::MAX;
        conf["runtimeConfig"]["bandwidth"] =
            json!({ "ingressRate": most, "ingressBurst": most, "egressRate": most, "egressBurst": most });
        conf["prevResult"] = stage.node.call("ADD", &pod, &conf).ok();
        assert_eq!(elements(), 10_000 + 1);
        stage.node.call("CHECK", &pod, &conf).ok();
        let _server = pods::talk::Server::start(Some(&pod), "greedy", 80);
        assert_eq!(stage.lan(&format!("{NODE}:4321")), said("greedy", CLIENT));
        let late = Pod::new("late");
        assert_eq!(stage.try_add(&late, &web(8080, json!({}))).code(), 110);
        stage.del(&pod);
        assert_clean(stage);
    });
}

/// Ids and names as long as they get: podman's and nerdctl's, Kubernetes' names of 253 characters, and the longest that is taken.
#[test]
fn long_names() {
    on_a_stage(|stage| {
        let name = |letter: &str| letter.repeat(253);
        let hex = "0123456789abcdef".repeat(4);
        let ids = [hex.clone(), format!("default-{hex}"), format!("k8s.io_{hex}"), "c".repeat(512)];
        let args = format!("K8S_POD_NAMESPACE={};K8S_POD_NAME={}", name("n"), name("p"));
        let mappings = web(8080, json!({}));
        for id in &ids {
            let pod = Pod::new(id);
            let env = [("CNI_ARGS", args.as_str()), ("CNI_IFNAME", "fifteen-bytes-x")];
            let mut conf = stage.conf(&mappings);
            conf["sticky"] = json!(true);
            conf["prevResult"] = stage.node.call_with("ADD", &pod, &conf, &env).ok();
            stage.node.call_with("CHECK", &pod, &conf, &env).ok();
            // Whose the address and the port are is said in full.
            let late = Pod::new("late");
            let holder = format!("{}/{}", name("n"), name("p"));
            let taken = stage.try_add(&late, &mappings);
            assert!(taken.text.contains(&holder) && taken.text.contains(id), "{}", taken.text);
            assert_eq!(taken.code(), 110);
            let mut asks = stage.conf(&json!([]));
            asks["runtimeConfig"]["ips"] = json!([addresses(&conf["prevResult"])[0]]);
            let taken = stage.node.call("ADD", &late, &asks);
            assert!(taken.text.contains(&holder), "{}", taken.text);
            assert_eq!(taken.code(), 105);
            // The name is the name of the link's alias as far as it goes, and elements' comments, too.
            let alias = run("ip -o link show type veth");
            assert!(alias.contains(&format!("homelab-pod:{}", &id[..id.len().min(200)])), "{alias}");
            stage.node.call_with("DEL", &pod, &conf, &env).ok();
            // What is remembered of the name stays.
            let names = stage.node.data.path().join("home/names");
            assert_eq!(fs::read_dir(&names).expect("names").count(), 1);
            fs::remove_dir_all(&names).expect("remove");
            assert_clean(stage);
        }
        // One letter more is no name of Kubernetes': the pod is attached, and known by its container.
        let pod = Pod::new("c1");
        let args = format!("K8S_POD_NAMESPACE=n;K8S_POD_NAME={}p", name("p"));
        stage.node.call_with("ADD", &pod, &stage.conf(&mappings), &[("CNI_ARGS", &args)]).ok();
        let taken = stage.try_add(&Pod::new("late"), &mappings);
        assert!(taken.text.contains("taken by c1"), "{}", taken.text);
        stage.del(&pod);
        assert_clean(stage);
    });
}

/// Any JSON in the place of any field.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "..",
            "/",
            "0.0.0.0/0",
            "::/0",
            "10.244.1.7",
            "fd00::7/64",
            "127.0.0.1",
            "tcp",
            "ff:ff:ff:ff:ff:ff",
            "1.1.0",
            "eth0",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let keys = prop::sample::select(vec![
            "cni",
            "ips",
            "mac",
            "portMappings",
            "bandwidth",
            "hostPort",
            "containerPort",
            "protocol",
            "hostIP",
            "ingressRate",
            "egressRate",
            "ingressBurst",
            "egressBurst",
            "dns",
            "servers",
            "interfaces",
            "routes",
            "name",
            "sandbox",
            "address",
            "containerID",
            "ifname",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys, inner), 0..4).prop_map(|pairs| Value::Object(
                pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            )),
        ]
    })
}

/// Whatever stands in whatever field: an answer of the specification's form, and after DEL nothing is left.
#[test]
fn any_configuration_is_carried_out_or_refused() {
    on_a_stage(|stage| {
        let fields = prop::sample::select(vec![
            "cniVersion",
            "name",
            "bridgeMac",
            "mtu",
            "ranges",
            "exclude",
            "sticky",
            "dns",
            "args",
            "capabilities",
            "runtimeConfig",
            "prevResult",
            "cni.dev/valid-attachments",
        ]);
        let commands = prop::sample::select(vec!["ADD", "ADD", "CHECK", "STATUS", "GC", "VERSION"]);
        let cases = (commands, prop::collection::vec((fields, any_json()), 1..3));
        let mut runner =
            TestRunner::new(Config { cases: 80, failure_persistence: None, ..Config::default() });
        let outcome = runner.run(&cases, |(command, changes)| {
            let pod = Pod::new("c1");
            let plain = stage.conf(&web(8080, json!({})));
            let mut conf = plain.clone();
            for (field, value) in changes {
                conf[field] = value;
            }
            let answer = stage.node.call(command, &pod, &conf);
            if answer.status == Some(0) {
                answer.ok();
            } else {
                answer.code();
            }
            // The runtime cleans up by the configuration that it has; the name is the network's.
            let mut own = plain;
            for key in ["name", "cniVersion"] {
                own[key] = conf[key].clone();
            }
            stage.node.call("DEL", &pod, &own);
            assert_clean(stage);
            Ok(())
        });
        outcome.expect("every case");
    });
}
