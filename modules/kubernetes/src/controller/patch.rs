//! Writes as data, and the bodies of their requests.
//!
//! Status, finalizers and annotations all go by a merge patch (RFC 7386) of `services/status`, as
//! k8s.io/cloud-provider's PatchService does: the role needs no right to write Services' specs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::watched::Watched;
use crate::events::Said;

/// Annotation in which MetalLB notes the pool.
pub const NOTED_POOL: &str = "metallb.io/ip-allocated-from-pool";
/// Annotation that makes a new version of a Service and says no more.
const FENCE: &str = "homelab/fence";

/// Something that the controller writes, or asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Changes the `data` of the ledger.
    Ledger {
        /// `metadata.resourceVersion` that it must have; None: it must not exist yet.
        version: Option<String>,
        /// Values by key; None: the key goes.
        changes: BTreeMap<String, Option<String>>,
    },
    /// Changes a Service.
    Status(StatusWrite),
    /// Asks the API itself (a read that is no list from a cache) whether a Service with that uid still exists.
    Inquire {
        /// `namespace/name`.
        service: String,
        /// Its uid.
        uid: String,
    },
    /// Says something.
    Event(Said),
}

impl Write {
    /// Whether it changes this Service.
    pub(super) fn is_on(&self, service: &str) -> bool {
        matches!(self, Write::Status(status) if status.service == service)
    }
}

/// A change of a Service by its `status` path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusWrite {
    /// `namespace/name`.
    pub service: String,
    /// `metadata.uid` that it must have.
    pub uid: String,
    /// `metadata.resourceVersion` that it must have.
    pub version: u64,
    /// The addresses of `status.loadBalancer.ingress`; None: as they are.
    pub addresses: Option<Vec<IpAddr>>,
    /// All of `metadata.finalizers`; None: as they are.
    pub finalizers: Option<Vec<String>>,
    /// The pool that is noted, or that none is; None: as it is.
    pub pool: Option<Option<String>>,
    /// Only makes a new version.
    pub fence: bool,
    /// What to say when it is done.
    pub then: Option<Said>,
}

impl StatusWrite {
    pub(super) fn new(name: &str, watched: &Watched, addresses: Option<Vec<IpAddr>>) -> StatusWrite {
        StatusWrite {
            service: name.to_owned(),
            uid: watched.uid.clone(),
            version: watched.version,
            addresses,
            finalizers: None,
            pool: None,
            fence: false,
            then: None,
        }
    }

    /// The merge patch for `services/NAME/status`.
    pub fn patch(&self) -> Value {
        let mut metadata = Map::new();
        metadata.insert("uid".to_owned(), json!(self.uid));
        metadata.insert("resourceVersion".to_owned(), json!(self.version.to_string()));
        if let Some(finalizers) = &self.finalizers {
            metadata.insert("finalizers".to_owned(), json!(finalizers));
        }
        let mut annotations = Map::new();
        if let Some(pool) = &self.pool {
            annotations.insert(NOTED_POOL.to_owned(), json!(pool));
        }
        if self.fence {
            annotations.insert(FENCE.to_owned(), json!(self.version.to_string()));
        }
        if !annotations.is_empty() {
            metadata.insert("annotations".to_owned(), Value::Object(annotations));
        }
        let mut patch = json!({ "metadata": metadata });
        if let Some(addresses) = &self.addresses {
            let ingress: Vec<Value> =
                addresses.iter().map(|ip| json!({ "ip": ip.to_string(), "ipMode": "VIP" })).collect();
            let ingress = if ingress.is_empty() { Value::Null } else { json!(ingress) };
            patch["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        patch
    }
}

impl Write {
    /// The body of [`Write::Ledger`]: a merge patch of the ConfigMap with its `metadata.resourceVersion`, or the whole
    /// ConfigMap, to be created, where there is none yet.
    pub fn ledger_body(
        namespace: &str,
        version: Option<&str>,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Value {
        let mut metadata = json!({ "name": super::LEDGER, "namespace": namespace });
        match version {
            Some(version) => metadata["resourceVersion"] = json!(version),
            None => metadata["labels"] = json!({ "app.kubernetes.io/managed-by": "homelab" }),
        }
        let written = changes.iter().filter(|(_, value)| version.is_some() || value.is_some());
        let data: Map<String, Value> = written.map(|(key, value)| (key.clone(), json!(value))).collect();
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data })
    }
}
