//! Documentation that is checked: links lead somewhere, and every homelab.yaml that is shown is a good one.

#![cfg(test)]

use std::path::{Path, PathBuf};

use homelab_config::Source;

use crate::example::homelab;
use crate::tools::root;

/// All Markdown files of the repository that people read.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("examples/homeserver/README.md")];
    let mut directories = vec![root().join("book/src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// Targets of `[text](target)`.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target).collect()
}

/// Contents of the blocks fenced as `yaml`.
fn yaml_blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "```yaml" {
            blocks.push(
                lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect(),
            );
        }
    }
    blocks
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("a page");
        for target in links(&text) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let path = page.parent().expect("a directory").join(file);
            assert!(path.exists(), "{}: {target}", page.display());
        }
    }
}

#[test]
fn every_page_is_in_the_summary() {
    let summary = std::fs::read_to_string(root().join("book/src/SUMMARY.md")).expect("the summary");
    let listed: Vec<PathBuf> =
        links(&summary).iter().map(|link| root().join("book/src").join(link)).collect();
    for page in pages().iter().filter(|page| page.starts_with(root().join("book/src"))) {
        assert!(listed.contains(page) || page.ends_with("SUMMARY.md"), "{}", page.display());
    }
}

#[test]
fn the_command_line_is_documented_in_full() {
    let page = std::fs::read_to_string(root().join("book/src/reference/cli.md")).expect("the page");
    let commands = [
        "validate",
        "plan",
        "apply",
        "confirm",
        "rollback",
        "destroy",
        "cordon",
        "uncordon",
        "status",
        "status lb",
        "trace",
        "drift",
        "unlock",
        "rotate-key",
        "schema",
        "completions",
        "man",
    ];
    let help = |command: &'static str| command.split(' ').chain(["--help"]).collect::<Vec<_>>();
    for command in commands {
        assert!(page.contains(&format!("| `{command}")), "{command}");
        let help = homelab(&help(command));
        let words = help.split(|c: char| c.is_whitespace() || "[](),;`".contains(c));
        for flag in words.filter(|word| word.starts_with("--") && *word != "--help" && *word != "--version") {
            assert!(page.contains(&format!("`{flag}")), "{command} {flag}");
        }
    }
    // The page promises nothing that is not there.
    let everything: String = commands.iter().map(|command| homelab(&help(command))).collect();
    for flag in page.split(|c: char| c.is_whitespace() || "`|".contains(c)).filter(|w| w.starts_with("--")) {
        assert!(everything.contains(flag) || flag.trim_matches('-').is_empty(), "{flag}");
    }
}

#[test]
fn every_homelab_yaml_that_is_shown_is_good() {
    let mut count = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("a page");
        for block in yaml_blocks(&text).into_iter().filter(|block| block.starts_with("name: ")) {
            count += 1;
            check(&page, block);
        }
    }
    assert!(count >= 3, "only {count} examples found");
}

#[test]
fn the_example_is_good() {
    let path = root().join("examples/homeserver/homelab.yaml");
    let text = std::fs::read_to_string(&path).expect("the example");
    check(&path, text.clone());
    // Its comments claim to show the defaults: the same cluster, then, if they are taken at their word.
    let spelled_out = uncomment(&uncomment(&text, "network"), "agent");
    assert_eq!(load(&path, text.clone()), load(&path, spelled_out));
    // Its services are an example, not a default.
    let with_services = uncomment(&text, "services");
    check(&path, with_services.clone());
    assert!(load(&path, with_services).services.len() >= 2);
}

/// The text with the block of one key taken out of its comment.
fn uncomment(text: &str, key: &str) -> String {
    let mut inside = false;
    let mut out = String::new();
    for line in text.lines() {
        inside = line == format!("# {key}:") || (inside && line.starts_with("#   "));
        out.push_str(if inside { line.strip_prefix("# ").unwrap_or(line) } else { line });
        out.push('\n');
    }
    assert_ne!(out, text, "no `{key}` in a comment");
    out
}

fn load(path: &Path, text: String) -> homelab_model::Cluster {
    let source = Source { name: path.display().to_string(), text };
    homelab_config::load(&[source]).expect("a good file").cluster
}

fn check(path: &Path, text: String) {
    let source = Source { name: path.display().to_string(), text: text.clone() };
    match homelab_config::load(&[source]) {
        Ok(loaded) => assert!(loaded.warnings.is_empty(), "{text}\n{:?}", loaded.warnings),
        Err(problems) => panic!("{}:\n{text}\n{problems:?}", path.display()),
    }
}
