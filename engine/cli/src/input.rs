//! The cluster file.

use std::io::Read;
use std::path::Path;

use homelab_config::{Diagnostics, Loaded, ManifestDefaults, Severity, Source, load};

use crate::error::CliError;

/// What stdin is called.
const STDIN: &str = "<stdin>";

/// Reads and checks the files; `-` is stdin.
pub(crate) fn cluster(files: &[String]) -> Result<Loaded, CliError> {
    let mut sources = Vec::new();
    let mut problems = Diagnostics::default();
    for file in files {
        let (name, bytes) = if file == "-" { (STDIN, stdin()?) } else { (file.as_str(), read(file)?) };
        match Source::from_bytes(name, bytes) {
            Ok(source) => sources.push(source),
            Err(found) => problems.0.extend(found),
        }
    }
    if !problems.0.is_empty() {
        return Err(CliError::Config(problems));
    }
    let mut loaded = load(&sources).map_err(CliError::Config)?;
    manifests(&mut loaded)?;
    Ok(loaded)
}

/// Adds the services of the Kubernetes manifests that the files name.
fn manifests(loaded: &mut Loaded) -> Result<(), CliError> {
    let cluster = &mut loaded.cluster;
    let mut sources = Vec::new();
    let mut problems = Diagnostics::default();
    for (path, named_by) in cluster.manifests.iter().zip(&loaded.manifest_sources) {
        // As the file that names it means it; stdin is where the user is.
        let beside = Path::new(named_by).parent().filter(|_| named_by != STDIN).unwrap_or(Path::new(""));
        let path = beside.join(path).display().to_string();
        let bytes = std::fs::read(&path).map_err(|error| {
            CliError::new(format!("cannot read the manifest {path}: {error}"))
                .hint(format!("{named_by} names it under `manifests`, relative to itself"))
        })?;
        match Source::from_bytes(path, bytes) {
            Ok(source) => sources.push(source),
            Err(found) => problems.0.extend(found),
        }
    }
    let zones = cluster.nodes.iter().filter_map(|node| Some((node.name.clone(), node.zone.clone()?)));
    let defaults =
        ManifestDefaults { service_cidrs: cluster.network.service_cidrs.clone(), zones: zones.collect() };
    let found = homelab_config::manifests(&sources, &defaults);
    problems.0.extend(found.problems);
    if problems.0.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(CliError::Config(problems));
    }
    cluster.services.extend(found.services);
    loaded.warnings.extend(problems.0);
    Ok(())
}

fn stdin() -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read(file: &str) -> Result<Vec<u8>, CliError> {
    std::fs::read(file).map_err(|error| {
        let problem = CliError::new(format!("cannot read {file}: {error}"));
        match error.kind() {
            std::io::ErrorKind::NotFound => problem.hint(
                "name the cluster file: homelab -f FILE; the book's first chapter shows the smallest one",
            ),
            _ => problem,
        }
    })
}
