//! Runs scenarios one after another on one lab, with cargo's own words and flags.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use homelab_lab::{LabGuard, LabOptions};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::{Cluster, ClusterFile};

/// A test's name and what it does.
pub type Scenario = (&'static str, fn(&mut Cluster));

/// The same where scenarios share a stage `S`: [`run_on_stage`].
pub type Act<S> = (&'static str, fn(&mut Cluster, &mut S));

/// The lab comes up with the first scenario that runs: `--list` and a filter that matches nothing boot none.
struct Shared<S> {
    cluster: Option<Cluster>,
    /// What the next scenario may use, and the file that goes with it.
    stage: Option<(S, ClusterFile)>,
}

/// Runs `scenarios` in order, each on nodes as new, and ends the process. `prefix` begins the lab's name.
pub fn run(prefix: &'static str, scenarios: &[Scenario]) -> ! {
    let acts = scenarios.iter().map(|&(name, scenario)| {
        (name, Box::new(move |cluster: &mut Cluster, _: &mut ()| scenario(cluster)) as Play<()>)
    });
    play(prefix, |_| (), false, acts.collect())
}

/// Runs scenarios that cost less than new nodes would: `set` makes of new nodes what all of them use. Each begins with
/// the file that `set` left. After one that fails, the next has the stage made anew.
pub fn run_on_stage<S: Send + 'static>(
    prefix: &'static str,
    set: fn(&mut Cluster) -> S,
    acts: &[Act<S>],
) -> ! {
    let acts = acts.iter().map(|&(name, act)| (name, Box::new(act) as Play<S>));
    play(prefix, set, true, acts.collect())
}

type Play<S> = Box<dyn FnOnce(&mut Cluster, &mut S) + Send>;

fn play<S: Send + 'static>(
    prefix: &'static str,
    set: fn(&mut Cluster) -> S,
    keep: bool,
    acts: Vec<(&'static str, Play<S>)>,
) -> ! {
    let mut arguments = Arguments::from_args();
    // Where, on one line; what and why comes with the list of failures.
    std::panic::set_hook(Box::new(|info| {
        if let Some(place) = info.location() {
            eprintln!("  failed at {place}");
        }
    }));
    // They share the lab.
    arguments.test_threads = Some(1);
    let shared = Arc::new(Mutex::new(Shared { cluster: None, stage: None }));
    let trials = acts
        .into_iter()
        .map(|(name, act)| {
            let shared = Arc::clone(&shared);
            Trial::test(name, move || {
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                play_one(prefix, &mut shared, set, keep, (name, act))
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // What a stage runs beside the lab ends with it: `exit` runs no destructors.
    drop(shared.lock().unwrap_or_else(PoisonError::into_inner).stage.take());
    if let Some(cluster) = shared.lock().unwrap_or_else(PoisonError::into_inner).cluster.take() {
        if conclusion.has_failed() && std::env::var_os("HOMELAB_TEST_KEEP").is_some() {
            eprintln!("lab {} is kept: cargo xtask lab --name {0} down", cluster.lab.name());
            std::mem::forget(cluster);
        } else {
            drop(cluster);
        }
    }
    conclusion.exit()
}

fn play_one<S>(
    prefix: &str,
    shared: &mut Shared<S>,
    set: fn(&mut Cluster) -> S,
    keep: bool,
    (name, act): (&str, Play<S>),
) -> Result<(), Failed> {
    let stage = shared.stage.take();
    match (&mut shared.cluster, &stage) {
        (Some(cluster), Some((_, file))) => cluster.file = file.clone(),
        (Some(cluster), None) => {
            cluster.reset().map_err(|error| format!("the lab cannot be reset: {error}"))?;
        }
        (None, _) => {
            Cluster::check_programs()?;
            let lab = LabGuard::up(LabOptions::unique(prefix)).map_err(|error| format!("no lab: {error}"))?;
            shared.cluster = Some(Cluster::new(lab)?);
        }
    }
    let Some(cluster) = &mut shared.cluster else { return Err("no lab".into()) };
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let (mut stage, file) = stage.unwrap_or_else(|| {
            let stage = set(cluster);
            (stage, cluster.file.clone())
        });
        act(cluster, &mut stage);
        keep.then_some((stage, file))
    }));
    cluster.stop_servers();
    match result {
        Ok(stage) => shared.stage = stage,
        Err(payload) => {
            let message = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("panic");
            return Err(format!("{message}\n{}", cluster.journals()).into());
        }
    }
    eprintln!("  {prefix}::{name} took {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
