//! What another process and its children take, from /proc.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// A process by its number.
#[derive(Clone, Copy)]
pub(crate) struct Process(pub(crate) u32);

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// A process that took no more than [`IDLE`] milliseconds for so long has nothing to do. Longer than kube-proxy's
/// minSyncPeriod of one second, for which a change waits that comes soon after another.
const CALM: Duration = Duration::from_millis(1300);
const IDLE: f64 = 30.0;

impl Process {
    /// User and system time of the process and of children that it waited for, milliseconds, to a clock tick.
    pub(crate) fn cpu(self) -> f64 {
        let stat = stat(self.0).expect("a running process");
        // utime, stime, cutime, cstime are the fields 14 to 17, the first after the name is the third.
        let ticks: f64 = stat[11..15].iter().map(|field| field.parse::<f64>().unwrap()).sum();
        let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
        ticks * 1e3 / per_second as f64
    }

    /// Waits until it has nothing to do.
    pub(crate) fn wait_calm(self) {
        loop {
            let before = self.cpu();
            sleep(CALM);
            if self.cpu() - before <= IDLE && children(self.0).is_empty() {
                return;
            }
        }
    }

    /// Resident memory, MiB.
    pub(crate) fn memory(self) -> f64 {
        kib(self.0, "VmRSS:") as f64 / 1024.0
    }

    /// The most that the process had for itself since its start, MiB.
    pub(crate) fn peak(self) -> f64 {
        kib(self.0, "VmHWM:") as f64 / 1024.0
    }

    /// Does `work` and gives the most that was seen of the process and its children together meanwhile, MiB.
    pub(crate) fn peak_with_children<T>(self, work: impl FnOnce() -> T) -> (f64, T) {
        let (done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let all = [self.0].into_iter().chain(children(self.0));
                    let sum = all.map(|process| kib(process, "VmRSS:")).sum();
                    peak.fetch_max(sum, Ordering::Relaxed);
                    sleep(LOOK);
                }
            });
            let result = work();
            done.store(true, Ordering::Relaxed);
            result
        });
        (peak.into_inner() as f64 / 1024.0, result)
    }
}

/// The fields of /proc/PID/stat after the name; None if there is no such process.
fn stat(process: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn children(of: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap();
    let numbers = all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let parent = of.to_string();
    numbers.filter(|process| stat(*process).is_some_and(|fields| fields[1] == parent)).collect()
}

/// A line of /proc/PID/status, KiB; 0 if the process has ended.
fn kib(process: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
