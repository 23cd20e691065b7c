//! Mutated requests, environment and standard input: an answer, no panic, and nothing is taken that could do harm.
//! `tests/fuzz` holds the same as a libFuzzer target, and says how to run this one longer.
#![allow(clippy::disallowed_methods, reason = "time is measured")]

#[path = "answered/mod.rs"]
mod answered;
#[path = "../../../tests/fuzz/mutate.rs"]
mod mutate;

use std::time::Instant;

use mutate::{Random, mutate, peak, time};

/// Requests that are taken, one of each command in several versions.
fn corpus() -> Vec<Vec<u8>> {
    let versions = ["0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    let commands = ["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"];
    let since = [0, 0, 3, 5, 5, 0];
    let mut corpus = Vec::new();
    for (position, version) in versions.iter().enumerate() {
        for (command, since) in commands.iter().zip(since) {
            if position < since {
                continue;
            }
            corpus.push(
                format!(
                    "CNI_COMMAND={command}\nCNI_CONTAINERID=c0ffee\nCNI_NETNS=/run/netns/x\nCNI_IFNAME=eth0\n\
                     CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;IP=10.244.1.9\n\n\
                     {{\"cniVersion\":\"{version}\",\"name\":\"home\",\"bridge\":\"homelab0\",\"mtu\":1450,\
                     \"ranges\":[\"10.244.1.0/24\",\"fd00:1::/64\"],\"exclude\":[\"10.244.1.0/28\"],\"sticky\":true,\
                     \"runtimeConfig\":{{\"ips\":[\"fd00:1::7/64\"],\"mac\":\"c2:11:22:33:44:55\",\"dns\":{{\"servers\":[\"192.0.2.1\"]}},\
                     \"portMappings\":[{{\"hostPort\":8080,\"containerPort\":80,\"protocol\":\"tcp\",\"hostIP\":\"127.0.0.1\"}},\
                     {{\"hostPort\":53,\"containerPort\":5353,\"protocol\":\"UDP\"}},{{\"hostPort\":53,\"containerPort\":53,\"hostIP\":\"::\"}}],\
                     \"bandwidth\":{{\"ingressRate\":8000000,\"ingressBurst\":4294967295,\"egressRate\":1,\"egressBurst\":0}}}},\
                     \"prevResult\":{{\"interfaces\":[{{\"name\":\"eth0\",\"mac\":\"02:00:00:00:00:01\",\"sandbox\":\"/x\"}}],\
                     \"ips\":[{{\"address\":\"10.244.1.7/24\",\"interface\":0}}],\"routes\":[{{\"dst\":\"0.0.0.0/0\",\"gw\":\"10.244.1.1\"}}],\
                     \"dns\":{{}}}},\"cni.dev/valid-attachments\":[{{\"containerID\":\"c1\",\"ifname\":\"eth0\"}}]}}"
                )
                .into_bytes(),
            );
        }
    }
    corpus
}

#[test]
fn mutated_requests_are_answered() {
    let corpus = corpus();
    for request in &corpus {
        assert!(answered::answered(request), "{}", String::from_utf8_lossy(request));
    }
    let words: [&[u8]; 20] = [
        b"../",
        b"\0",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b"-1",
        b"\"",
        b"fd00::/1",
        b"0.0.0.0/0",
        b"255.255.255.255",
        b"%s",
        b"99999999999999999999",
        b"\xff",
        b"65535",
        b"0",
        b"4294967295",
        b"sctp",
        b"0.0.0.0",
        b"::ffff:10.0.0.1",
    ];
    let mut random = Random::new();
    let (mut taken, mut refused) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < time() {
        for _ in 0..200 {
            match answered::answered(&mutate(&mut random, &corpus, &words)) {
                true => taken += 1,
                false => refused += 1,
            }
        }
    }
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    assert!(peak() < 512, "{} MiB", peak());
}
