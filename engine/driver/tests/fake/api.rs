//! A Kubernetes API in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use homelab_driver::Kubernetes;
use homelab_model::{
    ApiEndpoint, ApiError, ApiKey, ApiKind, ApiNode, ApiObject, ApiService, ApiState, Change, Object, Token,
    ours,
};

/// What is in it, and how it misbehaves.
#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) objects: BTreeMap<ApiKey, ApiObject>,
    pub(crate) nodes: Vec<ApiNode>,
    pub(crate) services: Vec<ApiService>,
    /// Every request fails so.
    pub(crate) down: Option<ApiError>,
    /// Writes of this object fail.
    pub(crate) refused: Option<String>,
    /// Changes carried out, in order.
    pub(crate) log: Vec<String>,
    /// Accounts that tokens were issued to.
    pub(crate) issued: Vec<String>,
    /// When tokens end, seconds since 1970.
    pub(crate) expires: u64,
    made: u64,
}

/// An API server and what is behind it.
#[derive(Clone, Default)]
pub(crate) struct Api(Arc<Mutex<Cluster>>);

impl Api {
    pub(crate) fn new() -> Api {
        let api = Api::default();
        // Long after the fake nodes' own time, and long after today.
        api.with(|c| c.expires = 1 << 40);
        api
    }

    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Cluster) -> R) -> R {
        work(&mut self.0.lock().unwrap())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.with(|c| c.objects.keys().map(ToString::to_string).collect())
    }
}

impl Cluster {
    pub(crate) fn put(&mut self, mut object: ApiObject) {
        self.made += 1;
        if object.kind == ApiKind::ServiceAccount {
            let key = object.key();
            let before = self.objects.get(&key).and_then(|o| o.uid.clone());
            object.uid = before.or_else(|| Some(format!("uid-{}", self.made)));
        }
        self.objects.insert(object.key(), object);
    }

    fn up(&self) -> Result<(), ApiError> {
        self.down.clone().map_or(Ok(()), Err)
    }
}

/// A token of the account with this uid.
pub(crate) fn token(account: &str, uid: &str, expires: u64) -> String {
    let claims = serde_json::json!({
        "iat": 1000, "exp": expires,
        "kubernetes.io": {
            "namespace": ours::KUBERNETES_NAMESPACE, "serviceaccount": { "name": account, "uid": uid },
        },
    });
    format!("e30.{}.{}", base64url(claims.to_string().as_bytes()), base64url(b"signature"))
}

fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut bits = [0_u8; 3];
        bits[..chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes([0, bits[0], bits[1], bits[2]]);
        for place in 0..=chunk.len() {
            text.push(char::from(LETTERS[(number >> (18 - 6 * place)) as usize & 63]));
        }
    }
    text
}

impl Kubernetes for Api {
    fn endpoint(&self) -> ApiEndpoint {
        ApiEndpoint {
            servers: vec!["https://192.168.50.11:6443".into()],
            ca: Some("-----BEGIN CERTIFICATE-----\n".into()),
            server_name: None,
        }
    }

    fn observe(&self) -> Result<ApiState, ApiError> {
        self.with(|c| {
            c.up()?;
            let objects = c.objects.values().cloned().collect();
            Ok(ApiState { objects, nodes: c.nodes.clone(), services: c.services.clone() })
        })
    }

    fn carry_out(&self, change: &Change<ApiObject>) -> Result<(), ApiError> {
        self.with(|c| {
            c.up()?;
            let name = change.key().to_string();
            if c.refused.as_ref() == Some(&name) {
                return Err(ApiError::Refused {
                    what: format!("to write {name}"),
                    code: 403,
                    message: "no".into(),
                });
            }
            c.log.push(name);
            if matches!(change, Change::Replace { .. } | Change::Delete { .. }) {
                c.objects.remove(&change.key());
            }
            let key = change.key();
            if key.kind == ApiKind::Service {
                for service in c
                    .services
                    .iter_mut()
                    .filter(|one| (&one.namespace, &one.name) == (&key.namespace, &key.name))
                {
                    (service.held, service.given) = (false, Vec::new());
                }
            } else if let Some(after) = change.after() {
                c.put(after.clone());
            }
            Ok(())
        })
    }

    fn token(&self, account: &str) -> Result<Token, ApiError> {
        self.with(|c| {
            c.up()?;
            let key = ApiKey {
                kind: ApiKind::ServiceAccount,
                namespace: ours::KUBERNETES_NAMESPACE.into(),
                name: account.into(),
            };
            let uid = c.objects[&key].uid.clone().unwrap();
            c.issued.push(account.to_owned());
            Ok(Token::parse(&token(account, &uid, c.expires)).unwrap())
        })
    }
}
