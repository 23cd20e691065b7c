//! Small changes of a large state.

use std::time::{Duration, Instant};

use homelab_linux::netlink::Socket;
use homelab_linux::nft::elements::Batch;
use homelab_model::ours::PROXY_TABLE;
use homelab_model::service::Service;
use homelab_proxy::Elements;
use homelab_proxy::element::Element;

use crate::load::raw;
use crate::ours::{self, Ours};
use crate::time::{Cost, cost};
use crate::{SIZES, Size, figure, in_netns, peer, remark};

const CHANGES: u32 = 200;
/// No state is changed for longer, but ten times.
const LIMIT: Duration = Duration::from_secs(6);
/// Nor is a state of the peer's made that takes longer to load.
const PEER_SERVICES: u32 = 10_000;
/// Kinds of changes.
pub(crate) const KINDS: [&str; 3] = ["one endpoint replaced", "one service added", "one service removed"];

/// Costs of the three kinds of changes.
type Costs = [Vec<Cost>; 3];

pub(crate) fn run() {
    for size in SIZES {
        let services = ours::services(size);
        let report = |who: &str, costs: &Costs| {
            for (kind, costs) in KINDS.into_iter().zip(costs).filter(|(_, costs)| !costs.is_empty()) {
                let task = format!("{kind}, {}", size.label());
                figure(&task, who, "ms", &costs.iter().map(|c| c.wall).collect::<Vec<_>>());
                figure(&task, &format!("{who}: CPU"), "ms", &costs.iter().map(|c| c.cpu).collect::<Vec<_>>());
            }
        };
        report("homelab", &in_netns(|| one_compiled(&services, size)));
        report("homelab, comparing all", &in_netns(|| all_compared(&services, size)));
        report("homelab, compiling all", &in_netns(|| all_compiled(&services, size)));
        if size.endpoints == 3 && size.services <= PEER_SERVICES {
            report("chain per service, nft -f", &in_netns(|| peers(&services, size)));
        }
        report("floor: elements by netlink", &[in_netns(|| floor(&services)), Vec::new(), Vec::new()]);
    }
    remark(
        "chain per service: the transaction alone; kube-proxy also lists its table and goes through its state",
    );
}

/// Does each kind of change in turn until there are enough.
fn rounds(
    services: &[Service],
    size: Size,
    mut step: impl FnMut(usize, &Service, &Service) -> Cost,
) -> Costs {
    let mut costs = Costs::default();
    let start = Instant::now();
    for round in 0..CHANGES {
        if round >= 10 && start.elapsed() > LIMIT {
            break;
        }
        // Any service but the same again.
        let index = (round * 7919 + 13) as usize % services.len();
        let before = &services[index];
        let mut after = before.clone();
        ours::replace_endpoint(&mut after, round);
        costs[0].push(step(0, before, &after));
        step(3, &after, before);
        let new = ours::service(size.services + round, size.endpoints);
        costs[1].push(step(1, &new, &new));
        costs[2].push(step(2, &new, &new));
    }
    costs
}

/// The agent that knows which service has changed compiles that one, and says which it was.
fn one_compiled(services: &[Service], size: Size) -> Costs {
    let mut node = loaded(services);
    rounds(services, size, |kind, before, after| {
        cost(|| {
            let changed = match kind {
                2 => Elements::from([(before.full_name(), Vec::new())]),
                _ => ours::compiled(std::slice::from_ref(after)),
            };
            node.node.sync_changed_services(&changed).unwrap();
        })
        .0
    })
}

/// The agent that knows which service has changed compiles that one, and has all compared.
fn all_compared(services: &[Service], size: Size) -> Costs {
    let mut node = loaded(services);
    let mut elements = ours::compiled(services);
    rounds(services, size, |kind, before, after| {
        cost(|| {
            if kind == 2 {
                elements.remove(&before.full_name());
            } else {
                elements.append(&mut ours::compiled(std::slice::from_ref(after)));
            }
            node.sync(&elements);
        })
        .0
    })
}

/// A node with these services in its kernel.
fn loaded(services: &[Service]) -> Ours {
    let mut node = Ours::new();
    node.load_ruleset();
    node.sync(&ours::compiled(services));
    node
}

/// The agent that does not know compiles all.
fn all_compiled(services: &[Service], size: Size) -> Costs {
    let mut node = loaded(services);
    let mut now = services.to_vec();
    rounds(services, size, |kind, before, after| {
        let place = now.iter().position(|service| service.full_name() == before.full_name());
        match (kind, place) {
            (2, Some(place)) => drop(now.remove(place)),
            (_, Some(place)) => now[place] = after.clone(),
            (_, None) => now.push(after.clone()),
        }
        cost(|| node.sync(&ours::compiled(&now))).0
    })
}

fn peers(services: &[Service], size: Size) -> Costs {
    if let Err(why) = peer::load(services) {
        remark(&format!("changes, {}: chain per service: {why}", size.label()));
        return Costs::default();
    }
    let mut stale = Vec::new();
    rounds(services, size, |kind, before, after| {
        cost(|| {
            let mut text = String::new();
            peer::forget(&mut text, &std::mem::take(&mut stale));
            stale = match kind {
                1 => {
                    peer::add(&mut text, after);
                    Vec::new()
                }
                2 => peer::remove(&mut text, before),
                _ => peer::change(&mut text, before, after),
            };
            assert!(peer::run(&text));
        })
        .0
    })
}

/// One element deleted and one added, by netlink alone.
pub(crate) fn floor(services: &[Service]) -> Vec<Cost> {
    // What is known of the sets is wrong after this, and not used.
    let _node = loaded(services);
    let elements = ours::compiled(services);
    let mut socket = Socket::netfilter().unwrap();
    let table = PROXY_TABLE.split_once(' ').unwrap().1;
    let endpoints = elements.iter().flat_map(|(name, all)| all.iter().map(move |e| (name, e)));
    let endpoints = endpoints.filter(|(_, e)| matches!(e, Element::Endpoint { .. }));
    endpoints
        .take(CHANGES as usize)
        .map(|(name, element)| {
            let mut other = raw(name, element);
            other.data = Some(vec![10, 160, 0, 1, 31, 144, 0, 0]);
            let (set, raw) = (element.set().name(true), raw(name, element));
            cost(|| {
                let mut batch = Batch::new(table);
                batch.delete(&set, &raw).unwrap();
                batch.add(&set, &other).unwrap();
                batch.commit(&mut socket).unwrap();
            })
            .0
        })
        .collect()
}
