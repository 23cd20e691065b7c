//! The units that undo a transaction: a timer for when nobody confirms it, a unit for when the node starts anew.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use homelab_model::{Binary, Symlink, ours};

use crate::clock::boottime_ms;
use crate::error::Error;
use crate::files::{
    Records, carry_digest, copy_self, delete, digest_of_self, known_digest_of_self, make_symlink,
    remove_temporaries, sync_parent, write_atomic,
};
use crate::process::complaint;
use crate::root::Root;
use crate::unit;

use super::store::has_state;

const BOOT_UNIT: &str = include_str!("templates/homelab-recovery.service");
/// Where systemd's commands may be.
const DIRECTORIES: [&str; 2] = ["/usr/bin", "/bin"];

/// Path of the boot unit's file.
fn unit_file() -> String {
    let directory = Path::new(ours::UNIT_FILE).parent().unwrap_or(Path::new("/"));
    directory.join(ours::RECOVERY_UNIT).display().to_string()
}

/// Path of the symbolic link that enables it.
fn unit_link() -> String {
    let directory = Path::new(ours::UNIT_FILE).parent().unwrap_or(Path::new("/"));
    directory.join("multi-user.target.wants").join(ours::RECOVERY_UNIT).display().to_string()
}

/// Ids are parts of unit names and command lines.
fn check_id(id: &str) -> Result<(), Error> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if (1..=64).contains(&id.len()) && id.bytes().all(hex) {
        return Ok(());
    }
    Err(Error::Invalid(format!("the transaction's name {id:?} is not lower-case hex")))
}

fn tool(root: &Root, name: &str) -> Result<PathBuf, Error> {
    let found = DIRECTORIES.iter().map(|d| root.path(&format!("{d}/{name}"))).find(|p| p.exists());
    found.ok_or_else(|| failure(name, "the command is missing".to_owned()))
}

fn failure(name: &str, message: String) -> Error {
    Error::Unit { name: name.to_owned(), message }
}

/// Whether the undo of a transaction can be armed on this machine; otherwise why not.
pub fn can_arm(root: &Root) -> Result<(), String> {
    if !root.path("/run/systemd/system").exists() {
        return Err("systemd does not run here, and it is what takes a change back in time".to_owned());
    }
    for name in ["systemd-run", "systemctl"] {
        tool(root, name)
            .map_err(|_| format!("{name} is missing, and it is what takes a change back in time"))?;
    }
    Ok(())
}

/// Arms the undo of the transaction `id`: unless it is disarmed, `homelab-node revert --id ID` runs after this time,
/// and `homelab-node revert --boot` when the node starts anew, both from a copy of the running binary that nothing
/// else uses. May be called twice.
pub fn arm(root: &Root, id: &str, after: Duration) -> Result<(), Error> {
    check_id(id)?;
    let mut records = Records::load(root)?;
    let (unit, link) = (unit_file(), unit_link());
    for path in [ours::RECOVERY, &unit, &link] {
        records.make_parents(root, path)?;
    }
    install_recovery(root)?;
    let text = BOOT_UNIT.replace("{{ recovery }}", ours::RECOVERY);
    write_atomic(&root.path(&unit), text.as_bytes(), 0o644, None)?;
    // No daemon-reload: it takes long, and only the next boot reads this unit.
    make_symlink(root, &Symlink { path: link, target: format!("../{}", ours::RECOVERY_UNIT) })?;
    start_timer(root, &format!("{}-{id}", ours::REVERT_UNIT), id, after)
}

/// Lets the undo run after this time, and not at the time set before: the earlier timer finds that its time has not
/// come. There is no moment without one.
pub fn rearm(root: &Root, id: &str, after: Duration) -> Result<(), Error> {
    check_id(id)?;
    // systemd may hold a transient unit for some time after its end: the name must be a new one.
    start_timer(root, &format!("{}-{id}-{:x}", ours::REVERT_UNIT, boottime_ms()), id, after)
}

/// Takes the timer and the boot unit away, and the copy of the binary. The service that runs the undo is stopped too,
/// unless it is this very process. May be called twice.
pub fn disarm(root: &Root, id: &str) -> Result<(), Error> {
    check_id(id)?;
    let mut records = Records::load(root)?;
    let installed = known_digest_of_self().map(|own| root.path(&ours::binary_path(own))).unwrap_or_default();
    // The timer after the unit, and the binary that both run last: who is killed in between is followed by one that
    // finds the rest.
    let mut stopped = Ok(());
    for path in [unit_link(), unit_file(), ours::RECOVERY.to_owned()] {
        if path == ours::RECOVERY {
            stopped = stop(root, id);
        }
        let real = root.path(&path);
        carry_digest(&installed, &installed, || delete(&real))?;
        remove_temporaries(root, &real);
        records.remove_empty_parents(root, &path)?;
    }
    // After a farewell there are no records: these directories are for nothing else.
    for directory in Path::new(ours::RECOVERY).ancestors().skip(1).take_while(|d| d.starts_with(ours::LIB)) {
        let _ = fs::remove_dir(root.path(&directory.display().to_string()));
    }
    if !has_state(root) {
        // If systemd read its units meanwhile, it remembers the boot unit, and those that this one names.
        unit::reload(root)?;
    }
    stopped
}

/// Puts the running binary at [`ours::RECOVERY`]: as a further name of the installed one if that is the same.
fn install_recovery(root: &Root) -> Result<(), Error> {
    let path = root.path(ours::RECOVERY);
    let own = digest_of_self().map_err(|e| Error::io("reading", "/proc/self/exe", e))?;
    let installed = root.path(&ours::binary_path(&own));
    if same_file(&installed, Path::new("/proc/self/exe")) {
        delete(&path)?;
        let linked = carry_digest(&installed, &installed, || fs::hard_link(&installed, &path));
        match linked.and_then(|()| sync_parent(&path)) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::StorageFull => return Err(Error::io("writing", path, e)),
            // A file system without hard links: a copy does as well.
            Err(_) => {}
        }
    }
    let binary = Binary { path: ours::RECOVERY.into(), sha256: own, mode: 0o755, owner: "0:0".into() };
    copy_self(root, &binary)
}

fn same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
}

fn start_timer(root: &Root, unit: &str, id: &str, after: Duration) -> Result<(), Error> {
    run(
        Command::new(tool(root, "systemd-run")?)
            .args(["--quiet", "--collect", "--no-ask-password"])
            .arg(format!("--unit={unit}"))
            .arg(format!("--description=homelab: take back the change {id} unless it is confirmed"))
            .arg(format!("--on-active={}ms", after.as_millis()))
            .arg("--timer-property=AccuracySec=100ms")
            // What is to save the node is the last to go when memory is short.
            .arg("--property=OOMScoreAdjust=-900")
            // Killed, or at a node that could not be looked at: once more. Not without the binary.
            .args(["--property=Restart=on-failure", "--property=RestartSec=1"])
            .args(["--property=StartLimitIntervalSec=0", "--property=RestartPreventExitStatus=203"])
            .args(["--", ours::RECOVERY, "revert", "--id", id]),
        unit,
    )
}

fn stop(root: &Root, id: &str) -> Result<(), Error> {
    let unit = format!("{}-{id}", ours::REVERT_UNIT);
    let own = fs::read_to_string(root.proc("self/cgroup")).unwrap_or_default().contains(&unit);
    let mut command = Command::new(tool(root, "systemctl")?);
    // A pattern: it also finds the names that `rearm` gave, and to find nothing is no error.
    command.args(["stop", "--", &format!("{unit}*.timer")]);
    if !own {
        command.arg(format!("{unit}*.service"));
    }
    run(&mut command, &unit)
}

fn run(command: &mut Command, unit: &str) -> Result<(), Error> {
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.map_err(|e| failure(unit, e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failure(unit, complaint(&output)))
}
