//! Who asks, and what he may do: one token that may do everything, tokens of ServiceAccounts, and RBAC for these.
//!
//! A token says whose it is and until when, and ends with a checksum: nothing is remembered of it, so it outlives the
//! server as a signed one does. Whether its account is still there is looked up each time; the real server remembers its
//! answer for some seconds. Of RBAC there are rules on resources for accounts that bindings name; not there are groups
//! and users, wildcards, paths that are no resources, aggregated roles, and the check that nobody hands out rights that he
//! has not.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::select::Selector;
use crate::store::{Place, Scope, Store};
use crate::{Failure, Resource};

/// The shortest life of a token that may be asked for, seconds.
const SHORTEST: u64 = 600;
/// The life of a token for which none is asked, seconds.
const USUAL: u64 = 3600;
/// For whom tokens are.
const AUDIENCE: &str = "https://kubernetes.default.svc";

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// May do everything.
    Admin,
    /// Came without a credential.
    Anonymous,
    /// A ServiceAccount: namespace and name.
    Account(String, String),
}

impl Who {
    fn name(&self) -> String {
        match self {
            Who::Admin => "admin".to_owned(),
            Who::Anonymous => "system:anonymous".to_owned(),
            Who::Account(namespace, name) => format!("system:serviceaccount:{namespace}:{name}"),
        }
    }
}

/// What is asked for.
pub(crate) struct Deed<'a> {
    pub(crate) verb: &'static str,
    pub(crate) resource: &'a Resource,
    /// Empty for the object itself.
    pub(crate) part: &'static str,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: Option<&'a str>,
}

/// Whose credential this is. `authorization` is the header, `admin` the token that may do everything.
pub(crate) fn who(authorization: Option<&str>, admin: &str, store: &Store, now: u64) -> Result<Who, Failure> {
    let Some(authorization) = authorization else { return Ok(Who::Anonymous) };
    let token = authorization.strip_prefix("Bearer ").ok_or(Failure::Unauthorized)?.trim();
    if token == admin {
        return Ok(Who::Admin);
    }
    let (head, sum) = token.rsplit_once('.').ok_or(Failure::Unauthorized)?;
    if checksum(head) != sum {
        return Err(Failure::Unauthorized);
    }
    let claims = head.split_once('.').and_then(|(_, claims)| URL_SAFE_NO_PAD.decode(claims).ok());
    let claims: Value =
        claims.and_then(|claims| serde_json::from_slice(&claims).ok()).ok_or(Failure::Unauthorized)?;
    let bound = &claims["kubernetes.io"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&bound["namespace"]), text(&bound["serviceaccount"]["name"]));
    let account = Place { resource: &Resource::SERVICE_ACCOUNTS, namespace: Some(&namespace), name: &name };
    let account = store.get(account).map_err(|_| Failure::Unauthorized)?;
    let same = account["metadata"]["uid"] == bound["serviceaccount"]["uid"];
    if !same || claims["exp"].as_u64().is_none_or(|end| end <= now) {
        return Err(Failure::Unauthorized);
    }
    Ok(Who::Account(namespace, name))
}

/// Answers a TokenRequest of `authentication.k8s.io/v1` for an account. `now`: seconds since 1970.
pub(crate) fn issue(place: Place<'_>, request: &Value, store: &Store, now: u64) -> Result<Value, Failure> {
    let account = store.get(place)?;
    let life = request["spec"]["expirationSeconds"].as_u64().unwrap_or(USUAL);
    if life < SHORTEST {
        return Err(Failure::Invalid(format!(
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: {life}: may not \
             specify a duration less than 10 minutes"
        )));
    }
    let (namespace, name) = (place.namespace.unwrap_or_default(), place.name);
    let end = now + life;
    let claims = json!({
        "aud": [AUDIENCE], "iss": AUDIENCE, "iat": now, "nbf": now, "exp": end,
        "sub": Who::Account(namespace.to_owned(), name.to_owned()).name(),
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": { "name": name, "uid": account["metadata"]["uid"] },
        },
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = format!("{}.{}", part(&json!({ "alg": "none" })), part(&claims));
    let token = format!("{head}.{}", checksum(&head));
    let ends = jiff::Timestamp::from_second(i64::try_from(end).unwrap_or(i64::MAX)).unwrap_or_default();
    Ok(json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "audiences": [AUDIENCE], "expirationSeconds": life },
        "status": { "token": token, "expirationTimestamp": ends.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() },
    }))
}

fn checksum(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    URL_SAFE_NO_PAD.encode(hasher.finish().to_be_bytes())
}

/// Whether the roles that are bound to him let him do it.
pub(crate) fn allow(who: &Who, deed: &Deed<'_>, store: &Store) -> Result<(), Failure> {
    if *who == Who::Admin || is_allowed(who, deed, store) {
        return Ok(());
    }
    let Deed { verb, resource, part, namespace, name } = deed;
    let slash = if part.is_empty() { "" } else { "/" };
    let scope = namespace.map_or_else(
        || "at the cluster scope".to_owned(),
        |namespace| format!("in the namespace {namespace:?}"),
    );
    let which = name.map(|name| format!(" {name:?}")).unwrap_or_default();
    Err(Failure::Forbidden(format!(
        "{}{which} is forbidden: User {:?} cannot {verb} resource \"{}{slash}{part}\" in API group {:?} {scope}",
        resource.plural,
        who.name(),
        resource.plural,
        resource.group
    )))
}

fn is_allowed(who: &Who, deed: &Deed<'_>, store: &Store) -> bool {
    let Who::Account(namespace, name) = who else { return false };
    let is_he = |subject: &Value| {
        subject["kind"] == "ServiceAccount"
            && subject["name"] == **name
            && subject["namespace"] == **namespace
    };
    let scope = |resource, namespace: Option<&str>| Scope {
        resource,
        namespace: namespace.map(str::to_owned),
        selector: Selector::default(),
    };
    let everywhere = scope(Resource::CLUSTER_ROLE_BINDINGS, None);
    let here = scope(Resource::ROLE_BINDINGS, deed.namespace);
    let mut bindings: Vec<_> = store.list(&everywhere).collect();
    if deed.namespace.is_some() {
        bindings.extend(store.list(&here));
    }
    bindings.into_iter().any(|binding| {
        if !binding["subjects"].as_array().is_some_and(|all| all.iter().any(is_he)) {
            return false;
        }
        let resource = match binding["roleRef"]["kind"].as_str() {
            Some("Role") => &Resource::ROLES,
            _ => &Resource::CLUSTER_ROLES,
        };
        let name = binding["roleRef"]["name"].as_str().unwrap_or_default();
        let role = Place { resource, namespace: deed.namespace.filter(|_| resource.namespaced), name };
        let role = store.get(role);
        role.is_ok_and(|role| {
            role["rules"].as_array().is_some_and(|all| all.iter().any(|rule| deed.fits(rule)))
        })
    })
}

impl Deed<'_> {
    fn fits(&self, rule: &Value) -> bool {
        let has = |field: &str, word: &str| {
            rule[field].as_array().is_some_and(|all| all.iter().any(|one| *one == *word))
        };
        let resource = match self.part {
            "" => self.resource.plural.to_owned(),
            part => format!("{}/{part}", self.resource.plural),
        };
        let names = rule["resourceNames"].as_array().is_some_and(|names| !names.is_empty());
        has("verbs", self.verb)
            && has("apiGroups", self.resource.group)
            && has("resources", &resource)
            && (!names || self.name.is_some_and(|name| has("resourceNames", name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_until_its_end_and_while_its_account_is_there() {
        let mut store = Store::new();
        let made = |store: &mut Store| {
            let account = json!({ "metadata": { "name": "a" } });
            store.create(&Resource::SERVICE_ACCOUNTS, Some("n"), account, "2026-01-01T00:00:00Z").unwrap();
        };
        made(&mut store);
        let place = Place { resource: &Resource::SERVICE_ACCOUNTS, namespace: Some("n"), name: "a" };
        let issued = issue(place, &json!({ "spec": { "expirationSeconds": 600 } }), &store, 1000).unwrap();
        let token = format!("Bearer {}", issued["status"]["token"].as_str().unwrap());
        let ask = |store: &Store, token: &str, now| who(Some(token), "root", store, now);
        assert_eq!(ask(&store, &token, 1599), Ok(Who::Account("n".to_owned(), "a".to_owned())));
        assert_eq!(ask(&store, &token, 1600), Err(Failure::Unauthorized));
        assert_eq!(ask(&store, &format!("{token}x"), 1001), Err(Failure::Unauthorized));
        assert_eq!(ask(&store, "Bearer root", 1001), Ok(Who::Admin));
        assert_eq!(ask(&store, "Basic root", 1001), Err(Failure::Unauthorized));
        assert_eq!(who(None, "root", &store, 1001), Ok(Who::Anonymous));
        store.delete(place, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(ask(&store, &token, 1001), Err(Failure::Unauthorized));
        // One of the same name is another.
        made(&mut store);
        assert_eq!(ask(&store, &token, 1001), Err(Failure::Unauthorized));
    }
}
