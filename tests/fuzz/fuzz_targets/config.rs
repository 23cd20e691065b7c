//! Any bytes as homelab.yaml: a cluster, or errors at places inside the text.
#![no_main]

use homelab_config::{Severity, Source, load};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(source) = Source::from_bytes("homelab.yaml", bytes.to_vec()) else { return };
    let text = source.text.clone();
    if let Err(problems) = load(&[source]) {
        assert!(problems.iter().any(|p| p.severity == Severity::Error));
        for problem in problems {
            assert_ne!(problem.code, "internal", "{problem}");
            assert!(text.get(problem.offset..problem.offset + problem.length).is_some(), "{problem}");
        }
    }
});
