//! Nodes that left the file.

use homelab_model::{Cluster, SshSettings, Summary, plan_node};

use crate::engine::Engine;
use crate::lock::{Heart, Unlocked};
use crate::plan::owned;
use crate::reach::Reach;
use crate::resolve::first_scope;
use crate::transact::Job;
use crate::{Departed, Event, Farewell, NodeError, Outcome, Target};

impl Engine<'_> {
    /// Takes everything of ours away from a node that left the file, if it still answers at its old address and
    /// still is that node.
    pub fn farewell(&self, cluster: &Cluster, departed: &Departed) -> Farewell {
        let name = departed.label();
        let target = Target { name, address: departed.address, ssh: common_ssh(cluster) };
        let farewell = match self.farewell_node(cluster, departed, &target) {
            Ok(None) => Farewell::Clean,
            Ok(Some(Outcome::Changed(summary) | Outcome::Held { summary, .. })) => Farewell::Cleaned(summary),
            Ok(Some(Outcome::RolledBack { reason, left, .. })) => Farewell::RolledBack { reason, left },
            Ok(Some(Outcome::Failed(error) | Outcome::Unsure(error) | Outcome::Unplanned(error)))
            | Err(error) => Farewell::Failed(error),
            Ok(Some(Outcome::Unchanged)) => Farewell::Cleaned(Summary::default()),
            Ok(Some(Outcome::NotStarted)) => Farewell::Failed(NodeError::Cancelled),
        };
        let event = match &farewell {
            Farewell::Clean | Farewell::Cleaned(_) => Event::Done,
            Farewell::Failed(error) => Event::Failed(error),
            Farewell::RolledBack { reason, .. } => Event::RolledBack(reason),
        };
        self.observer.event(&target.name, event);
        farewell
    }

    fn farewell_node(
        &self,
        cluster: &Cluster,
        departed: &Departed,
        target: &Target,
    ) -> Result<Option<Outcome>, NodeError> {
        let scope = first_scope(cluster, &self.binaries.digests());
        let mut live = self.open(target, &scope)?;
        live.look_closer()?;
        match &live.observed.spec {
            Some(spec) if spec.address != departed.address => {
                return Err(NodeError::OtherMachine(format!("{} of cluster {}", spec.node, spec.cluster)));
            }
            Some(spec) if cluster.nodes.iter().any(|n| n.name == spec.node) => {
                return Err(NodeError::OtherMachine(format!("{}, which is in the file", spec.node)));
            }
            _ => {}
        }
        let plan = plan_node(&target.name, &owned(&live.observed), &live.desired);
        if plan.changes.is_empty() {
            live.line.close();
            return Ok(None);
        }
        match self.take_lock(target, &live.line, self.options.lock_wait) {
            Ok(_) => {}
            Err(Unlocked::Busy(holder)) => return Err(NodeError::Busy(holder)),
            Err(Unlocked::Cancelled) => return Err(NodeError::Cancelled),
            Err(Unlocked::Lost(error)) => return Err(error),
        }
        let heart = Heart::new();
        heart.watch(&live.line);
        let mut job = Job::new(target.clone(), plan, live, self.fresh_id(), true);
        let outcome = self.whole(&mut job, &heart, &Reach::default()).unwrap_or_else(|outcome| outcome);
        job.drop_fresh();
        job.live.line.close();
        Ok(Some(outcome))
    }
}

/// How to reach a node that is no longer in the file: as all the others are reached, where they agree.
fn common_ssh(cluster: &Cluster) -> SshSettings {
    fn same<T: Clone + PartialEq>(cluster: &Cluster, get: impl Fn(&SshSettings) -> Option<T>) -> Option<T> {
        let mut values = cluster.nodes.iter().map(|n| get(&n.ssh));
        let first = values.next()??;
        values.all(|v| v.as_ref() == Some(&first)).then_some(first)
    }
    SshSettings {
        host: None,
        user: same(cluster, |s| s.user.clone()),
        port: same(cluster, |s| s.port),
        identity: same(cluster, |s| s.identity.clone()),
        jump: same(cluster, |s| s.jump.clone()),
        r#become: same(cluster, |s| s.r#become),
    }
}
