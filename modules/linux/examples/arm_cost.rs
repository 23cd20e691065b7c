//! What arming costs, on a machine with systemd: run it as root on a node of the lab. Prints medians in milliseconds,
//! and how late a timer of one second fires.
//!
//! The copy of this binary that arming makes is called as the node binary would be: `revert --id ID` or `revert --boot`.

use std::io::Write;
use std::time::{Duration, Instant};

use homelab_linux::{Root, boottime_ms, transaction};

/// Where the copy notes that it was called.
const FIRED: &str = "/run/homelab-arm-cost";
const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Root::system();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["revert", "--boot"] => {
            std::fs::write(FIRED, "boot")?;
            return Ok(());
        }
        ["revert", "--id", id] => {
            // From within the service that is disarmed.
            transaction::disarm(&root, id)?;
            std::fs::write(format!("{FIRED}.new"), boottime_ms().to_string())?;
            std::fs::rename(format!("{FIRED}.new"), FIRED)?;
            return Ok(());
        }
        ["arm"] => {
            transaction::arm(&root, "b007", Duration::from_secs(3600))?;
            return Ok(());
        }
        _ => {}
    }
    transaction::can_arm(&root)?;
    let hour = Duration::from_secs(3600);
    let mut times = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        let id = format!("{round:x}");
        let mut measure = |place: usize, work: &mut dyn FnMut() -> Result<(), homelab_linux::Error>| {
            let start = Instant::now();
            let result = work();
            times[place].push(start.elapsed().as_secs_f64() * 1000.0);
            result
        };
        measure(0, &mut || {
            transaction::write_journal(&root, &[b'x'; 20_000])?;
            transaction::reserve(&root)
        })?;
        measure(1, &mut || transaction::arm(&root, &id, hour))?;
        measure(2, &mut || transaction::rearm(&root, &id, hour))?;
        measure(3, &mut || {
            transaction::disarm(&root, &id)?;
            transaction::remove_transaction(&root)
        })?;
    }
    let mut out = std::io::stdout();
    for (name, times) in ["journal and reserve", "arm", "rearm", "disarm and remove"].iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        writeln!(out, "{name:20} {:6.1} ms", times[times.len() / 2])?;
    }
    let _ = std::fs::remove_file(FIRED);
    let due = boottime_ms() + 1000;
    transaction::arm(&root, "f1", Duration::from_secs(1))?;
    let fired: u64 = loop {
        match std::fs::read_to_string(FIRED) {
            Ok(text) => break text.parse()?,
            Err(_) if boottime_ms() > due + 20_000 => return Err("the timer did not fire".into()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    writeln!(out, "{:20} {:6} ms after its second", "undo done", fired.saturating_sub(due))?;
    Ok(())
}
