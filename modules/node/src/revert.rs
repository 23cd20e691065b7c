//! `homelab-node revert`: what systemd runs when nobody confirmed a change in time, and at boot.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::host::Host;
use crate::machine::Machine;
use crate::transaction::{Ended, expire, recover};

/// Waits for the transaction's time to be over, or takes back whatever is open if there is no name: this is a boot.
pub(crate) fn main(id: Option<&str>) -> ExitCode {
    let ended = Machine::open().and_then(|mut machine| revert(&mut machine, id));
    let (line, good) = told(id, &ended);
    let _ = writeln!(io::stderr(), "homelab-node revert: {line}");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn revert<H: Host>(host: &mut H, id: Option<&str>) -> Result<Ended, String> {
    match id {
        Some(id) => expire(host, id),
        None => recover(host),
    }
}

/// One line for the unit's journal, and whether all is well.
fn told(id: Option<&str>, ended: &Result<Ended, String>) -> (String, bool) {
    let name = id.unwrap_or("open at boot");
    match ended {
        Ok(Ended::Nothing) => (format!("transaction {name}: nothing to take back"), true),
        Ok(Ended::Confirmed) => (format!("transaction {name}: it was confirmed"), true),
        Ok(Ended::TakenBack(reverted)) => {
            let head =
                format!("transaction {} of {} taken back: {}", reverted.id, reverted.by, reverted.reason);
            match reverted.left.is_empty() {
                true => (format!("{head}; the node is as before"), true),
                false => (format!("{head}; not as before: {}", reverted.left.join(", ")), false),
            }
        }
        Err(message) => (format!("transaction {name} could not be taken back: {message}"), false),
    }
}

#[cfg(test)]
mod tests {
    use homelab_model::{Holder, Reverted};

    use super::*;

    #[test]
    fn one_line_says_what_was_done() {
        let by = Holder { who: "me@laptop".into(), pid: 7, command: "apply".into(), since: 0 };
        let reason = "nobody confirmed it within 60 s".to_owned();
        let mut reverted = Reverted { id: "ab".into(), by, at: 0, reason, left: Vec::new() };
        let line = told(Some("ab"), &Ok(Ended::TakenBack(reverted.clone())));
        let expected = "transaction ab of me@laptop (homelab apply, process 7) taken back: \
                        nobody confirmed it within 60 s; the node is as before";
        assert_eq!(line, (expected.to_owned(), true));
        reverted.left = vec!["link homelab0: busy".into()];
        let (line, good) = told(None, &Ok(Ended::TakenBack(reverted)));
        assert!(line.ends_with("; not as before: link homelab0: busy"), "{line}");
        assert!(!good);
        assert!(!told(None, &Err("the journal: no".into())).1);
        assert!(told(Some("ab"), &Ok(Ended::Nothing)).1);
    }
}
