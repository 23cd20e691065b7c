//! Renewal of an agent's own token.

use homelab_model::{ApiKind, KubernetesSpec, Token};
use k8s_openapi::api::authentication::v1::TokenRequest;
use kube::Client;
use kube::api::PostParams;
use kube::core::Request;
use serde_json::json;

use crate::link::reasons;

/// There is no new token: why. It never holds one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RenewError(String);

/// A new token of the same account, for as long as the old one was (TokenRequest of `authentication.k8s.io/v1`).
///
/// # Errors
/// The server gives none, or one of another account.
pub async fn renewed(client: &Client, spec: &KubernetesSpec, old: &Token) -> Result<Token, RenewError> {
    let failed = |error: &dyn std::error::Error| RenewError(reasons(error));
    let life = old.expires.saturating_sub(old.issued);
    let request = token_request(&spec.namespace, &spec.service_account, life).map_err(|e| failed(&e))?;
    // As text: kube's client logs what it cannot read, and it may hold the token all the same.
    let text = client.request_text(request).await.map_err(|e| failed(&e))?;
    let unread = |_| RenewError("the answer is no TokenRequest".to_owned());
    let answer: TokenRequest = serde_json::from_str(&text).map_err(unread)?;
    let text = answer.status.and_then(|status| status.token).unwrap_or_default();
    let token = Token::parse(&text).map_err(|e| failed(&e))?;
    if (&token.namespace, &token.account, &token.uid) != (&old.namespace, &old.account, &old.uid) {
        return Err(RenewError(format!("it is another account's: {}", token.summary())));
    }
    Ok(token)
}

/// A TokenRequest (`authentication.k8s.io/v1`) for an account of ours: the first by the laptop, the next by the agent itself.
///
/// # Errors
/// The account has no name that can be sent.
pub(crate) fn token_request(
    namespace: &str,
    account: &str,
    seconds: u64,
) -> Result<http::Request<Vec<u8>>, kube::core::request::Error> {
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": seconds },
    });
    let path = ApiKind::ServiceAccount.path(namespace);
    Request::new(path).create_subresource(
        "token",
        account,
        &PostParams::default(),
        body.to_string().into_bytes(),
    )
}
