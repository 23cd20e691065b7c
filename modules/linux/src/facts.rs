//! The node and its surroundings.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use homelab_model::{AddressFact, Facts, KnownContainers, LinkFact, RouteFact, ours};

use crate::kernel::Snapshot;
use crate::netlink::Foreign;
use crate::root::Root;
use crate::rt::LinkInfo;
use crate::{frr, hostlocal, nft, package, rivals, runtimes, sysctl, unit};

/// Directories of systemd's own libraries, whose file names carry its version.
const SYSTEMD_LIBRARIES: [&str; 4] = [
    "/usr/lib/systemd",
    "/lib/systemd",
    "/usr/lib/x86_64-linux-gnu/systemd",
    "/usr/lib/aarch64-linux-gnu/systemd",
];

/// Everything but links, addresses and routes costs a few small files; nothing starts a process.
pub(crate) fn facts(root: &Root, snapshot: &Snapshot, foreign: Foreign) -> Facts {
    let system = nix::sys::utsname::uname();
    let word = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let (hostname, arch, kernel) = system
        .as_ref()
        .map(|s| (word(Some(s.nodename())), word(Some(s.machine())), word(Some(s.release()))))
        .unwrap_or_default();
    let boot_id = fs::read_to_string(root.proc("sys/kernel/random/boot_id")).unwrap_or_default();
    let names: HashMap<u32, &str> = snapshot.links.iter().map(|l| (l.index, l.name.as_str())).collect();
    let name = |index: u32| names.get(&index).copied().unwrap_or("?").to_owned();
    let link_names: BTreeSet<String> = snapshot.links.iter().map(|l| l.name.clone()).collect();
    let (rival_proxies, rival_balancers) = rivals::rivals(root, snapshot, foreign.rivals);
    Facts {
        // The store of addresses is the plugin's.
        attachments: Vec::new(),
        containers: KnownContainers::default(),
        hostname,
        arch,
        kernel,
        boot_id: boot_id.trim().to_owned(),
        systemd: unit::systemd_runs(root).then(systemd_version),
        // Its version would cost another process.
        nft: nft::binary().map(|_| "present".to_owned()),
        ipv6_disabled: !root.proc("sys/net/ipv6").exists(),
        links: snapshot
            .links
            .iter()
            .map(|link| LinkFact {
                name: link.name.clone(),
                kind: link.kind.clone(),
                mtu: link.mtu,
                up: link.operational,
                alias: link.alias.clone(),
                vxlan: link.vxlan.as_ref().map(|v| (v.vni, v.port)),
                kernel_ra: kernel_ra(root, link),
                wireless: wireless(&link.name),
                strict_rp_filter: strict_rp_filter(root, link),
                master: link.master.map(name),
                driver: if link.kind.is_empty() && !link.loopback { driver(&link.name) } else { None },
            })
            .collect(),
        addresses: snapshot
            .addresses
            .iter()
            .map(|&(index, address)| AddressFact { link: name(index), address })
            .collect(),
        routes: snapshot
            .routes
            .iter()
            .map(|route| RouteFact {
                destination: route.destination,
                link: route.link.map(name),
                protocol: route.protocol,
            })
            .collect(),
        runtimes: runtimes::runtimes(root),
        pods: u32::try_from(snapshot.links.iter().filter(|l| l.alias.starts_with(ours::POD_ALIAS)).count())
            .unwrap_or(u32::MAX),
        held_addresses: hostlocal::held(root, &link_names),
        flannel_subnets: hostlocal::flannel_subnets(root),
        agent: unit::agent_report(root),
        cordoned: crate::cordon::cordoned(root),
        rival_proxies,
        rival_balancers,
        forward_drops: foreign.forward_drops,
        frr: frr::frr(root),
        apt: root.path(package::APT_GET).exists(),
        checksum_errors: fs::read_to_string(root.proc("net/snmp")).map(|t| checksum_errors(&t)).unwrap_or(0),
    }
}

/// Whether forwarding would stop the kernel from taking router advertisements on the link.
fn kernel_ra(root: &Root, link: &LinkInfo) -> bool {
    // Pods and containers come in numbers, and no router is behind them.
    if link.loopback || link.kind == "veth" || link.alias == ours::LINK_ALIAS {
        return false;
    }
    let escaped = link.name.replace('.', "/");
    let is = |key: &str, value: &str| {
        let found = sysctl::read(root, &format!("net.ipv6.conf.{escaped}.{key}"));
        found.is_ok_and(|found| found.as_deref() == Some(value))
    };
    is("accept_ra", "1") && is("forwarding", "0")
}

/// Whether the kernel drops what comes in on the link and would be answered elsewhere
/// (Documentation/networking/ip-sysctl.rst).
fn strict_rp_filter(root: &Root, link: &LinkInfo) -> bool {
    // Nobody announces anything on ports of bridges, of which there are as many as pods.
    if link.loopback || link.master.is_some() || link.alias == ours::LINK_ALIAS {
        return false;
    }
    let of = |name: &str| {
        let value = sysctl::read(root, &format!("net.ipv4.conf.{}.rp_filter", name.replace('.', "/")));
        value.ok().flatten().and_then(|value| value.parse::<u8>().ok()).unwrap_or(0)
    };
    of("all").max(of(&link.name)) == 1
}

/// Whether a link is a radio.
pub(crate) fn wireless(link: &str) -> bool {
    let directory = Path::new("/sys/class/net").join(link);
    ["phy80211", "wireless"].iter().any(|name| directory.join(name).exists())
}

/// The driver of a hardware link.
fn driver(link: &str) -> Option<String> {
    let target = fs::read_link(Path::new("/sys/class/net").join(link).join("device/driver")).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// The number in the name of `libsystemd-shared-252.so`, or `present`.
fn systemd_version() -> String {
    let version = |directory: &&str| {
        fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let rest = name.strip_prefix("libsystemd-shared-")?;
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            (!digits.is_empty()).then_some(digits)
        })
    };
    SYSTEMD_LIBRARIES.iter().find_map(version).unwrap_or_else(|| "present".to_owned())
}

/// Sum of `InCsumErrors` of TCP and UDP in `/proc/net/snmp`.
fn checksum_errors(snmp: &str) -> u64 {
    let mut sum = 0;
    let lines: Vec<&str> = snmp.lines().collect();
    for pair in lines.windows(2) {
        let (head, values) = (pair[0], pair[1]);
        let protocol = head.split(':').next().unwrap_or_default();
        if !matches!(protocol, "Tcp" | "Udp") || !values.starts_with(protocol) {
            continue;
        }
        let at = head.split_whitespace().position(|word| word == "InCsumErrors");
        let value = at.and_then(|i| values.split_whitespace().nth(i)).and_then(|v| v.parse::<u64>().ok());
        sum += value.unwrap_or(0);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_errors_are_summed() {
        let snmp = "Ip: Forwarding\nIp: 1\nTcp: InSegs InCsumErrors\nTcp: 100 3\n\
                    Udp: InDatagrams InCsumErrors IgnoredMulti\nUdp: 9 4 0\nUdpLite: InCsumErrors\nUdpLite: 50\n";
        assert_eq!(checksum_errors(snmp), 7);
        assert_eq!(checksum_errors(""), 0);
        assert_eq!(checksum_errors("Tcp: InCsumErrors\n"), 0);
    }
}
