//! homelab.yaml text to a [`Cluster`], with every problem at its place.
//!
//! The way of a file: YAML text -> tree in which every key and value knows its place -> files merged -> JSON Schema
//! -> typed values -> checks of meaning -> [`Cluster`]. Every step collects all its problems; what one step refuses
//! is invisible to the next, so one mistake makes one problem. Pure: no files, no clock, no environment.
//!
//! [`manifests()`] reads services from Kubernetes manifests, by the same tree and into the same kind of problems.

mod balancer;
mod check;
mod documents;
mod manifests;
mod merge;
mod problem;
mod raw;
mod schema;
mod spanned;
mod tree;
mod value;
mod violations;
mod words;
mod yaml;

use std::collections::BTreeMap;

use homelab_model::Cluster;

pub use documents::MAX_MANIFEST_BYTES;
pub use manifests::{ManifestDefaults, Manifests, manifests};
pub use problem::{Diagnostics, Label, Problem, Severity};
pub use schema::{schema, schema_text};
pub use yaml::MAX_BYTES;

use problem::{Fault, Span};
use spanned::Spanned;
use yaml::Value;

/// A file's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Path as the user gave it, or `<stdin>`.
    pub name: String,
    /// Its text.
    pub text: String,
}

impl Source {
    /// A source from the bytes of a file.
    ///
    /// # Errors
    /// A problem at the first byte that is not UTF-8.
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Result<Self, Diagnostics> {
        let name = name.into();
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Source { name, text }),
            Err(error) => {
                let start = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let source = Source { name, text };
                let fault = Fault::new(
                    "encoding",
                    Span { source: 0, start, length: 3 },
                    "the file is not UTF-8 text",
                )
                .help("save it as UTF-8");
                Err(Diagnostics(problem::finish(&[source], vec![fault])))
            }
        }
    }
}

/// A good file.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it describes, after defaults.
    pub cluster: Cluster,
    /// For each of `cluster.manifests` the name of the source that names it: the path is relative to that file.
    pub manifest_sources: Vec<String>,
    /// For each peer of `cluster.load_balancer.bgp.password_files` the name of the source that names the file: the path is
    /// relative to that source.
    pub password_sources: BTreeMap<String, String>,
    /// For `kubeconfig`, `ca` and `tokenFile` of `kubernetes` the name of the source that names the file: the path is
    /// relative to that source.
    pub kubernetes_sources: BTreeMap<&'static str, String>,
    /// What is allowed, but probably not meant.
    pub warnings: Vec<Problem>,
}

/// Reads homelab.yaml: one text, or several of which later ones change earlier ones.
///
/// Blocks of keys are joined; `nodes`, `services`, `loadBalancer.pools`, `loadBalancer.l2Advertisements` and the lists of
/// `loadBalancer.bgp` are joined by `name` (services by `namespace` too); every other value and list is replaced, and an empty
/// value takes away what an earlier file says.
///
/// # Errors
/// All problems of all texts (warnings too), in the order of the texts.
pub fn load(sources: &[Source]) -> Result<Loaded, Diagnostics> {
    let mut faults = Vec::new();
    let cluster = read(sources, &mut faults);
    let problems = problem::finish(sources, faults);
    match cluster {
        Some(loaded) if problems.iter().all(|p| p.severity == Severity::Warning) => {
            Ok(Loaded { warnings: problems, ..loaded })
        }
        _ => Err(Diagnostics(problems)),
    }
}

/// The cluster, still without warnings.
fn read(sources: &[Source], faults: &mut Vec<Fault>) -> Option<Loaded> {
    let trees: Vec<_> = sources.iter().enumerate().map(|(i, s)| yaml::parse(i, &s.text, faults)).collect();
    // A file that cannot be read leaves holes: what the others say about them would be noise.
    let trees = trees.into_iter().collect::<Option<Vec<_>>>()?;
    let Some(mut root) = trees.into_iter().reduce(merge::merge) else {
        faults.push(Fault::new("empty", Span::default(), "no file was given"));
        return None;
    };
    if root.value == Value::Null {
        let example =
            "the smallest useful file:\nname: home\nnodes:\n  - {name: node1, address: 192.168.50.11}";
        faults.push(Fault::new("empty", Span::default(), "the file is empty").help(example));
        return None;
    }
    let patterns = violations::violations(&mut root, faults);
    if root.value == Value::Bad {
        return None;
    }
    let file: raw::File = match serde::Deserialize::deserialize(&root) {
        Ok(file) => file,
        Err(error) => {
            faults.push(Fault::new("internal", root.span, format!("the file cannot be understood: {error}")));
            return None;
        }
    };
    let cluster = check::cluster(&file, faults);
    for fault in patterns {
        if !faults.iter().any(|f| f.span == fault.span) {
            faults.push(fault);
        }
    }
    let named = file.manifests.iter().flatten();
    let manifest_sources = named.filter_map(|m| sources.get(m.span.source)).map(|s| s.name.clone()).collect();
    let peers =
        file.load_balancer.iter().filter_map(|b| b.bgp.as_ref()).flat_map(|bgp| bgp.peers.iter().flatten());
    let password_source = |peer: &Spanned<raw::BgpPeer>| {
        let source = sources.get(peer.value.password_file.as_ref()?.span.source)?;
        Some((peer.value.name.as_ref()?.value.clone(), source.name.clone()))
    };
    let password_sources = peers.filter_map(password_source).collect();
    let kubernetes_sources = file
        .kubernetes
        .iter()
        .flat_map(|k| [("kubeconfig", &k.kubeconfig), ("ca", &k.ca), ("tokenFile", &k.token_file)]);
    let kubernetes_sources = kubernetes_sources
        .filter_map(|(key, path)| Some((key, sources.get(path.as_ref()?.span.source)?.name.clone())))
        .collect();
    Some(Loaded {
        cluster: cluster?,
        manifest_sources,
        password_sources,
        kubernetes_sources,
        warnings: Vec::new(),
    })
}
