//! Packages of the distribution that homelab installs where they are missing, and takes away again: by `apt-get`.
//!
//! A record below [`ours::PACKAGES`] says that a package is ours. Whatever came with it is on that record, too.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use homelab_model::{Package, ours};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::files::{Records, delete, write_atomic};
use crate::process::{Running, complaint};
use crate::root::Root;

/// dpkg's state of all packages.
const STATUS: &str = "/var/lib/dpkg/status";
/// Where it is.
pub(crate) const APT_GET: &str = "/usr/bin/apt-get";
const SYSTEMCTL: &str = "/usr/bin/systemctl";
/// Of a shell that is no login shell it may lack what packages' scripts need.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Nobody is there to answer, another dpkg may be at work for a while, and what the user changed in /etc stays.
const OPTIONS: [&str; 12] = [
    "-y",
    "-q",
    "-o",
    "DPkg::Lock::Timeout=120",
    "-o",
    "Dpkg::Use-Pty=0",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "Acquire::Retries=1",
    "-o",
    "Acquire::http::Timeout=20",
];
/// Lines of apt's output in an error.
const LINES: usize = 4;

/// What is on record of a package of ours.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Packages that came with it.
    with: BTreeSet<String>,
    /// Configuration of an earlier installation was there: it is the user's, and stays.
    keep_configuration: bool,
}

fn mark_path(name: &str) -> String {
    format!("{}/{name}", ours::PACKAGES)
}

fn mark(root: &Root, name: &str) -> Option<Mark> {
    let bytes = fs::read(root.path(&mark_path(name))).ok()?;
    // Half a record still says whose it is; without its list nothing but the package goes.
    Some(serde_json::from_slice(&bytes).unwrap_or(Mark { with: BTreeSet::new(), keep_configuration: true }))
}

/// The service of a package that has one by its own name.
fn service(name: &str) -> String {
    format!("{name}.service")
}

/// The package, if we installed it and nobody has taken it into use since.
pub(crate) fn observe(root: &Root, name: &str) -> Option<Package> {
    let is_ours = mark(root, name).is_some() && version(root, name).is_some() && !in_use(root, name);
    is_ours.then(|| Package { name: name.to_owned() })
}

/// Version of a package that is installed as a whole.
pub(crate) fn version(root: &Root, name: &str) -> Option<String> {
    let text = fs::read_to_string(root.path(STATUS)).ok()?;
    let entry = text.split("\n\n").map(Entry::of).find(|entry| entry.name == name)?;
    (entry.state == "installed").then(|| entry.version.to_owned())
}

/// Whether the package's own service starts at boot, or runs.
fn in_use(root: &Root, name: &str) -> bool {
    let unit = service(name);
    let linked = |directory: &str| {
        let entries = fs::read_dir(root.path(directory)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).any(|path| {
            path.extension().is_some_and(|e| e == "wants" || e == "requires")
                && path.join(&unit).symlink_metadata().is_ok()
        })
    };
    linked("/etc/systemd/system") || root.path("/sys/fs/cgroup/system.slice").join(&unit).exists()
}

/// A paragraph of dpkg's state.
#[derive(Debug, Default, PartialEq, Eq)]
struct Entry<'a> {
    name: &'a str,
    /// `installed`, `config-files`, `half-configured`, ...
    state: &'a str,
    version: &'a str,
}

impl Entry<'_> {
    fn of(paragraph: &str) -> Entry<'_> {
        let mut entry = Entry::default();
        for line in paragraph.lines() {
            match line.split_once(": ") {
                Some(("Package", name)) => entry.name = name,
                Some(("Status", status)) => entry.state = status.rsplit(' ').next().unwrap_or_default(),
                Some(("Version", version)) => entry.version = version,
                _ => {}
            }
        }
        entry
    }
}

/// Names of packages that are there, whole or not; and whether `name` has left configuration.
fn present(root: &Root, name: &str) -> (BTreeSet<String>, bool) {
    let text = fs::read_to_string(root.path(STATUS)).unwrap_or_default();
    let mut names = BTreeSet::new();
    let mut left = false;
    for entry in text.split("\n\n").map(Entry::of).filter(|entry| !entry.name.is_empty()) {
        match entry.state {
            "config-files" => left |= entry.name == name,
            "not-installed" => {}
            _ => drop(names.insert(entry.name.to_owned())),
        }
    }
    (names, left)
}

/// Installs a package without what it recommends, unless we have done so. Its own service neither starts nor will at
/// boot. It waits for other work of apt or dpkg for two minutes.
pub fn install_package(root: &Root, name: &str) -> Result<(), Error> {
    let error = |message: String| Error::Package { name: name.to_owned(), message };
    let fine = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    if !fine || !name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) {
        return Err(error("this is no package's name".to_owned()));
    }
    let marked = mark(root, name);
    if version(root, name).is_some() {
        return match marked {
            Some(_) => Ok(()),
            None => Err(error("somebody else has installed it meanwhile: plan again".to_owned())),
        };
    }
    if !root.path(APT_GET).exists() {
        return Err(error(format!("{APT_GET} is missing, by which homelab would install it")));
    }
    let (before, left) = present(root, name);
    let mut mark = marked.unwrap_or(Mark { with: BTreeSet::new(), keep_configuration: left });
    // What is begun is ours, whatever becomes of this process.
    write_mark(root, name, &mark)?;
    let result = quietly(root, name, || {
        let install = ["install", "--no-install-recommends", "--", name];
        apt(root, &install).or_else(|first| {
            // What it knows of the repositories may be old, or nothing.
            apt(root, &["update"]).map_err(|_| first)?;
            apt(root, &install)
        })
    });
    let (after, _) = present(root, name);
    if !after.contains(name) {
        forget(root, name)?;
    } else {
        mark.with.extend(after.difference(&before).filter(|other| *other != name).cloned());
        write_mark(root, name, &mark)?;
    }
    result.map_err(error)?;
    match version(root, name) {
        Some(_) => Ok(()),
        None => Err(error("apt-get says that all went well, and it is not installed".to_owned())),
    }
}

/// Does `work` while the package's service cannot start, and sees to it that it is off afterwards.
fn quietly(root: &Root, name: &str, work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let unit = service(name);
    let masked = ["/etc/systemd/system", "/run/systemd/system"].iter().any(|directory| {
        let target = fs::read_link(root.path(directory).join(&unit));
        target.is_ok_and(|target| target.as_os_str() == "/dev/null")
    });
    if !masked {
        run(root, SYSTEMCTL, &["mask", "--runtime", "--", &unit])
            .map_err(|e| format!("{unit} cannot be kept from starting: {e}"))?;
    }
    let mut result = work();
    if !masked {
        if version(root, name).is_some() {
            let off = run(root, SYSTEMCTL, &["disable", "--", &unit]);
            result = result.and(off.map(drop).map_err(|e| format!("{unit} cannot be disabled: {e}")));
        }
        let _ = run(root, SYSTEMCTL, &["unmask", "--runtime", "--", &unit]);
    }
    result
}

/// Takes a package of ours away, with its configuration and what came with it, as far as nothing else needs that.
/// One that somebody else uses by now stays.
pub(crate) fn remove(root: &Root, name: &str) -> Result<(), Error> {
    let Some(mark) = mark(root, name) else { return Ok(()) };
    let error = |message: String| Error::Package { name: name.to_owned(), message };
    if present(root, name).0.contains(name) && !in_use(root, name) {
        let verb = if mark.keep_configuration { "remove" } else { "purge" };
        let mut names: BTreeSet<String> = mark.with.clone();
        names.insert(name.to_owned());
        let alone = BTreeSet::from([name.to_owned()]);
        for chosen in [&names, &alone] {
            if would_remove(root, verb, chosen).map_err(error)?.is_subset(&names) {
                let mut arguments = vec![verb, "--"];
                arguments.extend(chosen.iter().map(String::as_str));
                apt(root, &arguments).map_err(error)?;
                break;
            }
        }
    }
    forget(root, name)
}

/// Packages that would go with some, by apt's own account.
fn would_remove(root: &Root, verb: &str, names: &BTreeSet<String>) -> Result<BTreeSet<String>, String> {
    let mut arguments = vec!["--simulate", "-q", verb, "--"];
    arguments.extend(names.iter().map(String::as_str));
    let output = run(root, APT_GET, &arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let gone = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let verb = words.next()?;
        (verb == "Remv" || verb == "Purg").then(|| words.next().unwrap_or_default())
    });
    // Of another architecture it would be `name:arch`.
    Ok(gone.map(str::to_owned).collect())
}

fn write_mark(root: &Root, name: &str, mark: &Mark) -> Result<(), Error> {
    let path = mark_path(name);
    Records::load(root)?.make_parents(root, &path)?;
    let bytes =
        serde_json::to_vec(mark).map_err(|e| Error::Record { path: path.clone(), reason: e.to_string() })?;
    write_atomic(&root.path(&path), &bytes, 0o600, None)
}

fn forget(root: &Root, name: &str) -> Result<(), Error> {
    let path = mark_path(name);
    delete(&root.path(&path))?;
    Records::load(root)?.remove_empty_parents(root, &path)
}

fn apt(root: &Root, arguments: &[&str]) -> Result<(), String> {
    let all: Vec<&str> = OPTIONS.iter().chain(arguments).copied().collect();
    run(root, APT_GET, &all).map(drop)
}

/// Runs a program; its complaint if it fails.
fn run(root: &Root, program: &str, arguments: &[&str]) -> Result<Output, String> {
    let path: PathBuf = root.path(program);
    let mut command = Command::new(&path);
    command.args(arguments).env("PATH", PATH).env("DEBIAN_FRONTEND", "noninteractive");
    // It would restart services of others, or ask.
    command.env("NEEDRESTART_SUSPEND", "1").env("APT_LISTCHANGES_FRONTEND", "none");
    let output = Running::start(&mut command)
        .and_then(Running::finish)
        .map_err(|e| format!("{}: {e}", path.display()))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = complaint(&output);
    let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("W: ")).collect();
    Err(lines[lines.len().saturating_sub(LINES)..].join("; "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A machine with an apt and a systemctl that do what scripts can.
    struct Machine {
        directory: tempfile::TempDir,
    }

    const APT: &str = r#"#!/bin/sh
R=$(cd "$(dirname "$0")/../.." && pwd)
echo "apt-get $*" >>$R/log
if [ -e $R/refuse ] && [ "$(grep -c update $R/log)" -lt 1 ]; then echo "E: Unable to locate package" >&2; exit 100; fi
if [ -e $R/broken ]; then echo "W: a warning" >&2; echo "E: no way" >&2; exit 100; fi
case "$*" in
*--simulate*) cat $R/simulated;;
*install*) cat $R/new >>$R/var/lib/dpkg/status; mkdir -p $R/etc/systemd/system/multi-user.target.wants
  ln -s x $R/etc/systemd/system/multi-user.target.wants/frr.service;;
*purge*|*remove*) cp $R/old $R/var/lib/dpkg/status;;
esac
"#;
    const SYSTEMD: &str = r#"#!/bin/sh
R=$(cd "$(dirname "$0")/../.." && pwd)
echo "systemctl $*" >>$R/log
case "$1" in disable) rm $R/etc/systemd/system/multi-user.target.wants/frr.service;; esac
"#;
    const OLD: &str = "Package: base\nStatus: install ok installed\nVersion: 1\n\n";
    const NEW: &str = "Package: libyang2\nStatus: install ok installed\nVersion: 2\n\nPackage: frr\n\
                       Status: install ok installed\nPriority: optional\nVersion: 8.4.4-1\n\n";

    impl Machine {
        fn new() -> Machine {
            let machine = Machine { directory: tempfile::tempdir().unwrap() };
            for (path, text) in [(APT_GET, APT), (SYSTEMCTL, SYSTEMD)] {
                machine.write(path, text);
                let path = machine.root().path(path);
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            for (path, text) in [(STATUS, OLD), ("/old", OLD), ("/new", NEW), ("/simulated", "")] {
                machine.write(path, text);
            }
            machine
        }

        fn root(&self) -> Root {
            Root::at(self.directory.path())
        }

        fn write(&self, path: &str, text: &str) {
            self.root().write(path, text);
        }

        /// What was run since the last look, without apt's options.
        fn log(&self) -> Vec<String> {
            let path = self.root().path("/log");
            let text = fs::read_to_string(&path).unwrap_or_default();
            let _ = fs::remove_file(path);
            let options = OPTIONS.join(" ");
            text.lines().map(|line| line.replace(&format!("{options} "), "")).collect()
        }
    }

    #[test]
    fn a_package_comes_with_its_service_off_and_goes_with_what_came_with_it() {
        let machine = Machine::new();
        let root = machine.root();
        assert_eq!(observe(&root, "frr"), None);
        install_package(&root, "frr").unwrap();
        assert_eq!(
            machine.log(),
            [
                "systemctl mask --runtime -- frr.service",
                "apt-get install --no-install-recommends -- frr",
                "systemctl disable -- frr.service",
                "systemctl unmask --runtime -- frr.service",
            ]
        );
        assert_eq!(observe(&root, "frr"), Some(Package { name: "frr".into() }));
        assert_eq!(version(&root, "frr").as_deref(), Some("8.4.4-1"));
        assert_eq!(mark(&root, "frr").unwrap().with, BTreeSet::from(["libyang2".to_owned()]));
        // Once more it does nothing.
        install_package(&root, "frr").unwrap();
        assert_eq!(machine.log(), [""; 0]);

        machine.write("/simulated", "Reading\nPurg frr [8.4.4-1]\nPurg libyang2 [2]\n");
        remove(&root, "frr").unwrap();
        assert_eq!(
            machine.log(),
            ["apt-get --simulate -q purge -- frr libyang2", "apt-get purge -- frr libyang2"]
        );
        assert_eq!(observe(&root, "frr"), None);
        assert!(!root.path(ours::VAR).exists(), "the records of it are gone");
        remove(&root, "frr").unwrap();
        assert_eq!(machine.log(), [""; 0]);
    }

    #[test]
    fn what_others_need_stays() {
        let machine = Machine::new();
        let root = machine.root();
        install_package(&root, "frr").unwrap();
        machine.log();
        machine.write("/simulated", "Purg frr [8]\nPurg libyang2 [2]\nPurg netconf [3]\n");
        remove(&root, "frr").unwrap();
        // Not even the package itself: the script says that others go with it, too.
        assert!(machine.log().iter().all(|line| line.contains("--simulate")));
        assert!(version(&root, "frr").is_some() && mark(&root, "frr").is_none());
    }

    #[test]
    fn a_package_that_somebody_uses_is_no_longer_ours() {
        let machine = Machine::new();
        let root = machine.root();
        install_package(&root, "frr").unwrap();
        machine.log();
        machine.write("/etc/systemd/system/multi-user.target.wants/frr.service", "");
        assert_eq!(observe(&root, "frr"), None);
        remove(&root, "frr").unwrap();
        assert_eq!(machine.log(), [""; 0]);
        assert!(version(&root, "frr").is_some());
        let error = install_package(&root, "frr").unwrap_err().to_string();
        assert!(error.contains("somebody else has installed it"), "{error}");
    }

    #[test]
    fn the_lists_are_fetched_once_if_they_do_not_help() {
        let machine = Machine::new();
        machine.write("/refuse", "");
        install_package(&machine.root(), "frr").unwrap();
        let apt: Vec<String> = machine.log().into_iter().filter(|line| line.starts_with("apt")).collect();
        let install = "apt-get install --no-install-recommends -- frr";
        assert_eq!(apt, [install, "apt-get update", install]);
    }

    #[test]
    fn a_failure_is_told_and_leaves_nothing() {
        let machine = Machine::new();
        let root = machine.root();
        machine.write("/broken", "");
        let error = install_package(&root, "frr").unwrap_err().to_string();
        assert_eq!(error, "package frr: E: no way");
        assert!(!root.path(ours::VAR).exists());
        assert_eq!(machine.log().last().unwrap(), "systemctl unmask --runtime -- frr.service");
        for bad in ["", "-x", "frr; true", "FRR", "--option"] {
            assert!(install_package(&root, bad).is_err(), "{bad}");
        }
        fs::remove_file(root.path(APT_GET)).unwrap();
        let error = install_package(&root, "frr").unwrap_err().to_string();
        assert!(error.contains("/usr/bin/apt-get is missing"), "{error}");
    }

    #[test]
    fn configuration_of_an_earlier_installation_stays() {
        let machine = Machine::new();
        let root = machine.root();
        let left = "Package: frr\nStatus: deinstall ok config-files\nVersion: 8\n\n";
        machine.write(STATUS, left);
        machine.write("/new", NEW);
        assert_eq!(version(&root, "frr"), None);
        // The script adds a second entry, dpkg would change the first.
        fs::write(root.path(STATUS), left).unwrap();
        assert!(present(&root, "frr").1);
        let mark = Mark { with: BTreeSet::new(), keep_configuration: true };
        write_mark(&root, "frr", &mark).unwrap();
        fs::write(root.path(STATUS), NEW).unwrap();
        machine.write("/simulated", "Remv frr [8]\n");
        remove(&root, "frr").unwrap();
        assert_eq!(machine.log(), ["apt-get --simulate -q remove -- frr", "apt-get remove -- frr"]);
    }
}
