//! MetalLB's resources, as far as the cluster has them.

use std::collections::BTreeMap;

use homelab_kubernetes::metallb::{Note, Resources};
use homelab_model::Labels;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::core::Request;
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::Value;

use crate::duty::{DutyError, ask, refusal};

#[derive(Deserialize)]
struct List {
    items: Vec<Value>,
}

/// MetalLB's resources and what belongs to them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetalLb {
    /// The resources.
    pub resources: Resources,
    /// Labels of all namespaces, if a pool is for namespaces with certain labels.
    pub namespaces: BTreeMap<String, Labels>,
    /// Resources that cannot be understood.
    pub notes: Vec<Note>,
}

/// Reads them; a cluster that has not their CRDs has none.
///
/// # Errors
/// The server could not be asked, or refuses.
pub async fn metallb(client: &Client) -> Result<MetalLb, DutyError> {
    let mut all = MetalLb::default();
    for (version, plural) in Resources::KINDS {
        let path = format!("/apis/metallb.io/{version}/{plural}");
        let request = Request::new(path).list(&ListParams::default());
        let request = request.map_err(|error| DutyError::Refused(error.to_string()))?;
        let items = match ask(client.request::<List>(request)).await? {
            Ok(list) => list.items,
            Err(kube::Error::Api(status)) if status.code == 404 => {
                // Where there are no pools, nothing else means anything.
                if all.resources.pools.is_empty() { return Ok(all) } else { continue }
            }
            Err(error) => return Err(refusal(error)),
        };
        all.notes.extend(items.into_iter().filter_map(|item| all.resources.add(plural, item)));
    }
    if all.resources.wants_namespaces() {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let listed = ask(namespaces.list(&ListParams::default())).await?.map_err(refusal)?;
        let labels = |one: Namespace| Some((one.metadata.name?, one.metadata.labels.unwrap_or_default()));
        all.namespaces = listed.items.into_iter().filter_map(labels).collect();
    }
    Ok(all)
}
