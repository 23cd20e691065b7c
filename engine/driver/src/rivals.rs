//! Words for other service proxies on a node.

use homelab_model::{Balancer, Cluster, Facts, Node, Rival};

/// Says what else translates service addresses on a node, and how it goes away.
pub(crate) fn rivals_warning(cluster: &Cluster, node: &Node, facts: &Facts) -> Option<String> {
    let used = |family: &str| {
        let ranges = cluster.network.pod_cidrs.iter();
        ranges.map(|range| if range.addr().is_ipv4() { "ip" } else { "ip6" }).any(|of| of == family)
    };
    let counts = |rival: &&Rival| rival.family().is_none_or(used);
    let found: Vec<&Rival> = facts.rival_proxies.iter().filter(counts).collect();
    let sure = found.iter().any(|rival| !matches!(rival, Rival::IptablesLegacy { .. }));
    let who = match (found.iter().all(|rival| rival.is_kube_proxy()), sure) {
        (false, _) => "another service proxy runs here or has left rules",
        (true, true) => "kube-proxy runs here or has left rules",
        (true, false) => "kube-proxy may have left rules here",
    };
    let words: Vec<String> = found.iter().map(|rival| words(rival)).collect();
    (!words.is_empty()).then(|| {
        format!(
            "{}: {who}, which may take packets for service addresses before homelab does; homelab does not touch them: \
             {}",
            node.name,
            words.join("; ")
        )
    })
}

/// A warning of other programs that give services load-balancer addresses or announce them (k3s#269, metallb#1871).
pub(crate) fn balancers_warning(node: &Node, facts: &Facts) -> Option<String> {
    let words = |balancer: &Balancer| match balancer {
        Balancer::MetalLb => {
            "MetalLB's speaker (kubectl -n metallb-system delete daemonset speaker, and deployment controller)"
        }
        Balancer::ServiceLb => {
            "ServiceLB of k3s (k3s server --disable=servicelb, which takes its pods svclb-... away)"
        }
        Balancer::KubeVip => {
            "kube-vip with svc_enable (set svc_enable to false; the address of the control plane may stay its)"
        }
        Balancer::PureLb => {
            "PureLB (kubectl -n purelb delete daemonset lbnodeagent, and deployment allocator)"
        }
    };
    let words: Vec<&str> = facts.rival_balancers.iter().map(words).collect();
    (!words.is_empty()).then(|| {
        format!(
            "{}: services of type LoadBalancer get addresses here from somebody else, too, who may answer for those of \
             homelab or take their ports; homelab does not touch it: {}",
            node.name,
            words.join("; ")
        )
    })
}

/// What was found and what to do, in the order in which to do it.
fn words(rival: &Rival) -> String {
    match rival {
        Rival::Process => {
            "the process kube-proxy (kubectl -n kube-system delete daemonset kube-proxy, before anything else)".into()
        }
        Rival::BuiltIn { program } => {
            let stop = if program == "k3s" { "k3s-killall.sh" } else { "rke2-killall.sh" };
            format!(
                "kube-proxy of {program}, which loads its rules when it is ready (disable-kube-proxy: true in \
                 /etc/rancher/{program}/config.yaml of every server, then {stop} on each node, or a reboot)"
            )
        }
        Rival::Nftables { family } => {
            format!("the table {family} kube-proxy (nft delete table {family} kube-proxy)")
        }
        Rival::Iptables { family } => {
            format!("the chain {family} nat KUBE-SERVICES (kube-proxy --cleanup, or a reboot)")
        }
        Rival::IptablesLegacy { family } => {
            let save = if family == "ip6" { "ip6tables-legacy-save" } else { "iptables-legacy-save" };
            format!(
                "the table {family} nat of iptables-legacy, which homelab cannot read (look with {save} -t nat; if it \
                 has KUBE-SERVICES: kube-proxy --cleanup, or a reboot)"
            )
        }
        Rival::Ipvs => "the link kube-ipvs0 (kube-proxy --cleanup, or ip link del kube-ipvs0 and ipvsadm -C)".into(),
        Rival::Cilium => "Cilium, whose programs come before all rules where it replaces kube-proxy (kubectl -n kube-system \
                          delete daemonset cilium, then a reboot, or ip link del cilium_host once its programs are gone)"
            .into(),
        Rival::KubeRouter => "kube-router (kubectl -n kube-system delete daemonset kube-router, then kube-router \
                              --cleanup-config, or ip link del kube-dummy-if and ipvsadm -C)"
            .into(),
        Rival::CalicoBpf => "the eBPF data plane of Calico, by the link bpfin.cali (kubectl patch felixconfiguration default \
                             --type merge -p '{\"spec\":{\"bpfEnabled\":false}}')"
            .into(),
    }
}
