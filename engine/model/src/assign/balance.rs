//! Load-balancer addresses, by MetalLB's rules (its controller/service.go and internal/allocator).
//!
//! First the addresses that services fix, then those that they had, then the missing family of those that had one, then
//! free ones. All addresses of a service are of one pool.

mod holders;
mod search;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::service::{Ingress, IpMode, Service, Type};
use crate::{Declared, Family, Pool};

use super::claims::Claims;
use super::{Draft, yields};
use holders::{Holders, Sharing, Want};
use search::Search;

/// Load-balancer addresses of services whose cluster addresses are theirs already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Balanced {
    /// Addresses by full name, in the order of the service's families; of every LoadBalancer service, also of those that
    /// have none.
    pub given: BTreeMap<String, Vec<Ingress>>,
    /// What is amiss.
    pub notes: Vec<BalanceNote>,
}

/// What is amiss with the load-balancer addresses of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalanceNote {
    /// `namespace/name`.
    pub service: String,
    /// Which kind of trouble it is.
    pub trouble: BalanceTrouble,
    /// The whole sentence: what, why, and what helps.
    pub text: String,
}

/// Kinds of trouble with load-balancer addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BalanceTrouble {
    /// It cannot have what it asks for.
    Refused,
    /// Another has a better right to an address that it had.
    Yields,
    /// No pool has a free address for it.
    Exhausted,
    /// It has an address of one family only.
    Partly,
    /// No pool gives an address any more that it had.
    Lost,
}

/// Chooses load-balancer addresses alone, for services of a Kubernetes API: by the same rules as [`super::assign`].
///
/// `held` is the addresses that services have, by full name: they keep them as far as the pools still give them. `taken`
/// is addresses that nobody here can have, with who has them. Cluster addresses and ports are left as they are. Of two
/// services with one name the last is taken.
pub fn balance_addresses(
    services: &[Declared],
    held: &BTreeMap<String, Vec<Ingress>>,
    pools: &[Pool],
    taken: &BTreeMap<IpAddr, String>,
) -> Balanced {
    let mut claims = Claims::default();
    claims.taken(taken);
    let mut drafts: BTreeMap<String, Draft<'_>> = BTreeMap::new();
    let mut memory = BTreeMap::new();
    for declared in services {
        let service = &declared.service;
        let name = service.full_name();
        claims.external(&name, service);
        let mut families = declared.families.clone();
        if families.is_empty() {
            families.extend(service.cluster_ips.iter().map(|ip| Family::of(*ip)));
        }
        if let Some(held) = held.get(&name) {
            memory.insert(name.clone(), Service { load_balancer: held.clone(), ..service.clone() });
        }
        drafts.insert(name, Draft { declared, families, service: service.clone() });
    }
    let mut notes = Vec::new();
    balance(&mut drafts, &memory, pools, &claims, &mut notes);
    let balanced = drafts.into_iter().filter(|(_, draft)| draft.service.r#type == Type::LoadBalancer);
    Balanced { given: balanced.map(|(name, draft)| (name, draft.service.load_balancer)).collect(), notes }
}

/// Gives every LoadBalancer service its addresses, or says in `notes` why it has none.
pub(super) fn balance(
    drafts: &mut BTreeMap<String, Draft<'_>>,
    memory: &BTreeMap<String, Service>,
    pools: &[Pool],
    claims: &Claims,
    notes: &mut Vec<BalanceNote>,
) {
    let balanced = drafts.iter().filter(|(_, draft)| draft.service.r#type == Type::LoadBalancer);
    let services: Vec<Asking<'_>> =
        balanced.map(|(name, draft)| Asking::new(name, draft, memory.get(name))).collect();
    let mut run = Run {
        pools,
        holders: Holders::new(claims),
        search: Search::new(pools),
        given: vec![Vec::new(); services.len()],
        notes,
    };
    run.fixed(&services);
    run.kept(&services);
    run.completed(&services);
    run.free(&services);
    let given: Vec<(String, Vec<Ingress>)> =
        services.iter().map(|one| one.want.name.to_owned()).zip(run.given).collect();
    for (name, mut addresses) in given {
        if let Some(draft) = drafts.get_mut(&name) {
            addresses.sort_by_key(|i| draft.families.iter().position(|f| *f == Family::of(i.ip)));
            draft.service.load_balancer = addresses;
        }
    }
}

/// A LoadBalancer service and what decides its addresses.
struct Asking<'a> {
    want: Want<'a>,
    service: &'a Service,
    families: &'a [Family],
    /// Addresses that the source fixes: it gets these or none.
    fixed: &'a [Ingress],
    /// Addresses that it had, of the families that it still has and does not fix.
    had: Vec<Ingress>,
    /// Whether it asks the same of its addresses as when it got them.
    settled: bool,
    /// Pool that it asks for.
    pool: Option<&'a str>,
    /// Addresses of both families, or none.
    both: bool,
}

impl<'a> Asking<'a> {
    fn new(name: &'a str, draft: &'a Draft<'_>, before: Option<&Service>) -> Self {
        let (service, request) = (&draft.declared.service, &draft.declared.request);
        let fixed = service.load_balancer.as_slice();
        let remembered = before.map(|b| b.load_balancer.as_slice()).unwrap_or_default();
        let given = if remembered.is_empty() { request.given.as_slice() } else { remembered };
        let mut had: Vec<Ingress> = Vec::new();
        for one in given {
            let family = Family::of(one.ip);
            let other = |i: &Ingress| Family::of(i.ip) != family;
            if draft.families.contains(&family) && had.iter().all(other) && fixed.iter().all(other) {
                had.push(*one);
            }
        }
        let settled = before.is_some_and(|before| {
            let had_port = |p: &crate::service::Port| {
                before.ports.iter().any(|b| (b.protocol, b.port) == (p.protocol, p.port))
            };
            fixed.iter().all(|f| remembered.iter().any(|r| r.ip == f.ip))
                && before.external_traffic_policy == service.external_traffic_policy
                && service.ports.iter().all(had_port)
        });
        Asking {
            want: Want::new(name, draft.declared),
            service,
            families: &draft.families,
            fixed,
            had,
            settled,
            pool: request.pool.as_deref(),
            both: request.require_dual_stack,
        }
    }

    /// The first of its families that it has no address of.
    fn missing(&self, addresses: &[Ingress]) -> Option<Family> {
        self.families.iter().copied().find(|f| addresses.iter().all(|i| Family::of(i.ip) != *f))
    }

    /// Why a pool may not give it addresses.
    fn denied(&self, pool: &Pool) -> Option<String> {
        match self.pool {
            Some(asked) if asked != pool.name => Some(format!("it asks for pool {asked}")),
            _ if !pool.is_for(self.service) => {
                Some(format!("pool {} is for other services (`serviceAllocation`)", pool.name))
            }
            _ => None,
        }
    }
}

struct Run<'a> {
    pools: &'a [Pool],
    holders: Holders<'a>,
    search: Search<'a>,
    /// Addresses of each service.
    given: Vec<Vec<Ingress>>,
    notes: &'a mut Vec<BalanceNote>,
}

impl<'a> Run<'a> {
    /// The pool that holds all of these.
    fn pool_of(&self, addresses: &[Ingress]) -> Option<&'a Pool> {
        self.pools.iter().find(|pool| addresses.iter().all(|i| pool.holds(i.ip)))
    }

    fn note(&mut self, service: &str, trouble: BalanceTrouble, text: String) {
        self.notes.push(BalanceNote { service: service.to_owned(), trouble, text });
    }

    fn give(&mut self, index: usize, want: &Want<'a>, addresses: &[Ingress]) {
        for one in addresses {
            self.holders.take(one.ip, want);
        }
        self.given[index].extend(addresses);
    }

    /// Gives what the sources fix. Of two that fix the same, the one that had it keeps it.
    fn fixed(&mut self, services: &[Asking<'a>]) {
        let asking = |one: &&(usize, &Asking<'a>)| !one.1.fixed.is_empty();
        let all: Vec<(usize, &Asking<'a>)> = services.iter().enumerate().collect();
        let (settled, others): (Vec<_>, Vec<_>) = all.iter().filter(asking).partition(|(_, one)| one.settled);
        for (index, one) in settled.into_iter().chain(others) {
            match self.refusal(one) {
                None => self.give(index, &one.want, one.fixed),
                Some(why) => {
                    let name = one.want.name;
                    let text =
                        format!("service {name} has no load-balancer address: {why}; it is served without");
                    self.note(name, BalanceTrouble::Refused, text);
                }
            }
        }
    }

    /// Why a service cannot have the addresses that it fixes.
    fn refusal(&self, one: &Asking<'a>) -> Option<String> {
        let addresses = one.fixed.iter().map(|i| i.ip);
        let ips = one.fixed.iter().map(|i| i.ip.to_string()).collect::<Vec<_>>().join(" and ");
        let of = |family| addresses.clone().filter(|ip| Family::of(*ip) == family).count();
        if of(Family::IPv4) > 1 || of(Family::IPv6) > 1 {
            return Some(format!("{ips} are more than one of a family"));
        }
        if let Some(ip) = addresses.clone().find(|ip| !one.families.contains(&Family::of(*ip))) {
            return Some(format!("{ip} is of a family that it does not have"));
        }
        // To look for the second here would take what others remember, to look later might give back what they lost.
        if let Some(family) = one.missing(one.fixed).filter(|_| one.both) {
            return Some(format!(
                "`RequireDualStack` wants an {family} address beside {ips}; name both in the annotation \
                 `metallb.io/loadBalancerIPs`, or none"
            ));
        }
        if let Some(ip) = addresses.clone().find(|ip| !self.pools.iter().any(|pool| pool.holds(*ip))) {
            return Some(format!("{ip} is in no pool of `loadBalancer.pools`"));
        }
        let Some(pool) = self.pool_of(one.fixed) else {
            return Some(format!("{ips} are of two pools"));
        };
        if let Some(why) = one.denied(pool) {
            return Some(format!("{ips} cannot be given: {why}"));
        }
        addresses.into_iter().find_map(|ip| {
            let denial = self.holders.denial(ip, &one.want)?;
            Some(format!("{ip} {denial}"))
        })
    }

    /// Lets services keep what they had, as far as one pool that is for them still holds it all. What somebody else has
    /// a better right to, they lose. Those go first that ask what they asked before; of those that no longer agree to
    /// share, the larger group.
    fn kept(&mut self, services: &[Asking<'a>]) {
        let mut keeping: Vec<(usize, &Asking<'a>)> = Vec::new();
        let mut groups: BTreeMap<(IpAddr, Option<&Sharing<'a>>), usize> = BTreeMap::new();
        for (index, one) in services.iter().enumerate() {
            let Some(first) = one.had.first() else { continue };
            if self.given[index].is_empty() != one.fixed.is_empty() {
                continue;
            }
            let all = [one.fixed, &one.had].concat();
            let pool = self.pool_of(&all).filter(|pool| one.denied(pool).is_none());
            // Where both are wanted and the pool has but one, it is of no use.
            let useful =
                |pool: &&Pool| one.missing(&all).is_none_or(|family| !one.both || search::has(pool, family));
            if pool.filter(useful).is_some() {
                keeping.push((index, one));
                *groups.entry((first.ip, one.want.sharing.as_ref())).or_default() += 1;
            }
        }
        let mates = |one: &Asking<'a>| {
            one.had
                .first()
                .and_then(|i| groups.get(&(i.ip, one.want.sharing.as_ref())))
                .copied()
                .unwrap_or_default()
        };
        keeping.sort_by_key(|(_, one)| (!one.settled, Reverse(mates(one)), one.want.name));
        for (index, one) in keeping {
            for had in &one.had {
                match self.holders.denial(had.ip, &one.want) {
                    None => self.give(index, &one.want, &[*had]),
                    Some(denial) => {
                        let what = format!("the load-balancer address {}", had.ip);
                        if let Some(text) = yields(one.want.name, &what, denial.holder()) {
                            self.note(one.want.name, BalanceTrouble::Yields, text);
                        }
                    }
                }
            }
        }
    }

    /// Gives services that have an address of one family the other's, of the same pool.
    fn completed(&mut self, services: &[Asking<'a>]) {
        for (index, one) in services.iter().enumerate() {
            let given = self.given[index].clone();
            let Some(family) = one.missing(&given).filter(|_| !given.is_empty()) else { continue };
            let Some(pool) = self.pool_of(&given) else { continue };
            if let Some(ip) = self.search.find(pool, family, &one.want, &one.had, &self.holders) {
                self.give(index, &one.want, &[vip(ip)]);
            } else if one.both {
                self.given[index].clear();
                given.iter().for_each(|address| self.holders.release(address.ip, one.want.name));
                self.search.rewind();
            }
        }
    }

    /// Gives free addresses to services that have none.
    fn free(&mut self, services: &[Asking<'a>]) {
        for (index, one) in services.iter().enumerate() {
            if self.given[index].is_empty() && one.fixed.is_empty() {
                let found: Vec<Ingress> = self.found(one).into_iter().map(vip).collect();
                self.give(index, &one.want, &found);
                if found.is_empty() {
                    let (trouble, why) = self.want_of(one);
                    self.note(one.want.name, trouble, format!("service {} has no {why}", one.want.name));
                }
            }
            self.said(one, index);
        }
    }

    /// Addresses of the best pool: of the one that is asked for, else of the pools that are for certain services and for
    /// this one, else of those that are for all. In each of the two groups a pool that has all families goes first, then
    /// one that has the first family, where one is enough.
    fn found(&mut self, one: &Asking<'a>) -> Vec<IpAddr> {
        for tier in self.tiers(one) {
            let mut single: [Option<IpAddr>; 2] = [None, None];
            for pool in tier {
                let found: Vec<Option<IpAddr>> = one
                    .families
                    .iter()
                    .map(|family| self.search.find(pool, *family, &one.want, &one.had, &self.holders))
                    .collect();
                if found.iter().all(Option::is_some) {
                    return found.into_iter().flatten().collect();
                }
                for (slot, ip) in single.iter_mut().zip(found) {
                    *slot = slot.or(ip);
                }
            }
            if let Some(ip) = single.into_iter().flatten().next().filter(|_| !one.both) {
                return vec![ip];
            }
        }
        Vec::new()
    }

    /// The pools that may be asked, in order.
    fn tiers(&self, one: &Asking<'a>) -> [Vec<&'a Pool>; 2] {
        let asked = one.pool.is_some();
        let mut pools: Vec<&'a Pool> =
            self.pools.iter().filter(|p| (asked || p.auto_assign) && one.denied(p).is_none()).collect();
        let priority = |p: &Pool| p.service_allocation.as_ref().map_or(0, |to| to.priority);
        // 0 is no number, and comes last.
        pools.sort_by_key(|p| priority(p).wrapping_sub(1));
        pools.into_iter().partition::<Vec<_>, _>(|p| p.is_pinned()).into()
    }

    /// What a service did not get, why, and what helps.
    fn want_of(&self, one: &Asking<'a>) -> (BalanceTrouble, String) {
        let refused = |why| (BalanceTrouble::Refused, why);
        let families: Vec<String> = one.families.iter().map(ToString::to_string).collect();
        let families = families.join(if one.both { " and " } else { " or " });
        let what = format!("{families} load-balancer address");
        if let Some(asked) = one.pool {
            let Some(pool) = self.pools.iter().find(|pool| pool.name == asked) else {
                return refused(format!("{what}: there is no pool {asked}; add it to `loadBalancer.pools`"));
            };
            if let Some(why) = one.denied(pool) {
                return refused(format!("{what}: {why}; ask for another, or for none"));
            }
        }
        let pools: Vec<&Pool> = self.tiers(one).into_iter().flatten().collect();
        let full = |family: &Family| pools.iter().any(|pool| search::has(pool, *family));
        let together = pools.iter().any(|pool| one.families.iter().all(|f| search::has(pool, *f)));
        if if one.both { together } else { one.families.iter().any(full) } {
            let help = "every one of the pools is taken; add addresses to a pool in `loadBalancer.pools`";
            (BalanceTrouble::Exhausted, format!("{what}: {help}"))
        } else if one.both && one.families.iter().all(full) {
            refused(format!(
                "{what}: no pool has both; add ranges of both to one pool in `loadBalancer.pools`"
            ))
        } else {
            refused(format!(
                "{what}: no pool gives one; add a pool with `autoAssign` to `loadBalancer.pools`, or set \
                 `loadBalancerIP`"
            ))
        }
    }

    /// Says what a service did not get beside what it got, and what it lost because no pool gives it any more.
    fn said(&mut self, one: &Asking<'a>, index: usize) {
        let given = self.given[index].clone();
        let name = one.want.name;
        if let (Some(family), Some(pool)) = (one.missing(&given), self.pool_of(&given))
            && !given.is_empty()
            && search::has(pool, family)
        {
            let text = format!(
                "service {name} has no {family} load-balancer address: every one of pool {} is taken; add addresses to it",
                pool.name
            );
            self.note(name, BalanceTrouble::Partly, text);
        }
        for had in &one.had {
            let usable = |pool: &Pool| pool.holds(had.ip) && one.denied(pool).is_none();
            if given.iter().all(|i| i.ip != had.ip) && !self.pools.iter().any(usable) {
                let text = format!(
                    "service {name} loses the load-balancer address {}: no pool gives it any more",
                    had.ip
                );
                self.note(name, BalanceTrouble::Lost, text);
            }
        }
    }
}

fn vip(ip: IpAddr) -> Ingress {
    Ingress { ip, ip_mode: IpMode::Vip }
}
