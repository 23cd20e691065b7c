//! Kubernetes as a source: what the laptop is told of the cluster, and what every agent is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Pool, ours};

/// Where the peers of tunnels come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodesFrom {
    /// The nodes of homelab.yaml, and no others.
    #[default]
    FromFile,
    /// These, and the Nodes of the Kubernetes API, which the agents follow without a laptop.
    FromKubernetes,
}

impl NodesFrom {
    /// Whether it is what a file that says nothing means.
    pub fn is_default(&self) -> bool {
        *self == NodesFrom::default()
    }
}

/// What homelab.yaml says of Kubernetes (`kubernetes:`), after defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesSettings {
    /// How the laptop reaches the API.
    pub access: KubernetesAccess,
    /// URLs under which the agents reach the API server, tried in this order; empty: the one of the kubeconfig.
    pub servers: Vec<String>,
    /// File with the API server's CA certificates (PEM), as the file says it, relative to it; None: that of the
    /// kubeconfig.
    pub ca_file: Option<String>,
    /// Where the peers of tunnels come from.
    #[serde(skip_serializing_if = "NodesFrom::is_default")]
    pub nodes: NodesFrom,
    /// Services with this `service.kubernetes.io/service-proxy-name` are served; None: those without that label.
    pub service_proxy_name: Option<String>,
    /// The `spec.loadBalancerClass` that is ours, beside none.
    pub load_balancer_class: String,
    /// TCP port of 127.0.0.1 where agents answer what kube-proxy answers at its `metricsBindAddress`; 0: nowhere.
    pub metrics_port: u16,
}

impl KubernetesSettings {
    /// kube-proxy's own port.
    pub const METRICS_PORT: u16 = 10249;

    /// The class of load balancers, unless the file says otherwise.
    pub const CLASS: &str = "homelab";

    /// What this access, and nothing else said, comes to.
    pub fn new(access: KubernetesAccess) -> KubernetesSettings {
        KubernetesSettings {
            access,
            servers: Vec::new(),
            ca_file: None,
            nodes: NodesFrom::default(),
            service_proxy_name: None,
            load_balancer_class: KubernetesSettings::CLASS.to_owned(),
            metrics_port: KubernetesSettings::METRICS_PORT,
        }
    }
}

/// How the laptop reaches the API. Paths are as the file says them, relative to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum KubernetesAccess {
    /// By a kubeconfig.
    #[serde(rename_all = "camelCase")]
    Kubeconfig {
        /// Its path; None: what `KUBECONFIG` says, else `~/.kube/config`.
        path: Option<String>,
        /// The context; None: the current one.
        context: Option<String>,
    },
    /// By `servers`, `ca_file` and a bearer token.
    #[serde(rename_all = "camelCase")]
    Token {
        /// The file with the token.
        file: String,
    },
}

/// What an agent is told of Kubernetes. Its token is in [`crate::ours::KUBERNETES_TOKEN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesSpec {
    /// URLs of API servers, tried in this order: `https://192.168.50.11:6443`.
    pub servers: Vec<String>,
    /// The certificates that their certificates are checked with, PEM; None: those of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The name that the server's certificate is to hold; None: the host of the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// The agent's ServiceAccount.
    pub service_account: String,
    /// The namespace of that account, of Leases, and of what else is ours.
    pub namespace: String,
    /// See [`KubernetesSettings::nodes`].
    #[serde(default, skip_serializing_if = "NodesFrom::is_default")]
    pub nodes: NodesFrom,
    /// See [`KubernetesSettings::service_proxy_name`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_proxy_name: Option<String>,
    /// See [`KubernetesSettings::load_balancer_class`].
    pub load_balancer_class: String,
    /// See [`KubernetesSettings::metrics_port`].
    #[serde(default)]
    pub metrics_port: u16,
    /// The pools of the file, for the controller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Pool>,
}

impl KubernetesSpec {
    /// These servers, for the agent of a node, with what settings leave open.
    pub fn new(servers: Vec<String>, node: &str) -> KubernetesSpec {
        KubernetesSpec {
            servers,
            ca: None,
            server_name: None,
            service_account: service_account(node),
            namespace: ours::KUBERNETES_NAMESPACE.to_owned(),
            nodes: NodesFrom::default(),
            service_proxy_name: None,
            load_balancer_class: KubernetesSettings::CLASS.to_owned(),
            metrics_port: 0,
            pools: Vec::new(),
        }
    }
}

/// Name of the ServiceAccount of a node's agent: `homelab-node1`.
pub fn service_account(node: &str) -> String {
    format!("homelab-{node}")
}

/// A bound token of a ServiceAccount: a JWT (RFC 7519) with Kubernetes' claims. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    text: String,
    /// Namespace of the account.
    pub namespace: String,
    /// Name of the account.
    pub account: String,
    /// `metadata.uid` of the account: an account that was made anew has another one, and old tokens are refused.
    pub uid: String,
    /// When it was issued, seconds since 1970.
    pub issued: u64,
    /// When it ends, seconds since 1970.
    pub expires: u64,
}

/// The text is not a bound token of a ServiceAccount. It does not say more: the text is a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token of a ServiceAccount")]
pub struct TokenError;

#[derive(Deserialize)]
struct Claims {
    iat: u64,
    exp: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Account,
}

#[derive(Deserialize)]
struct Account {
    name: String,
    uid: String,
}

impl Token {
    /// Reads the claims of a token, one line. Its signature is the API server's matter.
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let text = text.trim_end_matches('\n');
        let mut parts = text.split('.');
        let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError);
        };
        let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !text.chars().all(sound) {
            return Err(TokenError);
        }
        let claims = base64url(claims).ok_or(TokenError)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| TokenError)?;
        let Bound { namespace, serviceaccount } = claims.kubernetes;
        // They stand in plans and reports.
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
        if ![&namespace, &serviceaccount.name, &serviceaccount.uid].iter().all(|text| plain(text)) {
            return Err(TokenError);
        }
        Ok(Token {
            text: text.to_owned(),
            namespace,
            account: serviceaccount.name,
            uid: serviceaccount.uid,
            issued: claims.iat,
            expires: claims.exp,
        })
    }

    /// The token itself, for the `Authorization` header.
    pub fn secret(&self) -> &str {
        &self.text
    }

    /// The text of the file.
    pub fn to_text(&self) -> String {
        format!("{}\n", self.text)
    }

    /// When the agent replaces it: at 80 % of its life, seconds since 1970.
    pub fn renewal(&self) -> u64 {
        let life = self.expires.saturating_sub(self.issued);
        self.issued.saturating_add(life - life / 5)
    }

    /// Whether it is time to replace it. `now`, and when it came to the node (`written`), are of the node's own clock, seconds
    /// since 1970. That may be wrong: where a token came before it was issued, the clock is behind the API server's by that
    /// much at least, and a renewal by it would come too late.
    pub fn is_due(&self, now: u64, written: u64) -> bool {
        let behind = self.issued.saturating_sub(written);
        now.saturating_add(behind) >= self.renewal()
    }

    /// Whose it is: `homelab-system/homelab-node1, uid 4f0c…`. The agent's renewals do not change that.
    pub fn summary(&self) -> String {
        format!("{}/{}, uid {}", self.namespace, self.account, self.uid)
    }
}

/// Tokens are never printed.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())
    }
}

/// base64url without padding (RFC 4648, section 5).
fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0_u8);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    (bits == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"exp":2000,"iat":1000,"kubernetes.io":{"namespace":"homelab-system","serviceaccount":{"name":"homelab-node1",
    /// "uid":"4f0c-1"}}}`
    const CLAIMS: &str = "eyJleHAiOjIwMDAsImlhdCI6MTAwMCwia3ViZXJuZXRlcy5pbyI6eyJuYW1lc3BhY2UiOiJob21lbGFiLXN5c3RlbSIsInNlcnZpY2VhY2NvdW50Ijp7Im5hbWUiOiJob21lbGFiLW5vZGUxIiwidWlkIjoiNGYwYy0xIn19fQ";

    #[test]
    fn a_token_says_whose_it_is_and_shows_nothing() {
        let text = format!("eyJhbGciOiJSUzI1NiJ9.{CLAIMS}.c2lnbmF0dXJl");
        let token = Token::parse(&format!("{text}\n")).unwrap();
        assert_eq!(token.summary(), "homelab-system/homelab-node1, uid 4f0c-1");
        assert_eq!((token.issued, token.expires, token.renewal()), (1000, 2000, 1800));
        for (now, written, due) in [
            (1799, 1000, false),
            (1800, 1000, true),
            // Written again from a copy.
            (1799, 1700, false),
            // The node's clock is behind by 900, by a day before 1970, ahead.
            (899, 100, false),
            (900, 100, true),
            (799, 0, false),
            (800, 0, true),
            (5000, 4200, true),
        ] {
            assert_eq!(token.is_due(now, written), due, "{now} {written}");
        }
        assert_eq!(token.secret(), text);
        assert_eq!(Token::parse(&token.to_text()), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("c2ln"));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for bad in [
            "",
            "abc",
            "a.b.c",
            "a.!.c",
            &format!("a.{CLAIMS}"),
            &format!("a.{CLAIMS}.c.d"),
            &format!("a.{CLAIMS}.c\nd"),
        ] {
            assert_eq!(Token::parse(bad), Err(TokenError), "{bad}");
        }
    }
}
