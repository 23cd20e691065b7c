//! Load-balancer pools and their announcement.

use std::collections::HashMap;

use homelab_model::{L2Settings, LoadBalancer, Pool, PoolRange};

use super::{clean, duplicate, nodes, seen_before, take, values};
use crate::problem::{Fault, Span};
use crate::raw::{self, File};
use crate::spanned::Spanned;

/// A pool as far as it can be understood.
pub(super) struct ParsedPool {
    name: Option<Spanned<String>>,
    /// Each range with its text.
    pub(super) ranges: Vec<Spanned<(String, PoolRange)>>,
    auto_assign: bool,
    avoid_buggy_ips: bool,
}

impl ParsedPool {
    pub(super) fn title(&self) -> &str {
        self.name.as_ref().map_or("?", |n| &n.value)
    }
}

/// All of `loadBalancer`.
pub(super) struct Pools {
    pub(super) pools: Vec<ParsedPool>,
    l2: L2Settings,
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
            })
        };
        let pools = self.pools.into_iter().map(pool).collect::<Option<_>>()?;
        self.complete.then_some(LoadBalancer { pools, l2: self.l2 })
    }
}

pub(super) fn load_balancer(file: &File, nodes: &[nodes::Parsed], faults: &mut Vec<Fault>) -> Pools {
    let before = faults.len();
    let empty = raw::LoadBalancer::default();
    let raw = file.load_balancer.as_ref().unwrap_or(&empty);
    let mut names: HashMap<String, Span> = HashMap::new();
    let mut pools = Vec::new();
    for pool in raw.pools.as_deref().unwrap_or_default() {
        let raw = &pool.value;
        let name = raw.name.as_ref().and_then(|n| take(faults, n, |t| values::label(t, "a pool name")));
        if let Some(name) = &name
            && let Some(first) = seen_before(&mut names, &name.value, name.span)
        {
            faults.push(duplicate("pools", name, first));
        }
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
        });
    }
    let l2 = raw.l2.as_ref().map(|l2| settings(l2, nodes, faults)).unwrap_or_default();
    Pools { pools, l2, complete: clean(faults, before) }
}

fn settings(raw: &raw::L2, nodes: &[nodes::Parsed], faults: &mut Vec<Fault>) -> L2Settings {
    let mut l2 = L2Settings::default();
    for text in raw.interfaces.as_deref().unwrap_or_default() {
        if let Some(name) = take(faults, text, values::interface) {
            l2.interfaces.push(name.value);
        }
    }
    for text in raw.nodes.as_deref().unwrap_or_default() {
        nodes::known(nodes, text, faults);
        l2.nodes.push(text.value.clone());
    }
    l2
}
