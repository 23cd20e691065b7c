//! Foreign chains that matter: firewalls that drop what a node forwards, as Docker's and ufw's do, and those of other
//! service proxies. Read by netlink alone: a plan starts no process for it, and rules are read only where a firewall's
//! chain exists.

use std::collections::BTreeSet;

use homelab_model::{ForwardDrop, Rival, ours};

use super::codec::{Attributes, Message, text};
use super::socket::{NFT, NetlinkError, Socket};

const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
const TABLE: u16 = 1;
/// Chains that only one firewall makes, and its name.
const MAKERS: [(&str, &str); 3] =
    [("DOCKER-USER", "docker"), ("ufw-user-forward", "ufw"), ("ufw6-user-forward", "ufw")];

/// Name of a table with its family.
type Table = (u8, String);

struct Chain {
    table: Table,
    name: String,
    drops_forwarded: bool,
}

fn be_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// The first attribute of a kind.
fn attribute(bytes: &[u8], skip: usize, wanted: u16) -> Option<&[u8]> {
    Attributes::after(bytes, skip).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn chain(body: &[u8]) -> Option<Chain> {
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const HOOK_NUMBER: u16 = 1;
    const POLICY: u16 = 5;
    const FORWARD: u32 = 2;
    const DROP: u32 = 0;
    let family = *body.first()?;
    let hook = attribute(body, 4, HOOK).and_then(|hook| attribute(hook, 0, HOOK_NUMBER)).and_then(be_u32);
    let policy = attribute(body, 4, POLICY).and_then(be_u32);
    Some(Chain {
        table: (family, text(attribute(body, 4, TABLE)?)),
        name: text(attribute(body, 4, NAME)?),
        drops_forwarded: hook == Some(FORWARD) && policy == Some(DROP),
    })
}

/// Whether the bytes that an interface name is compared with stand for `link`: the name, or a beginning of it where no
/// NUL ends them.
fn names(compared: &[u8], link: &str) -> bool {
    match compared.iter().position(|&b| b == 0) {
        Some(end) => &compared[..end] == link.as_bytes(),
        None => link.as_bytes().starts_with(compared),
    }
}

/// The table of a rule that accepts by the name of our bridge, and whether it is where packets come in (else: where
/// they go out).
fn accepts_bridge(body: &[u8]) -> Option<(Table, bool)> {
    const EXPRESSIONS: u16 = 4;
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    const META_KEY: u16 = 2;
    const IIFNAME: u32 = 6;
    const OIFNAME: u32 = 7;
    const CMP_OP: u16 = 2;
    const CMP_DATA: u16 = 3;
    const VALUE: u16 = 1;
    const VERDICT: u16 = 2;
    const CODE: u16 = 1;
    const ACCEPT: u32 = 1;
    let table = (*body.first()?, text(attribute(body, 4, TABLE)?));
    let (mut loaded, mut matched, mut accepted) = (None, None, false);
    for (_, expression) in Attributes::after(attribute(body, 4, EXPRESSIONS)?, 0) {
        let Some(data) = attribute(expression, 0, DATA) else { continue };
        match attribute(expression, 0, NAME).map(text).as_deref() {
            Some("meta") => loaded = attribute(data, 0, META_KEY).and_then(be_u32),
            // Operation 0 is "equal".
            Some("cmp") if attribute(data, 0, CMP_OP).and_then(be_u32) == Some(0) => {
                let compared = attribute(data, 0, CMP_DATA).and_then(|data| attribute(data, 0, VALUE));
                if let (Some(IIFNAME | OIFNAME), true) =
                    (loaded, compared.is_some_and(|bytes| names(bytes, ours::BRIDGE)))
                {
                    matched = Some(loaded == Some(IIFNAME));
                }
            }
            Some("immediate") => {
                let verdict = attribute(data, 0, DATA).and_then(|data| attribute(data, 0, VERDICT));
                accepted |= verdict.and_then(|v| attribute(v, 0, CODE)).and_then(be_u32) == Some(ACCEPT);
            }
            _ => {}
        }
    }
    Some((table, matched.filter(|_| accepted)?))
}

/// What foreign chains say.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    pub(crate) forward_drops: Vec<ForwardDrop>,
    pub(crate) rivals: BTreeSet<Rival>,
}

/// Reads all chains.
pub(crate) fn foreign(socket: &mut Socket) -> Result<Foreign, NetlinkError> {
    const GETCHAIN: u16 = 4;
    let chains = match socket.dump(Message::new(NFT | GETCHAIN, 0, &[0; 4]), chain) {
        // No nf_tables in the kernel, or not root.
        Err(NetlinkError::Refused { .. }) => return Ok(Foreign::default()),
        other => other?,
    };
    let rivals = chains.iter().filter_map(rival).collect();
    Ok(Foreign { forward_drops: forward_drops(socket, &chains)?, rivals })
}

fn family(chain: &Chain) -> Option<&'static str> {
    FAMILIES.iter().find(|(n, _)| *n == chain.table.0).map(|(_, name)| *name)
}

/// The proxy whose chain it is. kubelet makes chains `KUBE-...` too, but not this one.
fn rival(chain: &Chain) -> Option<Rival> {
    let family = family(chain).filter(|family| *family != "inet")?.to_owned();
    match (chain.table.1.as_str(), chain.name.as_str()) {
        ("kube-proxy", _) => Some(Rival::Nftables { family }),
        ("nat", "KUBE-SERVICES") => Some(Rival::Iptables { family }),
        _ => None,
    }
}

/// Chains that drop what the node forwards and has no rule for, without those whose table accepts what comes from our
/// bridge and what goes to it. Rules that match by a set are not understood.
fn forward_drops(socket: &mut Socket, chains: &[Chain]) -> Result<Vec<ForwardDrop>, NetlinkError> {
    const GETRULE: u16 = 7;
    let dropping: Vec<(&Chain, &str)> =
        chains.iter().filter(|c| c.drops_forwarded).filter_map(|c| Some((c, family(c)?))).collect();
    if dropping.is_empty() {
        return Ok(Vec::new());
    }
    let accepted: BTreeSet<(Table, bool)> =
        socket.dump(Message::new(NFT | GETRULE, 0, &[0; 4]), accepts_bridge)?.into_iter().collect();
    let passes = |table: &Table| [true, false].iter().all(|way| accepted.contains(&(table.clone(), *way)));
    let maker = |table: &Table| {
        let known = |c: &Chain| MAKERS.iter().find(|(chain, _)| *chain == c.name).map(|(_, maker)| *maker);
        chains.iter().filter(|c| c.table == *table).find_map(known)
    };
    Ok(dropping
        .into_iter()
        .filter(|(chain, _)| !passes(&chain.table))
        .map(|(chain, family)| ForwardDrop {
            family: family.to_owned(),
            table: chain.table.1.clone(),
            chain: chain.name.clone(),
            maker: maker(&chain.table).map(str::to_owned),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_as_firewalls_compare_them() {
        assert!(names(b"homelab0\0", "homelab0"));
        assert!(names(b"homelab0\0\0\0\0\0\0\0\0", "homelab0"));
        assert!(names(b"homelab", "homelab0"), "homelab+");
        assert!(!names(b"homelab\0", "homelab0"));
        assert!(!names(b"homelab01\0", "homelab0"));
    }

    #[test]
    fn garbage_is_no_chain_and_no_rule() {
        for garbage in [&[][..], &[2, 0, 0, 0], &[2, 0, 0, 0, 9, 0, 1, 0, 1], &[255; 40]] {
            assert!(chain(garbage).is_none() && accepts_bridge(garbage).is_none(), "{garbage:?}");
        }
    }
}
