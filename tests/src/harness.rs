//! Runs scenarios one after another on one lab, with cargo's own words and flags.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use homelab_lab::{LabGuard, LabOptions};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::Cluster;

/// A test's name and what it does.
pub type Scenario = (&'static str, fn(&mut Cluster));

/// The lab comes up with the first scenario that runs: `--list` and a filter that matches nothing boot none.
type Shared = Arc<Mutex<Option<Cluster>>>;

/// Runs `scenarios` in order and ends the process. `prefix` begins the lab's name.
pub fn run(prefix: &'static str, scenarios: &[Scenario]) -> ! {
    let mut arguments = Arguments::from_args();
    // Where, on one line; what and why comes with the list of failures.
    std::panic::set_hook(Box::new(|info| {
        if let Some(place) = info.location() {
            eprintln!("  failed at {place}");
        }
    }));
    // They share the lab.
    arguments.test_threads = Some(1);
    let shared = Shared::default();
    let trials = scenarios
        .iter()
        .map(|&(name, scenario)| {
            let shared = Arc::clone(&shared);
            Trial::test(name, move || run_one(prefix, &shared, name, scenario))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(cluster) = shared.lock().unwrap_or_else(PoisonError::into_inner).take() {
        if conclusion.has_failed() && std::env::var_os("HOMELAB_TEST_KEEP").is_some() {
            eprintln!("lab {} is kept: cargo xtask lab --name {0} down", cluster.lab.name());
            std::mem::forget(cluster);
        } else {
            drop(cluster);
        }
    }
    conclusion.exit()
}

fn run_one(prefix: &str, shared: &Shared, name: &str, scenario: fn(&mut Cluster)) -> Result<(), Failed> {
    let mut guard = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = guard.as_mut() {
        cluster.reset().map_err(|error| format!("the lab cannot be reset: {error}"))?;
    } else {
        Cluster::check_programs()?;
        let lab = LabGuard::up(LabOptions::unique(prefix)).map_err(|error| format!("no lab: {error}"))?;
        *guard = Some(Cluster::new(lab)?);
    }
    let Some(cluster) = guard.as_mut() else { return Err("no lab".into()) };
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| scenario(cluster)));
    cluster.stop_servers();
    if let Err(payload) = result {
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("panic");
        return Err(format!("{message}\n{}", cluster.journals()).into());
    }
    eprintln!("  {prefix}::{name} took {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
