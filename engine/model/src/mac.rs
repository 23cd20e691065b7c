//! MAC addresses that follow from names, so that nothing is exchanged and a re-install changes nothing.

use sha2::{Digest, Sha256};

/// A locally administered unicast MAC address (IEEE 802c: second-least bit of the first octet set, least clear)
/// that depends only on `parts`. Lower-case, colons.
pub fn stable_mac(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    let octets: Vec<String> = digest
        .iter()
        .take(6)
        .enumerate()
        .map(|(i, &byte)| format!("{:02x}", if i == 0 { byte & 0xfc | 0x02 } else { byte }))
        .collect();
    octets.join(":")
}
