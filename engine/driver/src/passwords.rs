//! Passwords of BGP peers: each node that has such peers gets a file of theirs, with a salt of its own.

use std::collections::BTreeMap;

use homelab_model::{Content, File, Module, NodeObject, NodeSpec, Observed, PasswordFile, Spec, ours};
use homelab_protocol::{Request, Response};

use crate::engine::{Engine, Live, Prepared};
use crate::keys::{NEW_KEYS, rename};
use crate::{ApplyError, NodeError, parallel};

fn object(summary: String) -> NodeObject {
    let path = ours::BGP_PASSWORDS.to_owned();
    let file = File { path, mode: 0o600, owner: "0:0".to_owned(), content: Content::Secret(summary) };
    NodeObject { module: Module::Agent, spec: Spec::File(file) }
}

/// What a plan says of a file that is to be made.
fn new(peers: &[&str]) -> String {
    format!("for {}: {NEW_KEYS}", peers.join(", "))
}

/// Names of a node's peers that have passwords.
fn peers(spec: &NodeSpec) -> Vec<&str> {
    let mut names: Vec<&str> =
        homelab_desired::bgp_peers(spec).iter().filter(|p| p.password).map(|p| p.name.as_str()).collect();
    names.sort_unstable();
    names
}

/// What a node says of its file, if it holds one that can be used.
fn held(observed: &Observed) -> Option<&str> {
    observed.objects.iter().find_map(|object| match &object.spec {
        Spec::File(File { path, content: Content::Secret(summary), .. }) if path == ours::BGP_PASSWORDS => {
            Some(summary.as_str())
        }
        _ => None,
    })
}

/// The file that a node of `spec` should hold, as far as can be said without knowing the passwords: the one that it
/// holds.
pub(crate) fn unseen(spec: &NodeSpec, observed: &Observed) -> Option<NodeObject> {
    let peers = peers(spec);
    let kept = |summary: &&str| summary.starts_with(&format!("for {}: ", peers.join(", ")));
    let held = held(observed).filter(kept).map(str::to_owned);
    (!peers.is_empty()).then(|| object(held.unwrap_or_else(|| new(&peers))))
}

impl Engine<'_> {
    /// Adds to what the nodes shall be their files of passwords. A node that has the right passwords keeps its file:
    /// only it knows the salt, so it is asked.
    pub(crate) fn passwords(
        &self,
        specs: &BTreeMap<String, NodeSpec>,
        live: &mut BTreeMap<String, Live>,
    ) -> BTreeMap<String, PasswordFile> {
        let asked: Vec<_> = specs
            .iter()
            .filter(|(_, spec)| !peers(spec).is_empty())
            .filter_map(|(name, spec)| Some((name, spec, live.get(name)?)))
            .map(|(name, spec, live)| (name.clone(), spec, live.line.clone(), held(&live.observed).is_some()))
            .collect();
        let told = self.options.passwords.as_ref();
        let found = parallel::map(asked, self.options.parallel, |(name, spec, line, holds)| {
            let wanted = told?.of(peers(spec).into_iter());
            if !holds {
                return None;
            }
            let request = Request::Secret { path: ours::BGP_PASSWORDS.to_owned() };
            // One that cannot be read is made anew.
            let Ok(Response::Secret(secret)) = line.get().ask(&request, self.options.answer) else {
                return None;
            };
            let file = PasswordFile::parse(&secret.text).ok()?;
            (*file.passwords() == wanted).then_some((name, file))
        });
        let kept: BTreeMap<String, PasswordFile> = found.into_iter().flatten().collect();
        for (name, spec) in specs {
            let Some(node) = live.get_mut(name) else { continue };
            let peers = peers(spec);
            if peers.is_empty() {
                continue;
            }
            let file = match (kept.get(name), told) {
                (Some(file), _) => Some(object(file.summary())),
                (None, Some(_)) => Some(object(new(&peers))),
                (None, None) => unseen(spec, &node.observed),
            };
            node.desired.extend(file);
        }
        kept
    }

    /// The texts of the files that the plan needs. New ones are made here; plan and desired state then name them.
    pub(crate) fn password_files(
        &self,
        prepared: &mut Prepared,
        secrets: &mut BTreeMap<String, String>,
    ) -> Result<(), ApplyError> {
        let Prepared { plan, live, specs, kept, .. } = prepared;
        for node in &mut plan.nodes {
            let Ok(changes) = &mut node.outcome else { continue };
            let after = |o: &NodeObject| matches!(&o.spec, Spec::File(f) if f.path == ours::BGP_PASSWORDS);
            if !changes.changes.iter().any(|c| c.change.after().is_some_and(after)) {
                continue;
            }
            if let Some(file) = kept.get(&node.name) {
                secrets.insert(file.summary(), file.to_text());
                continue;
            }
            // A plan that leads back has its file on the node.
            let Some(spec) = specs.get(&node.name) else { continue };
            let wanted = self.options.passwords.as_ref().map(|all| all.of(peers(spec).into_iter()));
            let wanted = wanted.unwrap_or_default();
            if let Some(missing) = peers(spec).into_iter().find(|peer| wanted.get(peer).is_none()) {
                let error = Box::new(NodeError::NoPassword(missing.to_owned()));
                return Err(ApplyError::Passwords { node: node.name.clone(), error });
            }
            let file = PasswordFile::new((self.random)(), wanted);
            let (old, summary) = (new(&peers(spec)), file.summary());
            rename(&mut changes.changes, ours::BGP_PASSWORDS, &old, &summary);
            for object in live.get_mut(&node.name).into_iter().flat_map(|l| &mut l.desired) {
                crate::keys::rename_object(object, ours::BGP_PASSWORDS, &old, &summary);
            }
            secrets.insert(summary, file.to_text());
        }
        Ok(())
    }
}
