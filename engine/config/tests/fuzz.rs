//! Mutations of good and bad files against the parser: no panic, little time, bounded memory. `tests/fuzz` holds the
//! same as a libFuzzer target, and says how to run this one longer.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "reads its corpus; time is measured")]

#[path = "../../../tests/fuzz/mutate.rs"]
mod mutate;

use std::path::Path;
use std::time::{Duration, Instant};

use homelab_config::{Severity, Source, load};
use mutate::{Random, mutate, peak, time};

fn corpus() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    for directory in ["good", "bad"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(directory);
        let mut paths: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        corpus.extend(
            paths
                .iter()
                .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
                .map(|p| std::fs::read(p).unwrap()),
        );
    }
    corpus
}

#[test]
fn mutated_files_are_good_or_explained() {
    let words: [&[u8]; 24] = [
        b": ",
        b"- ",
        b"\n",
        b"\n  ",
        b"[",
        b"]",
        b"{",
        b"}",
        b"&a ",
        b"*a",
        b"<<: *a",
        b"!!str ",
        b"| \n",
        b"> \n",
        b"\"",
        b"'",
        b"nodes:\n",
        b"address: ",
        b"10.244.0.0/16",
        b"fd00::/8",
        b"-1",
        b"1e99",
        b"\xef\xbb\xbf",
        b"\xff",
    ];
    let (mut random, corpus) = (Random::new(), corpus());
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < time() {
        let files = 1 + random.below(8) / 7;
        let mut sources = Vec::new();
        for file in 0..files {
            match Source::from_bytes(format!("{file}.yaml"), mutate(&mut random, &corpus, &words)) {
                Ok(source) => sources.push(source),
                Err(problems) => assert_eq!(problems.0.len(), 1),
            }
        }
        let begin = Instant::now();
        if let Err(problems) = load(&sources) {
            assert!(problems.iter().any(|p| p.severity == Severity::Error), "{sources:?}");
            assert!(problems.iter().all(|p| p.code != "internal"), "{problems}\n{sources:?}");
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?} for {sources:?}", begin.elapsed());
        count += 1;
    }
    println!("{count} files, peak {} MiB", peak());
    assert!(count > 10 && peak() < 512, "{count} files, {} MiB", peak());
}
