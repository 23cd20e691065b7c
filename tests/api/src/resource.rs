//! Kinds of objects, and their paths.

use crate::Failure;

/// A kind of objects that the server knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// API group; empty for the core.
    pub group: &'static str,
    /// Version of the group.
    pub version: &'static str,
    /// The name in paths, e.g. `services`.
    pub plural: &'static str,
    /// `kind` of its objects.
    pub kind: &'static str,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// Whether `status` is written by a path of its own alone.
    pub status: bool,
    /// What field selectors may ask for besides `metadata.name` and `metadata.namespace`: paths of texts.
    pub fields: &'static [&'static str],
}

/// A resource of the core group, in namespaces and with a status.
const fn core(plural: &'static str, kind: &'static str) -> Resource {
    Resource { group: "", version: "v1", plural, kind, namespaced: true, status: true, fields: &[] }
}

/// A resource of another group, in namespaces and without a status.
const fn grouped(group: &'static str, plural: &'static str, kind: &'static str) -> Resource {
    Resource { group, status: false, ..core(plural, kind) }
}

const RBAC: &str = "rbac.authorization.k8s.io";

impl Resource {
    /// `v1` Namespace. None must exist before there are objects in it.
    pub const NAMESPACES: Resource = Resource { namespaced: false, ..core("namespaces", "Namespace") };
    /// `v1` Node.
    pub const NODES: Resource = Resource { namespaced: false, ..core("nodes", "Node") };
    /// `v1` Service.
    pub const SERVICES: Resource =
        Resource { fields: &["spec.clusterIP", "spec.type"], ..core("services", "Service") };
    /// `v1` ConfigMap.
    pub const CONFIG_MAPS: Resource = Resource { status: false, ..core("configmaps", "ConfigMap") };
    /// `v1` Event.
    pub const CORE_EVENTS: Resource = Resource { status: false, ..core("events", "Event") };
    /// `events.k8s.io/v1` Event.
    pub const EVENTS: Resource = grouped("events.k8s.io", "events", "Event");
    /// `discovery.k8s.io/v1` EndpointSlice.
    pub const ENDPOINT_SLICES: Resource = grouped("discovery.k8s.io", "endpointslices", "EndpointSlice");
    /// `coordination.k8s.io/v1` Lease.
    pub const LEASES: Resource = grouped("coordination.k8s.io", "leases", "Lease");
    /// `networking.k8s.io/v1` ServiceCIDR.
    pub const SERVICE_CIDRS: Resource = Resource {
        namespaced: false,
        status: true,
        ..grouped("networking.k8s.io", "servicecidrs", "ServiceCIDR")
    };

    /// `v1` ServiceAccount; `token` below one of them issues tokens.
    pub const SERVICE_ACCOUNTS: Resource =
        Resource { status: false, ..core("serviceaccounts", "ServiceAccount") };
    /// `rbac.authorization.k8s.io/v1` Role.
    pub const ROLES: Resource = grouped(RBAC, "roles", "Role");
    /// `rbac.authorization.k8s.io/v1` RoleBinding.
    pub const ROLE_BINDINGS: Resource = grouped(RBAC, "rolebindings", "RoleBinding");
    /// `rbac.authorization.k8s.io/v1` ClusterRole.
    pub const CLUSTER_ROLES: Resource =
        Resource { namespaced: false, ..grouped(RBAC, "clusterroles", "ClusterRole") };
    /// `rbac.authorization.k8s.io/v1` ClusterRoleBinding.
    pub const CLUSTER_ROLE_BINDINGS: Resource =
        Resource { namespaced: false, ..grouped(RBAC, "clusterrolebindings", "ClusterRoleBinding") };

    /// All of the above.
    pub const KNOWN: [Resource; 14] = [
        Resource::NAMESPACES,
        Resource::NODES,
        Resource::SERVICES,
        Resource::CONFIG_MAPS,
        Resource::CORE_EVENTS,
        Resource::EVENTS,
        Resource::ENDPOINT_SLICES,
        Resource::LEASES,
        Resource::SERVICE_CIDRS,
        Resource::SERVICE_ACCOUNTS,
        Resource::ROLES,
        Resource::ROLE_BINDINGS,
        Resource::CLUSTER_ROLES,
        Resource::CLUSTER_ROLE_BINDINGS,
    ];

    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// The path of one object, or of all in a namespace, or of all.
    pub fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let namespace = namespace.map(|namespace| format!("/namespaces/{namespace}")).unwrap_or_default();
        let name = name.map(|name| format!("/{name}")).unwrap_or_default();
        format!("{root}/{}{namespace}/{}{name}", self.api_version(), self.plural)
    }
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) resource: Resource,
    /// None: of a cluster-wide resource, or all namespaces.
    pub(crate) namespace: Option<String>,
    /// None: all objects.
    pub(crate) name: Option<String>,
    /// The status alone.
    pub(crate) status: bool,
    /// Tokens of an account.
    pub(crate) token: bool,
}

impl Target {
    /// `/api/v1/…` or `/apis/GROUP/VERSION/…`.
    pub(crate) fn parse(path: &str, known: &[Resource]) -> Result<Target, Failure> {
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (group, version, skip) = match parts[..] {
            ["api", version, ..] => ("", version, 2),
            ["apis", group, version, ..] => (group, version, 3),
            _ => return Err(Failure::NoResource),
        };
        parts.drain(..skip);
        // /namespaces/a and /namespaces/a/status are the namespace itself.
        let namespace = match parts[..] {
            ["namespaces", namespace, what, ..] if what != "status" => {
                parts.drain(..2);
                Some(namespace.to_owned())
            }
            _ => None,
        };
        let (plural, name, part) = match parts[..] {
            [plural] => (plural, None, ""),
            [plural, name] => (plural, Some(name), ""),
            [plural, name, part @ ("status" | "token")] => (plural, Some(name), part),
            _ => return Err(Failure::NoResource),
        };
        let resource = known
            .iter()
            .find(|known| known.group == group && known.version == version && known.plural == plural)
            .ok_or(Failure::NoResource)?;
        let placed = match (resource.namespaced, &namespace) {
            (true, None) => name.is_none(),
            (namespaced, namespace) => namespaced == namespace.is_some(),
        };
        let (status, token) = (part == "status", part == "token");
        let has = !(status && !resource.status || token && *resource != Resource::SERVICE_ACCOUNTS);
        if !placed || !has {
            return Err(Failure::NoResource);
        }
        Ok(Target { resource: *resource, namespace, name: name.map(str::to_owned), status, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Result<Target, Failure> {
        Target::parse(path, &Resource::KNOWN)
    }

    #[test]
    fn a_path_leads_to_what_it_was_made_of() {
        for resource in Resource::KNOWN {
            let namespace = resource.namespaced.then_some("a");
            for (namespace, name) in [(None, None), (namespace, None), (namespace, Some("b"))] {
                let target = parse(&resource.path(namespace, name)).unwrap();
                let expected = Target {
                    resource,
                    namespace: namespace.map(str::to_owned),
                    name: name.map(str::to_owned),
                    status: false,
                    token: false,
                };
                assert_eq!(target, expected);
            }
        }
    }

    #[test]
    fn a_status_has_a_path_where_there_is_one() {
        assert!(parse("/api/v1/namespaces/a/services/b/status").unwrap().status);
        assert!(parse("/api/v1/namespaces/a/status").unwrap().status);
        assert_eq!(parse("/api/v1/namespaces/a/configmaps/b/status"), Err(Failure::NoResource));
    }

    #[test]
    fn other_paths_lead_nowhere() {
        for path in [
            "/",
            "/healthz",
            "/api",
            "/api/v1",
            "/api/v2/services",
            "/api/v1/widgets",
            "/apis/discovery.k8s.io/v1/services",
            "/api/v1/services/b",
            "/api/v1/namespaces/a/nodes/b",
            "/api/v1/nodes/b/status/c",
        ] {
            assert_eq!(parse(path), Err(Failure::NoResource), "{path}");
        }
    }
}
