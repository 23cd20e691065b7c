//! Rules that `nft` cannot read, by netlink itself (`linux/netfilter/nf_tables.h`): nft 1.0.6 aborts where a map update
//! has a key or data longer than 16 bytes. The kernel takes such rules, and nft lists them. Tables are of the family
//! inet.

use crate::error::{Error, netlink};
use crate::netlink::{Message, NFPROTO_INET, NFT, NetlinkError, Socket, flag};

use super::script::check_name;

/// `NFT_MSG_NEWRULE`.
const NEW: u16 = NFT | 6;
/// `NFTA_LIST_ELEM`.
const LIST_ELEMENT: u16 = 1;
/// `NFTA_DATA_VALUE`.
const VALUE: u16 = 1;

/// `NFTA_RULE_*`.
mod rule {
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN: u16 = 2;
    pub(super) const EXPRESSIONS: u16 = 4;
}

/// `NFTA_EXPR_*`.
mod expression {
    pub(super) const NAME: u16 = 1;
    pub(super) const DATA: u16 = 2;
}

/// A register of four bytes; a longer value goes on in those after it.
#[derive(Debug, Clone, Copy)]
struct Register(u32);

impl Register {
    /// `NFT_REG32_00` and on: there are 16.
    const fn new(number: u32) -> Register {
        Register(8 + number)
    }
}

/// Whether `nft` cannot read a rule: it updates a map, and has an address of IPv6 with other fields in the map's key or
/// data.
pub fn needs_netlink(rule: &str) -> bool {
    let unquoted: Vec<&str> = rule.split('"').step_by(2).collect();
    let spaced = unquoted.join(" ").replace('{', " { ").replace('}', " } ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    (0..words.len()).any(|at| match words[at..] {
        ["update", set, "{", ref body @ ..] => set.starts_with('@') && is_long(body),
        _ => false,
    })
}

/// Whether the braces that begin before `body` hold a key and data of which one is longer than an address.
fn is_long(body: &[&str]) -> bool {
    let mut parts = body.split(|word| *word == "}").next().unwrap_or_default().split(|word| *word == ":");
    let long = |part: &[&str]| part.contains(&"ip6") && part.contains(&".");
    match (parts.next(), parts.next()) {
        (Some(key), Some(data)) => long(key) || long(data),
        _ => false,
    }
}

/// A rule that remembers which endpoint a client of IPv6 was sent to. Its words are the only ones that can be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Remember<'a> {
    protocol: (&'static str, u8),
    services: &'a str,
    clients: &'a str,
    seconds: u32,
}

const PROTOCOLS: [(&str, u8); 3] = [("tcp", 6), ("udp", 17), ("sctp", 132)];

impl<'a> Remember<'a> {
    /// Reads a rule; `chain` is named where it cannot be sent.
    pub(super) fn parse(chain: &str, rule: &'a str) -> Result<Remember<'a>, Error> {
        check_name(chain)?;
        let read = Remember::read(rule).filter(|read| read.words() == rule);
        read.ok_or_else(|| Error::NftRule { chain: chain.to_owned(), rule: rule.to_owned() })
    }

    fn read(rule: &'a str) -> Option<Remember<'a>> {
        let (protocol, _) = rule.split_once(' ')?;
        let protocol = PROTOCOLS.into_iter().find(|(name, _)| *name == protocol)?;
        let mut sets = rule.split(' ').filter_map(|word| word.strip_prefix('@'));
        let (services, clients) = (sets.next()?, sets.next()?);
        check_name(services).and_then(|()| check_name(clients)).ok()?;
        let (_, timeout) = rule.split_once(" timeout ")?;
        let seconds = timeout.split_once("s ")?.0.parse().ok().filter(|seconds| *seconds > 0)?;
        Some(Remember { protocol, services, clients, seconds })
    }

    fn words(&self) -> String {
        let Remember { protocol: (protocol, _), services, clients, seconds } = self;
        let original = "ct original ip6 daddr . meta l4proto . ct original proto-dst";
        format!(
            "{protocol} dport != 0 {original} @{services} update @{clients} \
             {{ {original} . ip6 saddr timeout {seconds}s : ip6 daddr . {protocol} dport }}"
        )
    }

    /// What nft 1.0.6 makes of the same rule of IPv4, with the registers that it does not find.
    fn write(&self, to: &mut Message) {
        let first = Register::new(0);
        meta(to, META_L4PROTO, first);
        compare(to, first, EQUAL, &[self.protocol.1]);
        payload(to, TRANSPORT_DESTINATION, first);
        compare(to, first, NOT_EQUAL, &[0, 0]);

        original(to, first);
        lookup(to, self.services, first);

        meta(to, META_NFPROTO, first);
        compare(to, first, EQUAL, &[NFPROTO_IPV6]);
        original(to, first);
        payload(to, IP6_SOURCE, Register::new(6));
        let data = Register::new(10);
        payload(to, IP6_DESTINATION, data);
        payload(to, TRANSPORT_DESTINATION, Register::new(14));
        update(to, self.clients, (first, data), self.seconds);
    }
}

/// Appends rules to chains of the table `inet table`, all or none of them. A rule that is not of those that
/// [`needs_netlink`] is for, in the very words in which nft lists it, is an error before anything is sent.
pub fn append(socket: &mut Socket, table: &str, rules: &[(String, String)]) -> Result<(), Error> {
    let message = |(chain, text): &(String, String)| {
        let parsed = Remember::parse(chain, text)?;
        let mut message = Message::new(NEW, flag::CREATE | flag::APPEND, &[NFPROTO_INET, 0, 0, 0]);
        message.text(rule::TABLE, table).text(rule::CHAIN, chain);
        message.nest(rule::EXPRESSIONS, |m| parsed.write(m));
        Ok(message)
    };
    let mut messages = rules.iter().map(message).collect::<Result<Vec<_>, Error>>()?;
    let refusal = netlink("adding nftables rules", socket.transaction(NFT, &mut messages))?;
    let Some(refusal) = refusal else { return Ok(()) };
    let error = NetlinkError::Refused { code: refusal.code, message: refusal.words };
    match refusal.message.and_then(|index| rules.get(index)) {
        Some((chain, text)) => {
            let message = format!("the kernel refused the rule {text:?}: {error}");
            Err(Error::Nft { chain: Some(chain.clone()), message })
        }
        None => netlink("adding nftables rules", Err(error)),
    }
}

const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NFPROTO_IPV6: u8 = 10;

/// Place in a packet: header (`NFT_PAYLOAD_*_HEADER`), offset, length.
type Place = (u32, u32, u32);
const IP6_SOURCE: Place = (1, 8, 16);
const IP6_DESTINATION: Place = (1, 24, 16);
const TRANSPORT_DESTINATION: Place = (2, 2, 2);

/// `NFT_CMP_*`.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

fn add(to: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    to.nest(LIST_ELEMENT, |m| {
        m.text(expression::NAME, name).nest(expression::DATA, fill);
    });
}

fn number(to: &mut Message, kind: u16, value: u32) {
    to.bytes(kind, &value.to_be_bytes());
}

fn meta(to: &mut Message, key: u32, into: Register) {
    const DREG: u16 = 1;
    const KEY: u16 = 2;
    add(to, "meta", |m| {
        number(m, KEY, key);
        number(m, DREG, into.0);
    });
}

fn compare(to: &mut Message, register: Register, operation: u32, value: &[u8]) {
    const SREG: u16 = 1;
    const OP: u16 = 2;
    const DATA: u16 = 3;
    add(to, "cmp", |m| {
        number(m, SREG, register.0);
        number(m, OP, operation);
        m.nest(DATA, |m| {
            m.bytes(VALUE, value);
        });
    });
}

fn payload(to: &mut Message, (header, offset, length): Place, into: Register) {
    const DREG: u16 = 1;
    const BASE: u16 = 2;
    const OFFSET: u16 = 3;
    const LENGTH: u16 = 4;
    add(to, "payload", |m| {
        number(m, DREG, into.0);
        number(m, BASE, header);
        number(m, OFFSET, offset);
        number(m, LENGTH, length);
    });
}

/// Address, protocol and port that a connection's first packet was sent to: six registers from `into` on.
fn original(to: &mut Message, into: Register) {
    const DESTINATION_IP6: u32 = 22;
    const DESTINATION_PORT: u32 = 12;
    conntrack(to, DESTINATION_IP6, into);
    meta(to, META_L4PROTO, Register(into.0 + 4));
    conntrack(to, DESTINATION_PORT, Register(into.0 + 5));
}

fn conntrack(to: &mut Message, key: u32, into: Register) {
    const DREG: u16 = 1;
    const KEY: u16 = 2;
    const DIRECTION: u16 = 3;
    const ORIGINAL: u8 = 0;
    add(to, "ct", |m| {
        number(m, KEY, key);
        number(m, DREG, into.0);
        m.u8(DIRECTION, ORIGINAL);
    });
}

fn lookup(to: &mut Message, set: &str, key: Register) {
    const SET: u16 = 1;
    const SREG: u16 = 2;
    add(to, "lookup", |m| {
        number(m, SREG, key.0);
        m.text(SET, set);
    });
}

fn update(to: &mut Message, map: &str, (key, data): (Register, Register), seconds: u32) {
    const SET: u16 = 1;
    const OP: u16 = 3;
    const SREG_KEY: u16 = 4;
    const SREG_DATA: u16 = 5;
    const TIMEOUT: u16 = 6;
    const UPDATE: u32 = 1;
    add(to, "dynset", |m| {
        number(m, SREG_KEY, key.0);
        number(m, SREG_DATA, data.0);
        number(m, OP, UPDATE);
        m.bytes(TIMEOUT, &(u64::from(seconds) * 1000).to_be_bytes());
        m.text(SET, map);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "tcp dport != 0 ct original ip6 daddr . meta l4proto . ct original proto-dst \
                        @affinity-600s-6 update @affinity6 { ct original ip6 daddr . meta l4proto . ct original \
                        proto-dst . ip6 saddr timeout 600s : ip6 daddr . tcp dport }";

    #[test]
    fn a_rule_is_read_in_its_very_words_alone() {
        let read = Remember::parse("c", RULE).unwrap();
        let expected = Remember {
            protocol: ("tcp", 6),
            services: "affinity-600s-6",
            clients: "affinity6",
            seconds: 600,
        };
        assert_eq!(read, expected);
        for (from, to) in [
            ("tcp", "icmp"),
            ("tcp dport != 0", "udp dport != 0"),
            ("!= 0", "!= 1"),
            ("!= 0", "!=  0"),
            ("@affinity6", "@a b"),
            ("@affinity6", "@"),
            ("600s :", "600s : :"),
            ("600s :", "0600s :"),
            ("600s :", "0s :"),
            ("600s :", "10m :"),
            ("600s :", "4294967296s :"),
            ("timeout 600s ", ""),
            ("ip6 saddr", "ip6 daddr"),
            ("ip6", "ip"),
            ("tcp dport }", "tcp dport } accept"),
        ] {
            let wrong = RULE.replacen(from, to, 1);
            assert_ne!(wrong, RULE);
            let error = Remember::parse("c", &wrong).unwrap_err();
            assert!(matches!(error, Error::NftRule { .. }), "{wrong}: {error}");
        }
        for end in 0..RULE.len() {
            assert!(Remember::parse("c", &RULE[..end]).is_err(), "{end}");
        }
        assert!(Remember::parse("c d", RULE).is_err());
    }

    #[test]
    fn only_what_nft_cannot_read_needs_netlink() {
        assert!(needs_netlink(RULE));
        for long in [
            "update @m { ip6 daddr . tcp dport timeout 5s : tcp dport }",
            "update @m { tcp dport : ip6 saddr . tcp dport }",
            "update @m {tcp dport : ip6 saddr . tcp dport}",
            "update @m { tcp dport : udp dport } update @m { tcp dport : ip6 saddr . tcp dport } accept",
            "counter comment \"x\" update @m { tcp dport : ip6 saddr . tcp dport }",
        ] {
            assert!(needs_netlink(long), "{long}");
        }
        for short in [
            "",
            "update",
            "update @m",
            "update @m {",
            "ip6 saddr fd00::/8 accept",
            "update @m { ip6 daddr timeout 5s : ip6 saddr }",
            "update @s { ip6 daddr . tcp dport timeout 5s }",
            "update @m { ct original ip daddr . meta l4proto . ip saddr timeout 5s : ip daddr . tcp dport }",
            "ip6 daddr . tcp dport @s update @m { ip saddr : ip daddr }",
            "dnat ip6 to ip6 daddr . meta l4proto . th dport . ip6 saddr map @affinity6",
            "update @m { ip saddr : ip daddr } ip6 daddr . tcp dport @s accept",
            "counter comment \"a rule to update @m { tcp dport : ip6 saddr . tcp dport }\"",
        ] {
            assert!(!needs_netlink(short), "{short}");
        }
    }
}
