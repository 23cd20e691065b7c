//! Elements of sets and maps, and flows, on the real kernel.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use common::{in_new_netns, load, run};
use homelab_linux::conntrack::{self, Family, Tuple};
use homelab_linux::netlink::Socket;
use homelab_linux::nft::elements::{Batch, Element, ElementError, count, dump, has_all};
use nix::errno::Errno;

const TABLE: &str = "homelab";
const TCP: u8 = 6;
const UDP: u8 = 17;
const RULES: &str = "table inet homelab {
    map endpoints4 { typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport; }
    map endpoints6 { typeof ip6 daddr . meta l4proto . th dport . numgen random mod 65536 : ip6 daddr . th dport; }
    set source-allowed4 { typeof ip daddr . meta l4proto . th dport . ip saddr; flags interval; }
    set source-allowed6 { typeof ip6 daddr . meta l4proto . th dport . ip6 saddr; flags interval; }
    set services4 { typeof ip daddr . meta l4proto . th dport; }
    set dying4 { typeof ip daddr . meta l4proto . th dport; flags timeout; }
    set ranges4 { typeof ip daddr; flags interval; }
    chain track { type filter hook output priority 0; ct state new accept; }
}";

/// A socket in a namespace with the table.
fn with_table(work: impl FnOnce(&mut Socket) + Send) {
    in_new_netns(|| {
        load(RULES);
        work(&mut Socket::netfilter().unwrap());
    });
}

fn address(text: &str) -> Vec<u8> {
    match text.parse().unwrap() {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn port(port: u16) -> Vec<u8> {
    [&port.to_be_bytes()[..], &[0, 0]].concat()
}

fn service(to: &str, protocol: u8, to_port: u16) -> Vec<u8> {
    [address(to), vec![protocol, 0, 0, 0], port(to_port)].concat()
}

fn endpoint(to: &str, to_port: u16, n: u32, end: &str, end_port: u16, comment: &str) -> Element {
    Element {
        key: [service(to, TCP, to_port), n.to_ne_bytes().to_vec()].concat(),
        data: Some([address(end), port(end_port)].concat()),
        comment: comment.into(),
        ..Element::default()
    }
}

fn allowed(to: &str, to_port: u16, first: &str, last: &str, comment: &str) -> Element {
    let key = |source: &str| [service(to, UDP, to_port), address(source)].concat();
    Element { key: key(first), key_end: Some(key(last)), comment: comment.into(), ..Element::default() }
}

fn plain(to: &str, comment: &str) -> Element {
    Element { key: service(to, TCP, 443), comment: comment.into(), ..Element::default() }
}

fn add(socket: &mut Socket, set: &str, elements: &[Element]) -> Result<(), ElementError> {
    let mut batch = Batch::new(TABLE);
    for element in elements {
        batch.add(set, element)?;
    }
    batch.commit(socket)
}

fn delete(socket: &mut Socket, set: &str, elements: &[Element]) -> Result<(), ElementError> {
    let mut batch = Batch::new(TABLE);
    for element in elements {
        batch.delete(set, element)?;
    }
    batch.commit(socket)
}

fn sorted(mut elements: Vec<Element>) -> Vec<Element> {
    elements.sort();
    elements
}

/// The elements of a set as nft prints them, sorted.
fn listed(set: &str) -> Vec<String> {
    let text = run(&format!(
        "nft --numeric list set inet homelab {set} 2>/dev/null || nft --numeric list map inet homelab {set}"
    ));
    let Some((_, elements)) = text.split_once("elements = {") else { return Vec::new() };
    let (elements, _) = elements.split_once('}').unwrap();
    let mut elements: Vec<String> =
        elements.split(',').map(|e| e.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    elements.sort();
    elements
}

#[test]
fn nft_and_the_dump_show_what_was_added() {
    with_table(|socket| {
        let endpoints4 = [
            endpoint("10.0.0.1", 80, 0, "10.1.1.1", 8080, "default/web"),
            endpoint("10.0.0.1", 80, 1, "10.1.1.2", 8081, "default/web"),
            endpoint("10.0.0.2", 53, 40000, "10.1.1.3", 53, ""),
        ];
        let endpoints6 = [endpoint("fd00::1", 80, 258, "fd01::1", 8080, "default/web")];
        let allowed4 = [
            allowed("10.0.0.1", 80, "192.168.0.0", "192.168.255.255", "default/web"),
            allowed("10.0.0.1", 80, "10.9.0.1", "10.9.0.1", "default/web"),
        ];
        let allowed6 = [allowed("fd00::1", 80, "fd05::", "fd05::ffff", "")];
        let services = [plain("10.0.0.1", &"c".repeat(128)), plain("10.0.0.2", "")];
        let sets: [(&str, &[Element]); 5] = [
            ("endpoints4", &endpoints4),
            ("endpoints6", &endpoints6),
            ("source-allowed4", &allowed4),
            ("source-allowed6", &allowed6),
            ("services4", &services),
        ];
        let mut batch = Batch::new(TABLE);
        for (set, elements) in sets {
            assert_eq!(dump(socket, TABLE, set).unwrap(), []);
            for element in elements {
                batch.add(set, element).unwrap();
            }
        }
        assert_eq!(batch.len(), 9);
        batch.commit(socket).unwrap();
        for (set, elements) in sets {
            assert_eq!(sorted(dump(socket, TABLE, set).unwrap()), sorted(elements.to_vec()), "{set}");
        }
        assert_eq!(
            listed("endpoints4"),
            [
                "10.0.0.1 . 6 . 80 . 0 comment \"default/web\" : 10.1.1.1 . 8080",
                "10.0.0.1 . 6 . 80 . 1 comment \"default/web\" : 10.1.1.2 . 8081",
                "10.0.0.2 . 6 . 53 . 40000 : 10.1.1.3 . 53",
            ]
        );
        assert_eq!(listed("endpoints6"), ["fd00::1 . 6 . 80 . 258 comment \"default/web\" : fd01::1 . 8080"]);
        assert_eq!(
            listed("source-allowed4"),
            [
                "10.0.0.1 . 17 . 80 . 10.9.0.1 comment \"default/web\"",
                "10.0.0.1 . 17 . 80 . 192.168.0.0/16 comment \"default/web\"",
            ]
        );
        assert_eq!(listed("source-allowed6"), ["fd00::1 . 17 . 80 . fd05::/112"]);
        let long = format!("10.0.0.1 . 6 . 443 comment \"{}\"", "c".repeat(128));
        assert_eq!(listed("services4"), [long.as_str(), "10.0.0.2 . 6 . 443"]);

        delete(socket, "endpoints4", &endpoints4[..2]).unwrap();
        delete(socket, "source-allowed4", &allowed4[1..]).unwrap();
        assert_eq!(dump(socket, TABLE, "endpoints4").unwrap(), endpoints4[2..]);
        assert_eq!(dump(socket, TABLE, "source-allowed4").unwrap(), allowed4[..1]);
    });
}

#[test]
fn what_nft_added_is_read() {
    with_table(|socket| {
        run(
            "nft add element inet homelab endpoints4 '{ 10.0.0.1 . tcp . 80 . 5 comment \"a/b\" : 10.1.1.1 . 8080 }'",
        );
        run(
            "nft add element inet homelab source-allowed4 '{ 10.0.0.1 . udp . 80 . 192.168.0.0/16 comment \"x\" }'",
        );
        run("nft add element inet homelab dying4 '{ 10.0.0.1 . tcp . 443 timeout 1h comment \"d\" }'");
        let web = endpoint("10.0.0.1", 80, 5, "10.1.1.1", 8080, "a/b");
        assert_eq!(dump(socket, TABLE, "endpoints4").unwrap(), [web]);
        let source = allowed("10.0.0.1", 80, "192.168.0.0", "192.168.255.255", "x");
        assert_eq!(dump(socket, TABLE, "source-allowed4").unwrap(), [source]);
        let dying = dump(socket, TABLE, "dying4").unwrap().remove(0);
        let left = dying.expires.unwrap();
        assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3600), "{left:?}");
        assert_eq!(Element { expires: None, ..dying }, plain("10.0.0.1", "d"));
        run("nft add element inet homelab ranges4 '{ 10.0.0.0/8 }'");
        assert!(matches!(dump(socket, TABLE, "ranges4"), Err(ElementError::Unsupported { .. })));
    });
}

#[test]
fn a_missing_set_or_table_is_named() {
    with_table(|socket| {
        let web = plain("10.0.0.1", "a/b");
        for (table, set) in [(TABLE, "nothing"), ("nothing", "services4")] {
            let mut adding = Batch::new(table);
            adding.add(set, &web).unwrap();
            let mut deleting = Batch::new(table);
            deleting.delete(set, &web).unwrap();
            let errors = [
                dump(socket, table, set).unwrap_err(),
                adding.commit(socket).unwrap_err(),
                deleting.commit(socket).unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.to_string(), format!("there is no set {set} in table inet {table}"));
                assert!(matches!(error, ElementError::NoSuchSet { .. }));
            }
        }
        Batch::new("nothing").commit(socket).unwrap();
    });
}

#[test]
fn a_bad_element_names_its_comment_and_leaves_nothing() {
    with_table(|socket| {
        let there = endpoint("10.0.0.1", 80, 9, "10.1.1.1", 8080, "a/there");
        add(socket, "endpoints4", std::slice::from_ref(&there)).unwrap();
        // The same again does no harm.
        add(socket, "endpoints4", std::slice::from_ref(&there)).unwrap();

        let mut elements: Vec<Element> =
            (100..5100).map(|n| endpoint("10.0.0.1", 80, n, "10.1.1.1", 8080, &format!("a/{n}"))).collect();
        let other_data = endpoint("10.0.0.1", 80, 9, "10.9.9.9", 8080, "a/bad");
        let short = Element { key: vec![1; 8], comment: "a/bad".into(), ..there.clone() };
        for bad in [other_data, short] {
            elements[2500] = bad.clone();
            let error = add(socket, "endpoints4", &elements).unwrap_err();
            let ElementError::Refused { set, adding, element, comments, .. } = error else {
                panic!("{error}");
            };
            assert_eq!((set.as_str(), adding, element.as_deref()), ("endpoints4", true, Some(&bad)));
            assert_eq!(comments, ["a/bad"]);
            assert_eq!(dump(socket, TABLE, "endpoints4").unwrap(), std::slice::from_ref(&there));
        }
        // The socket is of use after an error.
        add(socket, "endpoints4", &elements[..2500]).unwrap();
        assert_eq!(dump(socket, TABLE, "endpoints4").unwrap().len(), 2501);
    });
}

#[test]
fn a_missing_element_cannot_be_deleted() {
    with_table(|socket| {
        let (one, two) = (plain("10.0.0.1", "a/one"), plain("10.0.0.2", "a/two"));
        add(socket, "services4", std::slice::from_ref(&one)).unwrap();
        let error = delete(socket, "services4", &[one.clone(), two.clone()]).unwrap_err();
        assert!(
            error.to_string().starts_with("set services4: deleting the element of \"a/two\": "),
            "{error}"
        );
        let ElementError::Refused { adding: false, code: Errno::ENOENT, element: Some(found), .. } = error
        else {
            panic!("{error}");
        };
        assert_eq!(*found, two);
        assert_eq!(dump(socket, TABLE, "services4").unwrap(), [one]);
    });
}

#[test]
fn the_callers_order_is_kept() {
    with_table(|socket| {
        let old = endpoint("10.0.0.1", 80, 0, "10.1.1.1", 8080, "a/old");
        let new = endpoint("10.0.0.1", 80, 0, "10.1.1.2", 8080, "a/new");
        add(socket, "endpoints4", std::slice::from_ref(&old)).unwrap();
        let mut batch = Batch::new(TABLE);
        batch.delete("endpoints4", &old).unwrap();
        batch.add("endpoints4", &new).unwrap();
        batch.commit(socket).unwrap();
        assert_eq!(dump(socket, TABLE, "endpoints4").unwrap(), [new]);
    });
}

#[test]
fn a_hundred_thousand_elements_go_in_one_batch() {
    with_table(|socket| {
        let elements: Vec<Element> = (0..120_000_u32)
            .map(|n| {
                let (high, low) = (n / 250, n % 250);
                let to = format!("10.{}.{}.{}", 96 + high / 250, high % 250, low + 1);
                endpoint(&to, 80, n % 7, "10.1.1.1", 8080, &format!("namespace/service-{}", n / 50))
            })
            .collect();
        for count in [100_000, 120_000] {
            let start = Instant::now();
            add(socket, "endpoints4", &elements[..count]).unwrap();
            let added = start.elapsed();
            let start = Instant::now();
            let read = dump(socket, TABLE, "endpoints4").unwrap();
            let dumped = start.elapsed();
            assert!(sorted(read) == sorted(elements[..count].to_vec()));
            let start = Instant::now();
            let mut batch = Batch::new(TABLE);
            batch.delete("endpoints4", &elements[7]).unwrap();
            batch.add("endpoints4", &elements[7]).unwrap();
            batch.commit(socket).unwrap();
            let changed = start.elapsed();
            let start = Instant::now();
            delete(socket, "endpoints4", &elements[..count]).unwrap();
            let deleted = start.elapsed();
            eprintln!("{count}: added {added:?}, dumped {dumped:?}, one {changed:?}, deleted {deleted:?}");
            assert_eq!(dump(socket, TABLE, "endpoints4").unwrap(), []);
        }
    });
}

#[test]
fn flows_are_read_and_deleted() {
    for (family, server) in [(Family::V4, "127.0.0.1:0"), (Family::V6, "[::1]:0")] {
        with_table(|_| {
            run("ip link set lo up");
            let socket = &mut Socket::netfilter().unwrap();
            assert_eq!(conntrack::dump(socket, family, UDP).unwrap(), []);
            let server = UdpSocket::bind(server).unwrap();
            let client = UdpSocket::bind(SocketAddr::new(server.local_addr().unwrap().ip(), 0)).unwrap();
            client.send_to(b"x", server.local_addr().unwrap()).unwrap();
            let flows = conntrack::dump(socket, family, UDP).unwrap();
            assert_eq!(conntrack::dump(socket, family, TCP).unwrap(), []);
            let [flow] = &flows[..] else { panic!("{flows:?}") };
            let (from, to) = (client.local_addr().unwrap(), server.local_addr().unwrap());
            assert_eq!(flow.original, Tuple { protocol: UDP, source: from, destination: to });
            assert_eq!(flow.reply, Tuple { protocol: UDP, source: to, destination: from });
            assert_eq!(flow.status & conntrack::status::SEEN_REPLY, 0);
            assert!(flow.timeout.unwrap() <= Duration::from_secs(30));
            // A flow of another number is another flow.
            let id = flow.id.unwrap();
            assert!(!conntrack::delete(socket, &flow.original, flow.zone, Some(id ^ 1)).unwrap());
            assert!(conntrack::delete(socket, &flow.original, flow.zone, Some(id)).unwrap());
            assert_eq!(conntrack::dump(socket, family, UDP).unwrap(), []);
            assert!(!conntrack::delete(socket, &flow.original, flow.zone, None).unwrap());
        });
    }
}

#[test]
fn a_set_is_asked_for_single_elements() {
    with_table(|socket| {
        let end = |n: u32| {
            let [_, _, high, low] = n.to_be_bytes();
            endpoint("10.96.0.10", 80, n, &format!("10.244.{high}.{low}"), 8080, "default/web")
        };
        let all: Vec<Element> = (0..1000).map(end).collect();
        add(socket, "endpoints4", &all).unwrap();
        let mut has = |elements: &[Element]| has_all(socket, TABLE, "endpoints4", elements.to_vec()).unwrap();
        assert!(has(&all) && has(&all[..1]) && has(&[]));
        let with = |change: &dyn Fn(&mut Element)| {
            let mut others = all.clone();
            change(&mut others[500]);
            others
        };
        assert!(!has(&with(&|element| element.comment = "default/dns".into())), "another service's");
        assert!(!has(&with(&|element| element.data = end(1).data)), "to another endpoint");
        assert!(!has(&with(&|element| element.key = end(1000).key)), "not there");
        assert!(!has_all(socket, TABLE, "nothing", all[..1].to_vec()).unwrap());
        // Kernels before 6.16 do not say.
        let counted = count(socket, TABLE, "endpoints4").unwrap();
        assert!(counted.is_none_or(|count| count == 1000), "{counted:?}");
        assert_eq!(count(socket, TABLE, "nothing").unwrap(), None);
    });
}
