//! Full load: from services to all in the kernel.

use homelab_linux::netlink::Socket;
use homelab_linux::nft::elements::{Batch, Element};
use homelab_model::ours::PROXY_TABLE;
use homelab_proxy::Elements;
use homelab_proxy::bytes::Bytes;

use crate::ours::{self, Ours};
use crate::time::cost;
use crate::{SIZES, figure, in_netns, peer, remark};

pub(crate) fn run(runs: usize) {
    for size in SIZES {
        let task = format!("full load, {}", size.label());
        let services = ours::services(size);
        let mut costs: [Vec<f64>; 6] = Default::default();
        let mut looks = Vec::new();
        for _ in 0..runs {
            in_netns(|| {
                let mut node = Ours::new();
                let (compile, elements) = cost(|| ours::compiled(&services));
                let (ruleset, ()) = cost(|| node.load_ruleset());
                let (sync, ()) = cost(|| node.sync(&elements));
                let all = [
                    compile.wall + ruleset.wall + sync.wall,
                    compile.cpu + ruleset.cpu + sync.cpu,
                    compile.wall,
                    ruleset.wall,
                    sync.wall,
                ];
                costs.iter_mut().zip(all).for_each(|(costs, cost)| costs.push(cost / 1e3));
                // An agent that starts again, knows nothing and has nothing to do.
                let mut again = Ours::new();
                looks.push(cost(|| again.sync(&elements)).0.wall / 1e3);
            });
            costs[5].push(floor(&ours::compiled(&services)) / 1e3);
        }
        let whos = [
            "homelab",
            "homelab: CPU",
            "homelab: compile alone",
            "homelab: ruleset alone",
            "homelab: elements alone",
            "floor: one batch made before",
        ];
        for (who, values) in whos.into_iter().zip(&costs) {
            figure(&task, who, "s", values);
        }
        figure(&format!("started again, nothing to do, {}", size.label()), "homelab", "s", &looks);
        let (mut wall, mut cpu) = (Vec::new(), Vec::new());
        for _ in 0..if peer::expected(&services) > 1e3 { 1 } else { runs } {
            match in_netns(|| peer::load(&services)) {
                Ok(took) => {
                    wall.push(took.wall / 1e3);
                    cpu.push(took.cpu / 1e3);
                }
                Err(why) => {
                    remark(&format!("{task}: chain per service: {why}"));
                    break;
                }
            }
        }
        if !wall.is_empty() {
            figure(&task, "chain per service, nft -f", "s", &wall);
            figure(&task, "chain per service, nft -f: CPU", "s", &cpu);
        }
    }
}

/// The same elements into the same ruleset, as a batch that is ready; milliseconds.
pub(crate) fn floor(elements: &Elements) -> f64 {
    in_netns(|| {
        Ours::new().load_ruleset();
        let mut socket = Socket::netfilter().unwrap();
        let mut batch = Batch::new(PROXY_TABLE.split_once(' ').unwrap().1);
        let mut all: Vec<_> =
            elements.iter().flat_map(|(name, all)| all.iter().map(move |e| (e, name))).collect();
        all.sort_unstable_by_key(|(element, _)| (element.set(), element.is_ipv4()));
        for (element, name) in all {
            batch.add(&element.set().name(element.is_ipv4()), &raw(name, element)).unwrap();
        }
        cost(|| batch.commit(&mut socket).unwrap()).0.wall
    })
}

/// An element as the kernel has it.
pub(crate) fn raw(service: &str, element: &homelab_proxy::element::Element) -> Element {
    let Bytes { key, key_end, data } = Bytes::from(element);
    Element { key, key_end, data, comment: service.to_owned(), expires: None }
}
