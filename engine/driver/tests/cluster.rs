//! The whole dialogue with in-process nodes.
#![cfg(test)]

mod fake;

use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{Evil, Lan, Laptop, Machine, THREE, Trick, cluster};
use homelab_driver::{Farewell, Goal, NodeError, Outcome};
use homelab_model::service::Protocol;
use homelab_model::{Content, Key, Mtu, ServiceReport, Spec, TraceOutcome, TracePacket, TraceReport, ours};
use homelab_protocol::{PROTOCOL, Request, Response};

#[test]
fn apply_then_plan_is_empty_then_destroy_leaves_nothing() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    let plan = laptop.plan(&home);
    assert_eq!((plan.changed_nodes(), plan.failed_nodes()), (3, 0));
    assert!(laptop.apply(&home).succeeded());
    let plan = laptop.plan(&home);
    assert!(plan.is_empty(), "{plan:?}");
    let again = laptop.apply(&home);
    assert!(again.nodes.iter().all(|n| matches!(n.outcome, Outcome::Unchanged)));
    // Once by plan and once by apply; with the binary in place nothing is sent any more. A confirmation has a session
    // of its own.
    laptop.lan.with("192.168.50.11", |m| assert_eq!((m.uploads, m.sessions), (2, 5)));
    assert!(laptop.destroy(&home).succeeded());
    for (_, address) in THREE {
        laptop.lan.with(address, |m| {
            assert!(m.objects.is_empty(), "{:?}", m.objects);
            assert_eq!(m.sysctls["net.ipv4.ip_forward"], "0");
        });
    }
}

#[test]
fn a_node_that_is_down_fails_alone() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    laptop.lan.with("192.168.50.11", |m| m.fault.down = true);
    let report = laptop.apply(&home);
    assert!(!report.succeeded());
    assert!(matches!(report.nodes[0].outcome, Outcome::Unplanned(NodeError::Transport(_))));
    assert!(matches!(report.nodes[1].outcome, Outcome::Changed(_)));
    assert!(matches!(report.nodes[2].outcome, Outcome::Changed(_)));
    // Its range was kept free, so that the others need no change when it comes.
    laptop.lan.with("192.168.50.11", |m| m.fault.down = false);
    let report = laptop.apply(&home);
    assert!(report.succeeded());
    assert!(matches!(report.nodes[1].outcome, Outcome::Unchanged), "{report:?}");
}

#[test]
fn the_first_failure_stops_the_roll_out() {
    let laptop = Laptop::new(Lan::three());
    laptop.lan.with("192.168.50.11", |m| m.fault.fail_at = Some(5));
    let report = laptop.apply(&cluster(&THREE));
    let Outcome::RolledBack { error: Some(error), left, .. } = &report.nodes[0].outcome else {
        panic!("{report:?}")
    };
    assert!(left.is_empty());
    assert!(error.to_string().contains("out of luck; the changes made before it were undone"), "{error}");
    assert!(matches!(report.nodes[1].outcome, Outcome::NotStarted));
    laptop.lan.with("192.168.50.11", |m| assert!(m.objects.is_empty()));
    laptop.lan.with("192.168.50.12", |m| assert!(m.objects.is_empty()));
}

#[test]
fn changes_that_have_no_effect_are_noticed() {
    let laptop = Laptop::new(Lan::three());
    laptop.lan.with("192.168.50.11", |m| m.fault.lazy = true);
    let report = laptop.apply(&cluster(&THREE));
    let Outcome::RolledBack { error: Some(error), .. } = &report.nodes[0].outcome else {
        panic!("{report:?}")
    };
    assert!(matches!(&**error, NodeError::Unsettled(left) if !left.is_empty()), "{error}");
}

#[test]
fn noise_before_the_first_message_is_skipped_and_garbage_is_an_error() {
    let laptop = Laptop::new(Lan::three());
    laptop.lan.with("192.168.50.11", |m| m.fault.noise = b"Welcome!\nno newline at the end".to_vec());
    laptop.lan.with("192.168.50.12", |m| m.fault.garbage = Some(b"Segmentation fault\n".to_vec()));
    laptop.lan.with("192.168.50.13", |m| m.fault.noise = vec![b'x'; 100 << 10]);
    let plan = laptop.plan(&cluster(&THREE));
    assert!(plan.nodes[0].outcome.is_ok());
    for node in &plan.nodes[1..] {
        let error = node.outcome.as_ref().unwrap_err().to_string();
        assert!(error.contains("not a homelab message"), "{error}");
    }
}

#[test]
fn another_protocol_version_is_named() {
    let laptop = Laptop::new(Lan::three());
    laptop.lan.with("192.168.50.11", |m| m.fault.protocol = Some(9));
    let plan = laptop.plan(&cluster(&THREE));
    let error = plan.nodes[0].outcome.as_ref().unwrap_err().to_string();
    assert!(
        error.contains("version 9")
            && error.contains("0.0.9")
            && error.contains(&format!("version {PROTOCOL}")),
        "{error}"
    );
}

#[test]
fn a_tampered_binary_is_replaced_by_a_copy_of_ours() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    assert!(laptop.apply(&home).succeeded());
    laptop.lan.with("192.168.50.12", |m| {
        m.fault.tampered = true;
        m.uploads = 0;
    });
    let plan = laptop.plan(&home);
    assert_eq!(plan.failed_nodes(), 0, "{plan:?}");
    laptop.lan.with("192.168.50.12", |m| assert_eq!(m.uploads, 1));
}

#[test]
fn a_session_that_died_meanwhile_is_opened_again() {
    let laptop = Laptop::new(Lan::three());
    laptop.lan.with("192.168.50.12", |m| m.fault.drop_once = true);
    assert!(laptop.apply(&cluster(&THREE)).succeeded());
}

#[test]
fn the_user_can_stop() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    let engine = laptop.engine();
    let prepared = engine.prepare(&home, Goal::Desired, &[]).unwrap();
    laptop.cancel.store(true, Ordering::Relaxed);
    let report = engine.apply(prepared).unwrap();
    assert!(report.nodes.iter().all(|n| matches!(n.outcome, Outcome::NotStarted)));
}

#[test]
fn only_the_chosen_nodes_are_changed() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    let engine = laptop.engine();
    let prepared = engine.prepare(&home, Goal::Desired, &["node2".to_owned()]).unwrap();
    assert_eq!(prepared.plan.nodes.len(), 1);
    assert!(engine.apply(prepared).unwrap().succeeded());
    laptop.lan.with("192.168.50.11", |m| assert!(m.objects.is_empty()));
    laptop.lan.with("192.168.50.12", |m| {
        assert_eq!(m.spec().unwrap().pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
    });
}

#[test]
fn a_node_that_left_the_file_is_recognised_and_cleaned() {
    let laptop = Laptop::new(Lan::three());
    assert!(laptop.apply(&cluster(&THREE)).succeeded());
    let home = cluster(&THREE[..2]);
    let plan = laptop.plan(&home);
    assert_eq!(plan.departed.len(), 1);
    let gone = &plan.departed[0];
    assert_eq!(gone.name.as_deref(), Some("node3"));
    assert_eq!(gone.known_to, ["node1", "node2"]);
    assert!(laptop.apply(&home).succeeded());
    assert!(matches!(laptop.engine().farewell(&home, gone), Farewell::Cleaned(_)));
    laptop.lan.with("192.168.50.13", |m| assert!(m.objects.is_empty()));
    assert!(laptop.plan(&home).departed.is_empty());
    assert!(matches!(laptop.engine().farewell(&home, gone), Farewell::Clean));
}

#[test]
fn a_departed_node_is_known_by_kernel_entries_alone_and_another_machine_is_spared() {
    let laptop = Laptop::new(Lan::three());
    assert!(laptop.apply(&cluster(&THREE)).succeeded());
    for address in ["192.168.50.11", "192.168.50.12"] {
        laptop.lan.with(address, |m| drop(m.objects.remove(&Key::File(ours::NODE_SPEC.into()))));
    }
    let home = cluster(&THREE[..2]);
    let plan = laptop.plan(&home);
    assert_eq!(plan.departed.len(), 1);
    assert_eq!(plan.departed[0].pod_cidrs, ["10.244.2.0/24".parse().unwrap()]);
    // The machine at that address is a node of the file by now, under another address there.
    laptop.lan.with("192.168.50.13", |m| m.address = "192.168.50.77".parse().unwrap());
    laptop.lan.with("192.168.50.13", |m| {
        let mut spec = m.spec().unwrap();
        spec.address = "192.168.50.77".parse().unwrap();
        let objects = homelab_desired::desired(&spec);
        m.objects = objects.into_iter().map(|o| (o.spec.key(), o)).collect();
    });
    let farewell = laptop.engine().farewell(&home, &plan.departed[0]);
    assert!(matches!(farewell, Farewell::Failed(NodeError::OtherMachine(_))), "{farewell:?}");
}

#[test]
fn the_mtu_is_that_of_the_smallest_lan_link_and_is_remembered_for_a_node_that_is_down() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    laptop.lan.with("192.168.50.13", |m| m.mtu = 1400);
    assert!(laptop.apply(&home).succeeded());
    laptop.lan.with("192.168.50.11", |m| assert_eq!(m.spec().unwrap().vtep.mtu, 1350));
    laptop.lan.with("192.168.50.13", |m| m.fault.down = true);
    let plan = laptop.plan(&home);
    assert!(plan.is_empty(), "{plan:?}");
    let mut fixed = home.clone();
    fixed.network.vxlan.mtu = Mtu::Bytes(1450);
    laptop.lan.with("192.168.50.13", |m| m.fault.down = false);
    let plan = laptop.plan(&fixed);
    assert!(plan.warnings.iter().any(|w| w.contains("too large for node3")), "{:?}", plan.warnings);
}

#[test]
fn foreign_state_blocks_only_its_node() {
    let laptop = Laptop::new(Lan::three());
    // An unrelated machine answers at node2's address.
    laptop.lan.with("192.168.50.12", |m| m.address = "192.168.50.99".parse().unwrap());
    let plan = laptop.plan(&cluster(&THREE));
    assert!(matches!(&plan.nodes[1].outcome, Err(NodeError::Blocked(p)) if p.len() == 1), "{plan:?}");
    assert_eq!(plan.failed_nodes(), 1);
}

#[test]
fn a_directory_in_the_place_of_a_file_of_ours_blocks_and_survives_a_destroy() {
    let laptop = Laptop::new(Lan::three());
    laptop.apply(&cluster(&THREE));
    let spoil = |m: &mut Machine| {
        let file = m.objects.get_mut(&Key::File(ours::SYSCTL_FILE.to_owned())).unwrap();
        if let Spec::File(file) = &mut file.spec {
            file.content = Content::Opaque("directory".to_owned());
        }
    };
    laptop.lan.with("192.168.50.12", spoil);
    let plan = laptop.plan(&cluster(&THREE));
    let Err(NodeError::Blocked(problems)) = &plan.nodes[1].outcome else { panic!("{plan:?}") };
    assert!(problems[0].message.contains(ours::SYSCTL_FILE), "{problems:?}");
    assert!(laptop.destroy(&cluster(&THREE)).succeeded());
    let left = laptop.lan.with("192.168.50.12", |m| m.objects.keys().cloned().collect::<Vec<_>>());
    assert_eq!(left, [Key::File(ours::SYSCTL_FILE.to_owned())]);
}

#[test]
fn an_old_kernel_gets_no_checksum_offload() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    laptop.lan.with("192.168.50.12", |m| m.kernel = "4.18.0-372.el8".into());
    assert!(laptop.apply(&home).succeeded());
    laptop.lan.with("192.168.50.11", |m| assert!(m.spec().unwrap().vtep.checksum_offload));
    laptop.lan.with("192.168.50.12", |m| assert!(!m.spec().unwrap().vtep.checksum_offload));
}

#[test]
fn a_fourth_node_changes_no_range() {
    let laptop = Laptop::new(Lan::three());
    assert!(laptop.apply(&cluster(&THREE)).succeeded());
    laptop.lan.add(Machine::new("node0", "192.168.50.10"));
    let mut nodes = vec![("node0", "192.168.50.10")];
    nodes.extend(THREE);
    assert!(laptop.apply(&cluster(&nodes)).succeeded());
    for (third, address) in [(3, "192.168.50.10"), (0, "192.168.50.11"), (2, "192.168.50.13")] {
        let range = format!("10.244.{third}.0/24").parse().unwrap();
        laptop.lan.with(address, |m| assert_eq!(m.spec().unwrap().pod_cidrs, [range]));
    }
}

#[test]
fn directories_that_only_the_node_knows_are_looked_at_too() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    let stray = homelab_model::File {
        path: format!("/srv/cni/net.d/{}", ours::CONFLIST),
        mode: 0o600,
        owner: "0:0".into(),
        content: homelab_model::Content::Text("{}\n".into()),
    };
    let spec = homelab_model::Spec::File(stray);
    laptop.lan.with("192.168.50.12", |m| {
        m.runtimes.push(homelab_model::CniRuntime {
            name: "containerd".into(),
            bin_dirs: vec!["/srv/cni/bin".into()],
            conf_dir: "/srv/cni/net.d".into(),
        });
        m.objects.insert(spec.key(), homelab_model::NodeObject { module: homelab_model::Module::Cni, spec });
    });
    let plan = laptop.plan(&home);
    let changes = &plan.nodes[1].outcome.as_ref().unwrap().changes;
    let conflist = changes.iter().find(|c| c.object.contains("/srv/cni/net.d")).unwrap();
    assert_eq!(conflist.action, homelab_model::Action::Update, "{conflist:?}");
    assert!(laptop.apply(&home).succeeded());
    assert!(laptop.plan(&home).is_empty());
    // The runtime is gone by now: what we left there is known from the node's own record.
    laptop.lan.with("192.168.50.12", |m| m.runtimes.clear());
    assert_eq!(laptop.plan(&home).summary().delete, 2);
    assert!(laptop.destroy(&home).succeeded());
    laptop.lan.with("192.168.50.12", |m| assert!(m.objects.is_empty(), "{:?}", m.objects));
}

fn alias(laptop: &Laptop, address: &str, mac: Option<&str>) {
    laptop.lan.with(address, |m| {
        let key = Key::Link("homelab.1".into());
        if let Some(homelab_model::Spec::Link(link)) = m.objects.get_mut(&key).map(|o| &mut o.spec) {
            link.alias.clear();
            if let Some(mac) = mac {
                mac.clone_into(&mut link.mac);
            }
        }
    });
}

#[test]
fn a_link_that_lost_its_alias_is_ours_and_a_foreign_one_is_not() {
    let laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    assert!(laptop.apply(&home).succeeded());
    alias(&laptop, "192.168.50.11", None);
    let plan = laptop.plan(&home);
    let changes = &plan.nodes[0].outcome.as_ref().unwrap().changes;
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(changes[0].object, "link homelab.1");
    assert!(laptop.apply(&home).succeeded());
    // Under our name, and not from us.
    alias(&laptop, "192.168.50.11", Some("0a:00:00:00:00:01"));
    let plan = laptop.plan(&home);
    assert!(matches!(&plan.nodes[0].outcome, Err(NodeError::Blocked(_))), "{plan:?}");
    assert!(laptop.destroy(&home).succeeded());
    laptop.lan.with("192.168.50.11", |m| assert!(m.objects.contains_key(&Key::Link("homelab.1".into()))));
}

#[test]
fn services_and_traces_are_asked_of_nodes_and_a_bad_answer_is_that_nodes_alone() {
    let mut laptop = Laptop::new(Lan::three());
    let home = cluster(&THREE);
    assert!(laptop.apply(&home).succeeded());
    let report = ServiceReport {
        name: "default/web".into(),
        told: None,
        frontends: Vec::new(),
        absent: Vec::new(),
        missing: vec!["x".into()],
        extra: Vec::new(),
    };
    laptop.lan.with("192.168.50.11", |m| m.services = vec![report.clone()]);
    let lie = |r: &Request| {
        let wrong = || Trick::Say(vec![Response::Reached { reached: vec![true] }]);
        matches!(r, Request::Services | Request::Trace(_)).then(wrong)
    };
    laptop.lan.with("192.168.50.12", |m| m.fault.evil = Some(Evil(lie)));
    let silent = |r: &Request| matches!(r, Request::Services).then_some(Trick::Silence);
    laptop.lan.with("192.168.50.13", |m| m.fault.evil = Some(Evil(silent)));
    let prepared = laptop.prepare(&home, Goal::Desired);
    let patience = std::mem::replace(&mut laptop.options.answer, Duration::from_millis(500));
    let said = laptop.engine().services(&prepared);
    laptop.options.answer = patience;
    let names: Vec<&str> = said.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["node1", "node2", "node3"]);
    assert!(matches!(&said[0].1, Ok(services) if *services == [report]), "{said:?}");
    assert!(matches!(said[1].1, Err(NodeError::OutOfTurn)), "{said:?}");
    assert!(matches!(said[2].1, Err(NodeError::Broken { .. })), "{said:?}");
    prepared.close(3);

    let packet = TracePacket {
        source: "192.168.50.9".parse().unwrap(),
        destination: "192.168.50.200".parse().unwrap(),
        protocol: Protocol::Tcp,
        port: 80,
    };
    let traced = TraceReport {
        service: None,
        outcome: TraceOutcome::Untouched,
        remembered: None,
        steps: Vec::new(),
        warnings: Vec::new(),
    };
    laptop.lan.with("192.168.50.11", |m| m.traces.insert(packet.destination, traced.clone()));
    let prepared = laptop.prepare(&home, Goal::Desired);
    let said = laptop.engine().trace(&prepared, &packet, &[]);
    assert!(matches!(&said[0].1, Ok(answer) if *answer == traced), "{said:?}");
    assert!(matches!(said[1].1, Err(NodeError::OutOfTurn)), "{said:?}");
    assert!(matches!(&said[2].1, Err(NodeError::Failed(_))), "{said:?}");
    let one = laptop.engine().trace(&prepared, &packet, &["node1".to_owned()]);
    assert!(matches!(&one[..], [(name, Ok(_))] if name == "node1"), "{one:?}");
    prepared.close(3);
    assert!(laptop.plan(&home).is_empty(), "looking changes nothing");
    // A node that cannot be reached is none of those that answer.
    laptop.lan.with("192.168.50.11", |m| m.fault.down = true);
    let prepared = laptop.prepare(&home, Goal::Desired);
    let said = laptop.engine().trace(&prepared, &packet, &["node1".to_owned()]);
    assert!(said.is_empty(), "{said:?}");
}
