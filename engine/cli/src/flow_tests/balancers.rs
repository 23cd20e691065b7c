//! Load-balancer addresses, and nodes that are to have none.

use homelab_model::{Content, Key, LbState, SpeakerSpec, ours};

use super::*;

const OWNERS: [(&str, &str); 2] = [("192.168.50.200", "node1"), ("192.168.50.201", "node2")];

/// A desk on which everything is applied, and two addresses are announced.
fn announced() -> Desk {
    let desk = Desk::applied();
    desk.lan.announce(&OWNERS);
    desk
}

#[test]
fn addresses_of_the_nodes_are_shown() {
    let desk = announced();
    let all = desk.run(&["status", "lb"]);
    assert_eq!(all.code, 0, "{all:?}");
    assert!(
        all.out.contains("192.168.50.200  default/web  home  node1  eth0 02:00:00:00:00:01"),
        "{}",
        all.out
    );
    let one = desk.run(&["status", "lb", "192.168.50.201"]);
    assert_eq!((one.code, one.out.contains("1 address on 3 nodes")), (0, true), "{one:?}");
    assert!(desk.run(&["status", "lb", "web"]).out.contains("2 addresses on 3 nodes"));
    let none = desk.run(&["status", "lb", "192.168.50.7"]);
    assert_eq!(
        (none.code, none.error.contains("they know 192.168.50.200 (default/web)")),
        (1, true),
        "{none:?}"
    );
    // One machine more on the LAN has an address of the pool.
    desk.lan.with(SECOND, |m| {
        let own = &mut m.balancers.report.as_mut().unwrap().addresses[1];
        (own.conflict, own.interfaces[0].state) = (Some("02:99:00:00:00:01".into()), LbState::Conflict);
    });
    let json = desk.run(&["status", "lb", "--format", "json"]);
    let value: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((json.code, &value["healthy"], &value["format_version"]), (1, &false.into(), &1.into()));
    assert_eq!(value["addresses"][1]["conflict"], "02:99:00:00:00:01");
    // A node that is away: the others say what it had.
    desk.lan.with(FIRST, |m| m.fault.down = true);
    let away = desk.run(&["status", "lb", "--format", "json"]);
    let value: Value = serde_json::from_str(&away.out).unwrap();
    assert_eq!((away.code, &value["addresses"][0]["state"]), (1, &"unknown".into()), "{away:?}");
    assert!(value["nodes"][0]["error"]["message"].is_string());
    desk.lan.unlocked();
}

#[test]
fn the_status_of_the_nodes_names_addresses_in_trouble() {
    let desk = announced();
    let quiet = desk.run(&["status"]);
    desk.lan.with(FIRST, |m| {
        let own = &mut m.balancers.report.as_mut().unwrap().addresses[0];
        own.conflict = Some("02:99:00:00:00:01".into());
    });
    let asked = || desk.lan.with(FIRST, |m| m.log.iter().filter(|(_, name)| name == "LoadBalancers").count());
    assert!(
        !quiet.out.contains("load-balancer") && asked() == 0,
        "nobody is told to announce: {}",
        quiet.out
    );
    desk.lan.with(FIRST, |m| {
        let mut spec = m.spec().unwrap();
        spec.speaker = Some(SpeakerSpec::default());
        let file = m.objects.get_mut(&Key::File(ours::NODE_SPEC.into())).unwrap();
        let Spec::File(file) = &mut file.spec else { panic!("{file:?}") };
        file.content = Content::Text(serde_json::to_string(&spec).unwrap());
    });
    let status = desk.run(&["status"]);
    let expected =
        "warning: load-balancer address 192.168.50.200: another machine with the MAC 02:99:00:00:00:01";
    assert!(status.out.contains(expected), "{}", status.out);
    assert_eq!(asked(), 1);
}

#[test]
fn a_watch_shows_changes_and_ends_well() {
    let desk = announced();
    let file = desk.path("lb.json");
    let shows = |owner: &str| {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        value["addresses"][0]["owner"] == owner
    };
    let answer =
        desk.run_and(&["status", "lb", "--watch", "--format", "json", "--json-into", &file], |signals| {
            wait_until("the first block", PATIENCE, || shows("node1"));
            desk.lan.announce(&[("192.168.50.200", "node3"), OWNERS[1]]);
            wait_until("the address is seen to move", PATIENCE, || shows("node3"));
            signals.cancel.store(true, std::sync::atomic::Ordering::SeqCst);
        });
    assert_eq!(answer.code, 0, "{answer:?}");
    // A line for each change, and none without one. The nodes say so one after another.
    let owners: Vec<String> = answer
        .out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["addresses"].to_string())
        .collect();
    assert!(owners.first().unwrap().contains("node1") && owners.last().unwrap().contains("node3"));
    let mut distinct = owners.clone();
    distinct.dedup();
    assert_eq!(owners, distinct);
}

#[test]
fn a_node_is_cordoned_and_may_have_addresses_again() {
    let desk = announced();
    let done = desk.run(&["cordon", "node1"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(
        done.out,
        "192.168.50.200 (default/web): node1 -> node2\n\
         node1 is cordoned: it has no load-balancer addresses. Its pods stay.\n"
    );
    let again = desk.run(&["cordon", "node1", "--format", "json"]);
    let value: Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!((again.code, &value["changed"], &value["moved"]), (0, &false.into(), &serde_json::json!([])));
    // Whoever looks or applies hears of it.
    for words in [&["plan"][..], &["status"], &["status", "lb"], &["apply", "--yes"]] {
        let said = desk.run(&[&["--format", "markdown"], words].concat());
        assert_eq!(said.code, 0, "{said:?}");
        assert!(said.out.contains("node1 is cordoned"), "{words:?}: {}", said.out);
    }
    let lifted = desk.run(&["uncordon", "node1"]);
    assert_eq!((lifted.code, lifted.out.contains("node1 is no longer cordoned")), (0, true), "{lifted:?}");
    assert_eq!(desk.run(&["uncordon", "node1"]).out, "node1 was not cordoned.\n");
    assert!(!desk.run(&["plan"]).out.contains("cordoned"));
    let unknown = desk.run(&["cordon", "node7"]);
    assert_eq!((unknown.code, unknown.error.contains("node1, node2, node3")), (1, true), "{unknown:?}");
    assert_eq!(desk.run(&["cordon", "node1", "--nodes", "node1"]).code, 1);
    desk.lan.with(FIRST, |m| m.fault.down = true);
    let away = desk.run(&["cordon", "node1"]);
    assert_eq!((away.code, away.error.contains("is the node switched on")), (1, true), "{away:?}");
    desk.lan.with(FIRST, |m| m.fault.down = false);
    // The last node that could have them: nobody does.
    assert_eq!(desk.run(&["cordon", "node2"]).code, 0);
    assert_eq!(desk.run(&["cordon", "node3"]).code, 0);
    let last = desk.run(&["cordon", "node1"]);
    assert!(last.out.contains("192.168.50.200 (default/web): node1 -> nobody"), "{last:?}");
    desk.lan.unlocked();
}
