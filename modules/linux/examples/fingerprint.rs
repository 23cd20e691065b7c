//! Times the fingerprint of the table `inet homelab` in the caller's network namespace, as root, beside what it saves:
//! `nft --stateless --numeric list table inet homelab`. `modules/proxy/examples/ruleset.rs` prints such a table.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::process::Command;
use std::time::{Duration, Instant};

use homelab_linux::netlink::Socket;
use homelab_linux::nft::fingerprint;

const TIMES: usize = 51;

fn main() {
    let mut socket = Socket::netfilter().unwrap();
    let mut times: Vec<Duration> = (0..TIMES)
        .map(|_| {
            let start = Instant::now();
            fingerprint(&mut socket, "homelab").unwrap().expect("there is no table inet homelab");
            start.elapsed()
        })
        .collect();
    times.sort();
    let start = Instant::now();
    let list = ["--stateless", "--numeric", "list", "table", "inet", "homelab"];
    let output = Command::new("nft").args(list).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!(
        "fingerprint: {:?} (median of {TIMES}; {:?} to {:?}), nft list: {:?}",
        times[TIMES / 2],
        times[0],
        times[TIMES - 1],
        start.elapsed()
    );
}
