//! The cluster file.

use std::io::Read;

use homelab_config::{Diagnostics, Loaded, Source, load};

use crate::error::CliError;

/// Reads and checks the files; `-` is stdin.
pub(crate) fn cluster(files: &[String]) -> Result<Loaded, CliError> {
    let mut sources = Vec::new();
    let mut problems = Diagnostics::default();
    for file in files {
        let (name, bytes) = if file == "-" { ("<stdin>", stdin()?) } else { (file.as_str(), read(file)?) };
        match Source::from_bytes(name, bytes) {
            Ok(source) => sources.push(source),
            Err(found) => problems.0.extend(found),
        }
    }
    if !problems.0.is_empty() {
        return Err(CliError::Config(problems));
    }
    load(&sources).map_err(CliError::Config)
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
