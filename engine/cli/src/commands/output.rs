//! Where the answers of commands go.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::args::{Format, Global};
use crate::error::CliError;
use crate::render::{Paint, Shown};
use crate::terminal::Terminal;

/// Prints an answer in the form that was asked for, and writes it to the file of `--json-into`.
pub(crate) fn deliver(
    global: &Global,
    terminal: &Terminal,
    json: &Value,
    human: impl FnOnce(Paint) -> Shown,
    markdown: impl FnOnce() -> Shown,
) -> Result<(), CliError> {
    into(global, json)?;
    terminal.out(&match global.format {
        Format::Human => human(terminal.paint),
        Format::Json => Shown::json(json),
        Format::Markdown => markdown(),
    })
}

/// Writes `json` to the file of `--json-into`, if there is one.
pub(crate) fn into(global: &Global, json: &Value) -> Result<(), CliError> {
    match &global.json_into {
        Some(path) => write(path, &Shown::json(json)),
        None => Ok(()),
    }
}

/// Writes a file so that readers see the old one or the whole new one.
pub(crate) fn write(path: &Path, text: &Shown) -> Result<(), CliError> {
    let fail = |e: std::io::Error| CliError::new(format!("cannot write {}: {e}", path.display()));
    // Pipes and devices have no name to be renamed to. A link stays one: its target is replaced.
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => return std::fs::write(path, text.as_bytes()).map_err(fail),
        _ => {}
    }
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let temporary = beside(&path);
    let written = std::fs::File::create(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    });
    written.map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        fail(e)
    })
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("a.json"), directory.path().join("b.json"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&file, &Shown::own("old".into())).unwrap();
        write(&link, &Shown::own("new".into())).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        write(Path::new("/dev/null"), &Shown::own("x".into())).unwrap();
        let missing = write(&directory.path().join("no/c.json"), &Shown::own("x".into()));
        assert!(matches!(missing, Err(CliError::Message { text, .. }) if text.starts_with("cannot write")));
        assert!(write(directory.path(), &Shown::own("x".into())).is_err());
    }
}
