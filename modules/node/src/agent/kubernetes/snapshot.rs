//! What is known of the API, on disk: everything once, and what changed since behind it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use homelab_kubernetes::{Batch, HEADER, World};
use homelab_model::{KubernetesSpec, NodeSpec, ours};
use tracing::warn;

/// Changes are added until they are this long at least, and longer than all that they change.
const LEAST: u64 = 256 * 1024;

/// What an earlier agent knew; None if it kept nothing that can be used.
pub(super) fn load(spec: &KubernetesSpec) -> Option<World> {
    let path = ours::KUBERNETES_SNAPSHOT;
    match std::fs::read(path) {
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

/// The file of an agent that runs.
pub(super) struct Kept {
    path: PathBuf,
    /// How long it is, and how much of it is the first batch; None: it is to be written anew.
    known: Option<(u64, u64)>,
}

impl Kept {
    pub(super) fn new(path: &Path) -> Kept {
        Kept { path: path.to_owned(), known: None }
    }

    /// Whether everything is to be written, and not what changed: the file is not ours, or grows too long.
    pub(super) fn wants_all(&self) -> bool {
        let length = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        self.known.is_none_or(|(known, first)| length != known || known - first > first.max(LEAST))
    }

    /// Replaces the file by everything.
    pub(super) fn replace(&mut self, all: &Batch) -> io::Result<()> {
        self.known = None;
        let mut length = 0;
        replace_by(&self.path, |file| {
            length = HEADER.len() as u64;
            file.write_all(HEADER.as_bytes())?;
            length += write(all, file)?;
            Ok(())
        })?;
        self.known = Some((length, length));
        Ok(())
    }

    /// Adds what changed. After a failure everything is to be written.
    pub(super) fn add(&mut self, changes: &Batch) -> io::Result<()> {
        let Some((length, first)) = self.known.take() else { return Ok(()) };
        let mut file = OpenOptions::new().append(true).open(&self.path)?;
        let added = write(changes, &mut file)?;
        file.sync_data()?;
        self.known = Some((length + added, first));
        Ok(())
    }
}

/// Writes a batch. Gives its length.
fn write(batch: &Batch, file: &mut dyn Write) -> io::Result<u64> {
    let mut length = 0;
    for piece in batch.pieces() {
        file.write_all(piece.as_bytes())?;
        length += piece.len() as u64;
    }
    Ok(length)
}

/// Replaces a file in the directory of the snapshot: whole, or not at all.
pub(in crate::agent) fn replace(path: &str, text: &str) -> io::Result<()> {
    replace_by(Path::new(path), |file| file.write_all(text.as_bytes()))
}

fn replace_by(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let fresh = path.with_extension("new");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    let mut buffer = BufWriter::new(file);
    write(&mut buffer)?;
    buffer.into_inner()?.sync_all()?;
    std::fs::rename(&fresh, path)?;
    File::open(directory)?.sync_all()
}

/// The spec with what its agent has last kept of the services of the API, for reports: the file's come first.
pub(crate) fn known(mut spec: NodeSpec) -> NodeSpec {
    let world = spec.kubernetes.as_ref().and_then(load);
    let of_file: std::collections::BTreeSet<String> = spec.services.iter().map(|s| s.full_name()).collect();
    let live = world.iter().flat_map(World::all_joined);
    spec.services.extend(live.filter(|service| !of_file.contains(&service.full_name())));
    spec
}

#[cfg(test)]
mod tests {
    use homelab_kubernetes::Kind;
    use serde_json::json;

    use super::*;

    /// Services are there.
    fn grow(world: &mut World, services: std::ops::Range<u32>) {
        for number in services {
            let service = json!({
                "metadata": { "namespace": "default", "name": format!("s{number}") },
                "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] },
            });
            world.service(&serde_json::from_value(service).unwrap());
        }
    }

    #[test]
    fn a_change_is_added_until_the_file_is_not_ours_or_too_long() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubernetes/snapshot");
        let settings = || KubernetesSpec::new(Vec::new(), "node1");
        let held =
            || World::restore(settings(), &std::fs::read(&path).unwrap()).unwrap().count(Kind::Services);
        let (mut world, mut kept) = (World::new(settings()), Kept::new(&path));
        assert!(kept.wants_all(), "there is none yet");
        grow(&mut world, 0..10);
        kept.replace(&world.all()).unwrap();
        assert!(!kept.wants_all());
        grow(&mut world, 10..11);
        kept.add(&world.take_unkept().unwrap()).unwrap();
        assert!(!kept.wants_all());
        assert_eq!(held(), 11);

        // Something was added by somebody, or cut off by a disk that is full.
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 1]).unwrap();
        assert!(kept.wants_all());
        assert_eq!(held(), 10, "what was known before");
        kept.replace(&world.all()).unwrap();
        assert!(!kept.wants_all());
        std::fs::remove_file(&path).unwrap();
        assert!(kept.wants_all());
        grow(&mut world, 11..12);
        kept.add(&world.take_unkept().unwrap()).unwrap_err();
        assert!(kept.wants_all(), "after a failure");

        // A file is as long as what is known and as much again at most.
        kept.replace(&world.all()).unwrap();
        let mut rounds = 0;
        while !kept.wants_all() {
            rounds += 1;
            let from = 100 + rounds * 100;
            grow(&mut world, from..from + 100);
            kept.add(&world.take_unkept().unwrap()).unwrap();
        }
        let long = std::fs::metadata(&path).unwrap().len();
        assert!(long > LEAST && long < 2 * LEAST, "{long}");
        assert_eq!(held(), world.count(Kind::Services));
    }
}
