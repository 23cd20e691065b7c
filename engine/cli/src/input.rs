//! The cluster file.

use std::io::Read;
use std::path::{Path, PathBuf};

use homelab_config::{Diagnostics, Loaded, ManifestDefaults, Severity, Source, load};
use homelab_model::Passwords;

use crate::error::CliError;

/// What stdin is called.
pub(crate) const STDIN: &str = "<stdin>";

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
        let path = beside(named_by, path).display().to_string();
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

/// Reads the files with passwords of BGP peers. All that is wrong with them is told at once, and never what they say.
pub(crate) fn passwords(loaded: &Loaded) -> Result<Passwords, CliError> {
    let mut passwords = Passwords::default();
    let mut wrong = Vec::new();
    for (peer, path) in loaded.cluster.load_balancer.bgp.iter().flat_map(|bgp| &bgp.password_files) {
        let named_by = loaded.password_sources.get(peer).map_or(STDIN, String::as_str);
        let path = beside(named_by, path);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let added = passwords.add(peer, &text);
                wrong.extend(
                    added.err().map(|why| format!("the password in {} is of no use: {why}", path.display())),
                );
            }
            Err(error) => wrong.push(format!(
                "cannot read {}, the password of the BGP peer {peer}: {error}",
                path.display()
            )),
        }
    }
    if wrong.is_empty() {
        return Ok(passwords);
    }
    Err(CliError::new(wrong.join("\n"))
        .hint("`passwordFile` is relative to the cluster file that names it; the file holds nothing but the password"))
}

/// A path that a file names, as that file means it; stdin is where the user is.
pub(crate) fn beside(named_by: &str, path: &str) -> PathBuf {
    let directory = Path::new(named_by).parent().filter(|_| named_by != STDIN);
    directory.unwrap_or(Path::new("")).join(path)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_read_beside_the_file_that_names_them_and_never_told() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let peer = |name: &str, host: u8, file: &str| {
            format!(
                "      - {{name: {name}, peerAddress: 192.168.50.{host}, peerASN: 64513, passwordFile: {file}}}\n"
            )
        };
        let peers = [peer("router", 1, "router.password"), peer("edge", 2, "edge"), peer("lost", 3, "lost")];
        let text = |peers: &str| {
            format!(
                "name: home\nnodes:\n  - {{name: node1, address: 192.168.50.11}}\nloadBalancer:\n  pools:\n    - {{name: lan, \
                 addresses: [192.168.50.240/28]}}\n  bgp:\n    myASN: 64512\n    peers:\n{peers}"
            )
        };
        write("router.password", "hunter2\n");
        let file = write("homelab.yaml", &text(&peers[0]));
        let loaded = cluster(&[file]).unwrap();
        assert_eq!(passwords(&loaded).unwrap().get("router"), Some("hunter2"));
        write("edge", "hunter2 and more");
        let loaded = cluster(&[write("homelab.yaml", &text(&peers.concat()))]).unwrap();
        let CliError::Message { text, .. } = passwords(&loaded).unwrap_err() else { panic!() };
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.contains("edge is of no use") && text.contains("lost") && !text.contains("hunter"),
            "{text}"
        );
    }
}
