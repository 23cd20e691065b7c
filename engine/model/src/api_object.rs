//! What homelab keeps in the Kubernetes API, as data: the same diff and plan as for nodes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::object::{Change, Impact, Object, diff};
use crate::ours::{CLUSTER_LABEL, MANAGED_BY};
use crate::plan::Action;

/// Kinds of objects that homelab makes, in order of creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ApiKind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` ServiceAccount.
    ServiceAccount,
    /// `rbac.authorization.k8s.io/v1` ClusterRole.
    ClusterRole,
    /// `rbac.authorization.k8s.io/v1` Role.
    Role,
    /// `rbac.authorization.k8s.io/v1` ClusterRoleBinding.
    ClusterRoleBinding,
    /// `rbac.authorization.k8s.io/v1` RoleBinding.
    RoleBinding,
    /// `v1` Service: somebody else's, of which only what homelab's controller wrote into it is ours.
    Service,
}

impl ApiKind {
    /// All that homelab creates.
    pub const ALL: [ApiKind; 6] = [
        ApiKind::Namespace,
        ApiKind::ServiceAccount,
        ApiKind::ClusterRole,
        ApiKind::Role,
        ApiKind::ClusterRoleBinding,
        ApiKind::RoleBinding,
    ];

    /// `kind` of its objects.
    pub fn as_str(self) -> &'static str {
        match self {
            ApiKind::Namespace => "Namespace",
            ApiKind::ServiceAccount => "ServiceAccount",
            ApiKind::ClusterRole => "ClusterRole",
            ApiKind::Role => "Role",
            ApiKind::ClusterRoleBinding => "ClusterRoleBinding",
            ApiKind::RoleBinding => "RoleBinding",
            ApiKind::Service => "Service",
        }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(self) -> &'static str {
        match self {
            ApiKind::Namespace | ApiKind::ServiceAccount | ApiKind::Service => "v1",
            _ => "rbac.authorization.k8s.io/v1",
        }
    }

    /// Whether its objects are in a namespace.
    pub fn namespaced(self) -> bool {
        matches!(self, ApiKind::ServiceAccount | ApiKind::Role | ApiKind::RoleBinding | ApiKind::Service)
    }

    /// The path of all objects, in a namespace if they are in one: `/api/v1/namespaces`.
    pub fn path(self, namespace: &str) -> String {
        let root = if self.api_version() == "v1" { "/api" } else { "/apis" };
        let within = if self.namespaced() { format!("/namespaces/{namespace}") } else { String::new() };
        format!("{root}/{}{within}/{}s", self.api_version(), self.as_str().to_lowercase())
    }

    /// What of its objects homelab says, beside name and labels. What others add elsewhere is theirs.
    fn fields(self) -> &'static [&'static str] {
        match self {
            // What is in a Service is read otherwise: `ApiService`.
            ApiKind::Namespace | ApiKind::Service => &[],
            ApiKind::ServiceAccount => &["automountServiceAccountToken"],
            ApiKind::ClusterRole => &["aggregationRule", "rules"],
            ApiKind::Role => &["rules"],
            ApiKind::ClusterRoleBinding | ApiKind::RoleBinding => &["roleRef", "subjects"],
        }
    }
}

/// Identity of an object: its order is the order of creation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiKey {
    /// Kind.
    pub kind: ApiKind,
    /// Namespace; empty for what is in none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// `ServiceAccount homelab-system/homelab-node1`.
impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        f.write_str(" ")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// An object of the Kubernetes API, as far as homelab has a say in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiObject {
    /// Kind.
    pub kind: ApiKind,
    /// Namespace; empty for what is in none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Of a ServiceAccount `metadata.uid`, to which its tokens are bound. None: a new one, whatever there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The value of [`MANAGED_BY`], if it has that label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
    /// The value of [`CLUSTER_LABEL`], if it has that label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The kind's own fields, as the API writes them.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl ApiObject {
    /// An object of the homelab cluster `cluster`.
    pub fn new(kind: ApiKind, namespace: &str, name: &str, cluster: &str, fields: Value) -> ApiObject {
        let fields = if let Value::Object(fields) = fields { fields } else { Map::new() };
        ApiObject {
            kind,
            namespace: if kind.namespaced() { namespace.to_owned() } else { String::new() },
            name: name.to_owned(),
            uid: None,
            managed_by: Some(MANAGED_BY.1.to_owned()),
            cluster: Some(cluster.to_owned()),
            fields,
        }
    }

    /// Reads an object of this kind as the API gives it; None if it has no name.
    pub fn read(kind: ApiKind, value: &Value) -> Option<ApiObject> {
        let metadata = value.get("metadata")?;
        let text = |from: &Value, key: &str| from.get(key).and_then(Value::as_str).map(str::to_owned);
        let labels = metadata.get("labels").unwrap_or(&Value::Null);
        let said = |name: &&str| value.get(*name).is_some_and(|value| !value.is_null());
        let fields = kind.fields().iter().filter(|name| said(name));
        Some(ApiObject {
            kind,
            namespace: text(metadata, "namespace").filter(|_| kind.namespaced()).unwrap_or_default(),
            name: text(metadata, "name")?,
            uid: text(metadata, "uid").filter(|_| kind == ApiKind::ServiceAccount),
            managed_by: text(labels, MANAGED_BY.0),
            cluster: text(labels, CLUSTER_LABEL),
            fields: fields.map(|name| ((*name).to_owned(), value[*name].clone())).collect(),
        })
    }

    /// The object as it is sent to the API.
    pub fn manifest(&self) -> Value {
        let mut labels = Map::new();
        for (key, value) in [(MANAGED_BY.0, &self.managed_by), (CLUSTER_LABEL, &self.cluster)] {
            labels.extend(value.as_ref().map(|value| (key.to_owned(), json!(value))));
        }
        let mut metadata = json!({ "name": self.name, "labels": labels });
        if !self.namespace.is_empty() {
            metadata["namespace"] = json!(self.namespace);
        }
        let mut manifest = self.fields.clone();
        manifest.insert("apiVersion".to_owned(), json!(self.kind.api_version()));
        manifest.insert("kind".to_owned(), json!(self.kind.as_str()));
        manifest.insert("metadata".to_owned(), metadata);
        Value::Object(manifest)
    }

    /// Whether some homelab made it.
    pub fn is_managed(&self) -> bool {
        self.managed_by.as_deref() == Some(MANAGED_BY.1)
    }

    /// Whether this homelab cluster made it.
    pub fn is_of(&self, cluster: &str) -> bool {
        self.is_managed() && self.cluster.as_deref() == Some(cluster)
    }
}

impl Object for ApiObject {
    type Key = ApiKey;

    fn key(&self) -> ApiKey {
        ApiKey { kind: self.kind, namespace: self.namespace.clone(), name: self.name.clone() }
    }

    fn parent(&self) -> Option<ApiKey> {
        None
    }

    fn updates_in_place(&self, after: &ApiObject) -> bool {
        // The API refuses a change of `roleRef`, and an `aggregationRule` of somebody else's cannot be applied away.
        let same = |name: &str| self.fields.get(name) == after.fields.get(name);
        self.uid == after.uid && same("roleRef") && same("aggregationRule")
    }

    fn impact(change: &Change<ApiObject>) -> (Impact, &'static str) {
        match change {
            Change::Replace { after, .. } if after.kind == ApiKind::ServiceAccount => {
                (Impact::Brief, "the agent goes on with what it knows until it has its new token")
            }
            _ => (Impact::None, ""),
        }
    }
}

/// One change in the Kubernetes API, with what a reader needs to judge it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiChange {
    /// The object as plans name it.
    pub object: String,
    /// What happens to it.
    pub action: Action,
    /// What traffic notices.
    pub impact: Impact,
    /// Why; empty where nothing is noticed.
    pub reason: &'static str,
    /// The change itself.
    pub change: Change<ApiObject>,
}

/// The plan that leads from what the API has of ours to what it should have.
pub fn plan_api(observed: &[ApiObject], desired: &[ApiObject]) -> Vec<ApiChange> {
    diff(observed, desired).into_iter().map(planned).collect()
}

/// A change as a plan shows it.
pub fn planned(change: Change<ApiObject>) -> ApiChange {
    let (impact, reason) = ApiObject::impact(&change);
    let action = match &change {
        Change::Create { .. } => Action::Create,
        Change::Update { .. } => Action::Update,
        Change::Replace { .. } => Action::Replace,
        Change::Delete { .. } => Action::Delete,
    };
    ApiChange { object: change.key().to_string(), action, impact, reason, change }
}

/// A Node of the Kubernetes API, as far as the laptop needs it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ApiNode {
    /// Name.
    pub name: String,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Its addresses of type InternalIP.
    pub addresses: Vec<IpAddr>,
}

impl ApiNode {
    /// Reads a Node as the API gives it; None if it has no name. Ranges and addresses that are none are left out.
    pub fn read(value: &Value) -> Option<ApiNode> {
        let name = value.pointer("/metadata/name")?.as_str()?.to_owned();
        let list = |path: &str| value.pointer(path).and_then(Value::as_array).into_iter().flatten();
        let one = value.pointer("/spec/podCIDR").filter(|_| list("/spec/podCIDRs").next().is_none());
        let pod_cidrs = list("/spec/podCIDRs").chain(one).filter_map(|net| net.as_str()?.parse().ok());
        let internal = |address: &&Value| address["type"] == "InternalIP";
        let addresses = list("/status/addresses").filter(internal);
        let addresses = addresses.filter_map(|address| address["address"].as_str()?.parse().ok());
        Some(ApiNode { name, pod_cidrs: pod_cidrs.collect(), addresses: addresses.collect() })
    }
}

/// A Service of the Kubernetes API, as far as the laptop needs it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ApiService {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Addresses of its status, and those that homelab's controller has noted for it.
    pub addresses: Vec<IpAddr>,
    /// Of these, those in its status that homelab's controller gave it.
    pub given: Vec<IpAddr>,
    /// It has the finalizer by which homelab's controller keeps it until its addresses are withdrawn.
    pub held: bool,
}

impl ApiService {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The change that takes off what homelab's controller wrote; None: there is nothing.
    pub fn release(&self) -> Option<Change<ApiObject>> {
        if !self.held && self.given.is_empty() {
            return None;
        }
        let object = |fields: Value| ApiObject {
            uid: Some(self.uid.clone()),
            managed_by: None,
            cluster: None,
            ..ApiObject::new(ApiKind::Service, &self.namespace, &self.name, "", fields)
        };
        let before = object(json!({ "finalizer": self.held, "loadBalancer": self.given }));
        Some(Change::Update { before, after: object(json!({ "finalizer": false, "loadBalancer": [] })) })
    }
}

/// What the laptop sees in the Kubernetes API.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ApiState {
    /// Objects of the kinds that homelab makes: those with its label, and those with names that it would give.
    pub objects: Vec<ApiObject>,
    /// All Nodes, by name.
    pub nodes: Vec<ApiNode>,
    /// Services that have load-balancer addresses, or that homelab's controller holds.
    pub services: Vec<ApiService>,
}

/// How an API server is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ApiEndpoint {
    /// URLs.
    pub servers: Vec<String>,
    /// Certificates, PEM.
    pub ca: Option<String>,
    /// The name that the server's certificate is to hold; None: the host of the URL.
    pub server_name: Option<String>,
}

/// Why the Kubernetes API cannot be worked with. No secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ApiError {
    /// The kubeconfig, or a file beside it, is of no use.
    #[error("{0}")]
    Config(String),
    /// The program that the kubeconfig names for credentials failed.
    #[error("the credential program {program} of the kubeconfig failed: {reason}")]
    Plugin {
        /// Program.
        program: String,
        /// Why, without what it printed.
        reason: String,
    },
    /// Nobody answers.
    #[error("the Kubernetes API at {server} cannot be reached: {reason}")]
    Unreachable {
        /// URL.
        server: String,
        /// Why.
        reason: String,
    },
    /// The certificate of the server, or ours, is not accepted.
    #[error("no trusted connection to the Kubernetes API at {server}: {reason}")]
    Tls {
        /// URL.
        server: String,
        /// Why.
        reason: String,
    },
    /// The credential is not accepted (401).
    #[error("the Kubernetes API at {server} does not accept our credential")]
    Unauthorized {
        /// URL.
        server: String,
    },
    /// The credential does not suffice (403), or the request is refused for another reason.
    #[error("the Kubernetes API refuses {what}: {message}")]
    Refused {
        /// What was asked for, e.g. `to write ClusterRole homelab-agent`.
        what: String,
        /// HTTP status.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// What it answers makes no sense.
    #[error("the Kubernetes API answers {what} with something else: {reason}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// Objects of our names that somebody else made.
    #[error("these exist in the Kubernetes API and were not made by this cluster's homelab: {}", .0.join(", "))]
    Foreign(Vec<String>),
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn role(rules: Value) -> ApiObject {
        ApiObject::new(ApiKind::ClusterRole, "", "homelab-agent", "home", json!({ "rules": rules }))
    }

    #[test]
    fn what_is_sent_is_what_is_read() {
        let binding = json!({ "roleRef": { "kind": "Role", "name": "a" }, "subjects": [] });
        let binding = ApiObject::new(ApiKind::RoleBinding, "homelab-system", "a", "home", binding);
        for object in [role(json!([{ "verbs": ["list"] }])), binding] {
            let mut sent = object.manifest();
            sent["metadata"]["labels"]["other"] = json!("x");
            sent["metadata"]["uid"] = json!("1");
            assert_eq!(ApiObject::read(object.kind, &sent), Some(object));
        }
        assert_eq!(ApiKind::Role.path("a"), "/apis/rbac.authorization.k8s.io/v1/namespaces/a/roles");
        assert_eq!(ApiKind::Namespace.path("a"), "/api/v1/namespaces");
    }

    #[test]
    fn a_widened_role_is_mended_and_an_account_made_anew() {
        let (good, wide) = (role(json!([{ "verbs": ["list"] }])), role(json!([{ "verbs": ["*"] }])));
        assert!(plan_api(from_ref(&good), from_ref(&good)).is_empty());
        let plan = plan_api(&[wide], from_ref(&good));
        assert_eq!((plan[0].action, plan[0].object.as_str()), (Action::Update, "ClusterRole homelab-agent"));
        let mut aggregated = good.clone();
        aggregated.fields.insert("aggregationRule".into(), json!({}));
        assert_eq!(plan_api(&[aggregated], &[good])[0].action, Action::Replace);
        let wanted =
            ApiObject::new(ApiKind::ServiceAccount, "homelab-system", "homelab-node1", "home", json!({}));
        let held = ApiObject { uid: Some("1".into()), ..wanted.clone() };
        let plan = plan_api(from_ref(&held), &[wanted]);
        assert_eq!((plan[0].action, plan[0].impact), (Action::Replace, Impact::Brief));
        assert!(plan_api(from_ref(&held), from_ref(&held)).is_empty());
    }

    #[test]
    fn nodes_are_read_as_far_as_they_make_sense() {
        let node = json!({
            "metadata": { "name": "node1" },
            "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "nonsense"] },
            "status": { "addresses": [
                { "type": "Hostname", "address": "node1" }, { "type": "InternalIP", "address": "192.168.50.11" },
            ] },
        });
        let node = ApiNode::read(&node).unwrap();
        assert_eq!(node.pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
        assert_eq!(node.addresses, ["192.168.50.11".parse::<IpAddr>().unwrap()]);
        let old = json!({ "metadata": { "name": "a" }, "spec": { "podCIDR": "10.244.2.0/24" } });
        assert_eq!(ApiNode::read(&old).unwrap().pod_cidrs.len(), 1);
        assert_eq!(ApiNode::read(&json!({})), None);
    }
}
