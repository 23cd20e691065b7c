//! What homelab keeps in the Kubernetes API: a namespace, one ServiceAccount per node, and the least that their roles
//! can be.
//!
//! Finalizers and status of Services are written by PATCH on `services/status`, as `k8s.io/cloud-provider` does: no
//! role writes Services themselves, or reads Secrets.

use std::collections::BTreeMap;

use homelab_model::kubernetes::service_account;
use homelab_model::{ApiKind, ApiObject, ours};
use serde_json::{Value, json};

/// Name of what all agents share. Accounts of nodes cannot have it, whatever the node is called.
pub const AGENT: &str = "homelab:agent";
/// Name of the Lease that the active controller holds.
pub const CONTROLLER_LEASE: &str = "homelab-controller";
/// Name of the ConfigMap in which it writes down addresses before it gives them.
pub const LEDGER: &str = "homelab-addresses";

/// All objects for these nodes of the homelab cluster `cluster`. `uids` says by account name which ServiceAccounts
/// stay; the others are made, or made anew.
pub fn api_objects(cluster: &str, nodes: &[&str], uids: &BTreeMap<String, String>) -> Vec<ApiObject> {
    let subjects: Vec<Value> = nodes.iter().map(|node| subject(node)).collect();
    let object =
        |kind, name: &str, fields| ApiObject::new(kind, ours::KUBERNETES_NAMESPACE, name, cluster, fields);
    let mut objects = vec![
        object(ApiKind::Namespace, ours::KUBERNETES_NAMESPACE, json!({})),
        object(ApiKind::ClusterRole, AGENT, json!({ "rules": everywhere() })),
        object(ApiKind::Role, AGENT, json!({ "rules": controller() })),
        object(ApiKind::ClusterRoleBinding, AGENT, binding("ClusterRole", AGENT, &subjects)),
        object(ApiKind::RoleBinding, AGENT, binding("Role", AGENT, &subjects)),
    ];
    for node in nodes {
        let name = service_account(node);
        let account =
            object(ApiKind::ServiceAccount, &name, json!({ "automountServiceAccountToken": false }));
        let one = [subject(node)];
        objects.extend([
            ApiObject { uid: uids.get(&name).cloned(), ..account },
            object(ApiKind::ClusterRole, &name, json!({ "rules": own_node(node) })),
            object(ApiKind::Role, &name, json!({ "rules": own_token(&name) })),
            object(ApiKind::ClusterRoleBinding, &name, binding("ClusterRole", &name, &one)),
            object(ApiKind::RoleBinding, &name, binding("Role", &name, &one)),
        ]);
    }
    objects
}

/// Whether an object of ours is that of one node, and of which.
pub fn node_of(object: &ApiObject) -> Option<&str> {
    object.name.strip_prefix("homelab-").filter(|_| object.kind != ApiKind::Namespace)
}

fn subject(node: &str) -> Value {
    let namespace = ours::KUBERNETES_NAMESPACE;
    json!({ "kind": "ServiceAccount", "name": service_account(node), "namespace": namespace })
}

fn binding(kind: &str, role: &str, subjects: &[Value]) -> Value {
    let group = "rbac.authorization.k8s.io";
    json!({ "roleRef": { "apiGroup": group, "kind": kind, "name": role }, "subjects": subjects })
}

/// What an agent reads and writes in the whole cluster.
fn everywhere() -> Value {
    let metallb =
        ["bfdprofiles", "bgpadvertisements", "bgppeers", "communities", "ipaddresspools", "l2advertisements"];
    json!([
        // `get`: whether a Service that is no longer listed is really gone.
        { "apiGroups": [""], "resources": ["services"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
        // Labels of namespaces are asked for where a pool of MetalLB's is for some of them.
        { "apiGroups": [""], "resources": ["namespaces"], "verbs": ["list"] },
        { "apiGroups": ["metallb.io"], "resources": metallb, "verbs": ["list"] },
        { "apiGroups": [""], "resources": ["services/status"], "verbs": ["patch"] },
        { "apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"] },
    ])
}

/// The controller's Lease and its ledger of addresses. The API knows no name of what is being created.
fn controller() -> Value {
    let (lease, map) = (["coordination.k8s.io"], [""]);
    json!([
        { "apiGroups": lease, "resources": ["leases"], "verbs": ["create"] },
        { "apiGroups": lease, "resources": ["leases"], "resourceNames": [CONTROLLER_LEASE], "verbs": ["get", "update"] },
        { "apiGroups": map, "resources": ["configmaps"], "verbs": ["create"] },
        { "apiGroups": map, "resources": ["configmaps"], "resourceNames": [LEDGER], "verbs": ["get", "patch"] },
    ])
}

/// Conditions and annotations of a node's own Node: both go through its status, as flannel writes them.
fn own_node(node: &str) -> Value {
    json!([
        { "apiGroups": [""], "resources": ["nodes/status"], "resourceNames": [node], "verbs": ["patch"] },
    ])
}

/// Renewals of a node's own token.
fn own_token(account: &str) -> Value {
    json!([
        { "apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [account], "verbs": ["create"] },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_writes_services_or_reads_secrets() {
        let objects = api_objects("home", &["node1", "node2"], &BTreeMap::new());
        assert_eq!(objects.len(), 5 + 2 * 5);
        let rules = objects.iter().filter_map(|o| o.fields.get("rules")?.as_array()).flatten();
        for rule in rules {
            let has = |field: &str, word: &str| rule[field].as_array().unwrap().iter().any(|w| w == word);
            assert!(!has("verbs", "*") && !has("resources", "*") && !has("apiGroups", "*"), "{rule}");
            assert!(!has("resources", "secrets") && !has("resources", "pods"), "{rule}");
            let writes = ["create", "update", "patch", "delete"].iter().any(|verb| has("verbs", verb));
            assert!(!(writes && has("resources", "services")), "{rule}");
            // What is written of a node or an account is that of one node.
            let own = has("resources", "nodes/status") || has("resources", "serviceaccounts/token");
            assert!(!(writes && own) || rule["resourceNames"].as_array().unwrap().len() == 1, "{rule}");
        }
    }

    #[test]
    fn objects_of_a_node_are_told_from_shared_ones() {
        let objects =
            api_objects("home", &["agent"], &BTreeMap::from([("homelab-agent".into(), "7".into())]));
        let own: Vec<_> = objects.iter().filter(|o| node_of(o) == Some("agent")).collect();
        assert_eq!(own.len(), 5);
        assert_eq!(own[0].uid.as_deref(), Some("7"));
        assert_eq!(objects.iter().filter(|o| node_of(o).is_none()).count(), 5);
    }
}
