//! Node binaries on the laptop: one per architecture, compressed, with a manifest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// File name of the manifest.
pub const MANIFEST: &str = "homelab-node.json";
/// Format version of the manifest that this build reads and writes.
pub const MANIFEST_FORMAT: u32 = 1;

/// The manifest beside the binaries; `cargo xtask dist` writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`].
    pub format_version: u32,
    /// Binaries by architecture, as `uname -m` says it.
    pub binaries: BTreeMap<String, BinaryEntry>,
}

/// A node binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BinaryEntry {
    /// SHA-256 of the binary before compression, lower-case hex.
    pub sha256: String,
    /// Bytes before compression.
    pub size: u64,
    /// Name of the gzip file beside the manifest.
    pub file: String,
}

/// Why there are no node binaries.
#[derive(Debug, Error)]
pub enum BinariesError {
    /// No manifest anywhere.
    #[error("found no node binaries ({MANIFEST}) in {}", join(.searched))]
    Missing {
        /// Directories that were searched.
        searched: Vec<PathBuf>,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The manifest cannot be understood.
    #[error("{} is no manifest of node binaries: {reason}", path.display())]
    Manifest {
        /// File.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The node binaries of one directory.
#[derive(Debug, Clone)]
pub struct NodeBinaries {
    directory: PathBuf,
    binaries: BTreeMap<String, BinaryEntry>,
}

impl NodeBinaries {
    /// Reads the manifest in `directory`.
    pub fn load(directory: &Path) -> Result<NodeBinaries, BinariesError> {
        let path = directory.join(MANIFEST);
        let text =
            std::fs::read(&path).map_err(|source| BinariesError::Read { path: path.clone(), source })?;
        let fail = |reason: String| BinariesError::Manifest { path: path.clone(), reason };
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
        if manifest.format_version != MANIFEST_FORMAT {
            return Err(fail(format!("format version {} is not {MANIFEST_FORMAT}", manifest.format_version)));
        }
        for (arch, entry) in &manifest.binaries {
            // Both end up in a shell script.
            let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !word(arch) || entry.sha256.len() != 64 || !word(&entry.sha256) {
                return Err(fail(format!("the entry {arch:?} is malformed")));
            }
        }
        Ok(NodeBinaries { directory: directory.to_owned(), binaries: manifest.binaries })
    }

    /// The first directory with a manifest: `explicit` alone if it is given; else that of the executable `exe`
    /// and `../lib/homelab` beside it.
    pub fn find(explicit: Option<&Path>, exe: Option<&Path>) -> Result<NodeBinaries, BinariesError> {
        let mut searched: Vec<PathBuf> = Vec::new();
        match (explicit, exe.and_then(Path::parent)) {
            (Some(directory), _) => searched.push(directory.to_owned()),
            (None, Some(beside)) => {
                searched.push(beside.to_owned());
                if let Some(prefix) = beside.parent() {
                    searched.push(prefix.join("lib/homelab"));
                }
            }
            (None, None) => {}
        }
        match searched.iter().find(|d| d.join(MANIFEST).is_file()) {
            Some(directory) => NodeBinaries::load(directory),
            None => Err(BinariesError::Missing { searched }),
        }
    }

    /// SHA-256 of the binary for `arch`, lower-case hex.
    pub fn digest(&self, arch: &str) -> Option<&str> {
        self.binaries.get(arch).map(|b| b.sha256.as_str())
    }

    /// All digests by architecture.
    pub fn digests(&self) -> BTreeMap<String, String> {
        self.binaries.iter().map(|(arch, b)| (arch.clone(), b.sha256.clone())).collect()
    }

    /// The binary for `arch`, compressed by gzip.
    pub fn compressed(&self, arch: &str) -> Result<Option<Vec<u8>>, BinariesError> {
        let Some(entry) = self.binaries.get(arch) else { return Ok(None) };
        let path = self.directory.join(&entry.file);
        std::fs::read(&path).map(Some).map_err(|source| BinariesError::Read { path, source })
    }
}
