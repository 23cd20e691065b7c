//! Any bytes as what the other side of a session says: messages, then a refusal.
#![no_main]

use homelab_protocol::{Request, Response, read_frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut node = bytes;
    while read_frame::<_, Request>(&mut node).is_ok() {}
    let mut laptop = bytes;
    while read_frame::<_, Response>(&mut laptop).is_ok() {}
});
