//! Packet flows after kube-proxy's own tests, and where packets have to go. Read by the tests of this crate, which carry
//! out the ruleset themselves, and by those of `homelab-linux`, which have the kernel do it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use homelab_model::service::{Protocol, Service};
use homelab_proxy::NodeView;
use homelab_proxy::evaluate::Outcome;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) node: NodeView,
    pub(crate) services: Vec<Service>,
    pub(crate) flows: Vec<Flow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Flow {
    pub(crate) name: String,
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    #[serde(default)]
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expect {
    #[serde(default)]
    pub(crate) endpoints: BTreeSet<SocketAddr>,
    #[serde(default)]
    pub(crate) masquerade: bool,
    pub(crate) verdict: Option<String>,
}

impl Expect {
    pub(crate) fn outcome(&self) -> Outcome {
        match self.verdict.as_deref() {
            None => {
                assert!(!self.endpoints.is_empty(), "neither endpoints nor a verdict");
                Outcome::Translated(self.endpoints.iter().map(|e| (*e, self.masquerade)).collect())
            }
            Some("drop") => Outcome::Dropped,
            Some("reject") => Outcome::Rejected,
            Some("none") => Outcome::Untouched,
            Some(other) => panic!("no such verdict: {other}"),
        }
    }
}

pub(crate) fn cases() -> BTreeMap<String, Case> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/tests/flows");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let case = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path.file_stem().unwrap().to_string_lossy().into_owned(), case)
        })
        .collect()
}
