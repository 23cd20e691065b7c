//! The proxy's sets in a real kernel.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../proxy/tests/random/mod.rs"]
mod random;

use common::proxy::{delta_text, elements_text, held, load};
use common::{in_new_netns, run};
use homelab_proxy::delta::delta;
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
            load(&text::to_nft("homelab", &view()));
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
            load(&format!("{}{}", text::to_nft("homelab", &view()), elements_text(&now)));
            prop_assert_eq!(&by_deltas, &held());
            let count: usize = now.values().map(Vec::len).sum();
            prop_assert_eq!(by_deltas.values().map(|elements| elements.len()).sum::<usize>(), count);
            load(&delta_text(&delta(&now, &Elements::new())));
            prop_assert_eq!(held(), empty);
            Ok(())
        })?;
    }
}
