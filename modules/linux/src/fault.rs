//! Points where tests stop a process to pull the plug.
//!
//! With the cargo feature `fault-points` a process that reaches the point named in `/run/homelab-fault` (the exact
//! name, or its beginning and `*`) removes that file, writes its process id and the point's name to
//! `/run/homelab-fault.reached`, and stops itself (SIGSTOP) until it is continued or killed. Without the feature
//! nothing of this is compiled.

/// Reaches a point. `name` is put into words only with the feature: pass `format_args!`.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_name: impl std::fmt::Display) {}

/// Reaches a point. `name` is put into words only with the feature: pass `format_args!`.
#[cfg(feature = "fault-points")]
pub fn point(name: impl std::fmt::Display) {
    armed::point(std::path::Path::new("/run"), &name.to_string());
}

#[cfg(feature = "fault-points")]
mod armed {
    use std::fs;
    use std::path::Path;

    use nix::sys::signal::{Signal, raise};

    /// Whether `wanted` names the point.
    pub(super) fn matches(wanted: &str, name: &str) -> bool {
        match wanted.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == wanted,
        }
    }

    pub(super) fn point(run: &Path, name: &str) {
        let order = run.join("homelab-fault");
        let Ok(wanted) = fs::read_to_string(&order) else { return };
        // Of several processes the one that takes the order away stops.
        if !matches(wanted.trim(), name) || fs::remove_file(&order).is_err() {
            return;
        }
        let (fresh, reached) = (run.join("homelab-fault.new"), run.join("homelab-fault.reached"));
        let _ = fs::write(&fresh, format!("{} {name}\n", std::process::id()));
        let _ = fs::rename(&fresh, &reached);
        let _ = raise(Signal::SIGSTOP);
    }
}

#[cfg(all(test, feature = "fault-points"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::path::Path;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::armed::{matches, point};

    const RUN: &str = "HOMELAB_TEST_FAULT_RUN";

    #[test]
    fn points_are_named_exactly_or_by_their_beginning() {
        assert!(matches("effect.1.before", "effect.1.before"));
        assert!(!matches("effect.1", "effect.1.before"));
        assert!(matches("effect.*", "effect.12.after"));
        assert!(!matches("rollback.*", "effect.12.after"));
        assert!(!matches("", "effect.12.after"));
    }

    /// Not a test of its own: the process that the next one starts.
    #[test]
    fn reaches_points() {
        if let Some(run) = std::env::var_os(RUN) {
            for count in 0..5 {
                point(Path::new(&run), &format!("effect.{count}.before"));
            }
        }
    }

    #[test]
    fn a_process_stops_at_its_point_once() {
        let run = tempfile::tempdir().unwrap();
        fs::write(run.path().join("homelab-fault"), "effect.3*\n").unwrap();
        let mut child = Command::new("/proc/self/exe")
            .args(["--exact", "fault::tests::reaches_points"])
            .env(RUN, run.path())
            .spawn()
            .unwrap();
        let stat = || fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let stopped = || stat().rsplit_once(')').unwrap().1.trim().starts_with('T');
        let start = Instant::now();
        while !stopped() {
            assert!(start.elapsed() < Duration::from_secs(20), "{}", stat());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!run.path().join("homelab-fault").exists());
        let reached = fs::read_to_string(run.path().join("homelab-fault.reached")).unwrap();
        assert_eq!(reached, format!("{} effect.3.before\n", child.id()));
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGCONT).unwrap();
        assert!(child.wait().unwrap().success(), "it goes on, and stops nowhere else");
    }
}
