//! What is said to the agent about load-balancer addresses, and what it says.

use std::fs;

use homelab_model::{Holder, LbReport, ours};

use crate::error::Error;
use crate::files::{Records, delete, write_atomic};
use crate::root::Root;
use crate::unit;

/// Who cordoned the node, if it is cordoned. The file alone counts: what it says of somebody is for people.
pub fn cordoned(root: &Root) -> Option<Holder> {
    match fs::read(root.path(ours::CORDONED)) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap_or_else(|_| Holder {
            who: "somebody".to_owned(),
            command: "cordon".to_owned(),
            ..Holder::default()
        })),
        Err(_) if root.path(ours::CORDONED).exists() => Some(Holder::default()),
        Err(_) => None,
    }
}

/// Cordons the node in somebody's name, or lifts that; never half. The agent is not told. Hold [`crate::lock`]: the
/// agent, too, writes the records of directories that homelab made.
pub fn set_cordoned(root: &Root, by: Option<&Holder>) -> Result<(), Error> {
    let path = root.path(ours::CORDONED);
    match by {
        Some(by) => {
            Records::load(root)?.make_parents(root, ours::CORDONED)?;
            let invalid = |e: serde_json::Error| Error::Invalid(format!("{}: {e}", ours::CORDONED));
            let text = serde_json::to_vec(by).map_err(invalid)?;
            write_atomic(&path, &text, 0o600, None)
        }
        None => {
            delete(&path)?;
            Records::load(root)?.remove_empty_parents(root, ours::CORDONED)
        }
    }
}

/// Whether the agent runs.
pub fn agent_runs(root: &Root) -> bool {
    let name = |pid: u32| fs::read_to_string(root.proc(&format!("{pid}/comm"))).unwrap_or_default();
    unit::agent_report(root).is_some_and(|report| name(report.pid).trim_end() == "homelab-node")
}

/// Tells a running agent to read its configuration again, and whether the node is cordoned.
pub fn tell_agent(root: &Root) -> Result<(), Error> {
    unit::reload_agent(root)
}

/// The agent's last words about load-balancer addresses. They stay when it is killed.
pub fn lb_report(root: &Root) -> Option<LbReport> {
    serde_json::from_slice(&fs::read(root.path(ours::LB_REPORT)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_cordoned_by_a_file_that_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        assert_eq!(cordoned(&root), None);
        set_cordoned(&root, None).unwrap();
        assert!(!root.path(ours::VAR).exists(), "nothing is made for nothing");
        let by = Holder { who: "me@laptop".into(), pid: 7, command: "cordon".into(), since: 9 };
        set_cordoned(&root, Some(&by)).unwrap();
        assert_eq!(cordoned(&root), Some(by));
        // By hand, and not what we write.
        fs::write(root.path(ours::CORDONED), "").unwrap();
        assert_eq!(cordoned(&root).map(|by| by.who), Some("somebody".to_owned()));
        set_cordoned(&root, None).unwrap();
        assert_eq!(cordoned(&root), None);
        assert!(!root.path(ours::CORDONED).exists());
        // A destroy takes it away with all of ours that no plan has.
        set_cordoned(&root, Some(&Holder::default())).unwrap();
        Records::load(&root).unwrap().farewell(&root).unwrap();
        assert!(!root.path(ours::VAR).exists());
        assert!(!agent_runs(&root) && lb_report(&root).is_none());
    }
}
