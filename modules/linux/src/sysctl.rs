//! Kernel parameters. Those of our links vanish with them; all others are put back.

use std::fs;
use std::io;

use homelab_model::Sysctl;

use crate::error::Error;
use crate::files::Records;
use crate::root::Root;

/// The value of a parameter, white space trimmed; None if the kernel has no such parameter.
pub(crate) fn read(root: &Root, key: &str) -> Result<Option<String>, Error> {
    let path = root.sysctl(key);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io("reading", path, e)),
    }
}

fn write(root: &Root, key: &str, value: &str) -> Result<(), Error> {
    let path = root.sysctl(key);
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, format!("{value}\n").as_bytes()))
        .map_err(|e| Error::io("writing", path, e))
}

/// Writes a parameter; the value that was there is recorded first.
pub(crate) fn set(root: &Root, records: &mut Records, sysctl: &Sysctl) -> Result<(), Error> {
    if sysctl.link.is_none() && records.original(&sysctl.key).is_none() {
        let Some(original) = read(root, &sysctl.key)? else {
            let reason = io::Error::new(io::ErrorKind::NotFound, "the kernel has no such parameter");
            return Err(Error::io("writing", root.sysctl(&sysctl.key), reason));
        };
        records.remember(root, &[], &[(&sysctl.key, original)])?;
    }
    write(root, &sysctl.key, &sysctl.value)
}

/// Puts a parameter back to what it was before homelab.
pub(crate) fn put_back(root: &Root, records: &mut Records, sysctl: &Sysctl) -> Result<(), Error> {
    if sysctl.link.is_some() {
        return Ok(());
    }
    if let Some(original) = records.original(&sysctl.key) {
        match write(root, &sysctl.key, original) {
            // A parameter that went with its kernel module has nothing to be put back to.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    records.forget_sysctl(root, &sysctl.key)
}
