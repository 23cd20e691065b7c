//! `homelab rotate-key`: the membership key is replaced in three steps, each on all nodes before the next.

use homelab_model::{Cluster, KeyRing};

use crate::engine::{Aim, Engine, Goal};
use crate::keys::{MOST_CHANGES, Ring};
use crate::{NodeError, Report, RotateError};

/// A step of a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationStep {
    /// Nodes that lag behind get the ring of the others.
    CatchUp,
    /// The new key is accepted, too.
    Add,
    /// The new key signs.
    Switch,
    /// The old key goes.
    Trim,
}

/// How a replacement went.
#[derive(Debug)]
pub struct Rotation {
    /// The steps that were taken, in order; the last one failed unless `finished`.
    pub steps: Vec<(RotationStep, Report)>,
    /// Whether all nodes have the new key, and it alone.
    pub finished: bool,
    /// What tells the last ring from others.
    pub summary: String,
}

/// The next step from a ring that all nodes have. A ring is made with one key and changes in turn, so its generation
/// says which step is next: the keys themselves do not tell an added one from one that was switched to.
fn next_step(ring: &KeyRing) -> RotationStep {
    match (ring.accepted().len(), ring.generation() % 3) {
        (1, _) => RotationStep::Add,
        (_, 2) => RotationStep::Switch,
        _ => RotationStep::Trim,
    }
}

impl Engine<'_> {
    /// Replaces the membership key, or finishes a replacement that was cut short. Nothing is begun unless every node
    /// can be changed.
    pub fn rotate_keys(&self, cluster: &Cluster) -> Result<Rotation, RotateError> {
        let mut rotation = Rotation { steps: Vec::new(), finished: false, summary: String::new() };
        let (mut ring, even) = self.current_ring(cluster)?;
        let resumed = ring.accepted().len() > 1;
        let mut next = if even { next_step(&ring) } else { RotationStep::CatchUp };
        loop {
            let made = match next {
                RotationStep::CatchUp => ring.clone(),
                RotationStep::Add => ring.adding((self.random)()),
                RotationStep::Switch => ring.switched(),
                RotationStep::Trim => ring.trimmed(),
            };
            rotation.summary = made.summary();
            let report = self.step_ring(cluster, &made)?;
            let went = report.succeeded();
            rotation.steps.push((next, report));
            if !went || self.cancelled() && next != RotationStep::Trim {
                return Ok(rotation);
            }
            let settled = made.accepted().len() == 1;
            if settled && (next == RotationStep::Trim || resumed) {
                rotation.finished = true;
                return Ok(rotation);
            }
            ring = made;
            next = next_step(&ring);
        }
    }

    /// The newest ring with its text, and whether all nodes have it already.
    fn current_ring(&self, cluster: &Cluster) -> Result<(KeyRing, bool), RotateError> {
        let mut prepared = self.prepare_aim(cluster, Aim::Goal(Goal::Destroyed), &[], true)?;
        let failed: Vec<(String, NodeError)> = std::mem::take(&mut prepared.plan.nodes)
            .into_iter()
            .filter_map(|n| n.outcome.err().map(|error| (n.name, error)))
            .collect();
        let result = match prepared.ring.clone() {
            _ if !failed.is_empty() => Err(RotateError::Unreachable(failed)),
            Some(Ring::Known { summary, holders }) => self
                .fetch_ring(&prepared, &summary, &holders)
                .map(|ring| (ring, holders.len() == cluster.nodes.len()))
                .map_err(RotateError::from),
            _ => Err(RotateError::NoKeys),
        };
        prepared.hang_up(self.options.parallel);
        match result? {
            (ring, _) if ring.generation() >= MOST_CHANGES => Err(RotateError::Malformed(ring.summary())),
            other => Ok(other),
        }
    }

    /// Brings one ring to all nodes.
    fn step_ring(&self, cluster: &Cluster, ring: &KeyRing) -> Result<Report, RotateError> {
        let mut prepared = self.prepare_aim(cluster, Aim::Ring(ring.clone()), &[], true)?;
        // A step that leaves a node out would lead two steps away from it in the end.
        if prepared.plan.failed_nodes() > 0 {
            let failed = std::mem::take(&mut prepared.plan.nodes)
                .into_iter()
                .filter_map(|n| n.outcome.err().map(|error| (n.name, error)))
                .collect();
            prepared.hang_up(self.options.parallel);
            return Err(RotateError::Unreachable(failed));
        }
        Ok(self.apply(prepared)?)
    }
}
