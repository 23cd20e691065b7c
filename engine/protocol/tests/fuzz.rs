//! Mutations of frames against their reader: no panic, bounded memory. `tests/fuzz` holds the same as a libFuzzer
//! target, and says how to run this one longer.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "time is measured")]

#[path = "../../../tests/fuzz/mutate.rs"]
mod mutate;

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::time::Instant;

use homelab_model::service::Protocol;
use homelab_model::{Holder, Scope, TracePacket};
use homelab_protocol::{
    FrameError, Hello, MAX_FRAME, PROTOCOL, Request, Response, Transaction, read_frame, write_frame,
};
use mutate::{Random, mutate, peak, time};

/// Gives what it has in small parts, as a network does.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(self.1).min(self.0.len());
        buffer[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}

fn frames() -> Vec<Vec<u8>> {
    let hello = || Hello { protocol: PROTOCOL, version: "0.1.0".into(), sha256: "ab".repeat(32) };
    let transaction = Transaction {
        id: "0a".into(),
        by: Holder::default(),
        changes: vec![],
        scope: Scope::default(),
        farewell: false,
        timeout: 60,
        secrets: BTreeMap::from([("summary".to_owned(), "hush".to_owned())]),
    };
    assert!(!format!("{transaction:?}").contains("hush"), "secrets are never printed");
    let requests = [
        Request::Hello(hello()),
        Request::Observe { scope: Scope::default() },
        Request::Lock { holder: Holder::default(), wait_ms: 5 },
        Request::Begin(Box::new(transaction)),
        Request::Run,
        Request::Confirm { id: "0a".into() },
        Request::Hold { id: "0a".into(), seconds: 600 },
        Request::Rollback { id: "0a".into(), reason: "a test".into() },
        Request::Probe { targets: vec!["10.244.1.0".parse().unwrap()] },
        Request::Services,
        Request::LoadBalancers,
        Request::Scan { ranges: Vec::new() },
        Request::Cordon { on: true, by: Holder::default() },
        Request::Trace(TracePacket {
            source: "10.244.1.5".parse().unwrap(),
            destination: "10.96.0.1".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
        }),
        Request::Bye,
    ];
    let mut all = Vec::new();
    for request in &requests {
        let mut frame = Vec::new();
        write_frame(&mut frame, request).unwrap();
        assert_eq!(&read_frame::<_, Request>(&mut Cursor::new(&frame)).unwrap(), request);
        all.push(frame);
    }
    for response in [Response::Hello(hello()), Response::Progress { done: 7 }, Response::Armed] {
        let mut frame = Vec::new();
        write_frame(&mut frame, &response).unwrap();
        assert_eq!(read_frame::<_, Response>(&mut Cursor::new(&frame)).unwrap(), response);
        all.push(frame);
    }
    all.push(all.concat());
    all.push(b"Last login: Tue Nov 24 on pts/0\nneed x86_64\n".to_vec());
    all
}

#[test]
fn mutated_frames_are_read_or_refused() {
    let deep = [b'['; 600];
    let words: [&[u8]; 9] = [
        &[0, 0, 0, 0],
        &[0, 0, 0, 1],
        &[3, 255, 255, 255],
        &[4, 0, 0, 0],
        &[4, 0, 0, 1],
        &[255; 4],
        b"{\"request\":",
        b"\"\\ud800\"",
        &deep,
    ];
    let (mut random, corpus) = (Random::new(), frames());
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < time() {
        let input = mutate(&mut random, &corpus, &words);
        let step = 1 + random.below(20);
        for response in [false, true] {
            let mut reader = Trickle(&input, step);
            // Each frame takes at least its length: this ends.
            let refused = loop {
                let result = match response {
                    true => read_frame::<_, Response>(&mut reader).err(),
                    false => read_frame::<_, Request>(&mut reader).err(),
                };
                if let Some(error) = result {
                    break error;
                }
            };
            assert!(!matches!(refused, FrameError::Io(_) | FrameError::TooLarge(_)), "{refused}");
            assert!(refused.to_string().len() < 2000, "{refused}");
        }
        count += 1;
    }
    println!("{count} streams, peak {} MiB", peak());
    assert!(count > 10 && peak() < 512, "{count} streams, {} MiB", peak());
}

#[test]
fn a_claimed_length_takes_no_memory() {
    let before = peak();
    for length in [1, 1000, MAX_FRAME - 1, MAX_FRAME] {
        let input = length.to_be_bytes();
        assert!(matches!(read_frame::<_, Request>(&mut Trickle(&input, 4)), Err(FrameError::Truncated)));
    }
    for length in [MAX_FRAME + 1, u32::MAX] {
        let input = length.to_be_bytes();
        assert!(matches!(read_frame::<_, Request>(&mut Trickle(&input, 4)), Err(FrameError::NotAFrame(_))));
    }
    assert!(matches!(read_frame::<_, Request>(&mut Trickle(&[0, 0], 1)), Err(FrameError::Truncated)));
    assert!(matches!(read_frame::<_, Request>(&mut Trickle(&[], 1)), Err(FrameError::Closed)));
    // Other tests of this process run beside; 64 MiB claimed six times would show.
    assert!(peak() < before + 200, "{} MiB before, {} after", before, peak());
}
