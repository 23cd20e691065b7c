//! The part of the CNI benchmark that runs inside namespaces of its own. Prints one line a figure.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::{Outcome, tools};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One way to attach a pod: the programs to run in order for ADD; DEL runs them in reverse.
struct Way {
    who: &'static str,
    plugins: Vec<(PathBuf, Value)>,
}

pub(crate) fn run(directory: &Path, runs: usize) -> Outcome {
    std::fs::create_dir_all("/run/netns")?;
    for script in ["mount -t tmpfs none /run/netns", "ip link set lo up"] {
        tools::run(Command::new("sh").args(["-c", script]))?;
    }
    let target = tools::root().join("target");
    let node = target.join(format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).join("dist/homelab-node");
    let plugin = directory.join("homelab");
    std::os::unix::fs::symlink(&node, &plugin)?;
    let conf = |kind: &str, rest: Value| {
        let mut conf = json!({"cniVersion": "1.0.0", "name": "bench", "type": kind});
        if let (Some(conf), Some(rest)) = (conf.as_object_mut(), rest.as_object()) {
            conf.extend(rest.clone());
        }
        conf
    };
    let ours = conf(
        "homelab",
        json!({"bridge": "ours0", "mtu": 1450, "ranges": ["10.90.0.0/24"], "dataDir": directory.join("ipam")}),
    );
    let bridge = conf(
        "bridge",
        json!({"bridge": "ref0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1450, "ipam": {
            "type": "host-local", "ranges": [[{"subnet": "10.91.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": directory.join("host-local"),
        }}),
    );
    let portmap = conf("portmap", json!({"capabilities": {"portMappings": true}}));
    let reference = Path::new("/usr/lib/cni");
    let ways = [
        Way { who: "homelab", plugins: vec![(plugin, ours)] },
        Way {
            who: "reference chain (bridge, host-local, portmap)",
            plugins: vec![(reference.join("bridge"), bridge), (reference.join("portmap"), portmap)],
        },
        Way {
            who: "floor: same kernel operations",
            plugins: vec![(target.join("release/examples/pod_floor"), json!({}))],
        },
    ];
    let mut figures: Vec<(Vec<f64>, Vec<f64>)> = ways.iter().map(|_| (Vec::new(), Vec::new())).collect();
    // In turn, so that a machine that slows down slows all of them.
    for round in 0..=runs {
        for (way, (adds, dels)) in ways.iter().zip(&mut figures) {
            let name = format!("pod{round}");
            tools::run(Command::new("ip").args(["netns", "add", &name]))?;
            let add = attach(way, &name, round, "ADD")?;
            let del = attach(way, &name, round, "DEL")?;
            tools::run(Command::new("ip").args(["netns", "del", &name]))?;
            // The first round makes bridges and warms caches.
            if round > 0 {
                adds.push(add);
                dels.push(del);
            }
        }
    }
    for (way, (adds, dels)) in ways.iter().zip(figures) {
        for (task, values) in [("CNI ADD", adds), ("CNI DEL", dels)] {
            let text: Vec<String> = values.iter().map(|v| format!("{v:.4}")).collect();
            println!("{task}\t{}\t{}", way.who, text.join(" "));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the plugins of one way; milliseconds.
fn attach(way: &Way, netns: &str, round: usize, verb: &str) -> Result<f64> {
    let mut previous: Option<Value> = None;
    let mut order: Vec<&(PathBuf, Value)> = way.plugins.iter().collect();
    if verb == "DEL" {
        order.reverse();
    }
    let start = Instant::now();
    for (program, conf) in order {
        let mut conf = conf.clone();
        if let (Some(previous), Some(conf)) = (&previous, conf.as_object_mut()) {
            conf.insert("prevResult".to_owned(), previous.clone());
        }
        let mut child = Command::new(program)
            .env_clear()
            .envs([
                ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", &format!("bench{round}")),
                ("CNI_NETNS", &format!("/run/netns/{netns}")),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", "/usr/lib/cni"),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(conf.to_string().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            return Err(format!("{} {verb}: {said}", program.display()).into());
        }
        previous = serde_json::from_slice(&output.stdout).ok();
    }
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}
