//! Services that our controller gave addresses, as the laptop sees them, and what takes that off again.

use std::net::IpAddr;

use homelab_kubernetes::controller::{FINALIZER, Ledger, NOTED_POOL};
use homelab_model::{ApiObject, ApiService};
use serde_json::{Value, json};

/// The ledger in this ConfigMap.
pub(crate) fn ledger(map: &Value) -> Ledger {
    let data: Vec<(String, String)> = map["data"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    Ledger::read(None, data.iter().map(|(key, value)| (key, value)))
}

fn finalizers(service: &Value) -> Vec<&str> {
    service["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Addresses of the status that packets arrive with.
fn status(service: &Value) -> Vec<IpAddr> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    ingress.filter_map(|one| one["ip"].as_str()?.parse().ok()).collect()
}

/// Reads a Service; None if it has no load-balancer address and our controller does not hold it.
pub(crate) fn read(service: &Value, ledger: &Ledger) -> Option<ApiService> {
    let text = |key: &str| service["metadata"][key].as_str().map(str::to_owned);
    let (namespace, name, uid) = (text("namespace")?, text("name")?, text("uid")?);
    let entry = ledger.entries.get(&format!("{namespace}/{name}")).filter(|entry| entry.uid == uid);
    let mut addresses = status(service);
    let noted = |ip: &IpAddr| entry.is_some_and(|entry| entry.addresses.contains(ip));
    let given = addresses.iter().copied().filter(noted).collect();
    // Others use that finalizer, too.
    let held = entry.is_some() && finalizers(service).contains(&FINALIZER);
    addresses.extend(entry.into_iter().flat_map(|entry| &entry.addresses));
    addresses.sort_unstable();
    addresses.dedup();
    (held || !addresses.is_empty()).then_some(ApiService { namespace, name, uid, addresses, given, held })
}

/// The merge patch of `services/NAME/status` that takes off what `before` says is ours; None: it is another Service by now,
/// or there is nothing any more.
pub(crate) fn patch(service: &Value, before: &ApiObject) -> Option<Value> {
    let metadata = &service["metadata"];
    if metadata["uid"].as_str() != before.uid.as_deref() {
        return None;
    }
    let ours: Vec<IpAddr> =
        before.fields.get("loadBalancer").and_then(|given| serde_json::from_value(given.clone()).ok())?;
    let has = status(service);
    let finalizers = finalizers(service);
    let holds = before.fields.get("finalizer") == Some(&json!(true)) && finalizers.contains(&FINALIZER);
    // Whoever has written another address since keeps it.
    let gives = !has.is_empty() && has.iter().all(|ip| ours.contains(ip));
    if !holds && !gives {
        return None;
    }
    let mut patch = json!({
        "metadata": { "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"] },
    });
    if holds {
        let rest: Vec<&str> = finalizers.into_iter().filter(|one| *one != FINALIZER).collect();
        patch["metadata"]["finalizers"] = json!(rest);
    }
    if gives {
        patch["metadata"]["annotations"] = json!({ NOTED_POOL: null });
        patch["status"] = json!({ "loadBalancer": { "ingress": null } });
    }
    Some(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Value {
        json!({
            "metadata": {
                "namespace": "default", "name": "web", "uid": "u-1", "resourceVersion": "7",
                "finalizers": ["other", FINALIZER],
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.168.50.200" }] } },
        })
    }

    #[test]
    fn only_what_is_noted_is_ours_and_only_as_long_as_it_is_there() {
        let map = json!({ "data": { "default.web": "u-1 3 192.168.50.200 192.168.50.201" } });
        let seen = read(&service(), &ledger(&map)).unwrap();
        assert!(seen.held);
        assert_eq!((seen.addresses.len(), seen.given.len()), (2, 1));
        let change = seen.release().unwrap();
        let before = change.before().unwrap();
        let patch = patch(&service(), before).unwrap();
        assert_eq!(patch["metadata"]["finalizers"], json!(["other"]));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["status"]["loadBalancer"], json!({ "ingress": null }));
        // Another controller has taken over meanwhile; another Service has the name; there is nothing left.
        let mut other = service();
        other["status"]["loadBalancer"]["ingress"][0]["ip"] = json!("192.168.60.1");
        assert_eq!(super::patch(&other, before).unwrap().get("status"), None);
        other["metadata"]["finalizers"] = json!([]);
        assert_eq!(super::patch(&other, before), None);
        let mut anew = service();
        anew["metadata"]["uid"] = json!("u-2");
        assert_eq!(super::patch(&anew, before), None);
        // Nothing is noted of a Service of another controller with the same finalizer.
        let seen = read(&service(), &Ledger::default()).unwrap();
        assert_eq!((seen.held, seen.release()), (false, None));
        assert_eq!(
            read(&json!({ "metadata": { "namespace": "a", "name": "b", "uid": "c" } }), &Ledger::default()),
            None
        );
    }
}
