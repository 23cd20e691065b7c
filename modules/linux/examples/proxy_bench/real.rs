//! The real kube-proxy: start, changes and memory at each size, from the API to the kernel.

use std::path::Path;

use homelab_model::service::Service;

use crate::change::KINDS;
use crate::kube_proxy::{self, KubeProxy};
use crate::{SIZES, Size, figure, in_netns, ours, remark};

/// More take minutes: the time of a start grows with the square of the number of services.
const MOST: u32 = 10_000;
/// Changes of each kind.
const CHANGES: u32 = 5;

/// What one run of kube-proxy gave.
struct Figures {
    /// Until all services were there, and CPU until it was calm; milliseconds.
    start: [f64; 2],
    /// Milliseconds and CPU milliseconds of each kind of change.
    changes: [[Vec<f64>; 2]; 3],
    /// Steady, at its own peak, at the peak together with nft; MiB.
    memory: [f64; 3],
}

pub(crate) fn run(runs: usize) {
    let program = match kube_proxy::find() {
        Ok(program) => program,
        Err(why) => return remark(&why),
    };
    let empty = in_netns(|| {
        let kube = KubeProxy::start(&program, &[]);
        kube.process().wait_calm();
        kube.process().memory()
    });
    for size in SIZES.into_iter().filter(|size| size.endpoints == 3 && size.services <= MOST) {
        let services = ours::services(size);
        // Each change takes seconds.
        let runs = if size.services < MOST { runs } else { 1 };
        let all: Vec<Figures> = (0..runs).map(|_| in_netns(|| one(&program, &services, size))).collect();
        report(&all, size);
        figure(&format!("memory, {}", size.label()), "kube-proxy: without services", "MiB", &[empty]);
    }
    let version = kube_proxy::version(&program);
    for text in [
        &format!(
            "kube-proxy is {version} in its nftables mode, both families, minSyncPeriod 1 s as is its default; changes come when it is calm, so that they need not wait for that"
        ),
        "kube-proxy: from the moment when the API has the object (the tests' own API server, in the bench's process, not in the CPU time) until the kernel has the rules; CPU until it and nft are calm again",
        "homelab beside it: from the changed service in the agent's memory until the kernel has it, without a Kubernetes API: see `cargo xtask bench kubernetes`",
        &format!("kube-proxy: more than {MOST} services are left out, they take minutes"),
    ] {
        remark(text);
    }
}

fn one(program: &Path, services: &[Service], size: Size) -> Figures {
    let mut kube = KubeProxy::start(program, services);
    let process = kube.process();
    let (peak, (start, changes)) = process.peak_with_children(|| {
        let took = kube.wait_started(services);
        process.wait_calm();
        let start = [took, process.cpu()];
        let mut changes: [[Vec<f64>; 2]; 3] = Default::default();
        for round in 0..CHANGES {
            let mut after = services[(round * 7919 + 13) as usize % services.len()].clone();
            ours::replace_endpoint(&mut after, round);
            let new = ours::service(size.services + round, size.endpoints);
            let endpoint = after.endpoints[1].address;
            type Step<'a> = &'a dyn Fn(&mut KubeProxy) -> f64;
            let steps: [Step<'_>; 3] =
                [&|kube| kube.change(&after, endpoint), &|kube| kube.add(&new), &|kube| kube.remove(&new)];
            for (step, [wall, cpu]) in steps.into_iter().zip(&mut changes) {
                let before = process.cpu();
                wall.push(step(&mut kube));
                process.wait_calm();
                cpu.push(process.cpu() - before);
            }
        }
        (start, changes)
    });
    Figures { start, changes, memory: [process.memory(), process.peak(), peak] }
}

fn report(all: &[Figures], size: Size) {
    let task = format!("full load, {}", size.label());
    for (who, place) in [("kube-proxy, from its start", 0), ("kube-proxy, from its start: CPU", 1)] {
        figure(&task, who, "s", &all.iter().map(|one| one.start[place] / 1e3).collect::<Vec<_>>());
    }
    for (place, kind) in KINDS.into_iter().enumerate() {
        let task = format!("{kind}, {}", size.label());
        for (who, which) in [("kube-proxy", 0), ("kube-proxy: CPU", 1)] {
            let values: Vec<f64> = all.iter().flat_map(|one| &one.changes[place][which]).copied().collect();
            figure(&task, who, "ms", &values);
        }
    }
    let task = format!("memory, {}", size.label());
    let whos = ["kube-proxy", "kube-proxy: at its peak", "kube-proxy: with its nft, at their peak"];
    for (place, who) in whos.into_iter().enumerate() {
        figure(&task, who, "MiB", &all.iter().map(|one| one.memory[place]).collect::<Vec<_>>());
    }
}
