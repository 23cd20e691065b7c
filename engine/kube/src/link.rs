//! An agent's way to the API: several servers, of which one is in use, and a token in a file that others renew.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use homelab_model::KubernetesSpec;
use kube::{Client, Config};

/// How long things may take before they count as failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until an answer begins, and between two parts of a list.
    pub answer: Duration,
    /// How long one watch is to last, whole seconds; then the server ends it, and the next one begins where it ended.
    pub watch: Duration,
    /// How much longer a watch may last: a server that does not end it hangs.
    pub grace: Duration,
    /// The first pause after a failure; each is twice as long as the one before.
    pub pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            answer: Duration::from_secs(20),
            watch: Duration::from_secs(60),
            grace: Duration::from_secs(15),
            pause: Duration::from_millis(250),
            // A home's servers are few: none is overrun by them, and a reboot of the control plane is not to be felt longer.
            longest_pause: Duration::from_secs(5),
        }
    }
}

/// There is no client to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The token's file cannot be read: why. The laptop puts it there.
    #[error("{0}: {1}; run homelab apply")]
    Token(String, String),
    /// The CA's certificates cannot be read.
    #[error("the certificates of the API server's CA are no PEM")]
    Ca,
    /// What is wrong with the address of a server.
    #[error("{0}: {1}")]
    Server(String, String),
    /// No address of a server is known.
    #[error("no address of an API server is known")]
    NoServer,
}

/// The servers, the one in use, and a client for it.
pub struct Link {
    spec: KubernetesSpec,
    token: PathBuf,
    patience: Patience,
    at: Cell<usize>,
    /// Counts clients, so that a failure of an older one means nothing for the one in use.
    number: Cell<u64>,
    client: RefCell<Option<Client>>,
}

impl Link {
    /// By the servers of `spec`, with the token that is in this file.
    pub fn new(spec: KubernetesSpec, token: PathBuf, patience: Patience) -> Link {
        Link { spec, token, patience, at: Cell::new(0), number: Cell::new(0), client: RefCell::new(None) }
    }

    /// How long things may take.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// URL of the server in use.
    pub fn server(&self) -> &str {
        self.spec.servers.get(self.at.get()).map_or("", String::as_str)
    }

    /// A client for the server in use, and its number. Call it inside a runtime.
    ///
    /// # Errors
    /// Whatever is missing for one.
    pub fn client(&self) -> Result<(u64, Client), LinkError> {
        if let Some(client) = &*self.client.borrow() {
            return Ok((self.number.get(), client.clone()));
        }
        let client = self.connect()?;
        *self.client.borrow_mut() = Some(client.clone());
        self.number.set(self.number.get() + 1);
        Ok((self.number.get(), client))
    }

    /// The client of this number failed: the next server's turn.
    pub fn failed(&self, number: u64) {
        if self.renew(number) {
            self.at.set((self.at.get() + 1) % self.spec.servers.len().max(1));
        }
    }

    /// The client of this number was refused: the token is read again. False if it is no longer in use.
    pub fn renew(&self, number: u64) -> bool {
        number == self.number.get() && self.client.borrow_mut().take().is_some()
    }

    fn connect(&self) -> Result<Client, LinkError> {
        let server = self.spec.servers.get(self.at.get()).ok_or(LinkError::NoServer)?;
        let wrong = |why: String| LinkError::Server(server.clone(), why);
        let mut config = Config::new(server.parse().map_err(|_| wrong("no URL".to_owned()))?);
        if let Some(ca) = &self.spec.ca {
            config.root_cert = Some(certificates(ca).ok_or(LinkError::Ca)?);
        }
        if server.starts_with("http://") {
            // Nothing to check; the machine's own certificates, which it may lack, are not asked for.
            config.root_cert.get_or_insert_default();
        }
        config.tls_server_name.clone_from(&self.spec.server_name);
        config.connect_timeout = Some(self.patience.answer);
        // Who asks tries again, in its own time.
        config.default_retry = false;
        let failed =
            |error: std::io::Error| LinkError::Token(self.token.display().to_string(), error.to_string());
        let token = std::fs::read_to_string(&self.token).map_err(failed)?;
        config.auth_info.token = Some(token.trim().to_owned().into());
        Client::try_from(config).map_err(|error| wrong(reasons(&error)))
    }
}

/// The certificates of a PEM text in DER; None if there are none, or one is broken.
pub(crate) fn certificates(pem: &str) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for block in pem.split("-----BEGIN CERTIFICATE-----").skip(1) {
        let (body, _) = block.split_once("-----END CERTIFICATE-----")?;
        let text: String = body.split_whitespace().collect();
        all.push(STANDARD.decode(text).ok()?);
    }
    (!all.is_empty()).then_some(all)
}

/// Certificates in DER as PEM.
pub(crate) fn pem(certificates: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for der in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut rest = STANDARD.encode(der);
        while !rest.is_empty() {
            let more = rest.split_off(rest.len().min(64));
            text.push_str(&rest);
            text.push('\n');
            rest = more;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// An error with all its causes, each once.
pub(crate) fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_of_a_bundle() {
        let one = "-----BEGIN CERTIFICATE-----\naGVs\nbG8=\n-----END CERTIFICATE-----\n";
        assert_eq!(certificates(&format!("# CA\n{one}{one}")), Some(vec![b"hello".to_vec(); 2]));
        assert_eq!(certificates(&pem(&[vec![7; 100]])), Some(vec![vec![7; 100]]));
        for bad in ["", "hello", "-----BEGIN CERTIFICATE-----\naGVs", &one.replace("aGVs", "!")] {
            assert_eq!(certificates(bad), None, "{bad}");
        }
    }
}
