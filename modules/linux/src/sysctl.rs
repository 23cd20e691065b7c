//! Kernel parameters. Those of our links vanish with them; all others are put back.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use homelab_model::Sysctl;

use crate::error::Error;
use crate::files::{Original, Records};
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

/// What is to be put back of a parameter; None if the kernel has no such parameter.
pub(crate) fn original(root: &Root, key: &str) -> Result<Option<Original>, Error> {
    let Some(value) = read(root, key)? else { return Ok(None) };
    let mut companions = BTreeMap::new();
    for companion in companions_of(root, key) {
        if let Some(value) = read(root, &companion)? {
            companions.insert(companion, value);
        }
    }
    Ok(Some(Original { value, companions }))
}

/// Switching forwarding makes the kernel switch it on every link, and the acceptance of redirects the other way
/// round (`inet_forward_change` in net/ipv4/devinet.c, `addrconf_fixup_forwarding` in net/ipv6/addrconf.c).
fn companions_of(root: &Root, key: &str) -> Vec<String> {
    let (family, redirects) = match key {
        "net.ipv4.ip_forward" | "net.ipv4.conf.all.forwarding" => ("ipv4", true),
        "net.ipv6.conf.all.forwarding" => ("ipv6", false),
        _ => return Vec::new(),
    };
    let links = fs::read_dir(root.proc(&format!("sys/net/{family}/conf"))).into_iter().flatten().flatten();
    let names = links.map(|entry| entry.file_name().to_string_lossy().replace('.', "/"));
    let mut keys: Vec<String> = names
        .filter(|name| name != "all")
        .map(|name| format!("net.{family}.conf.{name}.forwarding"))
        .collect();
    if redirects {
        keys.push("net.ipv4.conf.all.accept_redirects".to_owned());
    }
    keys
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
        let Some(original) = original(root, &sysctl.key)? else {
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
    if let (Some(original), Some(now)) = (records.original(&sysctl.key), read(root, &sysctl.key)?)
        && original.value != now
    {
        let mut companions = Vec::new();
        for (key, value) in &original.companions {
            // What the kernel made of it then; anything else is somebody's wish since.
            let opposite = if now == "0" { "1" } else { "0" };
            let made = if key.ends_with(".accept_redirects") { opposite } else { now.as_str() };
            match read(root, key)? {
                Some(current) if current == made => companions.push((key, value.clone())),
                Some(current) => companions.push((key, current)),
                // Its link is gone.
                None => {}
            }
        }
        write(root, &sysctl.key, &original.value)?;
        for (key, value) in companions {
            if read(root, key)?.is_some_and(|current| current != value) {
                write(root, key, &value)?;
            }
        }
    }
    records.forget_sysctl(root, &sysctl.key)
}
