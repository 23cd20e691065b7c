//! Mutations of good and bad files against the parser: no panic, little time, bounded memory. `tests/fuzz` holds the
//! same as a libFuzzer target, and says how to run this one longer.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "reads its corpus; time is measured")]

#[path = "../../../tests/fuzz/mutate.rs"]
mod mutate;

use std::path::Path;
use std::time::{Duration, Instant};

use homelab_config::{ManifestDefaults, Severity, Source, load, manifests};
use mutate::{Random, mutate, peak, time};

fn corpus(directories: &[&str]) -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    for directory in directories {
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
    let (mut random, corpus) = (Random::new(), corpus(&["good", "bad"]));
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
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?} for {sources:?}", begin.elapsed());
        count += 1;
    }
    println!("{count} files, peak {} MiB", peak());
    assert!(count > 10 && peak() < 512, "{count} files, {} MiB", peak());
}

#[test]
fn mutated_manifests_are_read_or_explained() {
    let words: [&[u8]; 22] = [
        b": ",
        b"- ",
        b"\n",
        b"\n---\n",
        b"\n...\n",
        b"[",
        b"]",
        b"{",
        b"}",
        b"&a ",
        b"*a",
        b"<<: *a",
        b"!!str ",
        b"| \n",
        b"null",
        b"kind: List\n",
        b"items:\n",
        b"10.96.0.9",
        b"fd00:10:96::9",
        b"-1",
        b"\xef\xbb\xbf",
        b"\xff",
    ];
    let defaults = ManifestDefaults {
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        ..ManifestDefaults::default()
    };
    let (mut random, corpus) = (Random::new(), corpus(&["manifests"]));
    let (start, mut count, mut services) = (Instant::now(), 0, 0);
    while start.elapsed() < time() {
        let bytes = mutate(&mut random, &corpus, &words);
        let Ok(source) = Source::from_bytes("0.yaml", bytes) else { continue };
        let sources = [source];
        let found = manifests(&sources, &defaults);
        for problem in &found.problems {
            let place = problem.offset..problem.offset + problem.length;
            assert!(
                sources[0].text.get(place).is_some() && problem.code != "internal",
                "{problem}\n{sources:?}"
            );
        }
        count += 1;
        services += found.services.len();
    }
    println!("{count} files, {services} services, peak {} MiB", peak());
    assert!(
        count > 10 && services > 10 && peak() < 512,
        "{count} files, {services} services, {} MiB",
        peak()
    );
}
