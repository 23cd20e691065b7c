//! What `cargo xtask bench proxy` measures of the proxy, in network namespaces of its own, as root. Prints a line a
//! figure: task, who, unit, values, with tabs between; a line that begins with `#` is a remark.
//!
//! `proxy_bench load,change,memory,kube,path [RUNS]`, or `proxy_bench agent RUNS SERVICES PROGRAM`
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)]

mod agent;
mod api;
mod change;
#[path = "../../../../tests/fixtures/mod.rs"]
mod fixtures;
mod kernel;
mod kube_proxy;
mod load;
mod memory;
mod ours;
mod path;
mod peer;
mod process;
mod real;
#[path = "../../../../tests/fixtures/agent.rs"]
mod start;
mod time;

use nix::sched::{CloneFlags, unshare};

/// A number of services, and of endpoints of each.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Size {
    services: u32,
    endpoints: u32,
}

impl Size {
    fn label(self) -> String {
        format!("{} services x {}", self.services, self.endpoints)
    }
}

const SIZES: [Size; 5] = [
    Size { services: 1_000, endpoints: 3 },
    Size { services: 5_000, endpoints: 3 },
    Size { services: 10_000, endpoints: 3 },
    Size { services: 30_000, endpoints: 3 },
    Size { services: 5_000, endpoints: 50 },
];

/// Runs `work` on a thread in a network namespace of its own, which ends with it.
fn in_netns<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace: this needs root");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn figure(task: &str, who: &str, unit: &str, values: &[f64]) {
    let values: Vec<String> = values.iter().map(|v| format!("{v:.6}")).collect();
    println!("{task}\t{who}\t{unit}\t{}", values.join(" "));
}

fn remark(text: &str) {
    println!("# {text}");
}

fn main() {
    // Whatever is forgotten further down, the machine's own tables stay as they are.
    unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace: this needs root");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [parts, rest @ ..] = &arguments[..] else { panic!("say what to measure") };
    if parts == "hold" {
        return memory::hold(&rest[0]);
    }
    let runs = rest.first().map_or(3, |runs| runs.parse().expect("a number of runs"));
    for part in parts.split(',') {
        match part {
            "load" => load::run(runs),
            "change" => change::run(),
            "memory" => memory::run(),
            "kube" => real::run(runs),
            "path" => path::run(),
            "agent" => {
                let [_, services, program] = rest else { panic!("say how many services, and the agent") };
                agent::run(runs, services.parse().expect("a number"), program.as_ref());
            }
            other => panic!("no part {other}"),
        }
    }
}
