//! The part of the CNI benchmark that runs inside namespaces of its own. Prints a line for each figure (task, who,
//! unit, values) or remark.

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Barrier, Mutex};

use super::cni_path;
use super::cni_ways::{self, Pod, Way, shell};
use crate::Outcome;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Pods on a node with many of them.
pub(super) const CROWD: usize = 200;
/// Runtimes at once.
const AT_ONCE: usize = 64;
/// Measured one at a time.
const ALONE: usize = CROWD + 1;
/// The first of those at once.
const FIRST: usize = CROWD + 2;

/// Name of a task.
pub(super) fn task(verb: &str, ports: usize, pods: usize, at_once: bool) -> String {
    let ports = match ports {
        0 => "no hostPort".to_owned(),
        1 => "1 hostPort".to_owned(),
        many => format!("{many} hostPorts"),
    };
    let how = if at_once { format!(", {AT_ONCE} at once") } else { String::new() };
    format!("CNI {verb}, {ports}, {pods} pods on the node{how}")
}

/// Prints a figure.
#[expect(clippy::print_stdout, reason = "the part outside reads it")]
pub(super) fn figure(task: &str, who: &str, unit: &str, values: &[f64]) {
    let text: Vec<String> = values.iter().map(|value| format!("{value:.4}")).collect();
    println!("{task}\t{who}\t{unit}\t{}", text.join(" "));
}

/// Prints what a figure cannot say.
#[expect(clippy::print_stdout, reason = "the part outside reads it")]
pub(super) fn remark(text: &str) {
    println!("# {}", text.replace('\n', " "));
}

pub(crate) fn run(directory: &Path, runs: usize, quick: bool) -> Outcome {
    measure(directory, runs, quick).map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn measure(directory: &Path, runs: usize, quick: bool) -> Result<()> {
    cni_ways::stage()?;
    let mut ways = cni_ways::make(directory)?;
    if quick {
        ways.retain(|way| way.node != "flannel");
    }
    for way in &ways {
        let first = if quick && way.slow { ALONE } else { 1 };
        let end = if quick && way.slow { FIRST } else { FIRST + AT_ONCE };
        for number in first..end {
            shell(&format!("ip netns add {}", way.pod(number)))?;
        }
    }
    let all: Vec<&Way> = ways.iter().collect();
    start(&all, runs)?;
    if quick {
        return the_quick_part(&all, runs);
    }
    remark(
        "flannel's own plugin is not in Debian: in its place a shell script keeps the delegate's configuration in a file \
         and becomes the delegate",
    );
    remark(&format!(
        "of the {CROWD} pods each has a hostPort, those of the reference each tenth; with hostPorts and {AT_ONCE} at once \
         the reference takes minutes and is measured on an empty node only, in one of its two orders"
    ));
    cni_path::run(&all, runs.min(5))?;
    for pods in [0, CROWD] {
        for way in &ways {
            fill(way, pods)?;
        }
        for ports in [0, 1, 10] {
            alone(&all, &task_of(ports, pods), Pod { number: ALONE, ports, limited: false }, runs)?;
            for way in all.iter().filter(|way| !way.slow || ports == 0 || (pods == 0 && way.node == "chain"))
            {
                at_once(way, ports, pods, runs)?;
            }
        }
        if pods == 0 {
            limited(&ways, runs)?;
        }
    }
    Ok(())
}

/// What says most in a few minutes.
fn the_quick_part(all: &[&Way], runs: usize) -> Result<()> {
    remark("the quick part: the reference is measured on an empty node and one pod at a time");
    let fast: Vec<&Way> = all.iter().filter(|way| !way.slow).copied().collect();
    for (pods, ways) in [(0, all), (CROWD, &fast[..])] {
        for way in ways {
            fill(way, pods)?;
        }
        for ports in [0, 1] {
            alone(ways, &task_of(ports, pods), Pod { number: ALONE, ports, limited: false }, runs)?;
            for way in &fast {
                at_once(way, ports, pods, runs)?;
            }
        }
    }
    Ok(())
}

fn task_of(ports: usize, pods: usize) -> impl Fn(&str) -> String {
    move |verb| task(verb, ports, pods, false)
}

/// What a process costs that does nothing.
fn start(ways: &[&Way], runs: usize) -> Result<()> {
    let pod = Pod { number: ALONE, ports: 0, limited: false };
    for way in ways.iter().filter(|way| way.node != "flannel") {
        let who = if way.slow { "reference: bridge and portmap" } else { way.who };
        let values = (0..runs * 30).map(|_| way.within(|| way.call("VERSION", pod)));
        figure("CNI VERSION: start of the programs", who, "ms", &values.collect::<Result<Vec<_>>>()?);
    }
    Ok(())
}

/// Pods that stay, each with a port; where that takes minutes each tenth, which is no disadvantage.
fn fill(way: &Way, pods: usize) -> Result<()> {
    for number in 1..=pods {
        let ports = usize::from(!way.slow || number % 10 == 0);
        way.within(|| way.call("ADD", Pod { number, ports, limited: false }))?;
    }
    Ok(())
}

/// ADD and DEL one at a time; the ways in turn, so that a machine that slows down slows all of them. Those that take long
/// have fewer rounds.
fn alone(ways: &[&Way], task: &dyn Fn(&str) -> String, pod: Pod, runs: usize) -> Result<()> {
    let mut figures: Vec<[Vec<f64>; 2]> = ways.iter().map(|_| [Vec::new(), Vec::new()]).collect();
    for round in 0..=runs * 15 {
        for (way, figures) in ways.iter().zip(&mut figures) {
            if way.slow && pod.ports > 0 && round % 5 > 0 {
                continue;
            }
            for (verb, values) in ["ADD", "DEL"].into_iter().zip(figures) {
                let value = way.within(|| way.call(verb, pod))?;
                // The first round makes bridges and warms caches.
                if round > 0 {
                    values.push(value);
                }
            }
        }
    }
    for (at, verb) in ["ADD", "DEL"].into_iter().enumerate() {
        for (way, values) in ways.iter().zip(&figures) {
            figure(&task(verb), way.who, "ms", &values[at]);
        }
    }
    Ok(())
}

/// The same by many runtimes together.
fn at_once(way: &Way, ports: usize, pods: usize, runs: usize) -> Result<()> {
    let rounds = if way.slow && ports > 0 { 1 } else { (runs / 2).max(1) };
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (verb, values) in ["ADD", "DEL"].into_iter().zip(&mut figures) {
            let (barrier, taken) = (Barrier::new(AT_ONCE), Mutex::new(Vec::new()));
            std::thread::scope(|scope| {
                for number in FIRST..FIRST + AT_ONCE {
                    let (barrier, taken) = (&barrier, &taken);
                    scope.spawn(move || {
                        let value = way.within(|| {
                            barrier.wait();
                            way.call(verb, Pod { number, ports, limited: false })
                        });
                        taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(value);
                    });
                }
            });
            let taken = taken.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            values.extend(taken.into_iter().collect::<Result<Vec<f64>>>()?);
        }
    }
    for (verb, values) in ["ADD", "DEL"].into_iter().zip(&figures) {
        figure(&task(verb, ports, pods, true), way.who, "ms", values);
    }
    Ok(())
}

/// With rates in both directions, where the reference plugin works on this kernel.
fn limited(ways: &[Way], runs: usize) -> Result<()> {
    let pod = Pod { number: ALONE, ports: 0, limited: true };
    let mut able = Vec::new();
    for way in ways {
        match way.within(|| way.call("ADD", pod)) {
            Ok(_) => able.push(way),
            Err(error) => remark(&format!("with bandwidth {} is not measured: {error}", way.who)),
        }
        way.within(|| way.call("DEL", pod))?;
    }
    alone(&able, &|verb| format!("CNI {verb}, bandwidth, 0 pods on the node"), pod, runs)
}
