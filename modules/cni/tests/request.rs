//! Environment and standard input: what is taken, and which code answers what is not.

use std::collections::BTreeMap;

use homelab_cni::{Attachment, Code, Previous, Request, Version, Wishes, error_version};
use proptest::prelude::*;
use serde_json::{Value, json};

type Env = BTreeMap<&'static str, String>;

fn env(command: &str) -> Env {
    BTreeMap::from([
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", "c0ffee".to_owned()),
        ("CNI_NETNS", "/run/netns/x".to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_PATH", "/opt/cni/bin".to_owned()),
    ])
}

fn conf(version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "home", "type": "homelab", "bridge": "homelab0",
        "bridgeMac": "02:00:00:00:00:01", "mtu": 1450, "ranges": ["10.244.1.0/24", "fd00:1::/64"],
    })
}

fn parse(env: &Env, conf: &Value) -> Result<Request, (Code, String)> {
    parse_bytes(env, conf.to_string().as_bytes())
}

fn parse_bytes(env: &Env, stdin: &[u8]) -> Result<Request, (Code, String)> {
    Request::parse(&|name| env.get(name).cloned(), stdin).map_err(|error| (error.code, error.to_string()))
}

fn code(env: &Env, conf: &Value) -> Code {
    parse(env, conf).expect_err("refused").0
}

#[test]
fn add_of_every_version() {
    for version in Version::ALL {
        let request = parse(&env("ADD"), &conf(version.as_str())).expect("request");
        let Request::Add { base, network, attachment, sandbox, wishes, previous } = request else {
            panic!("{request:?}")
        };
        assert_eq!(base.version, version);
        assert_eq!(base.data_dir.to_str(), Some("/var/lib/homelab/ipam"));
        assert_eq!(network.ranges.len(), 2);
        assert_eq!(network.bridge_mac, Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(attachment, Attachment { container: "c0ffee".into(), ifname: "eth0".into() });
        assert!(!sandbox.may_be_own);
        assert_eq!((wishes, previous), (Wishes::default(), Previous::default()));
    }
}

#[test]
fn the_pods_name_is_kept() {
    for (args, expected) in [
        ("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0", Some("default/web-0")),
        ("K8S_POD_NAME=web", Some("web")),
        ("K8S_POD_NAMESPACE=default", None),
        ("K8S_POD_NAME=../../etc", None),
        ("K8S_POD_NAME=", None),
    ] {
        let mut env = env("ADD");
        env.insert("CNI_ARGS", args.to_owned());
        let Ok(Request::Add { wishes, .. }) = parse(&env, &conf("1.0.0")) else { panic!("{args}") };
        assert_eq!(wishes.pod.as_deref(), expected, "{args}");
    }
}

#[test]
fn the_sandbox_that_cri_names_is_known() {
    for (args, expected) in
        [("K8S_POD_INFRA_CONTAINER_ID=c0ffee", Some("c0ffee")), ("K8S_POD_UID=c0ffee", None)]
    {
        let mut env = env("ADD");
        env.insert("CNI_ARGS", args.to_owned());
        let Ok(Request::Add { wishes, .. }) = parse(&env, &conf("1.0.0")) else { panic!("{args}") };
        assert_eq!(wishes.sandbox.as_deref(), expected, "{args}");
    }
}

#[test]
fn versions_that_are_not_spoken() {
    for version in ["0.0.1", "0.5.0", "1.1.1", "1.2.0", "2.0.0", "1.0", "v1.0.0"] {
        assert_eq!(code(&env("ADD"), &conf(version)), Code::Version, "{version}");
        assert_eq!(code(&env("DEL"), &conf(version)), Code::Version, "{version}");
    }
    // What says no version is of the first.
    let mut none = conf("");
    assert!(
        matches!(parse(&env("ADD"), &none), Ok(Request::Add { base, .. }) if base.version == Version::V0_1_0)
    );
    none.as_object_mut().expect("object").remove("cniVersion");
    assert!(
        matches!(parse(&env("ADD"), &none), Ok(Request::Add { base, .. }) if base.version == Version::V0_1_0)
    );
    none["cniVersion"] = json!(1.1);
    assert_eq!(code(&env("ADD"), &none), Code::Decode);
    // Commands are younger than the first version.
    for version in Version::ALL {
        let is = |command: &str, since: Version| {
            let result = parse(&env(command), &conf(version.as_str()));
            let refused = matches!(result, Err((Code::Version, _)));
            assert_eq!(refused, version < since, "{command} {version:?}: {result:?}");
        };
        is("ADD", Version::V0_1_0);
        is("DEL", Version::V0_1_0);
        is("CHECK", Version::V0_4_0);
        is("STATUS", Version::V1_1_0);
        is("GC", Version::V1_1_0);
    }
    assert_eq!(error_version(conf("0.4.0").to_string().as_bytes()), "0.4.0");
    assert_eq!(error_version(b"{}"), "0.1.0");
    assert_eq!(error_version(b"garbage"), "1.1.0");
}

#[test]
fn version_repeats_the_question() {
    let env = Env::from([("CNI_COMMAND", "VERSION".to_owned())]);
    let request = parse(&env, &json!({ "cniVersion": "0.4.0" })).expect("request");
    assert_eq!(request, Request::Version { version: "0.4.0".into() });
    assert_eq!(parse_bytes(&env, b"{").expect_err("refused").0, Code::Decode);
    let answer: Value = serde_json::from_str(&homelab_cni::version_json("0.4.0")).expect("JSON");
    assert!(matches!(parse_bytes(&env, b""), Ok(Request::Version { version }) if version == "1.1.0"));
    let all = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(answer, json!({ "cniVersion": "0.4.0", "supportedVersions": all }));
}

#[test]
fn environment_that_is_missing_or_hostile() {
    for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        let mut env = env("ADD");
        env.remove(name);
        let (code, message) = parse(&env, &conf("1.0.0")).expect_err("refused");
        assert_eq!(code, Code::Environment, "{name}");
        assert!(message.contains(name), "{message}");
    }
    let hostile = [
        ("CNI_COMMAND", "add"),
        ("CNI_CONTAINERID", "../../etc/passwd"),
        ("CNI_CONTAINERID", ".."),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_CONTAINERID", "a,b"),
        ("CNI_CONTAINERID", "-rf"),
        ("CNI_CONTAINERID", "a\nb"),
        ("CNI_IFNAME", "sixteen-bytes-xx"),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "eth%d"),
        ("CNI_NETNS", "relative/path"),
        ("CNI_ARGS", "no-pair"),
        ("CNI_ARGS", "WHAT=ever"),
        ("CNI_ARGS", "IgnoreUnknown=0;WHAT=ever"),
        ("CNI_ARGS", "IgnoreUnknown=maybe"),
        ("CNI_ARGS", "IP=10.244.1.999"),
        ("CNI_ARGS", "IP=10.244.1.9,10.244.1.10"),
        ("CNI_ARGS", "MAC=01:00:5e:00:00:01"),
    ];
    for (name, value) in hostile {
        let mut env = env("ADD");
        env.insert(name, value.to_owned());
        let (code, message) = parse(&env, &conf("1.0.0")).expect_err("refused");
        assert_eq!(code, Code::Environment, "{name}={value}");
        assert!(message.contains(name), "specification: the message must name the variable: {message}");
    }
    let mut long = env("ADD");
    long.insert("CNI_CONTAINERID", "a".repeat(513));
    assert_eq!(code(&long, &conf("1.0.0")), Code::Environment);
}

#[test]
fn arguments_of_runtimes() {
    for args in [
        "",
        "IgnoreUnknown=1;WHAT=ever",
        "WHAT=ever;IgnoreUnknown=true",
        // containerd and CRI-O
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u",
        "K8S_POD_NAMESPACE=default;K8S_POD_NAME=a",
    ] {
        let mut env = env("ADD");
        env.insert("CNI_ARGS", args.to_owned());
        assert!(parse(&env, &conf("1.0.0")).is_ok(), "{args}");
    }
    let mut own = env("ADD");
    own.insert("CNI_NETNS_OVERRIDE", "true".to_owned());
    let Ok(Request::Add { sandbox, .. }) = parse(&own, &conf("1.0.0")) else { panic!("no ADD") };
    assert!(sandbox.may_be_own);
}

#[test]
fn configuration_that_is_wrong() {
    let cases = [
        ("name", json!("../x")),
        ("name", json!("")),
        ("name", json!(5)),
        ("dataDir", json!("relative")),
        ("bridge", json!("a/b")),
        ("bridge", json!("")),
        ("bridgeMac", json!("01:00:00:00:00:01")),
        ("bridgeMac", json!("02:00")),
        ("mtu", json!("1450")),
        ("mtu", json!(-1)),
        ("mtu", json!(1279)),
        ("mtu", json!(65536)),
        ("ranges", json!([])),
        ("ranges", Value::Null),
        ("ranges", json!("10.0.0.0/24")),
        ("ranges", json!(["10.0.0.0"])),
        ("ranges", json!(["10.0.0.0/31"])),
        ("ranges", json!(["10.0.0.0/32"])),
        ("ranges", json!(["10.0.0.0/24", "10.1.0.0/24"])),
        ("ranges", json!(["fd00::/127"])),
        ("dns", json!([])),
        ("exclude", json!("10.244.1.7")),
        ("exclude", json!(["10.244.1.7-9"])),
        ("sticky", json!("yes")),
        ("runtimeConfig", json!({ "ips": "10.244.1.7" })),
        ("runtimeConfig", json!({ "ips": ["10.244.1.7", "10.244.1.8/24"] })),
        ("runtimeConfig", json!({ "ips": [7] })),
        ("runtimeConfig", json!({ "mac": "01:00:5e:00:00:01" })),
        ("runtimeConfig", json!({ "dns": [] })),
        ("args", json!({ "cni": { "ips": ["nowhere"] } })),
    ];
    for (field, value) in cases {
        let mut conf = conf("1.0.0");
        conf[field] = value.clone();
        assert_eq!(code(&env("ADD"), &conf), Code::Config, "{field}: {value}");
    }
    for stdin in [&b""[..], b"{", b"[]", b"\xff\xfe", b"null"] {
        assert_eq!(parse_bytes(&env("ADD"), stdin).expect_err("refused").0, Code::Decode);
    }
    // Nesting must not overflow the stack.
    let deep = "[".repeat(100_000);
    assert_eq!(parse_bytes(&env("ADD"), deep.as_bytes()).expect_err("refused").0, Code::Decode);
}

#[test]
fn fields_that_are_not_supported_are_named_with_their_value() {
    let cases = [
        ("ipam", json!({ "type": "host-local" })),
        ("vlan", json!(7)),
        ("mtus", json!(1450)),
        ("runtimeConfig", json!({ "infinibandGUID": "c2:11:22:33:44:55:66:77" })),
        ("capabilities", json!({ "infinibandGUID": true })),
        ("runtimeConfig", json!({ "deviceID": "0000:04:00.5" })),
    ];
    for (field, value) in cases {
        let mut conf = conf("1.0.0");
        conf[field] = value;
        let (code, message) = parse(&env("ADD"), &conf).expect_err("refused");
        assert_eq!(code, Code::UnsupportedField, "{message}");
        assert!(message.contains(field), "{message}");
        assert!(parse(&env("DEL"), &conf).is_ok(), "a container must still go");
    }
    let mut conf = conf("1.1.0");
    conf["runtimeConfig"] = json!({ "portMappings": [], "bandwidth": {} });
    conf["cni.dev/whatever"] = json!(1);
    conf["prevResult"] = json!({ "cniVersion": "1.1.0" });
    assert!(parse(&env("ADD"), &conf).is_ok(), "empty wishes and the runtime's own fields");
}

#[test]
fn what_is_asked_for_one_pod() {
    let wishes = |args: &str, extra: &Value| {
        let mut env = env("ADD");
        env.insert("CNI_ARGS", args.to_owned());
        let mut conf = conf("1.0.0");
        conf.as_object_mut().expect("object").extend(extra.as_object().expect("object").clone());
        let Ok(Request::Add { wishes, network, .. }) = parse(&env, &conf) else { panic!("{args} {extra}") };
        let addresses: Vec<String> = wishes.addresses.iter().map(ToString::to_string).collect();
        (addresses, wishes.mac, network.dns)
    };
    let mac = Some([0xc2, 0x11, 0x22, 0x33, 0x44, 0x55]);
    let (addresses, found, _) = wishes("IP=10.244.1.9/24;MAC=c2:11:22:33:44:55", &json!({}));
    assert_eq!((addresses, found), (vec!["10.244.1.9".to_owned()], mac));
    assert_eq!(wishes("IP=10.244.1.9,fd00:1::9", &json!({})).0, ["10.244.1.9", "fd00:1::9"]);
    assert_eq!(wishes("IP=;MAC=", &json!({})).0, [""; 0]);
    // args before CNI_ARGS, runtimeConfig before both; what a plugin does not know in args is no error.
    let args =
        json!({ "cni": { "ips": ["10.244.1.8"], "labels": [{ "key": "app", "value": "x" }] }, "else": 1 });
    assert_eq!(wishes("IP=10.244.1.9", &json!({ "args": args })).0, ["10.244.1.8"]);
    let runtime = json!({ "ips": ["10.244.1.7/24", "fd00:1::7"], "mac": "c2:11:22:33:44:55" });
    let (addresses, found, _) = wishes("IP=10.244.1.9", &json!({ "args": args, "runtimeConfig": runtime }));
    assert_eq!((addresses, found), (vec!["10.244.1.7".to_owned(), "fd00:1::7".to_owned()], mac));
    // Capabilities without a meaning here, asked for and declared.
    let polite = json!({
        "capabilities": { "ips": true, "mac": true, "ipRanges": true, "aliases": true, "dns": true },
        "runtimeConfig": {
            "ipRanges": [[{ "subnet": "10.1.2.0/24" }]], "aliases": ["primary-db"], "cgroupPath": "/kubelet.slice",
            "dns": { "servers": ["10.96.0.10"], "searches": ["cluster.local"], "options": ["ndots:5"] },
        },
        "dns": { "domain": "home", "nameservers": ["192.0.2.1"] },
        "exclude": ["10.244.1.200/29", "fd00:1::ff"], "sticky": true,
        "cniVersions": ["1.0.0", "1.1.0"], "disableCheck": false, "disableGC": true,
    });
    let dns = json!({ "domain": "home", "nameservers": ["10.96.0.10"], "search": ["cluster.local"], "options": ["ndots:5"] });
    assert_eq!(Value::Object(wishes("", &polite).2), dns);
}

#[test]
fn add_reads_what_came_before() {
    let previous = |version: &str, prev: Value| {
        let mut conf = conf(version);
        conf["prevResult"] = prev;
        match parse(&env("ADD"), &conf) {
            Ok(Request::Add { previous, .. }) => Ok(previous),
            Ok(other) => panic!("{other:?}"),
            Err((code, _)) => Err(code),
        }
    };
    let full = json!({
        "cniVersion": "1.0.0", "interfaces": [{ "name": "lo", "sandbox": "/x" }],
        "ips": [{ "address": "127.0.0.1/8", "interface": 0 }], "routes": [{ "dst": "192.0.2.0/24" }], "dns": {},
    });
    let found = previous("1.0.0", full.clone()).expect("read");
    assert_eq!((found.interfaces.len(), found.ips.len(), found.routes.len()), (1, 1, 1));
    assert_eq!(previous("1.0.0", Value::Null), Ok(Previous::default()));
    assert_eq!(previous("0.2.0", full), Ok(Previous::default()), "no chains before 0.3.0");
    for broken in
        [json!(5), json!([]), json!({ "interfaces": {} }), json!({ "ips": [7] }), json!({ "dns": [] })]
    {
        assert_eq!(previous("1.0.0", broken.clone()), Err(Code::Decode), "{broken}");
    }
}

#[test]
fn del_needs_little() {
    let mut env = env("DEL");
    env.remove("CNI_NETNS");
    env.insert("CNI_ARGS", "garbage".to_owned());
    let conf = json!({ "cniVersion": "1.0.0", "name": "home", "ranges": "broken", "mtu": {} });
    assert!(matches!(parse(&env, &conf), Ok(Request::Del { .. })));
    env.insert("CNI_IFNAME", "../x".to_owned());
    assert_eq!(code(&env, &conf), Code::Environment);
}

#[test]
fn check_reads_prev_result() {
    let mut conf = conf("0.4.0");
    assert_eq!(code(&env("CHECK"), &conf), Code::Config, "no prevResult");
    conf["prevResult"] = json!({
        "cniVersion": "0.4.0",
        "interfaces": [
            { "name": "homelab0" }, { "name": "hl1" },
            { "name": "eth0", "mac": "02:AA:00:00:00:01", "mtu": 1450, "sandbox": "/x" },
        ],
        "ips": [
            { "version": "4", "interface": 2, "address": "10.244.1.7/24", "gateway": "10.244.1.1" },
            { "version": "4", "interface": 1, "address": "192.0.2.1/24" },
        ],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "10.244.1.1" }, { "dst": "192.0.2.0/24" }],
    });
    let Ok(Request::Check { prev, .. }) = parse(&env("CHECK"), &conf) else { panic!("no CHECK") };
    assert_eq!((prev.mac.as_str(), prev.mtu), ("02:aa:00:00:00:01", Some(1450)));
    assert_eq!(prev.addresses, ["10.244.1.7/24".parse().expect("net")]);
    assert_eq!(prev.gateways, ["10.244.1.1".parse::<std::net::IpAddr>().expect("address")]);
    for (broken, want) in [
        (json!({ "interfaces": [] }), Code::Config),
        (json!({ "interfaces": 5 }), Code::Decode),
        (json!({ "interfaces": [{ "name": "eth0", "sandbox": "/x" }], "ips": [{}] }), Code::Decode),
        (
            json!({ "interfaces": [{ "name": "eth0", "sandbox": "/x" }], "routes": [{ "dst": 1 }] }),
            Code::Decode,
        ),
    ] {
        conf["prevResult"] = broken;
        assert_eq!(code(&env("CHECK"), &conf), want);
    }
}

#[test]
fn gc_needs_its_list() {
    let mut conf = conf("1.1.0");
    assert_eq!(code(&env("GC"), &conf), Code::Config);
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }]);
    let Ok(Request::Gc { valid, .. }) = parse(&env("GC"), &conf) else { panic!("no GC") };
    assert_eq!(valid, [Attachment { container: "c1".into(), ifname: "eth0".into() }]);
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": "../x", "ifname": "eth0" }]);
    assert_eq!(code(&env("GC"), &conf), Code::Config);
}

proptest! {
    /// Whatever comes in: an answer, no panic; and what is taken is safe in a path and as a link's name.
    #[test]
    fn names_that_are_taken_are_safe(container in ".{0,40}", ifname in ".{0,20}", name in ".{0,20}", args in ".{0,20}") {
        let mut env = env("ADD");
        env.insert("CNI_CONTAINERID", container);
        env.insert("CNI_IFNAME", ifname);
        env.insert("CNI_ARGS", args);
        let mut conf = conf("1.0.0");
        conf["name"] = json!(name);
        if let Ok(Request::Add { attachment, base, .. }) = parse(&env, &conf) {
            for part in [&attachment.container, &attachment.ifname, &base.name] {
                prop_assert!(!part.is_empty() && !part.contains('/') && part != "." && part != "..");
            }
            prop_assert!(attachment.ifname.len() <= 15);
            let alias = homelab_cni::alias(&attachment, &homelab_model::PodMarks::default());
            prop_assert!(alias.len() <= 254 && alias.starts_with("homelab-pod:"));
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for command in ["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"] {
            let _ = parse_bytes(&env(command), &bytes);
        }
    }
}
