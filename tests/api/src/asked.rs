//! What clients asked for, as RBAC sees it, and what roles allow.

use std::collections::BTreeSet;
use std::fmt;

use hyper::Method;
use serde_json::Value;

/// A request by what decides whether it is allowed (`k8s.io/apiserver`, `request.RequestInfo`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: &'static str,
    /// API group; empty for the core.
    pub group: String,
    /// The name in paths, with the subresource if one is asked for: `services/status`.
    pub resource: String,
    /// None: cluster-wide.
    pub namespace: Option<String>,
    /// None: all, or one that is to be created.
    pub name: Option<String>,
}

/// `patch services/status default/web`.
impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.group.is_empty() { "" } else { "." };
        write!(f, "{} {}{dot}{}", self.verb, self.resource, self.group)?;
        let slash = if self.namespace.is_some() && self.name.is_some() { "/" } else { "" };
        let [namespace, name] = [&self.namespace, &self.name].map(|text| text.as_deref().unwrap_or_default());
        if namespace.is_empty() && name.is_empty() { Ok(()) } else { write!(f, " {namespace}{slash}{name}") }
    }
}

impl Asked {
    /// None: it is of no resource, as `/healthz` and `/version`.
    pub(crate) fn parse(method: &Method, path: &str, query: Option<&str>) -> Option<Asked> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (group, rest) = match parts.as_slice() {
            ["api", _, rest @ ..] => ("", rest),
            ["apis", group, _, rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize"]) => {
                (Some((*namespace).to_owned()), rest)
            }
            rest => (None, rest),
        };
        let (resource, name) = match rest {
            [resource] => ((*resource).to_owned(), None),
            [resource, name] => ((*resource).to_owned(), Some((*name).to_owned())),
            [resource, name, part] => (format!("{resource}/{part}"), Some((*name).to_owned())),
            _ => return None,
        };
        let watches =
            query.is_some_and(|query| query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")));
        let verb = match (method.as_str(), &name) {
            ("GET" | "HEAD", None) if watches => "watch",
            ("GET" | "HEAD", None) => "list",
            ("GET" | "HEAD", Some(_)) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", None) => "deletecollection",
            ("DELETE", Some(_)) => "delete",
            _ => return None,
        };
        Some(Asked { verb, group: group.to_owned(), resource, namespace, name })
    }
}

/// Rules that hold for a client: those of a ClusterRole bound everywhere, or of a Role.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Where they hold; None: everywhere.
    pub namespace: Option<String>,
    /// `rules`.
    pub rules: Value,
}

/// The smallest part of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Unit {
    namespace: Option<String>,
    group: String,
    resource: String,
    verb: String,
    name: Option<String>,
}

impl Unit {
    fn allows(&self, asked: &Asked) -> bool {
        self.verb == asked.verb
            && self.group == asked.group
            && self.resource == asked.resource
            && (self.namespace.is_none() || self.namespace == asked.namespace)
            && (self.name.is_none() || self.name == asked.name)
    }
}

fn texts(rule: &Value, key: &str) -> Vec<String> {
    let listed = rule[key].as_array().into_iter().flatten();
    listed.filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn units(grants: &[Grant]) -> BTreeSet<Unit> {
    let mut units = BTreeSet::new();
    for grant in grants {
        for rule in grant.rules.as_array().into_iter().flatten() {
            let mut names: Vec<Option<String>> = texts(rule, "resourceNames").into_iter().map(Some).collect();
            if names.is_empty() {
                names.push(None);
            }
            for group in texts(rule, "apiGroups") {
                for resource in texts(rule, "resources") {
                    for verb in texts(rule, "verbs") {
                        units.extend(names.iter().map(|name| Unit {
                            namespace: grant.namespace.clone(),
                            group: group.clone(),
                            resource: resource.clone(),
                            verb: verb.clone(),
                            name: name.clone(),
                        }));
                    }
                }
            }
        }
    }
    units
}

/// What of `asked` no rule allows, and what of the rules nobody needed, as texts.
pub fn compare<'a>(
    grants: &[Grant],
    asked: impl IntoIterator<Item = &'a Asked>,
) -> (Vec<String>, Vec<String>) {
    let units = units(grants);
    let (mut missing, mut used) = (Vec::new(), BTreeSet::new());
    for one in asked {
        let allowing: Vec<&Unit> = units.iter().filter(|unit| unit.allows(one)).collect();
        if allowing.is_empty() {
            missing.push(one.to_string());
        }
        used.extend(allowing);
    }
    let unused = units.iter().filter(|unit| !used.contains(unit)).map(|unit| {
        let dot = if unit.group.is_empty() { "" } else { "." };
        let name = unit.name.as_deref().unwrap_or_default();
        format!("{} {}{dot}{} {name}", unit.verb, unit.resource, unit.group).trim_end().to_owned()
    });
    (missing, unused.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(method: Method, uri: &str) -> Asked {
        let (path, query) = uri.split_once('?').map_or((uri, None), |(path, query)| (path, Some(query)));
        Asked::parse(&method, path, query).unwrap()
    }

    #[test]
    fn requests_are_what_rbac_takes_them_for() {
        for (method, uri, text) in [
            (Method::GET, "/api/v1/services?limit=1", "list services"),
            (Method::GET, "/api/v1/services?limit=1&watch=true", "watch services"),
            (Method::GET, "/api/v1/namespaces/a/services/b", "get services a/b"),
            (Method::GET, "/api/v1/namespaces", "list namespaces"),
            (Method::GET, "/api/v1/namespaces/a", "get namespaces a"),
            (Method::PATCH, "/api/v1/namespaces/a/services/b/status", "patch services/status a/b"),
            (Method::PATCH, "/api/v1/nodes/n/status", "patch nodes/status n"),
            (Method::POST, "/api/v1/namespaces/a/events", "create events a"),
            (
                Method::POST,
                "/api/v1/namespaces/a/serviceaccounts/b/token",
                "create serviceaccounts/token a/b",
            ),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/a/leases/b",
                "update leases.coordination.k8s.io a/b",
            ),
        ] {
            assert_eq!(asked(method, uri).to_string(), text);
        }
        assert_eq!(Asked::parse(&Method::GET, "/healthz", None), None);
    }

    #[test]
    fn what_is_missing_and_what_is_too_much() {
        let grants = [
            Grant {
                namespace: None,
                rules: json!([{ "apiGroups": [""], "resources": ["services"], "verbs": ["get", "list"] }]),
            },
            Grant {
                namespace: Some("a".into()),
                rules: json!([{ "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["b"], "verbs": ["get"] }]),
            },
        ];
        let all = [
            asked(Method::GET, "/api/v1/services"),
            asked(Method::GET, "/api/v1/services?watch=1"),
            asked(Method::GET, "/api/v1/namespaces/a/configmaps/b"),
            asked(Method::GET, "/api/v1/namespaces/a/configmaps/c"),
            asked(Method::GET, "/api/v1/namespaces/b/configmaps/b"),
        ];
        let (missing, unused) = compare(&grants, &all);
        assert_eq!(missing, ["watch services", "get configmaps a/c", "get configmaps b/b"]);
        assert_eq!(unused, ["get services"]);
    }
}
