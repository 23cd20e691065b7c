//! Every reason to refuse a plan file.

use homelab_config::Source;
use homelab_driver::{Plan, PlannedNode};
use homelab_model::{Content, File, Module, NodeObject, Route, Spec, plan_node};

use super::*;

const FILE: &str = "name: home\nnodes:\n  - {name: node1, address: 192.168.50.11}\n  - {name: node2, address: 192.168.50.12}\n";

fn cluster(text: &str) -> Cluster {
    homelab_config::load(&[Source { name: "homelab.yaml".into(), text: text.into() }]).unwrap().cluster
}

fn file(path: &str, content: Content) -> NodeObject {
    let spec = Spec::File(File { path: path.into(), mode: 0o600, owner: "0:0".into(), content });
    NodeObject { module: Module::Agent, spec }
}

fn route(destination: &str, via: &str) -> NodeObject {
    let spec = Spec::Route(Route {
        destination: destination.parse().unwrap(),
        metric: 0,
        via: Some(via.parse().unwrap()),
        link: Some("homelab.1".into()),
        onlink: true,
        source: None,
        r#type: "unicast".into(),
    });
    NodeObject { module: Module::Vtep, spec }
}

/// What is on the nodes, and what shall be.
#[derive(Clone)]
struct World {
    cluster: Cluster,
    chosen: Vec<String>,
    binary: String,
    observed: BTreeMap<String, Observed>,
    desired: Vec<NodeObject>,
}

fn world() -> World {
    let objects = vec![
        file("/etc/homelab/membership.keys", Content::Secret("generation 1: aabb signs".into())),
        route("10.244.1.0/24", "10.244.1.0"),
        route("10.244.9.0/24", "10.244.9.0"),
    ];
    let observed = Observed { objects, ..Observed::default() };
    World {
        cluster: cluster(FILE),
        chosen: Vec::new(),
        binary: "a".repeat(64),
        observed: BTreeMap::from([("node1".into(), observed.clone()), ("node2".into(), observed)]),
        desired: vec![
            file("/etc/homelab/membership.keys", Content::Secret("generation 2: ccdd signs".into())),
            route("10.244.1.0/24", "10.244.1.1"),
        ],
    }
}

fn bound(world: &World) -> Value {
    let nodes = world.cluster.nodes.iter().map(|n| PlannedNode {
        name: n.name.clone(),
        address: n.address,
        outcome: match world.observed.get(&n.name) {
            Some(o) => Ok(plan_node(&n.name, &o.objects, &world.desired)),
            None => Err(homelab_driver::NodeError::Cancelled),
        },
        history: Default::default(),
    });
    let plan = Plan {
        cluster: world.cluster.name.clone(),
        destroy: false,
        nodes: nodes.collect(),
        kubernetes: None,
        departed: Vec::new(),
        warnings: Vec::new(),
    };
    let basis = Basis {
        cluster: &world.cluster,
        chosen: &world.chosen,
        binaries: BTreeMap::from([("x86_64".into(), world.binary.clone())]),
        observed: world.observed.iter().map(|(n, o)| (n.clone(), o)).collect(),
        specs: &BTreeMap::new(),
        by: "me@laptop".into(),
        at: 1_764_098_305,
    };
    bind(crate::render::plan_json(&plan), &basis)
}

/// What is said of a plan file that was made in `then` and altered, when things are as in `now`.
fn verdict(then: &World, alter: impl FnOnce(&mut Value), now: &World) -> Result<(), String> {
    let mut file = bound(then);
    alter(&mut file);
    let text = format!("{file:#}");
    let said = |error: CliError| match error {
        CliError::Message { text, hints, .. } => format!("{text}\n{}", hints.join("\n")),
        other => panic!("{other:?}"),
    };
    let file = read("plan.json", text.as_bytes()).map_err(said)?;
    compare("plan.json", &file, &bound(now)).map_err(said)
}

fn refused(then: &World, alter: impl FnOnce(&mut Value), now: &World, words: &[&str]) {
    let said = verdict(then, alter, now).unwrap_err();
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[test]
fn a_plan_file_that_holds_is_accepted() {
    let world = world();
    assert_eq!(verdict(&world, |_| (), &world), Ok(()));
    // When and by whom it was made, and what was warned of, is no part of it.
    let later = |file: &mut Value| {
        file["created_at"] = json!("2027-01-01T00:00:00Z");
        file["created_by"] = json!("ci@runner");
        file["warnings"] = json!(["something"]);
    };
    assert_eq!(verdict(&world, later, &world), Ok(()));
}

#[test]
fn what_is_no_plan_file_is_refused() {
    for (bytes, words) in [
        (&b"\xff\x00"[..], "is no plan file"),
        (b"", "is no plan file"),
        (b"[]", "is no plan file of homelab"),
        (b"{\"format_version\": 1}", "is no plan file of homelab"),
        (b"{\"format_version\": \"1\", \"nodes\": [], \"summary\": {}}", "is no plan file of homelab"),
        (b"{\"format_version\": 2}", "written by a newer homelab: its format is 2, this version knows 1"),
    ] {
        let error = read("plan.json", bytes).unwrap_err();
        assert!(
            matches!(&error, CliError::Message { text, hints, .. } if text.contains(words) && !hints.is_empty()),
            "{error:?}"
        );
    }
    let world = world();
    let reading = |file: &mut Value| drop(file.as_object_mut().unwrap().remove("config_digest"));
    refused(&world, reading, &world, &["a plan to read", "homelab plan --out"]);
    refused(&world, |file| file["destroy"] = json!(true), &world, &["the plan of a destroy"]);
    refused(&world, |file| drop(file.as_object_mut().unwrap().remove("destroy")), &world, &["of a destroy"]);
}

#[test]
fn a_plan_for_others_is_refused() {
    let then = world();
    let mut now = then.clone();
    now.cluster = cluster(&FILE.replace("home", "work"));
    refused(&then, |_| (), &now, &["a plan for the cluster \"home\"", "\"work\""]);
    now.cluster = cluster(&FILE.replace("node2", "node3"));
    now.observed = BTreeMap::from([("node1".into(), then.observed["node1"].clone())]);
    refused(&then, |_| (), &now, &["other nodes: node2 is not among"]);
    refused(&now, |_| (), &then, &["other nodes: node3 is not among"]);
    let mut now = then.clone();
    now.chosen = vec!["node1".into(), "node2".into()];
    refused(&then, |_| (), &now, &["other --nodes"]);
    now = then.clone();
    now.binary = "b".repeat(64);
    refused(&then, |_| (), &now, &["other node binaries"]);
    let old = |file: &mut Value| file["homelab_version"] = json!("0.0.1");
    refused(&then, old, &then, &["made by homelab 0.0.1"]);
}

#[test]
fn a_stale_plan_is_refused_by_the_names_of_what_changed() {
    let then = world();
    let mut now = then.clone();
    now.cluster = cluster(&format!("{FILE}network: {{vxlan: {{vni: 7}}}}\n"));
    refused(&then, |_| (), &now, &["the cluster file has changed"]);
    let mut now = then.clone();
    let objects = &mut now.observed.get_mut("node2").unwrap().objects;
    objects[1] = route("10.244.1.0/24", "10.244.1.7");
    objects.remove(2);
    objects.push(route("10.244.8.0/24", "10.244.8.0"));
    refused(
        &then,
        |_| (),
        &now,
        &["on node2 route 10.244.1.0/24 changed, route 10.244.8.0/24 appeared, route 10.244.9.0/24 went"],
    );
    assert!(!verdict(&then, |_| (), &now).unwrap_err().contains("node1"));
    let mut now = then.clone();
    now.observed.remove("node2");
    refused(&then, |_| (), &now, &["node2 cannot be asked now: stopped before"]);
    refused(&now, |_| (), &then, &["node2 could not be asked then, and answers now"]);
    let other = |file: &mut Value| file["nodes"][0]["spec_digest"] = json!("x");
    refused(&then, other, &then, &["what node1 is to be told"]);
}

#[test]
fn a_tampered_plan_is_refused_by_its_first_difference() {
    let world = world();
    let at = |file: &Value, object: &str| {
        let changes = file["nodes"][0]["changes"].as_array().unwrap();
        changes.iter().position(|c| c["object"].as_str().unwrap().contains(object)).unwrap()
    };
    let via = |file: &mut Value| {
        let i = at(file, "10.244.1.0/24");
        file["nodes"][0]["changes"][i]["after"]["via"] = json!("6.6.6.6");
    };
    let words = [
        "was altered",
        "node1: route 10.244.1.0/24: after.via is \"6.6.6.6\" in the file and \"10.244.1.1\" in truth",
    ];
    refused(&world, via, &world, &words);
    let less = |file: &mut Value| drop(file["nodes"][1]["changes"].as_array_mut().unwrap().pop());
    refused(&world, less, &world, &["node2: a change of", "is missing in the file"]);
    let more = |file: &mut Value| {
        let mut change = file["nodes"][0]["changes"][0].clone();
        change["object"] = json!("route 0.0.0.0/0");
        file["nodes"][0]["changes"].as_array_mut().unwrap().push(change);
    };
    refused(&world, more, &world, &["a change of route 0.0.0.0/0 is only in the file"]);
    let twice = |file: &mut Value| {
        let change = file["nodes"][0]["changes"][0].clone();
        file["nodes"][0]["changes"].as_array_mut().unwrap().push(change);
    };
    refused(&world, twice, &world, &["node1: its changes are others"]);
    let impact = |file: &mut Value| file["nodes"][0]["changes"][0]["impact"] = json!("none!");
    refused(&world, impact, &world, &["impact is \"none!\""]);
    refused(&world, |file| file["nodes"][0]["address"] = json!("6.6.6.6"), &world, &["node1: its address"]);
    refused(&world, |file| file["summary"]["delete"] = json!(0), &world, &["its summary is another"]);
    refused(&world, |file| file["departed"] = json!([{"name": "x"}]), &world, &["its departed is another"]);
    let doubled = |file: &mut Value| {
        let node = file["nodes"][0].clone();
        file["nodes"].as_array_mut().unwrap().push(node);
    };
    refused(&world, doubled, &world, &["a node stands in it twice"]);
}

#[test]
fn any_alteration_of_what_is_carried_out_is_refused() {
    let world = world();
    let whole = bound(&world);
    let mut places = Vec::new();
    collect("", &whole, &mut places);
    let free = ["/created_at", "/created_by", "/warnings"];
    // Texts that describe a node and are not carried out.
    let told =
        |place: &str| place.contains("/error") || place.contains("/history") || place.contains("/by_hand");
    let mut tried = 0;
    for place in places.iter().filter(|p| !free.iter().any(|f| p.starts_with(f)) && !told(p)) {
        tried += 1;
        let alter = |file: &mut Value| *file.pointer_mut(place).unwrap() = json!("altered");
        assert!(verdict(&world, alter, &world).is_err(), "{place} may be altered");
    }
    assert!(tried > 60, "{tried}");
}

fn collect(place: &str, value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            let key = k.replace('~', "~0").replace('/', "~1");
            collect(&format!("{place}/{key}"), v, into);
        }),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, v)| collect(&format!("{place}/{i}"), v, into));
        }
        _ => into.push(place.to_owned()),
    }
}

#[test]
fn a_plan_file_holds_no_secret() {
    // Contents of secret files reach the laptop as summaries only; the file holds no more than those, on both sides.
    let text = format!("{:#}", bound(&world()));
    assert!(text.contains("generation 1: aabb signs") && text.contains("generation 2: ccdd signs"), "{text}");
    let key = bound(&world())["nodes"][0]["changes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["object"] == "file /etc/homelab/membership.keys")
        .unwrap()
        .clone();
    for side in ["before", "after"] {
        let content = key[side]["content"].as_object().unwrap();
        assert_eq!(content.keys().collect::<Vec<_>>(), ["secret"], "{content:?}");
    }
}

#[test]
fn times_of_day() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_827_696, "2000-02-29T12:34:56Z"),
        (1_709_251_199, "2024-02-29T23:59:59Z"),
        (1_735_689_599, "2024-12-31T23:59:59Z"),
        (1_764_098_305, "2025-11-25T19:18:25Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
    ] {
        assert_eq!(utc(seconds), text);
    }
}
