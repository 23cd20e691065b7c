//! The proxy's sets in a real kernel.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../proxy/tests/random/mod.rs"]
mod random;

use std::collections::BTreeSet;

use common::proxy::{change, delta_text, elements_text, held, load_ruleset};
use common::{in_new_netns, load, run};
use homelab_linux::netlink::Socket;
use homelab_linux::nft::elements::{Element, dump};
use homelab_proxy::bytes::Bytes;
use homelab_proxy::delta::delta;
use homelab_proxy::element::{Element as ProxyElement, Set};
use homelab_proxy::{Elements, compile, text};
use proptest::prelude::*;
use random::{services, view};

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any sequence of changes, each one transaction of its difference alone, leaves what a full load of the last
    /// state leaves; and the way back leaves nothing.
    #[test]
    fn deltas_leave_the_kernel_as_a_full_load_does(states in prop::collection::vec(services(), 2..6)) {
        in_new_netns(|| {
            load_ruleset(&view(), "");
            let empty = held();
            prop_assert_eq!(empty.len(), text::sets(&view()).len());
            prop_assert!(empty.values().all(|elements| elements.is_empty()));
            let mut now = Elements::new();
            for services in &states {
                let (next, _) = compile(services, &view());
                load(&delta_text(&delta(&now, &next)));
                now = next;
            }
            let by_deltas = held();
            run("nft delete table inet homelab");
            load_ruleset(&view(), &elements_text(&now));
            prop_assert_eq!(&by_deltas, &held());
            let count: usize = now.values().map(Vec::len).sum();
            prop_assert_eq!(by_deltas.values().map(|elements| elements.len()).sum::<usize>(), count);
            load(&delta_text(&delta(&now, &Elements::new())));
            prop_assert_eq!(held(), empty);
            Ok(())
        })?;
    }

    /// The same by netlink, one batch per change: nft lists what it lists after a full load of its own, and what is read
    /// back is what was written, with the service that each element belongs to.
    #[test]
    fn netlink_leaves_the_kernel_as_nft_does(states in prop::collection::vec(services(), 2..6)) {
        in_new_netns(|| {
            let mut socket = Socket::netfilter().unwrap();
            load_ruleset(&view(), "");
            let mut now = Elements::new();
            for services in &states {
                let (next, _) = compile(services, &view());
                change(common::proxy::TABLE, &now, &next);
                now = next;
            }
            let written: BTreeSet<(String, ProxyElement)> =
                now.iter().flat_map(|(name, all)| all.iter().map(move |e| (name.clone(), *e))).collect();
            prop_assert_eq!(read(&mut socket), written);
            let by_netlink = held();
            run("nft delete table inet homelab");
            load_ruleset(&view(), &elements_text(&now));
            prop_assert_eq!(by_netlink, held());
            Ok(())
        })?;
    }
}

/// Everything in the sets of both families.
fn read(socket: &mut Socket) -> BTreeSet<(String, ProxyElement)> {
    let mut all = BTreeSet::new();
    for (set, v4) in Set::all().into_iter().flat_map(|set| [(set, true), (set, false)]) {
        for Element { key, key_end, data, comment, .. } in
            dump(socket, common::proxy::TABLE, &set.name(v4)).unwrap()
        {
            let bytes = Bytes { key, key_end, data };
            let element = bytes.element(set, v4).unwrap_or_else(|| panic!("{set:?}: {bytes:?}"));
            all.insert((comment, element));
        }
    }
    all
}
