//! Rules that nft cannot read, and the fingerprint of a table, on the real kernel.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../proxy/tests/random/mod.rs"]
mod random;

use common::proxy::load_ruleset;
use common::{in_new_netns, load, run};
use homelab_linux::netlink::Socket;
use homelab_linux::nft::elements::{Batch, Element};
use homelab_linux::nft::{Fingerprint, fingerprint, rules};
use homelab_linux::{Error, Kinds, Node, Root};
use homelab_model::{Change, Key, Module, NftChain, NodeObject, Scope, Spec, diff, ours};
use homelab_proxy::text;
use random::view;

const TABLE: &str = "homelab";
const CHAIN: &str = "proxy-remember6";
const KINDS: Kinds = Kinds { nft: true, ..Kinds::NONE };

fn object(name: &str, rules: Vec<String>) -> NodeObject {
    let chain = NftChain { table: ours::NFT_TABLE.to_owned(), name: name.to_owned(), hook: None, rules };
    NodeObject { module: Module::Vtep, spec: Spec::NftChain(chain) }
}

/// The rules of a chain as nft lists them.
fn listed(chain: &str) -> Vec<String> {
    let listing = run(&format!("nft --stateless --numeric list chain inet {TABLE} {chain}"));
    let lines = listing.lines().filter_map(|line| line.strip_prefix("\t\t"));
    lines.filter(|line| !line.starts_with("type ")).map(str::to_owned).collect()
}

/// The rules that remember a client of IPv6.
fn remember() -> Vec<String> {
    let all = text::for_netlink(&view()).into_iter();
    all.filter(|(chain, _)| chain == CHAIN).map(|(_, rule)| rule).collect()
}

/// A node makes such a chain, sees it as what was wanted, and takes it back.
#[test]
fn a_node_makes_rules_that_nft_cannot_read() {
    in_new_netns(|| {
        load(&text::for_nft(TABLE, &view()));
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::open(Root::at(directory.path())).unwrap();
        let mut rules = remember();
        rules.insert(0, "tcp dport 1 return".to_owned());
        let wanted = object(CHAIN, rules);
        let scope = Scope::of(std::slice::from_ref(&wanted), "");
        let observe = |node: &mut Node| {
            let mut found = node.observe_objects(&scope, KINDS).unwrap();
            found.retain(|o| matches!(&o.spec, Spec::NftChain(chain) if chain.name == CHAIN));
            found
        };
        let empty = object(CHAIN, vec![]);
        assert_eq!(observe(&mut node), std::slice::from_ref(&empty));
        let change = Change::Update { before: empty.clone(), after: wanted.clone() };
        // Twice, over what is there already.
        for _ in 0..2 {
            node.apply_all(std::slice::from_ref(&change), &mut |_| {}).unwrap();
            assert_eq!(diff(&observe(&mut node), std::slice::from_ref(&wanted)), []);
        }
        let back = Change::Update { before: wanted, after: empty.clone() };
        node.apply_all(&[back], &mut |_| {}).unwrap();
        assert_eq!(observe(&mut node), [empty]);
    });
}

#[test]
fn a_refused_rule_names_its_chain_and_none_is_added() {
    in_new_netns(|| {
        load(&text::for_nft(TABLE, &view()));
        let mut socket = Socket::netfilter().unwrap();
        let good = remember().remove(0);
        let rule = |chain: &str, rule: &str| (chain.to_owned(), rule.to_owned());
        let first = rule(CHAIN, &good);
        for (second, chain) in [
            (rule("nowhere", &good), "nowhere"),
            (rule("proxy-reject", &good.replace("@affinity6", "@missing")), "proxy-reject"),
            // A set that rules may not fill.
            (rule("proxy-reject", &good.replace("@affinity6", "@frontends6")), "proxy-reject"),
        ] {
            let error = rules::append(&mut socket, TABLE, &[first.clone(), second]).unwrap_err();
            let named = matches!(&error, Error::Nft { chain: Some(at), .. } if at.1 == chain);
            assert!(named && error.to_string().contains("kernel refused"), "{error}");
            assert_eq!(listed(CHAIN), Vec::<String>::new());
        }
        let unknown = rule(CHAIN, "accept");
        let error = rules::append(&mut socket, TABLE, &[first.clone(), unknown]).unwrap_err();
        assert!(matches!(error, Error::NftRule { .. }), "{error}");
        assert_eq!(listed(CHAIN), Vec::<String>::new());
        rules::append(&mut socket, TABLE, &[]).unwrap();
        rules::append(&mut socket, TABLE, &[first.clone(), first]).unwrap();
        assert_eq!(listed(CHAIN), [good.clone(), good]);
    });
}

/// The node names the chain at fault, whichever transaction it was in.
#[test]
fn a_node_says_which_chain_was_refused() {
    in_new_netns(|| {
        run(&format!("nft add table inet {TABLE}"));
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::open(Root::at(directory.path())).unwrap();
        let rule = remember().remove(0);
        let create = Change::Create { after: object("no-sets", vec![rule]) };
        let error = node.apply_all(&[create], &mut |_| {}).unwrap_err();
        assert_eq!(error.object, Key::NftChain(ours::NFT_TABLE.to_owned(), "no-sets".to_owned()), "{error}");
    });
}

/// A table with something of everything. A second one is none of its business.
const RULES: &str = "table inet homelab {
    set names { type ipv4_addr; timeout 1h; size 100; elements = { 10.0.0.1 }; }
    set ranges { type ipv4_addr; flags interval; elements = { 10.1.0.0/16 }; }
    map seen { typeof ip daddr : th dport; size 65535; flags dynamic,timeout; }
    chain other { counter comment \"one\"; quota 100000 bytes; return; }
    chain base { type filter hook output priority 10; policy accept;
        ip daddr @names accept
        tcp dport { 80, 443 } accept
        udp dport != 0 update @seen { ip daddr timeout 1h : udp dport }
        jump other
    }
}
table ip homelab {
    chain base { type filter hook output priority 0; }
}
table inet homelab2 {
    set names { type ipv4_addr; }
    chain base { type filter hook output priority 0; counter; }
}
";

struct Prints {
    socket: Socket,
    last: Fingerprint,
}

impl Prints {
    fn now(&mut self) -> Fingerprint {
        fingerprint(&mut self.socket, TABLE).unwrap().expect("the table")
    }

    fn changes_with(&mut self, script: &str) {
        load(script);
        let now = self.now();
        assert_ne!(now, self.last, "{script}");
        self.last = now;
    }

    fn stays_with(&mut self, script: &str) {
        load(script);
        assert_eq!(self.now(), self.last, "{script}");
    }
}

fn with_prints(work: impl FnOnce(&mut Prints) + Send) {
    in_new_netns(|| {
        run("ip link set lo up");
        let mut socket = Socket::netfilter().unwrap();
        assert_eq!(fingerprint(&mut socket, TABLE).unwrap(), None);
        load(RULES);
        let last = fingerprint(&mut socket, TABLE).unwrap().unwrap();
        let mut prints = Prints { socket, last };
        prints.stays_with("");
        work(&mut prints);
        run(&format!("nft delete table inet {TABLE}"));
        assert_eq!(fingerprint(&mut prints.socket, TABLE).unwrap(), None);
    });
}

#[test]
fn a_fingerprint_is_not_of_elements() {
    with_prints(|prints| {
        for script in [
            "add element inet homelab names { 10.0.0.2, 10.0.0.3 timeout 5h }",
            "delete element inet homelab names { 10.0.0.1 }",
            "add element inet homelab ranges { 10.2.0.0/16, 10.4.0.0-10.4.0.9 }",
            "flush set inet homelab ranges",
            "add element inet homelab seen { 10.0.0.1 : 80 }",
            "flush map inet homelab seen",
        ] {
            prints.stays_with(script);
        }
        // What packets change: counters, quotas and maps.
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let _receiver = std::net::UdpSocket::bind("127.0.0.7:4000").unwrap();
        sender.send_to(b"ping", "127.0.0.7:4000").unwrap();
        let listing = run("nft list table inet homelab");
        assert!(
            listing.contains("127.0.0.7 timeout 1h") && listing.contains("packets 1 bytes 32"),
            "{listing}"
        );
        assert!(listing.contains("quota 100000 bytes used 32 bytes"), "{listing}");
        prints.stays_with("");
        // Other tables, of the same name and of the same family.
        prints.stays_with("add rule ip homelab base drop");
        prints.stays_with("add rule inet homelab2 base drop; add set inet homelab2 more { type ipv4_addr; }");
        prints.stays_with("delete table inet homelab2; delete table ip homelab");
    });
}

#[test]
fn a_fingerprint_is_of_rules_and_their_order() {
    let handle = |words: &str| {
        let listing = run("nft --handle list table inet homelab");
        let line = listing.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{listing}"));
        line.rsplit(' ').next().unwrap().to_owned()
    };
    with_prints(|prints| {
        let first = prints.last;
        prints.changes_with("add rule inet homelab other drop");
        let drop = handle("\tdrop #");
        prints.changes_with(&format!("replace rule inet homelab other handle {drop} reject"));
        let reject = handle("\treject #");
        prints.changes_with(&format!("replace rule inet homelab other handle {reject} tcp dport 22 reject"));
        let reject = handle("reject #");
        prints.changes_with(&format!("replace rule inet homelab other handle {reject} tcp dport 23 reject"));
        let reject = handle("reject #");
        prints.changes_with(&format!("delete rule inet homelab other handle {reject}"));
        assert_eq!(prints.last, first, "what was there before");

        let jump = handle("jump other");
        prints.changes_with(&format!(
            "delete rule inet homelab base handle {jump}; insert rule inet homelab base jump other"
        ));
        let jump = handle("jump other");
        prints.changes_with(&format!(
            "delete rule inet homelab base handle {jump}; add rule inet homelab base jump other"
        ));
        assert_eq!(prints.last, first, "moved and moved back");

        let counter = handle("comment \"one\"");
        prints.changes_with(&format!(
            "replace rule inet homelab other handle {counter} counter comment \"two\""
        ));
        let counter = handle("comment \"two\"");
        prints.stays_with(&format!(
            "replace rule inet homelab other handle {counter} counter packets 7 bytes 8 comment \"two\""
        ));
        let quota = handle("quota");
        prints.changes_with(&format!("replace rule inet homelab other handle {quota} quota 100001 bytes"));
        let quota = handle("quota");
        prints
            .changes_with(&format!("replace rule inet homelab other handle {quota} quota over 100001 bytes"));
        // The elements of a set without a name are part of the rule. Its name is given to the next one at once.
        let ports = handle("dport { 80, 443 }");
        prints.changes_with(&format!(
            "replace rule inet homelab base handle {ports} tcp dport {{ 80, 444 }} accept"
        ));
    });
}

#[test]
fn a_fingerprint_is_of_chains_and_sets() {
    with_prints(|prints| {
        let first = prints.last;
        prints.changes_with("chain inet homelab base { policy drop; }");
        prints.changes_with("chain inet homelab base { policy accept; }");
        assert_eq!(prints.last, first);
        prints.changes_with("add chain inet homelab empty");
        prints.changes_with("delete chain inet homelab empty");
        assert_eq!(prints.last, first);
        for hook in [
            "filter hook input priority 0",
            "filter hook input priority 1",
            "filter hook forward priority 1",
            "nat hook input priority 1",
        ] {
            let chain = format!("add chain inet homelab hooked {{ type {hook}; }}");
            prints.changes_with(&chain);
            prints.stays_with(&format!("delete chain inet homelab hooked; {chain}"));
            run("nft delete chain inet homelab hooked");
        }
        prints.last = prints.now();
        assert_eq!(prints.last, first);
        for set in [
            "type ipv4_addr;",
            "type ipv6_addr;",
            "type ipv4_addr . inet_service;",
            "type inet_service . ipv4_addr;",
            "type ipv4_addr; flags interval;",
            "type ipv4_addr; flags timeout;",
            "type ipv4_addr; timeout 1h;",
            "type ipv4_addr; timeout 2h;",
            "type ipv4_addr; size 10;",
            "type ipv4_addr; size 11;",
            "type ipv4_addr; counter;",
        ] {
            let before = prints.now();
            prints.changes_with(&format!("add set inet homelab again {{ {set} }}"));
            prints.changes_with("delete set inet homelab again");
            assert_eq!(prints.last, before);
            load(&format!("add set inet homelab again {{ {set} }}"));
            prints.last = prints.now();
            prints.stays_with(&format!(
                "delete set inet homelab again; add set inet homelab again {{ {set} }}"
            ));
            prints.changes_with("delete set inet homelab again; add set inet homelab again { type mark; }");
            run("nft delete set inet homelab again");
            prints.last = prints.now();
        }
        prints.changes_with("add map inet homelab again { type ipv4_addr : inet_service; }");
        let delete = "delete map inet homelab again;";
        prints
            .changes_with(&format!("{delete} add map inet homelab again {{ type ipv4_addr : ipv4_addr; }}"));
        prints.changes_with(&format!("{delete} add map inet homelab again {{ type ipv4_addr : verdict; }}"));
        prints.changes_with("table inet homelab { flags dormant; }");
    });
}

/// The proxy's own ruleset: elements by the thousand come and go, and the rules that netlink adds are part of it.
#[test]
fn the_fingerprint_of_the_proxys_ruleset() {
    in_new_netns(|| {
        load(&text::for_nft(TABLE, &view()));
        let mut socket = Socket::netfilter().unwrap();
        let now = || fingerprint(&mut Socket::netfilter().unwrap(), TABLE).unwrap().unwrap();
        let without = now();
        rules::append(&mut socket, TABLE, &text::for_netlink(&view())).unwrap();
        let whole = now();
        assert_ne!(whole, without);
        let element = |n: u32| Element {
            key: [&n.to_be_bytes()[..], &[6, 0, 0, 0, 0, 80, 0, 0]].concat(),
            ..Element::default()
        };
        let mut batch = Batch::new(TABLE);
        (0..20_000).for_each(|n| batch.add("frontends4", &element(n)).unwrap());
        batch.commit(&mut socket).unwrap();
        assert_eq!(now(), whole);
        let last = listed(CHAIN).len();
        let handle = run(&format!(
            "nft --handle list chain inet {TABLE} {CHAIN} | grep handle | tail -1 | sed 's/.* //'"
        ));
        run(&format!("nft delete rule inet {TABLE} {CHAIN} handle {}", handle.trim()));
        assert_eq!(listed(CHAIN).len(), last - 1);
        assert_ne!(now(), whole);
        // The same on another node.
        run(&format!("nft delete table inet {TABLE}"));
        load_ruleset(&view(), "");
        assert_eq!(now(), whole);
    });
}
