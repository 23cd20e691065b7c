//! What is known of the API, on disk.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};

use homelab_kubernetes::World;
use homelab_model::{KubernetesSpec, NodeSpec, ours};
use tracing::warn;

/// What an earlier agent knew; None if it kept nothing that can be used.
pub(super) fn load(spec: &KubernetesSpec) -> Option<World> {
    let path = ours::KUBERNETES_SNAPSHOT;
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(%error, path, "what an earlier agent knew of Kubernetes cannot be read");
            None
        }
        Ok(text) => World::restore(spec.clone(), &text)
            .inspect_err(|error| warn!(%error, path, "what an earlier agent knew of Kubernetes is of no use"))
            .ok(),
    }
}

/// Keeps what is known: all of it, or what was kept before.
pub(super) fn save(text: &str) -> io::Result<()> {
    replace(ours::KUBERNETES_SNAPSHOT, text)
}

/// Replaces a file in the directory of the snapshot: whole, or not at all.
pub(in crate::agent) fn replace(path: &str, text: &str) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(ours::KUBERNETES) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let fresh = format!("{path}.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    File::open(ours::KUBERNETES)?.sync_all()
}

/// The spec with what its agent has last kept of the services of the API, for reports: the file's come first.
pub(crate) fn known(mut spec: NodeSpec) -> NodeSpec {
    let world = spec.kubernetes.as_ref().and_then(load);
    let of_file: std::collections::BTreeSet<String> = spec.services.iter().map(|s| s.full_name()).collect();
    let live = world.iter().flat_map(World::all_joined);
    spec.services.extend(live.filter(|service| !of_file.contains(&service.full_name())));
    spec
}
