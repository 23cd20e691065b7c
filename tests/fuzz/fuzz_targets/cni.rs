//! Any bytes as environment and standard input of a CNI request: answered, and nothing is taken that could do harm.
#![no_main]

#[path = "../../../modules/cni/tests/answered/mod.rs"]
mod answered;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    answered::answered(bytes);
});
