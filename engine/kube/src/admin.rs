//! The laptop's way to the API: by a kubeconfig or a token it looks at what homelab makes there, and writes it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use homelab_kubernetes::controller::{LEDGER, Ledger};
use homelab_model::{
    ApiEndpoint, ApiError, ApiKind, ApiNode, ApiObject, ApiState, Change, Object, Token, ours,
};
use kube::api::{DeleteParams, GetParams, ListParams, Patch, PatchParams};
use kube::client::AuthError;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::Request;
use kube::{Client, Config};
use serde_json::Value;

use crate::released;
use crate::token::token_request;
use tokio::runtime::Runtime;

use crate::link::{certificates, pem, reasons};

/// How often others may be faster.
const CONFLICTS: u32 = 10;
/// Longest time for one answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Life of a token that is asked for, seconds. The server may shorten it. A node that was off for some days still has one
/// that it can renew.
pub const TOKEN_LIFE: u64 = 7 * 24 * 3600;

/// How the laptop reaches the API. Paths are those of the laptop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The credential.
    pub credential: Credential,
    /// URLs for the agents, and for a credential that names none; empty: the URL of the kubeconfig.
    pub servers: Vec<String>,
    /// File with the certificates (PEM) that the server's is checked with; None: those of the kubeconfig.
    pub ca: Option<PathBuf>,
}

/// What proves who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A kubeconfig.
    Kubeconfig {
        /// Its path; None: `KUBECONFIG`, else `~/.kube/config`.
        path: Option<PathBuf>,
        /// The context; None: the current one.
        context: Option<String>,
    },
    /// A file with a bearer token.
    Token(PathBuf),
}

/// A client of the API for one command.
pub struct Admin {
    runtime: Runtime,
    client: Client,
    /// URL that we use.
    server: String,
    program: String,
    endpoint: ApiEndpoint,
}

fn config_error(text: impl Into<String>) -> ApiError {
    ApiError::Config(text.into())
}

impl Admin {
    /// Reads what `access` names. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// What cannot be read or does not fit together.
    pub fn new(access: &Access) -> Result<Admin, ApiError> {
        let runtime = runtime()?;
        let Way { config, program, server, endpoint } = way(&runtime, access)?;
        let guard = runtime.enter();
        let client = Client::try_from(config).map_err(|error| translate(&error, "", &server, &program))?;
        drop(guard);
        Ok(Admin { runtime, client, server, program, endpoint })
    }

    /// How agents would reach the API that `access` names. No credential program is run for that.
    ///
    /// # Errors
    /// What cannot be read or does not fit together.
    pub fn endpoint_of(access: &Access) -> Result<ApiEndpoint, ApiError> {
        Ok(way(&runtime()?, access)?.endpoint)
    }

    /// How agents reach the API.
    pub fn endpoint(&self) -> &ApiEndpoint {
        &self.endpoint
    }

    /// Looks at what homelab makes, and at the Nodes.
    ///
    /// # Errors
    /// The API cannot be reached or refuses it.
    pub fn observe(&self) -> Result<ApiState, ApiError> {
        self.runtime.block_on(async {
            let mut state = ApiState::default();
            for kind in ApiKind::ALL {
                let path = kind.path(ours::KUBERNETES_NAMESPACE);
                for item in self.list(&path, &format!("to list {}s", kind.as_str())).await? {
                    state.objects.extend(
                        ApiObject::read(kind, &item)
                            .filter(|object| object.is_managed() || object.name.starts_with("homelab")),
                    );
                }
            }
            let nodes = self.list("/api/v1/nodes", "to list Nodes").await?;
            state.nodes = nodes.iter().filter_map(ApiNode::read).collect();
            let ledger = self.ledger().await?;
            let services = self.list("/api/v1/services", "to list Services").await?;
            state.services = services.iter().filter_map(|one| released::read(one, &ledger)).collect();
            state.objects.sort_by_key(Object::key);
            Ok(state)
        })
    }

    /// Carries out one change, by server-side apply. Deleting what is gone already is no error.
    ///
    /// # Errors
    /// The API cannot be reached or refuses it.
    pub fn carry_out(&self, change: &Change<ApiObject>) -> Result<(), ApiError> {
        let key = change.key();
        if key.kind == ApiKind::Service {
            return self.runtime.block_on(self.release(change));
        }
        let request = Request::new(key.kind.path(&key.namespace));
        let what = format!("to write {key}");
        self.runtime.block_on(async {
            if matches!(change, Change::Replace { .. } | Change::Delete { .. }) {
                let delete = request.delete(&key.name, &DeleteParams::default());
                match self.ask(delete.map_err(|e| broken(&what, &e))?, &what).await {
                    Err(ApiError::Refused { code: 404, .. }) | Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
            if let Some(after) = change.after() {
                // Whoever else wrote our fields loses them: that is drift, and it was shown.
                let how = PatchParams::apply(ours::FIELD_MANAGER).force();
                let patch = request.patch(&key.name, &how, &Patch::Apply(after.manifest()));
                self.ask(patch.map_err(|e| broken(&what, &e))?, &what).await?;
            }
            Ok(())
        })
    }

    /// A new bound token of a ServiceAccount of ours.
    ///
    /// # Errors
    /// The API cannot be reached or refuses it.
    pub fn token(&self, account: &str) -> Result<Token, ApiError> {
        let what = format!("a token of {account}");
        self.runtime.block_on(async {
            let request = token_request(ours::KUBERNETES_NAMESPACE, account, TOKEN_LIFE)
                .map_err(|e| broken(&what, &e))?;
            let answer = self.ask(request, &what).await?;
            let text = answer.pointer("/status/token").and_then(Value::as_str).unwrap_or_default();
            let reason = |e: homelab_model::TokenError| ApiError::Answer { what, reason: e.to_string() };
            Token::parse(text).map_err(reason)
        })
    }

    /// What the controller has noted of addresses.
    async fn ledger(&self) -> Result<Ledger, ApiError> {
        let what = "to read the ledger of addresses";
        let path = format!("/api/v1/namespaces/{}/configmaps", ours::KUBERNETES_NAMESPACE);
        let request = Request::new(path).get(LEDGER, &GetParams::default()).map_err(|e| broken(what, &e))?;
        match self.ask(request, what).await {
            Ok(map) => Ok(released::ledger(&map)),
            Err(ApiError::Refused { code: 404, .. }) => Ok(Ledger::default()),
            Err(error) => Err(error),
        }
    }

    /// Takes off a Service what our controller wrote, whatever others write meanwhile.
    async fn release(&self, change: &Change<ApiObject>) -> Result<(), ApiError> {
        let (Some(before), key) = (change.before(), change.key()) else { return Ok(()) };
        let what = format!("to write {key}");
        let request = Request::new(key.kind.path(&key.namespace));
        let mut tries = 0;
        loop {
            let get = request.get(&key.name, &GetParams::default()).map_err(|e| broken(&what, &e))?;
            let service = match self.ask(get, &what).await {
                Err(ApiError::Refused { code: 404, .. }) => return Ok(()),
                answer => answer?,
            };
            let Some(patch) = released::patch(&service, before) else { return Ok(()) };
            let how = PatchParams::default();
            let patch = request.patch_subresource("status", &key.name, &how, &Patch::Merge(patch));
            match self.ask(patch.map_err(|e| broken(&what, &e))?, &what).await {
                Err(ApiError::Refused { code: 404, .. }) => return Ok(()),
                Err(ApiError::Refused { code: 409, .. }) if tries < CONFLICTS => tries += 1,
                answer => return answer.map(drop),
            }
        }
    }

    async fn list(&self, path: &str, what: &str) -> Result<Vec<Value>, ApiError> {
        let request = Request::new(path).list(&ListParams::default()).map_err(|e| broken(what, &e))?;
        match self.ask(request, what).await?.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            // An empty list may be null.
            Some(Value::Null) => Ok(Vec::new()),
            _ => Err(ApiError::Answer { what: what.to_owned(), reason: "no list".to_owned() }),
        }
    }

    async fn ask(&self, request: http::Request<Vec<u8>>, what: &str) -> Result<Value, ApiError> {
        match tokio::time::timeout(ANSWER, self.client.request::<Value>(request)).await {
            Ok(result) => result.map_err(|error| translate(&error, what, &self.server, &self.program)),
            Err(_) => Err(ApiError::Unreachable {
                server: self.server.clone(),
                reason: format!("no answer within {} s", ANSWER.as_secs()),
            }),
        }
    }
}

/// What `access` comes to.
struct Way {
    config: Config,
    /// The program that gives the credential, if one does.
    program: String,
    server: String,
    endpoint: ApiEndpoint,
}

fn runtime() -> Result<Runtime, ApiError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| config_error(format!("no runtime: {e}")))
}

fn way(runtime: &Runtime, access: &Access) -> Result<Way, ApiError> {
    let (mut config, program) = match &access.credential {
        Credential::Kubeconfig { path, context } => {
            by_kubeconfig(runtime, path.as_deref(), context.as_deref())?
        }
        Credential::Token(path) => (by_token(access, path)?, String::new()),
    };
    if let Some(path) = &access.ca {
        let text = read(path)?;
        let all = certificates(&text);
        let all =
            all.ok_or_else(|| config_error(format!("{} holds no certificates (PEM)", path.display())))?;
        config.root_cert = Some(all);
        config.accept_invalid_certs = false;
    }
    config.connect_timeout = Some(ANSWER / 2);
    config.read_timeout = Some(ANSWER);
    config.default_retry = false;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let endpoint = endpoint(access, &config, &server)?;
    Ok(Way { config, program, server, endpoint })
}

fn broken(what: &str, error: &kube::core::request::Error) -> ApiError {
    ApiError::Answer { what: what.to_owned(), reason: error.to_string() }
}

fn read(path: &Path) -> Result<String, ApiError> {
    std::fs::read_to_string(path).map_err(|e| config_error(format!("cannot read {}: {e}", path.display())))
}

fn by_token(access: &Access, path: &Path) -> Result<Config, ApiError> {
    let server = access.servers.first().map(String::as_str).unwrap_or_default();
    let url = server.parse().map_err(|_| config_error(format!("{server:?} is no URL")))?;
    let token = read(path)?;
    if token.trim().is_empty() {
        return Err(config_error(format!("{} is empty, and should hold a token", path.display())));
    }
    let mut config = Config::new(url);
    config.auth_info.token = Some(token.trim().to_owned().into());
    Ok(config)
}

/// The configuration, and the program that gives the credential, if one does.
fn by_kubeconfig(
    runtime: &Runtime,
    path: Option<&Path>,
    context: Option<&str>,
) -> Result<(Config, String), ApiError> {
    let file = path.map_or_else(|| "the kubeconfig".to_owned(), |path| path.display().to_string());
    let wrong = |error: &KubeconfigError| match error {
        KubeconfigError::FindPath => {
            config_error("there is no kubeconfig: neither KUBECONFIG nor a home directory")
        }
        KubeconfigError::ReadConfig(error, path) => {
            config_error(format!("cannot read {}: {error}", path.display()))
        }
        // The parser's words may quote a line with a key.
        KubeconfigError::Parse(_) => config_error(format!("{file} is no kubeconfig")),
        KubeconfigError::LoadCertificateAuthority(_)
        | KubeconfigError::LoadClientCertificate(_)
        | KubeconfigError::LoadClientKey(_)
        | KubeconfigError::CurrentContextNotSet
        | KubeconfigError::MissingClusterUrl
        | KubeconfigError::LoadContext(_)
        | KubeconfigError::LoadClusterOfContext(_) => config_error(format!("{file}: {}", reasons(error))),
        _ => config_error(format!("{file} cannot be used")),
    };
    let kubeconfig = match path {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let kubeconfig = kubeconfig.map_err(|error| wrong(&error))?;
    let names: Vec<&str> = kubeconfig.contexts.iter().map(|context| context.name.as_str()).collect();
    let wanted = context.or(kubeconfig.current_context.as_deref()).unwrap_or_default().to_owned();
    if wanted.is_empty() {
        return Err(config_error(format!(
            "{file} has no current context; its contexts are {}",
            names.join(", ")
        )));
    }
    let Some(chosen) = kubeconfig.contexts.iter().find(|context| context.name == wanted) else {
        return Err(config_error(format!(
            "{file} has no context {wanted:?}; its contexts are {}",
            names.join(", ")
        )));
    };
    let user = chosen.context.as_ref().and_then(|context| context.user.clone());
    let user = kubeconfig.auth_infos.iter().find(|info| Some(&info.name) == user.as_ref());
    let exec = user.and_then(|info| info.auth_info.as_ref()?.exec.as_ref()?.command.clone());
    let options = KubeConfigOptions { context: Some(wanted), ..KubeConfigOptions::default() };
    let config = runtime.block_on(Config::from_custom_kubeconfig(kubeconfig, &options));
    Ok((config.map_err(|error| wrong(&error))?, exec.unwrap_or_default()))
}

/// What agents are told.
fn endpoint(access: &Access, config: &Config, server: &str) -> Result<ApiEndpoint, ApiError> {
    let servers = match access.servers.is_empty() {
        false => access.servers.clone(),
        true => {
            let host = config.cluster_url.host().unwrap_or_default().trim_matches(['[', ']']);
            let local = host == "localhost"
                || host.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback() || a.is_unspecified());
            if local {
                return Err(config_error(format!(
                    "the kubeconfig's server is {server}, which on the nodes is each node itself"
                )));
            }
            vec![server.to_owned()]
        }
    };
    if let Some(clear) = servers.iter().find(|server| !server.starts_with("https://")) {
        return Err(config_error(format!("the nodes' tokens are not sent in the clear: {clear}")));
    }
    let ca = config.root_cert.as_ref().map(|all| pem(all));
    if config.accept_invalid_certs && ca.is_none() {
        return Err(config_error(
            "the kubeconfig leaves the server's certificate unchecked (insecure-skip-tls-verify), and nodes do not",
        ));
    }
    // A name is that of the kubeconfig's server, not of others.
    let server_name = config.tls_server_name.clone().filter(|_| access.servers.is_empty());
    Ok(ApiEndpoint { servers, ca, server_name })
}

/// An error of the client in our words, without what a credential program printed.
fn translate(error: &kube::Error, what: &str, server: &str, program: &str) -> ApiError {
    let server = server.to_owned();
    match error {
        kube::Error::Api(status) if status.code == 401 => return ApiError::Unauthorized { server },
        kube::Error::Api(status) => {
            let message = status.message.clone();
            return ApiError::Refused { what: what.to_owned(), code: status.code, message };
        }
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
            let reason = "no JSON of Kubernetes".to_owned();
            return ApiError::Answer { what: what.to_owned(), reason };
        }
        _ => {}
    }
    if let Some(auth) = auth_error(error) {
        let reason = match auth {
            AuthError::AuthExecStart(error) => format!("it cannot be started: {error}"),
            AuthError::AuthExecRun { out, .. } => format!("it ended with {}", out.status),
            AuthError::ReadTokenFile(error, path) => {
                return config_error(format!("cannot read the token in {}: {error}", path.display()));
            }
            _ => "what it gave is no credential".to_owned(),
        };
        return match program {
            "" => config_error("the credential of the kubeconfig is of no use"),
            program => ApiError::Plugin { program: program.to_owned(), reason },
        };
    }
    let reason = reasons(error);
    let lower = reason.to_lowercase();
    if ["certificate", "tls", "handshake"].iter().any(|word| lower.contains(word)) {
        ApiError::Tls { server, reason }
    } else {
        ApiError::Unreachable { server, reason }
    }
}

/// The failure to get a credential, if that is what is behind an error.
fn auth_error(error: &kube::Error) -> Option<&AuthError> {
    if let kube::Error::Auth(auth) = error {
        return Some(auth);
    }
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(auth) = cause.downcast_ref::<AuthError>() {
            return Some(auth);
        }
        next = cause.source();
    }
    None
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
