//! Other service proxies, and other programs for load-balancer addresses, on the node. Starts no process: chains come by
//! netlink, the rest from `/proc`, links and configuration files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use homelab_model::{Balancer, Rival};

use crate::kernel::Snapshot;
use crate::root::Root;

/// Links that a proxy makes, and keeps when it is gone.
const LINKS: [(&str, Rival); 5] = [
    ("kube-ipvs0", Rival::Ipvs),
    ("cilium_host", Rival::Cilium),
    ("cilium_net", Rival::Cilium),
    ("kube-dummy-if", Rival::KubeRouter),
    ("bpfin.cali", Rival::CalicoBpf),
];

/// All of them, those that were found among chains too. Sorted.
pub(crate) fn rivals(
    root: &Root,
    snapshot: &Snapshot,
    mut found: BTreeSet<Rival>,
) -> (Vec<Rival>, Vec<Balancer>) {
    let mut balancers = BTreeSet::new();
    processes(root, &mut found, &mut balancers);
    let made = |(name, _): &&(&str, Rival)| snapshot.links.iter().any(|link| link.name == *name);
    found.extend(LINKS.iter().filter(made).map(|(_, rival)| rival.clone()));
    found.extend(["ip", "ip6"].into_iter().filter(|family| legacy(root, family)).map(|family| {
        let family = family.to_owned();
        Rival::IptablesLegacy { family }
    }));
    (found.into_iter().collect(), balancers.into_iter().collect())
}

/// Proxies that run, and programs for load-balancer addresses, in whichever container.
fn processes(root: &Root, found: &mut BTreeSet<Rival>, balancers: &mut BTreeSet<Balancer>) {
    let Ok(entries) = fs::read_dir(root.proc("")) else { return };
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    for entry in entries.flatten().filter(|e| e.file_name().to_str().is_some_and(is_process)) {
        let Ok(name) = fs::read(entry.path().join("comm")) else { continue };
        // Names are anybody's; what the programs are told by their manifests is not.
        let told = |words: &[&str]| {
            let all = fs::read(entry.path().join("environ")).unwrap_or_default();
            let has = |word: &&str| all.split(|byte| *byte == 0).any(|v| v.starts_with(word.as_bytes()));
            words.iter().all(has)
        };
        match name.trim_ascii_end() {
            b"kube-proxy" => {
                found.insert(Rival::Process);
            }
            b"cilium-agent" => {
                found.insert(Rival::Cilium);
            }
            b"kube-router" if !command(&entry.path()).contains("--run-service-proxy=false") => {
                found.insert(Rival::KubeRouter);
            }
            name @ (b"k3s" | b"k3s-server" | b"rke2") => {
                let program = if name == b"rke2" { "rke2" } else { "k3s" };
                let command = command(&entry.path());
                // Agents do as their servers say; what else these binaries are is no server.
                if command.split_whitespace().nth(1) == Some("server") {
                    let server = server(root, program, &command);
                    if server.proxy {
                        found.insert(Rival::BuiltIn { program: program.to_owned() });
                    }
                    if server.balancer {
                        balancers.insert(Balancer::ServiceLb);
                    }
                }
            }
            b"speaker" if told(&["METALLB_"]) => {
                balancers.insert(Balancer::MetalLb);
            }
            b"entry" if told(&["SRC_PORT=", "DEST_PROTO=", "DEST_IP"]) => {
                balancers.insert(Balancer::ServiceLb);
            }
            b"kube-vip" if told(&["svc_enable=true"]) => {
                balancers.insert(Balancer::KubeVip);
            }
            b"lbnodeagent" => {
                balancers.insert(Balancer::PureLb);
            }
            _ => {}
        }
    }
}

/// A process's arguments with spaces between.
fn command(process: &Path) -> String {
    let all = fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&all).replace('\0', " ")
}

/// What a server of k3s or RKE2 has inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Server {
    /// kube-proxy.
    proxy: bool,
    /// ServiceLB.
    balancer: bool,
}

/// Reads what a server was told: by arguments, which k3s hides from `/proc` once it runs, so in its unit too; by its
/// configuration files.
fn server(root: &Root, program: &str, command: &str) -> Server {
    let unit = if program == "k3s" { "k3s" } else { "rke2-server" };
    let mut options: Vec<(String, String)> = arguments(command);
    for directory in ["/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"] {
        if let Ok(text) = fs::read_to_string(root.path(&format!("{directory}/{unit}.service"))) {
            options.extend(arguments(&text));
            break;
        }
    }
    let directory = root.path(&format!("/etc/rancher/{program}"));
    let more = fs::read_dir(directory.join("config.yaml.d")).into_iter().flatten().flatten();
    let files = more.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "yaml"));
    for path in std::iter::once(directory.join("config.yaml")).chain(files) {
        options.extend(fs::read_to_string(path).map(|text| settings(&text)).unwrap_or_default());
    }
    let on = |option: &str| options.iter().any(|(name, value)| name == option && value != "false");
    let disabled = |what: &str| {
        options
            .iter()
            .any(|(name, value)| name == "disable" && value.split(',').any(|one| one.trim() == what))
    };
    let balances = match program {
        "k3s" => !disabled("servicelb") && !on("disable-cloud-controller"),
        _ => on("enable-servicelb"),
    };
    Server { proxy: !on("disable-kube-proxy") && !on("disable-agent"), balancer: balances }
}

/// Options of a command line, or of a unit's: `--name`, `--name=value`, `--name value`.
fn arguments(text: &str) -> Vec<(String, String)> {
    let bare = |word: &str| word.trim_matches(['\'', '"', '\\']).to_owned();
    let words: Vec<String> = text.split_whitespace().map(bare).filter(|word| !word.is_empty()).collect();
    let option = |(at, word): (usize, &String)| {
        let option = word.strip_prefix("--")?;
        let (name, value) = option.split_once('=').unwrap_or_else(|| {
            let next = words.get(at + 1).filter(|next| !next.starts_with('-'));
            (option, next.map(String::as_str).unwrap_or_default())
        });
        Some((name.to_owned(), bare(value)))
    };
    words.iter().enumerate().filter_map(option).collect()
}

/// Settings of a k3s configuration file: `name: value`, where a value may be a list in either of YAML's forms. Each of a
/// list is one.
fn settings(text: &str) -> Vec<(String, String)> {
    let bare = |text: &str| text.trim().trim_matches(['\'', '"']).to_owned();
    let mut all = Vec::new();
    let mut name = String::new();
    for line in text.lines() {
        let line = line.split(" #").next().unwrap_or_default();
        if let Some(item) = line.trim_start().strip_prefix("- ") {
            all.push((name.clone(), bare(item)));
        } else if let Some((key, value)) = line.split_once(':').filter(|_| !line.starts_with([' ', '#'])) {
            // `disable+` adds to what other files say.
            name = bare(key).trim_end_matches('+').to_owned();
            let values = value.trim().trim_start_matches('[').trim_end_matches(']').split(',').map(bare);
            all.extend(values.filter(|value| !value.is_empty()).map(|value| (name.clone(), value)));
        }
    }
    all
}

/// Whether iptables-legacy has a table `nat` here, and the kernel what kube-proxy's rules in it are made of: comments,
/// and the mark for masquerading. Docker's have neither.
fn legacy(root: &Root, family: &str) -> bool {
    let lists = |what: &str, word: &str| {
        let text = fs::read_to_string(root.proc(&format!("net/{family}_tables_{what}"))).unwrap_or_default();
        text.lines().any(|line| line == word)
    };
    lists("names", "nat") && lists("matches", "comment") && lists("targets", "MARK")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_is_told_counts_wherever_it_stands() {
        let told = |program: &str, command: &str, files: &[(&str, &str)]| {
            let directory = tempfile::tempdir().unwrap();
            let root = Root::at(directory.path());
            files.iter().for_each(|(path, text)| root.write(path, text));
            let Server { proxy, balancer } = server(&root, program, command);
            (proxy, balancer)
        };
        let k3s = "/etc/rancher/k3s/config.yaml";
        let unit = "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--disable-kube-proxy' \\\n\t'--disable' \\\n\
                    \t'traefik,servicelb' \\\n";
        assert_eq!(told("k3s", "k3s server", &[]), (true, true));
        assert_eq!(told("k3s", "k3s server", &[("/etc/systemd/system/k3s.service", unit)]), (false, false));
        assert_eq!(
            told("k3s", "k3s server --disable-kube-proxy=true --disable=servicelb", &[]),
            (false, false)
        );
        assert_eq!(told("k3s", "k3s server --disable-agent --disable-cloud-controller", &[]), (false, false));
        assert_eq!(told("k3s", "k3s server --disable-kube-proxy=false --disable traefik", &[]), (true, true));
        let file =
            "# disable-kube-proxy: true\ndisable:\n  - traefik\n  - \"servicelb\" # ours\ntls-san: [a, b]\n";
        assert_eq!(told("k3s", "k3s server", &[(k3s, file)]), (true, false));
        assert_eq!(
            told(
                "k3s",
                "k3s server",
                &[
                    (k3s, "node-label: [a, disable-kube-proxy]\n"),
                    (
                        "/etc/rancher/k3s/config.yaml.d/10.yaml",
                        "disable-kube-proxy: true\ndisable+: [traefik, servicelb]\n"
                    )
                ]
            ),
            (false, false)
        );
        let rke2 = "/etc/rancher/rke2/config.yaml";
        assert_eq!(told("rke2", "rke2 server", &[(k3s, "disable-kube-proxy: true\n")]), (true, false));
        assert_eq!(
            told("rke2", "rke2 server", &[(rke2, "disable-kube-proxy: true\nenable-servicelb: true\n")]),
            (false, true)
        );
    }
}
