//! What a service asks of the load balancer: its class, addresses, pool, and with whom it shares.

use std::net::IpAddr;

use homelab_model::service::Type;
use homelab_model::{Family, PoolRange, Request};

use super::{Place, Taken, type_name};
use crate::balancer::{ADDRESSES, CLASS, POOL, SHARING, annotation, misspelt};
use crate::check::{pools, take, values};
use crate::problem::Fault;
use crate::raw;
use crate::spanned::Spanned;
use crate::value::{qualified, quote};

/// An annotation of MetalLB.
fn find<'a>(raw: &'a raw::Service, name: &str) -> Option<&'a Spanned<String>> {
    annotation(name, |key| {
        let found = raw.annotations.as_ref()?.0.iter().find(|(k, _)| k.value == key);
        found.map(|(_, value)| value)
    })
}

/// Whether homelab gives the service its address.
pub(super) fn is_ours(raw: &raw::Service, r#type: Type, faults: &mut Vec<Fault>) -> bool {
    let Some(text) = &raw.load_balancer_class else { return true };
    if r#type != Type::LoadBalancer {
        let message = format!("a {} service has no load balancer", type_name(r#type));
        faults.push(
            Fault::new("service-type", text.span, message)
                .help("write `type: LoadBalancer`, or take `loadBalancerClass` away"),
        );
    }
    let Some(class) = take(faults, text, qualified) else { return true };
    if class.value != CLASS {
        let message =
            format!("the class {} is not homelab's: the service gets no address here", quote(&class.value));
        faults.push(
            Fault::new("load-balancer-class", class.span, message)
                .help(format!(
                    "take `loadBalancerClass` away or write `{CLASS}` to get one of homelab's pools"
                ))
                .warning(),
        );
    }
    class.value == CLASS
}

/// Pool and sharing key, from MetalLB's annotations.
pub(super) fn request(
    raw: &raw::Service,
    r#type: Type,
    place: Place<'_>,
    faults: &mut Vec<Fault>,
) -> Request {
    for (key, _) in raw.annotations.iter().flat_map(|a| &a.0) {
        if let Some(help) = misspelt(&key.value) {
            let message = format!("MetalLB has no annotation {}", quote(&key.value));
            faults.push(Fault::new("annotation", key.span, message).help(help).warning());
        }
    }
    let all = [ADDRESSES, POOL, SHARING].map(|name| find(raw, name));
    if r#type != Type::LoadBalancer {
        for text in all.into_iter().flatten() {
            let message =
                format!("this is not used: a {} service has no load-balancer address", type_name(r#type));
            faults.push(
                Fault::new("annotation", text.span, message)
                    .help("write `type: LoadBalancer`, or take the annotation away")
                    .warning(),
            );
        }
        return Request::default();
    }
    let [_, pool, key] = all.map(|text| text.filter(|t| !t.value.is_empty()));
    if let Some(pool) = pool.filter(|_| place.pools.complete) {
        pools::known(&place.pools.pools, pool, faults);
    }
    let value = |text: Option<&Spanned<String>>| text.map(|t| t.value.clone());
    Request { pool: value(pool), sharing_key: value(key), ..Request::default() }
}

/// `loadBalancerIP`, or MetalLB's annotation.
pub(super) fn addresses(
    raw: &raw::Service,
    r#type: Type,
    place: Place<'_>,
    families: &[Family],
    faults: &mut Vec<Fault>,
) -> Vec<Spanned<IpAddr>> {
    let field = raw.load_balancer_ip.as_ref();
    if let Some(text) = field.filter(|_| r#type != Type::LoadBalancer) {
        let message = format!("a {} service has no load-balancer address", type_name(r#type));
        faults.push(
            Fault::new("service-type", text.span, message)
                .help("write `type: LoadBalancer`, or take `loadBalancerIP` away"),
        );
    }
    if r#type != Type::LoadBalancer {
        return Vec::new();
    }
    let one = field.and_then(|text| take(faults, text, values::address));
    let noted = find(raw, ADDRESSES);
    let listed =
        noted.and_then(|text| take(faults, text, |t| crate::balancer::addresses(t, values::address)));
    let mut all: Vec<Spanned<IpAddr>> = listed
        .iter()
        .flat_map(|list| list.value.iter().map(|ip| Spanned { value: *ip, span: list.span }))
        .collect();
    if let Some(one) = one {
        if !all.is_empty() && all.iter().any(|ip| ip.value != one.value) {
            let message =
                format!("`loadBalancerIP` is {}, but the annotation asks for other addresses", one.value);
            let mut fault = Fault::new("load-balancer-ip", one.span, message).help("keep one of them");
            if let Some(noted) = noted {
                fault = fault.also(noted.span, "the annotation");
            }
            faults.push(fault);
        }
        all.retain(|ip| ip.value != one.value);
        all.insert(0, one);
    }
    for address in &all {
        usable(address, place, families, faults);
    }
    all
}

fn usable(address: &Spanned<IpAddr>, place: Place<'_>, families: &[Family], faults: &mut Vec<Fault>) {
    let pools = place.pools;
    let inside = |r: &PoolRange| {
        r.first.is_ipv4() == address.value.is_ipv4() && r.first <= address.value && address.value <= r.last
    };
    let held = pools.pools.iter().any(|p| p.ranges.iter().any(|r| inside(&r.value.1)));
    let family = Family::of(address.value);
    // A pool that is wrong itself may be the one that is meant.
    if !held && pools.complete {
        let help = if pools.pools.is_empty() {
            "add a pool that holds it to `loadBalancer.pools`".to_owned()
        } else {
            let all: Vec<&str> =
                pools.pools.iter().flat_map(|p| p.ranges.iter().map(|r| r.value.0.as_str())).collect();
            format!("the pools hold {}", crate::words::list(&all, "and"))
        };
        faults.push(
            Fault::new("load-balancer-ip", address.span, format!("{} is in no pool", address.value))
                .help(help),
        );
    } else if !families.is_empty() && !families.contains(&family) {
        let message = format!("{} is {family}, but the service has no {family} address", address.value);
        faults.push(
            Fault::new("load-balancer-ip", address.span, message)
                .help(format!("choose an {} address, or add {family} to `ipFamilies`", families[0])),
        );
    }
}

/// Tells of two services that ask for one address and have no common key.
pub(super) fn shared(
    wanted: &[Spanned<IpAddr>],
    request: &Request,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) {
    let key = request.sharing_key.clone();
    for address in wanted {
        match taken.balanced.get(&address.value) {
            Some((other, first)) if key.is_none() || *other != key => faults.push(
                Fault::new(
                    "duplicate-address",
                    address.span,
                    format!("two services ask for {}", address.value),
                )
                .label("again here")
                .also(*first, "first here")
                .help(format!(
                    "to share it, give both the same annotation `metallb.io/{SHARING}`, and different ports"
                )),
            ),
            Some(_) => {}
            None => {
                taken.balanced.insert(address.value, (key.clone(), address.span));
            }
        }
    }
}
