//! `kubernetes:` as it is written.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use super::{Filled, LabelKey, LabelValue};
use crate::spanned::{OneOrMany, Spanned};

/// URL of an API server, or a list of such.
pub(crate) struct Servers;

impl JsonSchema for Servers {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Servers".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one =
            json_schema!({ "type": "string", "pattern": "\\S", "examples": ["https://192.168.50.11:6443"] });
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1, "maxItems": 16 }] })
    }
}

/// The Kubernetes cluster whose network this is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(crate) struct Kubernetes {
    /// Kubeconfig by which homelab reaches the API from here: a path relative to this file. Default: `$KUBECONFIG`, else
    /// `~/.kube/config`.
    #[schemars(with = "Option<Filled>", extend("examples" = ["~/.kube/config"]))]
    pub(crate) kubeconfig: Option<Spanned<String>>,
    /// Context of the kubeconfig. Default: its current one.
    #[schemars(with = "Option<Filled>", extend("examples" = ["kubernetes-admin@kubernetes"]))]
    pub(crate) context: Option<Spanned<String>>,
    /// URL under which the nodes reach the API server, or several that they try in turn. Default: that of the kubeconfig.
    #[schemars(with = "Option<Servers>")]
    pub(crate) server: Option<OneOrMany<Spanned<String>>>,
    /// File with the certificates (PEM) that the API server's is checked with, relative to this file. Default: that of the
    /// kubeconfig.
    #[schemars(with = "Option<Filled>", extend("examples" = ["kubernetes-ca.crt"]))]
    pub(crate) ca: Option<Spanned<String>>,
    /// File with a bearer token by which homelab reaches `server` from here, in place of a kubeconfig.
    #[schemars(with = "Option<Filled>", extend("examples" = ["admin.token"]))]
    pub(crate) token_file: Option<Spanned<String>>,
    /// Where the peers of the nodes' tunnels come from: `fromFile`, the nodes of this file; `fromKubernetes`, also the Nodes
    /// of the API, which the agents follow by themselves.
    #[schemars(with = "Option<String>", extend("enum" = ["fromFile", "fromKubernetes"], "default" = "fromFile"))]
    pub(crate) nodes: Option<Spanned<String>>,
    /// Serve the services with this label `service.kubernetes.io/service-proxy-name`. Default: those without it.
    #[schemars(with = "Option<LabelValue>")]
    pub(crate) service_proxy_name: Option<Spanned<String>>,
    /// Services of this `loadBalancerClass` are ours, too, beside those of none.
    #[schemars(with = "Option<LabelKey>", extend("default" = "homelab"))]
    pub(crate) load_balancer_class: Option<Spanned<String>>,
    /// TCP port of 127.0.0.1 where agents answer `/proxyMode` and `/metrics`, as kube-proxy does; 0: nowhere.
    #[schemars(range(min = 0, max = 65535), extend("default" = 10249))]
    pub(crate) metrics_port: Option<Spanned<u16>>,
}
