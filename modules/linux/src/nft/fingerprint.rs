//! Whether anything of a table but its elements has changed, without reading elements: `nft list` fetches all of them
//! (`linux/netfilter/nf_tables.h`).

use nix::errno::Errno;
use sha2::{Digest, Sha256};

use super::elements::comment;
use crate::netlink::{Attributes, Message, NFT, NetlinkError, Socket, nft_generation, nft_table, text};

/// Stands for all of a table but its elements.
pub type Fingerprint = [u8; 32];

/// Message types (`NFT_MSG_GET*`).
const GET_TABLE: u16 = NFT | 1;
const GET_CHAIN: u16 = NFT | 4;
const GET_RULE: u16 = NFT | 7;
const GET_SET: u16 = NFT | 10;
/// Readings between which the rulesets change are done again this many times.
const TRIES: usize = 10;
/// The table's name in messages of all kinds (`NFTA_*_TABLE`).
const TABLE: u16 = 1;

/// `NFTA_CHAIN_*`.
mod chain_attribute {
    pub(super) const NAME: u16 = 3;
    pub(super) const HOOK: u16 = 4;
    pub(super) const POLICY: u16 = 5;
    pub(super) const TYPE: u16 = 7;
    pub(super) const FLAGS: u16 = 10;
}

/// `NFTA_RULE_*`.
mod rule_attribute {
    pub(super) const CHAIN: u16 = 2;
    pub(super) const EXPRESSIONS: u16 = 4;
    pub(super) const COMPAT: u16 = 5;
    pub(super) const USERDATA: u16 = 7;
}

/// `NFTA_SET_*`.
mod set_attribute {
    pub(super) const NAME: u16 = 2;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const HANDLE: u16 = 16;
    /// Types and lengths of key and data, policy, description (size and fields), timeout, interval of collection, type
    /// of objects, expressions of every element. Newer kernels also count the elements here.
    pub(super) const KEPT: [u16; 11] = [4, 5, 6, 7, 8, 9, 11, 12, 15, 17, 18];
}

/// One chain, rule or set.
struct Record {
    /// Its own, or the rule's chain's.
    name: String,
    bytes: Vec<u8>,
}

fn put(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend_from_slice(&kind.to_le_bytes());
    to.extend_from_slice(&u64::try_from(value.len()).unwrap_or(u64::MAX).to_le_bytes());
    to.extend_from_slice(value);
}

/// The attributes of a message's body, if it is of the table.
fn of_table<'a>(body: &'a [u8], table: &str) -> Option<Attributes<'a>> {
    let attributes = Attributes::after(body, 4);
    let (family, name) = nft_table(table);
    let named = attributes.clone().any(|(kind, value)| kind == TABLE && text(value) == name);
    (body.first() == Some(&family) && named).then_some(attributes)
}

fn chain(body: &[u8], table: &str) -> Option<Record> {
    use chain_attribute::{FLAGS, HOOK, NAME, POLICY, TYPE};
    let mut record = Record { name: String::new(), bytes: Vec::new() };
    for (kind, value) in of_table(body, table)? {
        match kind {
            NAME => record.name = text(value),
            HOOK | POLICY | TYPE | FLAGS => put(&mut record.bytes, kind, value),
            _ => {}
        }
    }
    Some(record)
}

fn rule(body: &[u8], table: &str) -> Option<Record> {
    use rule_attribute::{CHAIN, COMPAT, EXPRESSIONS, USERDATA};
    let mut record = Record { name: String::new(), bytes: Vec::new() };
    for (kind, value) in of_table(body, table)? {
        match kind {
            CHAIN => record.name = text(value),
            EXPRESSIONS => put(&mut record.bytes, kind, &expressions(value)),
            COMPAT => put(&mut record.bytes, kind, value),
            // What else is there is nft's own, as its version likes.
            USERDATA => put(&mut record.bytes, kind, comment(value).as_bytes()),
            _ => {}
        }
    }
    Some(record)
}

/// The expressions of a rule without what packets change in them.
fn expressions(all: &[u8]) -> Vec<u8> {
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    const QUOTA_BYTES: u16 = 1;
    const QUOTA_FLAGS: u16 = 2;
    let mut kept = Vec::new();
    for (_, expression) in Attributes::after(all, 0) {
        let of = |wanted: u16| Attributes::after(expression, 0).find(|(kind, _)| *kind == wanted);
        let name = of(NAME).map(|(_, name)| text(name)).unwrap_or_default();
        put(&mut kept, NAME, name.as_bytes());
        let Some((_, data)) = of(DATA) else { continue };
        match name.as_str() {
            "counter" | "last" => {}
            "quota" => Attributes::after(data, 0)
                .filter(|(kind, _)| [QUOTA_BYTES, QUOTA_FLAGS].contains(kind))
                .for_each(|(kind, value)| put(&mut kept, kind, value)),
            _ => put(&mut kept, DATA, data),
        }
    }
    kept
}

fn set(body: &[u8], table: &str) -> Option<Record> {
    use set_attribute::{FLAGS, HANDLE, KEPT, NAME};
    const ANONYMOUS: u8 = 1;
    let attributes = of_table(body, table)?;
    let is_anonymous = attributes
        .clone()
        .any(|(kind, value)| kind == FLAGS && value.last().is_some_and(|f| f & ANONYMOUS != 0));
    let mut record = Record { name: String::new(), bytes: Vec::new() };
    for (kind, value) in attributes {
        match kind {
            NAME => record.name = text(value),
            // Elements of a set without a name are part of a rule and never change, but its name goes to another set.
            HANDLE if is_anonymous => put(&mut record.bytes, kind, value),
            kind if kind == FLAGS || KEPT.contains(&kind) => put(&mut record.bytes, kind, value),
            _ => {}
        }
    }
    Some(record)
}

fn request(kind: u16, table: &str) -> Message {
    let (family, name) = nft_table(table);
    let mut message = Message::new(kind, 0, &[family, 0, 0, 0]);
    message.text(TABLE, name);
    message
}

/// The table's flags; None if there is no such table.
fn flags(socket: &mut Socket, table: &str) -> Result<Option<Vec<u8>>, NetlinkError> {
    const FLAGS: u16 = 2;
    match socket.query(request(GET_TABLE, table)) {
        Ok(answers) => {
            let of = |body: &Vec<u8>| {
                let mut attributes = Attributes::after(body, 4);
                attributes.find(|(kind, _)| *kind == FLAGS).map(|(_, flags)| flags.to_vec())
            };
            Ok(Some(answers.iter().find_map(of).unwrap_or_default()))
        }
        // Also where the kernel has no nf_tables at all.
        Err(NetlinkError::Refused { code, .. }) if code != Errno::EPERM => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the table once. `ENOENT`: it went meanwhile.
fn read(socket: &mut Socket, table: &str) -> Result<Option<Fingerprint>, NetlinkError> {
    let Some(flags) = flags(socket, table)? else { return Ok(None) };
    let mut bytes = Vec::new();
    put(&mut bytes, GET_TABLE, &flags);
    type Read = fn(&[u8], &str) -> Option<Record>;
    for (kind, read) in [(GET_CHAIN, chain as Read), (GET_RULE, rule), (GET_SET, set)] {
        // Not every kernel leaves out what is of other tables.
        let mut records = socket.dump(request(kind, table), |body| read(body, table))?;
        // The order of rules in a chain stays: this is a stable sort.
        records.sort_by(|a, b| a.name.cmp(&b.name));
        for record in records {
            put(&mut bytes, kind, record.name.as_bytes());
            put(&mut bytes, kind, &record.bytes);
        }
    }
    Ok(Some(Sha256::digest(&bytes).into()))
}

/// The fingerprint of the table `inet table`; None if there is no such table.
///
/// It stands for the table's flags; for its chains with hook, priority, type and policy; for their rules, in order, with
/// their comments; and for its sets and maps with types, lengths, flags, size and timeouts. It does not change with
/// elements, not even those that packets add, nor with counters, nor by making anew what was there (but for rules with a
/// set of their own, `{ 80, 443 }`). No elements are read.
///
/// Whoever keeps a listing beside it must know that no ruleset changed between the two: a change that was listed and
/// then undone leaves the same fingerprint.
pub fn fingerprint(socket: &mut Socket, table: &str) -> Result<Option<Fingerprint>, NetlinkError> {
    for _ in 0..TRIES {
        let generation = nft_generation(socket)?;
        match read(socket, table) {
            Err(error) if error.is(Errno::ENOENT) => {}
            Err(error) => return Err(error),
            // The readings are of one and the same ruleset.
            Ok(read) if nft_generation(socket)? == generation => return Ok(read),
            Ok(_) => {}
        }
    }
    Err(NetlinkError::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of a message of the table `homelab`: its header is cut off.
    fn body(fill: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = request(0, "homelab");
        fill(&mut message);
        message.as_bytes()[16..].to_vec()
    }

    fn bytes(record: Option<Record>) -> Vec<u8> {
        record.unwrap().bytes
    }

    #[test]
    fn what_varies_by_itself_is_left_out() {
        let counted = |name: &str, packets: u32| {
            bytes(rule(
                &body(|m| {
                    m.u32(3, packets).text(2, "chain").nest(4, |m| {
                        m.nest(1, |m| {
                            m.text(1, name).nest(2, |m| {
                                m.u32(4, packets);
                            });
                        });
                    });
                }),
                "homelab",
            ))
        };
        for name in ["counter", "last", "quota"] {
            assert_eq!(counted(name, 1), counted(name, 2), "{name}");
        }
        assert_ne!(counted("meta", 1), counted("meta", 2));
        assert_ne!(counted("counter", 1), counted("last", 1));

        let of_set = |flags: u8, handle: u32, count: u32| {
            let fill = |m: &mut Message| {
                m.text(2, "set").bytes(3, &[0, 0, 0, flags]).u32(16, handle).u32(20, count);
            };
            bytes(set(&body(fill), "homelab"))
        };
        assert_eq!(of_set(8, 1, 1), of_set(8, 2, 2));
        assert_ne!(of_set(1, 1, 1), of_set(1, 2, 1), "a set without a name");
        assert_ne!(of_set(8, 1, 1), of_set(4, 1, 1));
    }

    #[test]
    fn other_tables_and_garbage_are_left_out() {
        let whole = body(|m| {
            m.text(2, "a").text(3, "b");
        });
        let mut ip = whole.clone();
        ip[0] = 2;
        for read in [chain, rule, set] {
            assert!(read(&whole, "homelab").is_some());
            assert!(read(&whole, "homelab2").is_none() && read(&ip, "homelab").is_none());
            for garbage in [&[][..], &[1, 0, 0, 0], &[1, 0, 0, 0, 9, 0, 1, 0, 1], &[255; 40]] {
                assert!(read(garbage, "homelab").is_none(), "{garbage:?}");
            }
        }
    }
}
