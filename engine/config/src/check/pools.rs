//! Load-balancer pools.

use std::collections::HashMap;

use homelab_model::{
    BgpSettings, L2Advertisement, LoadBalancer, Pool, PoolRange, ServiceAllocation, SpeakerSpec, Vxlan,
};

use super::{advertisements, bgp, clean, labels, nodes, take, values};
use crate::problem::{Fault, Span};
use crate::raw::{self, File};
use crate::spanned::Spanned;

/// A pool as far as it can be understood.
pub(super) struct ParsedPool {
    pub(super) name: Option<Spanned<String>>,
    /// Each range with its text.
    pub(super) ranges: Vec<Spanned<(String, PoolRange)>>,
    auto_assign: bool,
    avoid_buggy_ips: bool,
    service_allocation: Option<ServiceAllocation>,
}

impl ParsedPool {
    pub(super) fn title(&self) -> &str {
        self.name.as_ref().map_or("?", |n| &n.value)
    }
}

/// All of `loadBalancer`.
pub(super) struct Pools {
    pub(super) pools: Vec<ParsedPool>,
    l2_advertisements: Vec<L2Advertisement>,
    port: u16,
    bgp: Option<BgpSettings>,
    pub(super) complete: bool,
}

impl Pools {
    pub(super) fn finish(self) -> Option<LoadBalancer> {
        let pool = |p: ParsedPool| {
            Some(Pool {
                name: p.name?.value,
                addresses: p.ranges.into_iter().map(|r| r.value.1).collect(),
                auto_assign: p.auto_assign,
                avoid_buggy_ips: p.avoid_buggy_ips,
                service_allocation: p.service_allocation,
            })
        };
        let pools = self.pools.into_iter().map(pool).collect::<Option<_>>()?;
        let (l2_advertisements, port, bgp) = (self.l2_advertisements, self.port, self.bgp);
        self.complete.then_some(LoadBalancer {
            pools,
            l2_advertisements,
            port,
            bgp,
            ..LoadBalancer::default()
        })
    }
}

/// The pool of that name; a fault where there is none.
pub(super) fn known(pools: &[ParsedPool], text: &Spanned<String>, faults: &mut Vec<Fault>) {
    super::known(
        pools.iter().map(|p| p.name.as_ref()),
        text,
        ("unknown-pool", "pool", "loadBalancer.pools"),
        faults,
    );
}

pub(super) fn load_balancer(
    file: &File,
    nodes: &[nodes::Parsed],
    vxlan: &Vxlan,
    faults: &mut Vec<Fault>,
) -> Pools {
    let before = faults.len();
    let empty = raw::LoadBalancer::default();
    let raw = file.load_balancer.as_ref().unwrap_or(&empty);
    let mut names: HashMap<String, Span> = HashMap::new();
    let mut pools = Vec::new();
    for pool in raw.pools.as_deref().unwrap_or_default() {
        let raw = &pool.value;
        let name = super::name(&mut names, raw.name.as_ref(), ("a pool name", "pools"), faults);
        let mut ranges = Vec::new();
        for text in raw.addresses.as_deref().unwrap_or_default() {
            let Some(range) = take(faults, text, values::pool_range) else { continue };
            let PoolRange { first, last } = range.value;
            if let Some(what) = values::unusable(first).or_else(|| values::unusable(last)) {
                faults.push(
                    Fault::new(
                        "pool-range",
                        range.span,
                        format!("{} cannot be announced: it contains {what}", text.value),
                    )
                    .help("a pool holds free addresses of your LAN"),
                );
                continue;
            }
            ranges.push(Spanned { value: (text.value.clone(), range.value), span: range.span });
        }
        pools.push(ParsedPool {
            name,
            ranges,
            auto_assign: raw.auto_assign.as_ref().is_none_or(|a| a.value),
            avoid_buggy_ips: raw.avoid_buggy_ips.as_ref().is_some_and(|a| a.value),
            service_allocation: raw.service_allocation.as_ref().map(|to| allocation(to, faults)),
        });
    }
    let l2_advertisements = advertisements::advertisements(raw, &pools, faults);
    let bgp = raw.bgp.as_ref().map(|raw| bgp::bgp(raw, &pools, nodes, faults));
    advertisements::silent(&pools, &l2_advertisements, bgp.as_ref().map(|bgp| &bgp.spec), faults);
    let port = raw.port.as_ref().map_or(SpeakerSpec::PORT, |port| port.value);
    if port == vxlan.port && (raw.port.is_some() || !pools.is_empty()) {
        let tunnel = file.network.as_ref().and_then(|n| n.vxlan.as_ref()?.port.as_ref());
        let written = raw.port.as_ref().or(tunnel);
        if let Some(at) = written {
            let message = format!("the tunnel and the speakers cannot both have UDP port {port}");
            let mut fault = Fault::new("port", at.span, message)
                .help("set `loadBalancer.port` or `network.vxlan.port` to another");
            if let Some(other) = tunnel.filter(|other| other.span != at.span) {
                fault = fault.also(other.span, "the tunnel's");
            }
            faults.push(fault);
        }
    }
    Pools { pools, l2_advertisements, port, bgp, complete: clean(faults, before) }
}

fn allocation(raw: &raw::ServiceAllocation, faults: &mut Vec<Fault>) -> ServiceAllocation {
    let namespaces = raw.namespaces.iter().flatten();
    let namespaces = namespaces.filter_map(|n| take(faults, n, |t| values::label(t, "a namespace")));
    ServiceAllocation {
        priority: raw.priority.as_ref().map_or(0, |p| p.value),
        namespaces: namespaces.map(|n| n.value).collect(),
        service_selectors: labels::selectors(
            raw.service_selectors.as_ref(),
            "serviceSelectors",
            "all services",
            faults,
        ),
    }
}
