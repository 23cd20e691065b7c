//! Any bytes as a file of Kubernetes manifests: services, and problems at places inside the text.
#![no_main]

use homelab_config::{ManifestDefaults, Source, manifests};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(source) = Source::from_bytes("manifests.yaml", bytes.to_vec()) else { return };
    let text = source.text.clone();
    for problem in manifests(&[source], &ManifestDefaults::default()).problems {
        assert_ne!(problem.code, "internal", "{problem}");
        assert!(text.get(problem.offset..problem.offset + problem.length).is_some(), "{problem}");
    }
});
