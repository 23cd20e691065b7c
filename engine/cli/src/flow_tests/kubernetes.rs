//! The Kubernetes API's section of plans and reports.

use homelab_model::{
    ApiError, ApiKind, ApiNode, ApiObject, KubernetesAccess, KubernetesSettings, Object, ours,
};

use super::*;

fn desk() -> Desk {
    let mut desk = Desk::new();
    desk.cluster.kubernetes =
        Some(KubernetesSettings::new(KubernetesAccess::Kubeconfig { path: None, context: None }));
    let node = |n: &homelab_model::Node| ApiNode { name: n.name.clone(), ..ApiNode::default() };
    let nodes = desk.cluster.nodes.iter().map(node).collect();
    desk.api.with(|api| api.nodes = nodes);
    desk
}

#[test]
fn the_api_is_a_section_of_plan_and_report() {
    let desk = desk();
    let plan = desk.run(&["plan", "--detailed-exitcode"]);
    assert_eq!(plan.code, 2, "{plan:?}");
    for words in [
        "kubernetes (https://192.168.50.11:6443)",
        "+ Namespace homelab-system",
        "get, list, watch services",
        "create serviceaccounts/token named homelab-node1",
        "+ ServiceAccount homelab-system/homelab-node1",
        "homelab-system/homelab-node1: made at this apply",
        "to create in the Kubernetes API.",
    ] {
        assert!(plan.out.contains(words), "{words}: {}", plan.out);
    }
    let result = desk.path("result.json");
    let apply = desk.run(&["apply", "--yes", "--allow-disruptive", "--json-into", &result]);
    assert_eq!(apply.code, 0, "{apply:?}");
    assert!(apply.out.contains("kubernetes"), "{}", apply.out);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&result).unwrap()).unwrap();
    assert_eq!(report["kubernetes"]["outcome"], "changed", "{report}");
    assert_eq!(desk.run(&["plan", "--detailed-exitcode"]).code, 0);
    let destroyed = desk.run(&["destroy", "--yes"]);
    assert_eq!((destroyed.code, desk.api.names()), (0, Vec::new()), "{destroyed:?}");
}

#[test]
fn a_widened_role_is_shown_in_all_forms_and_a_plan_file_is_bound_to_it() {
    let desk = desk();
    assert_eq!(desk.run(&["apply", "--yes", "--allow-disruptive"]).code, 0);
    let file = desk.path("plan.json");
    let wide = serde_json::json!([{ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get"] }]);
    let widen = |rules: &Value| {
        desk.api.with(|api| {
            let is = |o: &&mut ApiObject| o.kind == ApiKind::Role && o.name == "homelab:agent";
            api.objects.values_mut().find(is).unwrap().fields.insert("rules".into(), rules.clone());
        });
    };
    widen(&wide);
    let human = desk.run(&["plan"]);
    assert!(human.out.contains("~ Role homelab-system/homelab:agent"), "{}", human.out);
    assert!(human.out.contains("- get secrets"), "{}", human.out);
    let markdown = desk.run(&["plan", "--format", "markdown"]);
    assert!(markdown.out.contains("! Role homelab-system/homelab:agent"), "{}", markdown.out);
    let json = desk.run(&["plan", "--format", "json", "--out", &file]);
    let value: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(
        (&value["format_version"], &value["kubernetes"]["changes"][0]["action"]),
        (&1.into(), &"update".into())
    );
    widen(&serde_json::json!([]));
    let stale = desk.run(&["apply", "--yes", "--allow-disruptive", &file]);
    assert!(stale.code == 1 && stale.error.contains("Kubernetes API"), "{stale:?}");
    widen(&wide);
    assert_eq!(desk.run(&["apply", "--yes", "--allow-disruptive", &file]).code, 0);
    assert_eq!(desk.run(&["plan", "--detailed-exitcode"]).code, 0);
}

#[test]
fn an_api_that_does_not_answer_is_told_with_what_to_do() {
    let desk = desk();
    assert_eq!(desk.run(&["apply", "--yes", "--allow-disruptive"]).code, 0);
    desk.api.with(|api| {
        api.down = Some(ApiError::Unreachable { server: "https://x".into(), reason: "refused".into() });
    });
    for words in [&["plan"][..], &["plan", "--format", "markdown"], &["apply", "--yes", "--allow-disruptive"]]
    {
        let answer = desk.run(words);
        assert_eq!(answer.code, 1, "{answer:?}");
        assert!(answer.out.contains("https://x cannot be reached"), "{answer:?}");
        assert!(answer.out.contains("kubectl get --raw /readyz"), "{answer:?}");
    }
    let json: Value = serde_json::from_str(&desk.run(&["plan", "--format", "json"]).out).unwrap();
    assert!(json["kubernetes"]["error"]["message"].is_string(), "{json}");
    // Commands that have nothing to do with it do not ask it.
    assert_eq!(desk.run(&["drift", "--detailed-exitcode"]).code, 0);
}

#[test]
fn what_is_somebody_elses_is_named() {
    let desk = desk();
    let object = ApiObject::new(ApiKind::ClusterRole, "", "homelab:agent", "other", Value::Null);
    desk.api.with(|api| api.put(object.clone()));
    let answer = desk.run(&["plan"]);
    assert_eq!(answer.code, 1, "{answer:?}");
    assert!(
        answer.out.contains("not made by this cluster's homelab: ClusterRole homelab:agent"),
        "{}",
        answer.out
    );
    assert_eq!(object.key().to_string(), "ClusterRole homelab:agent");
    assert_eq!(ours::KUBERNETES_NAMESPACE, "homelab-system");
}
