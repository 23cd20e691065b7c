//! Whether the server is the one that we know.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use homelab_driver::TransportError;
use ssh2::{HashType, MethodType};

use crate::config::{Settings, Strict};
use crate::keyfile::Public;
use crate::known_hosts::{Entry, Marker, append, line, lookup};
use crate::link::{Link, words};

/// The rules of all sessions of a transport.
pub(crate) struct Trust {
    pub(crate) accept_new: bool,
    /// Read before the user's files; new keys go here.
    pub(crate) extra: Option<PathBuf>,
    /// Held while a file is read again and appended to.
    pub(crate) writing: Mutex<()>,
}

impl Trust {
    fn files(&self, settings: &Settings) -> Vec<PathBuf> {
        let user = self.extra.iter().chain(&settings.user_known_hosts);
        user.chain(&settings.global_known_hosts).cloned().collect()
    }

    fn known(&self, settings: &Settings) -> Result<Vec<Entry>, TransportError> {
        lookup(&self.files(settings), &settings.known_as()).map_err(|e| TransportError::Config(words(&e)))
    }

    /// Before the handshake: asks for a kind of host key that is known, and for nothing that the user forbids.
    pub(crate) fn prefer(&self, link: &Link, settings: &Settings) -> Result<(), TransportError> {
        let mut known = self.known(settings)?;
        known.extend(self.without_port(settings)?);
        known.retain(|e| e.marker == Marker::Key);
        let supported = |kind| link.session.supported_algs(kind).unwrap_or_default();
        let mut host_keys: Vec<&str> =
            supported(MethodType::HostKey).into_iter().filter(|a| !a.contains("-cert-")).collect();
        // Stable: OpenSSH's order within each half.
        host_keys.sort_by_key(|a| !known.iter().any(|e| e.algorithm == kind_of(a)));
        let mut ciphers = supported(MethodType::CryptCs);
        // OpenSSL's AES is several times as fast as libssh2's ChaCha20.
        ciphers.sort_by_key(|c| !c.contains("gcm"));
        let limits = &settings.algorithms;
        type Choice<'a> = (&'a [MethodType], &'a str, Vec<&'a str>, &'a [String]);
        let choices: [Choice<'_>; 4] = [
            (&[MethodType::HostKey], "HostKeyAlgorithms", host_keys, &limits.host_key),
            (&[MethodType::Kex], "KexAlgorithms", supported(MethodType::Kex), &limits.kex),
            (&[MethodType::CryptCs, MethodType::CryptSc], "Ciphers", ciphers, &limits.ciphers),
            (&[MethodType::MacCs, MethodType::MacSc], "MACs", supported(MethodType::MacCs), &limits.macs),
        ];
        for (kinds, option, algorithms, allowed) in choices {
            // The last two of libssh2's key exchanges are signals to the server, not algorithms.
            let keep = |a: &&str| {
                allowed.is_empty()
                    || allowed.iter().any(|x| x == a)
                    || a.starts_with("ext-info")
                    || a.contains("strict")
            };
            let chosen: Vec<&str> = algorithms.into_iter().filter(keep).collect();
            if chosen.iter().all(|a| a.starts_with("ext-info") || a.contains("strict")) {
                let text = format!("{option} of {} allows nothing that libssh2 knows", settings.name);
                return Err(TransportError::Config(text));
            }
            for kind in kinds {
                link.session.method_pref(*kind, &chosen.join(",")).map_err(|e| {
                    TransportError::Handshake {
                        endpoint: link.endpoint.clone(),
                        reason: e.message().to_owned(),
                    }
                })?;
            }
        }
        Ok(())
    }

    /// After the handshake: the server's key must be known, or new and welcome.
    pub(crate) fn check(&self, link: &Link, settings: &Settings) -> Result<(), TransportError> {
        let missing = || TransportError::Handshake {
            endpoint: link.endpoint.clone(),
            reason: "the server showed no host key".to_owned(),
        };
        let key = link.session.host_key().ok_or_else(missing)?.0.to_vec();
        let hash = link.session.host_key_hash(HashType::Sha256).ok_or_else(missing)?;
        let fingerprint = format!("SHA256:{}", STANDARD_NO_PAD.encode(hash));
        let algorithm = Public { blob: key.clone() }.algorithm().to_owned();
        let host = settings.known_as();
        if let Some((file, line)) = self.revoked(settings, &key)? {
            let known_hosts = file.display().to_string();
            return Err(TransportError::HostKeyRevoked { host, algorithm, fingerprint, known_hosts, line });
        }
        if self.is_known(settings, &key, &algorithm, &fingerprint)? {
            return Ok(());
        }
        let new_file = self.extra.as_ref().or(settings.user_known_hosts.first());
        if !(self.accept_new || settings.strict == Strict::AcceptNew) {
            let known_hosts = new_file.map_or_else(|| "known_hosts".to_owned(), |f| f.display().to_string());
            return Err(TransportError::HostKeyUnknown {
                host,
                algorithm,
                fingerprint,
                known_hosts,
                port: settings.port,
            });
        }
        let Some(file) = new_file else { return Ok(()) };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Another session may have added a key of the same name meanwhile, and it may be another key.
        if self.is_known(settings, &key, &algorithm, &fingerprint)? {
            return Ok(());
        }
        line(&host, &algorithm, &key, settings.hash_known_hosts)
            .and_then(|line| append(file, &line))
            .map_err(|e| TransportError::Config(format!("cannot write {}: {}", file.display(), words(&e))))?;
        tracing::info!(host, algorithm, fingerprint, file = %file.display(), "added a new host key");
        Ok(())
    }

    /// Whether a file has this key for the host; an error if files have only others.
    fn is_known(
        &self,
        settings: &Settings,
        key: &[u8],
        algorithm: &str,
        fingerprint: &str,
    ) -> Result<bool, TransportError> {
        let entries = self.known(settings)?;
        let keys = || entries.iter().filter(|e| e.marker == Marker::Key);
        if keys().any(|e| e.key == key) || self.without_port(settings)?.iter().any(|e| e.key == key) {
            return Ok(true);
        }
        // A server that no longer has the kind that we asked for first counts as changed, too.
        match keys().find(|e| e.algorithm == algorithm).or_else(|| keys().next()) {
            Some(entry) => Err(TransportError::HostKeyChanged {
                host: settings.known_as(),
                algorithm: algorithm.to_owned(),
                fingerprint: fingerprint.to_owned(),
                known_hosts: entry.file.display().to_string(),
                line: entry.line,
                port: settings.port,
            }),
            None => Ok(false),
        }
    }

    /// As `ssh`: a key that is known for the host's port 22 is good for its other ports, too.
    fn without_port(&self, settings: &Settings) -> Result<Vec<Entry>, TransportError> {
        if settings.port == 22 || settings.host_key_alias.is_some() {
            return Ok(Vec::new());
        }
        let mut entries = lookup(&self.files(settings), &settings.host.to_ascii_lowercase())
            .map_err(|e| TransportError::Config(words(&e)))?;
        entries.retain(|e| e.marker == Marker::Key);
        Ok(entries)
    }

    /// Where the key is called revoked.
    fn revoked(&self, settings: &Settings, key: &[u8]) -> Result<Option<(PathBuf, usize)>, TransportError> {
        let mut entries = self.known(settings)?;
        entries.retain(|e| e.marker == Marker::Revoked && e.key == key);
        if let Some(entry) = entries.pop() {
            return Ok(Some((entry.file, entry.line)));
        }
        let Some(file) = &settings.revoked_host_keys else { return Ok(None) };
        let bad =
            |reason: &str| TransportError::Config(format!("RevokedHostKeys {}: {reason}", file.display()));
        let data = fs::read(file).map_err(|e| bad(&words(&e)))?;
        if data.starts_with(b"SSHKRL\n") {
            return Err(bad("key revocation lists are not supported, only lists of keys"));
        }
        let text = String::from_utf8_lossy(&data);
        let line = text.lines().position(|line| {
            line.split_ascii_whitespace().any(|word| STANDARD.decode(word).is_ok_and(|blob| blob == key))
        });
        Ok(line.map(|index| (file.clone(), index + 1)))
    }
}

/// The kind of key that a host key algorithm signs with.
fn kind_of(algorithm: &str) -> &str {
    match algorithm {
        "rsa-sha2-512" | "rsa-sha2-256" => "ssh-rsa",
        other => other,
    }
}
