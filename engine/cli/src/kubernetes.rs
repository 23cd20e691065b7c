//! The way to the Kubernetes API that the cluster file describes.

use std::path::PathBuf;
use std::sync::OnceLock;

use homelab_config::Loaded;
use homelab_driver::Kubernetes;
use homelab_kube::{Access, Admin, Credential};
use homelab_model::{ApiEndpoint, ApiError, ApiObject, ApiState, Change, KubernetesAccess, Token};

use crate::error::CliError;
use crate::hints;
use crate::input::{STDIN, beside};

/// Reads what the file names. If it speaks of no Kubernetes, the kubeconfig that kubectl uses may lead to the API that the
/// nodes still know. Nothing is asked of the API yet.
pub(crate) fn open(loaded: &Loaded) -> Result<Option<Box<dyn Kubernetes>>, CliError> {
    let Some(settings) = &loaded.cluster.kubernetes else {
        let credential = Credential::Kubeconfig { path: None, context: None };
        let access = Access { credential, servers: Vec::new(), ca: None };
        let Ok(endpoint) = Admin::endpoint_of(&access) else { return Ok(None) };
        return Ok(Some(Box::new(Maybe { access, endpoint, admin: OnceLock::new() })));
    };
    let at = |key: &str, path: &String| {
        let named_by = loaded.kubernetes_sources.get(key).map_or(STDIN, String::as_str);
        beside(named_by, &at_home(path))
    };
    let credential = match &settings.access {
        KubernetesAccess::Kubeconfig { path, context } => Credential::Kubeconfig {
            path: path.as_ref().map(|path| at("kubeconfig", path)),
            context: context.clone(),
        },
        KubernetesAccess::Token { file } => Credential::Token(at("tokenFile", file)),
    };
    let ca: Option<PathBuf> = settings.ca_file.as_ref().map(|path| at("ca", path));
    let admin = Admin::new(&Access { credential, servers: settings.servers.clone(), ca });
    let admin = admin.map_err(|error| {
        hints::kubernetes(&error).into_iter().fold(CliError::new(error.to_string()), CliError::hint)
    })?;
    Ok(Some(Box::new(Laptop(admin))))
}

/// A leading `~/` is the home directory.
fn at_home(path: &str) -> String {
    let home = std::env::var("HOME").ok().filter(|home| !home.is_empty());
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => format!("{home}/{rest}"),
        _ => path.to_owned(),
    }
}

/// An API that only the kubeconfig names: nothing of it is used, no credential program either, until it is known to be the
/// nodes' own.
struct Maybe {
    access: Access,
    endpoint: ApiEndpoint,
    admin: OnceLock<Result<Laptop, ApiError>>,
}

impl Maybe {
    fn laptop(&self) -> Result<&Laptop, ApiError> {
        let made = self.admin.get_or_init(|| Admin::new(&self.access).map(Laptop));
        made.as_ref().map_err(Clone::clone)
    }
}

impl Kubernetes for Maybe {
    fn endpoint(&self) -> ApiEndpoint {
        self.endpoint.clone()
    }

    fn observe(&self) -> Result<ApiState, ApiError> {
        self.laptop()?.observe()
    }

    fn carry_out(&self, change: &Change<ApiObject>) -> Result<(), ApiError> {
        self.laptop()?.carry_out(change)
    }

    fn token(&self, account: &str) -> Result<Token, ApiError> {
        self.laptop()?.token(account)
    }
}

/// What the driver needs, by a real connection.
struct Laptop(Admin);

impl Kubernetes for Laptop {
    fn endpoint(&self) -> ApiEndpoint {
        self.0.endpoint().clone()
    }

    fn observe(&self) -> Result<ApiState, ApiError> {
        self.0.observe()
    }

    fn carry_out(&self, change: &Change<ApiObject>) -> Result<(), ApiError> {
        self.0.carry_out(change)
    }

    fn token(&self, account: &str) -> Result<Token, ApiError> {
        self.0.token(account)
    }
}
