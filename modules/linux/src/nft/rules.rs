//! Rules that `nft` cannot read, by netlink itself (`linux/netfilter/nf_tables.h`). nft 1.0.6 aborts where a map update
//! has a key or data longer than 16 bytes; and it refuses a translation by a map whose data is an address and a port of
//! any protocol where it has the map from the kernel ("conflicting protocols specified: ip vs. th"), so that a chain
//! could not be mended. The kernel takes such rules, and nft lists them. Tables are of the family inet.

use crate::error::{Error, netlink};
use crate::netlink::{Message, NFT, NetlinkError, Socket, flag, nft_table};

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

/// Whether `nft` cannot read a rule: it translates by a map of ours, or it updates a map and has an address of IPv6 with
/// other fields in the map's key or data.
pub fn needs_netlink(rule: &str) -> bool {
    let unquoted: Vec<&str> = rule.split('"').step_by(2).collect();
    let spaced = unquoted.join(" ").replace('{', " { ").replace('}', " } ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    // A map whose key has a type, and no expressions that nft keeps (typeof), is none that it refuses: host ports.
    let translates = words.starts_with(&["dnat"])
        && words.contains(&"map")
        && (words.contains(&"numgen") || words.contains(&"saddr"));
    translates
        || (0..words.len()).any(|at| match words[at..] {
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

/// A rule whose words can be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known<'a> {
    Remember(Remember<'a>),
    Translate(Translate<'a>),
}

impl<'a> Known<'a> {
    /// Reads a rule; `chain` is named where it cannot be sent.
    pub(super) fn parse(chain: &str, rule: &'a str) -> Result<Known<'a>, Error> {
        check_name(chain)?;
        let remember = Remember::read(rule).filter(|read| read.words() == rule).map(Known::Remember);
        let translate = || Translate::read(rule).filter(|read| read.words() == rule).map(Known::Translate);
        let unknown = || Error::NftRule { chain: chain.to_owned(), rule: rule.to_owned() };
        remember.or_else(translate).ok_or_else(unknown)
    }

    fn write(&self, to: &mut Message) {
        match self {
            Known::Remember(rule) => rule.write(to),
            Known::Translate(rule) => rule.write(to),
        }
    }
}

/// A rule that translates a destination to what a map has for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translate<'a> {
    v4: bool,
    by: By,
    map: &'a str,
}

/// What is looked up with address, protocol and port.
#[derive(Debug, PartialEq, Eq)]
enum By {
    /// A number drawn from `offset` on, one of `modulus`.
    Chance { modulus: u32, offset: u32 },
    /// The source.
    Client,
}

impl<'a> Translate<'a> {
    fn read(rule: &'a str) -> Option<Translate<'a>> {
        let v4 = rule.starts_with("dnat ip to ");
        let (key, map) = rule.rsplit_once(" map @")?;
        check_name(map).ok()?;
        let by = match key.split_once("numgen random mod ") {
            Some((_, numbers)) => {
                let (modulus, offset) = numbers.split_once(" offset ")?;
                let modulus = modulus.parse().ok().filter(|modulus| *modulus > 0)?;
                By::Chance { modulus, offset: offset.parse().ok()? }
            }
            None => By::Client,
        };
        Some(Translate { v4, by, map })
    }

    fn words(&self) -> String {
        let ip = if self.v4 { "ip" } else { "ip6" };
        let last = match &self.by {
            By::Chance { modulus, offset } => format!("numgen random mod {modulus} offset {offset}"),
            By::Client => format!("{ip} saddr"),
        };
        format!("dnat {ip} to {ip} daddr . meta l4proto . th dport . {last} map @{}", self.map)
    }

    /// What nft 1.0.6 makes of the rule where it makes the map at the same time.
    fn write(&self, to: &mut Message) {
        let first = Register::new(0);
        // An address of IPv6 is four registers.
        let after = if self.v4 { 1 } else { 4 };
        let (family, source, destination) = match self.v4 {
            true => (NFPROTO_IPV4, IP4_SOURCE, IP4_DESTINATION),
            false => (NFPROTO_IPV6, IP6_SOURCE, IP6_DESTINATION),
        };
        meta(to, META_NFPROTO, first);
        compare(to, first, EQUAL, &[family]);
        payload(to, destination, first);
        meta(to, META_L4PROTO, Register::new(after));
        payload(to, TRANSPORT_DESTINATION, Register::new(after + 1));
        match self.by {
            By::Chance { modulus, offset } => draw(to, (modulus, offset), Register::new(after + 2)),
            By::Client => payload(to, source, Register::new(after + 2)),
        }
        map(to, self.map, first);
        translate(to, family, first, Register::new(after));
    }
}

const PROTOCOLS: [(&str, u8); 3] = [("tcp", 6), ("udp", 17), ("sctp", 132)];

impl<'a> Remember<'a> {
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

/// Appends rules to chains of a table (family and name), all or none of them. A rule that is not of those that
/// [`needs_netlink`] is for, in the very words in which nft lists it, is an error before anything is sent.
pub fn append(socket: &mut Socket, table: &str, rules: &[(String, String)]) -> Result<(), Error> {
    let full = table;
    let (family, table) = nft_table(table);
    let message = |(chain, text): &(String, String)| {
        let parsed = Known::parse(chain, text)?;
        let mut message = Message::new(NEW, flag::CREATE | flag::APPEND, &[family, 0, 0, 0]);
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
            Err(Error::Nft { chain: Some((full.to_owned(), chain.clone())), message })
        }
        None => netlink("adding nftables rules", Err(error)),
    }
}

const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Place in a packet: header (`NFT_PAYLOAD_*_HEADER`), offset, length.
type Place = (u32, u32, u32);
const IP4_SOURCE: Place = (1, 12, 4);
const IP4_DESTINATION: Place = (1, 16, 4);
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

/// What the map has for the key replaces it.
fn map(to: &mut Message, map: &str, key: Register) {
    const SET: u16 = 1;
    const SREG: u16 = 2;
    const DREG: u16 = 3;
    add(to, "lookup", |m| {
        number(m, SREG, key.0);
        number(m, DREG, key.0);
        m.text(SET, map);
    });
}

fn draw(to: &mut Message, (modulus, offset): (u32, u32), into: Register) {
    const DREG: u16 = 1;
    const MODULUS: u16 = 2;
    const TYPE: u16 = 3;
    const OFFSET: u16 = 4;
    const RANDOM: u32 = 1;
    add(to, "numgen", |m| {
        number(m, DREG, into.0);
        number(m, MODULUS, modulus);
        number(m, TYPE, RANDOM);
        number(m, OFFSET, offset);
    });
}

fn translate(to: &mut Message, family: u8, address: Register, port: Register) {
    const TYPE: u16 = 1;
    const FAMILY: u16 = 2;
    const ADDRESS_MIN: u16 = 3;
    const ADDRESS_MAX: u16 = 4;
    const PORT_MIN: u16 = 5;
    const PORT_MAX: u16 = 6;
    const DESTINATION: u32 = 1;
    add(to, "nat", |m| {
        number(m, TYPE, DESTINATION);
        number(m, FAMILY, family.into());
        number(m, ADDRESS_MIN, address.0);
        number(m, ADDRESS_MAX, address.0);
        number(m, PORT_MIN, port.0);
        number(m, PORT_MAX, port.0);
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
        let read = Known::parse("c", RULE).unwrap();
        let expected = Known::Remember(Remember {
            protocol: ("tcp", 6),
            services: "affinity-600s-6",
            clients: "affinity6",
            seconds: 600,
        });
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
            let error = Known::parse("c", &wrong).unwrap_err();
            assert!(matches!(error, Error::NftRule { .. }), "{wrong}: {error}");
        }
        for end in 0..RULE.len() {
            assert!(Known::parse("c", &RULE[..end]).is_err(), "{end}");
        }
        assert!(Known::parse("c d", RULE).is_err());
    }

    const DRAW: &str =
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 offset 196608 map @endpoints4";
    const STAY: &str = "dnat ip6 to ip6 daddr . meta l4proto . th dport . ip6 saddr map @affinity6";

    #[test]
    fn translations_are_read_in_their_very_words_alone() {
        let by = By::Chance { modulus: 3, offset: 196_608 };
        let draw = Translate { v4: true, by, map: "endpoints4" };
        assert_eq!(Known::parse("c", DRAW).unwrap(), Known::Translate(draw));
        let stay = Translate { v4: false, by: By::Client, map: "affinity6" };
        assert_eq!(Known::parse("c", STAY).unwrap(), Known::Translate(stay));
        for (from, to) in [
            ("dnat ip to", "dnat ip6 to"),
            ("dnat ip to", "snat ip to"),
            ("mod 3", "mod 0"),
            ("mod 3", "mod 03"),
            ("offset 196608 ", ""),
            ("random", "inc"),
            ("th dport", "tcp dport"),
            ("@endpoints4", "@a b"),
            ("@endpoints4", "{ 1 : 2 }"),
        ] {
            let wrong = DRAW.replacen(from, to, 1);
            assert_ne!(wrong, DRAW);
            assert!(matches!(Known::parse("c", &wrong), Err(Error::NftRule { .. })), "{wrong}");
        }
    }

    #[test]
    fn only_what_nft_cannot_read_needs_netlink() {
        assert!(needs_netlink(RULE) && needs_netlink(DRAW) && needs_netlink(STAY));
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
            "update @m { ip saddr : ip daddr } ip6 daddr . tcp dport @s accept",
            "counter comment \"a rule to update @m { tcp dport : ip6 saddr . tcp dport }\"",
        ] {
            assert!(!needs_netlink(short), "{short}");
        }
    }
}
