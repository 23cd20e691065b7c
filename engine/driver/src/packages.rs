//! Packages that a plan needs: installed on all nodes before the first of them is changed.

use std::time::Duration;

use homelab_model::{Key, Module, NodeObject, NodePlan, Package, Spec};
use homelab_protocol::{Request, Response};

use crate::engine::Engine;
use crate::rollout::{Done, Jobs};
use crate::transact::Job;
use crate::{Event, NodeError, Outcome, parallel};

/// How long a node may take for one: a slow machine behind a slow line, and another apt at work there.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// Names of the packages that a plan makes.
fn packages(plan: &NodePlan) -> Vec<String> {
    let made = plan.changes.iter().filter_map(|c| c.change.after()).map(|o| o.spec.key());
    made.filter_map(|key| if let Key::Package(name) = key { Some(name) } else { None }).collect()
}

/// A plan without the packages that it makes: once they are there it is what is left to do.
pub(crate) fn without(mut plan: NodePlan) -> NodePlan {
    let is_package = |key: &Key| matches!(key, Key::Package(_));
    plan.changes.retain(|c| !c.change.after().is_some_and(|o| is_package(&o.spec.key())));
    plan
}

fn object(name: String) -> NodeObject {
    NodeObject { module: Module::Agent, spec: Spec::Package(Package { name }) }
}

impl Engine<'_> {
    /// Installs what the plans of `jobs` need. If that fails on one node nothing is changed on any.
    pub(crate) fn install(&self, jobs: Jobs) -> Result<Jobs, Vec<Done>> {
        let done = parallel::map(jobs, self.options.parallel, |(index, mut job)| {
            let names = packages(&job.plan);
            let result = names.iter().try_for_each(|package| self.install_one(&job, package));
            // From here on it is what the node is like without the transaction.
            job.before.objects.extend(names.into_iter().map(object));
            (index, job, result.err())
        });
        if done.iter().all(|(_, _, error)| error.is_none()) {
            return Ok(done.into_iter().map(|(index, job, _)| (index, job)).collect());
        }
        let over = done.into_iter().map(|(index, job, error)| {
            self.over(index, job, error.map_or(Outcome::NotStarted, Outcome::Failed))
        });
        Err(over.collect())
    }

    fn install_one(&self, job: &Job, package: &str) -> Result<(), NodeError> {
        if self.cancelled() {
            return Err(NodeError::Cancelled);
        }
        self.observer.event(job.name(), Event::Installing(package));
        let request = Request::Install { package: package.to_owned() };
        match job.live.line.get().ask(&request, PATIENCE)? {
            Response::Installed => Ok(()),
            Response::Failed(failure) => Err(NodeError::Failed(failure)),
            _ => Err(NodeError::OutOfTurn),
        }
    }
}
