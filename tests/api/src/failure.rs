//! What a request comes to that is not carried out, as Kubernetes says it.

use serde_json::{Value, json};

/// Why a request is not carried out. [`Failure::status`] is what goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No such object: resource, name.
    #[error("{0} {1:?} not found")]
    NotFound(&'static str, String),
    /// No resource at this path.
    #[error("the server could not find the requested resource")]
    NoResource,
    /// There is one of this name: resource, name.
    #[error("{0} {1:?} already exists")]
    AlreadyExists(&'static str, String),
    /// The object has changed since the client read it: resource, name.
    #[error(
        "Operation cannot be fulfilled on {0} {1:?}: the object has been modified; please apply your changes to the latest version and try again"
    )]
    Conflict(&'static str, String),
    /// History does not go back to this resource version: the one asked for, the oldest there is.
    #[error("too old resource version: {0} ({1})")]
    Expired(u64, u64),
    /// A resource version of the future: the one asked for, the last there is.
    #[error("Too large resource version: {0}, current: {1}")]
    TooLarge(u64, u64),
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// The parameters contradict each other, or the object does so.
    #[error("{0}")]
    Invalid(String),
    /// No such credential, or it is over.
    #[error("Unauthorized")]
    Unauthorized,
    /// Not for who asks.
    #[error("{0}")]
    Forbidden(String),
    /// Fields that others manage: resource, name, paths of the fields.
    #[error("Apply failed with {n} conflicts: {fields}", n = .2.len(), fields = .2.join(", "))]
    Managed(&'static str, String, Vec<String>),
    /// Not with this path.
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    /// The body is not JSON.
    #[error(
        "the body of the request was in an unknown format - accepted media types include: application/json"
    )]
    MediaType,
}

impl Failure {
    /// The HTTP status.
    pub fn code(&self) -> u16 {
        match self {
            Failure::NotFound(..) | Failure::NoResource => 404,
            Failure::AlreadyExists(..) | Failure::Conflict(..) | Failure::Managed(..) => 409,
            Failure::Unauthorized => 401,
            Failure::Forbidden(_) => 403,
            Failure::Expired(..) => 410,
            Failure::TooLarge(..) => 504,
            Failure::BadRequest(_) => 400,
            Failure::Invalid(_) => 422,
            Failure::MethodNotAllowed => 405,
            Failure::MediaType => 415,
        }
    }

    /// The word for machines, of Kubernetes' `metav1.StatusReason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Failure::NotFound(..) | Failure::NoResource => "NotFound",
            Failure::AlreadyExists(..) => "AlreadyExists",
            Failure::Conflict(..) | Failure::Managed(..) => "Conflict",
            Failure::Unauthorized => "Unauthorized",
            Failure::Forbidden(_) => "Forbidden",
            Failure::Expired(..) => "Expired",
            Failure::TooLarge(..) => "Timeout",
            Failure::BadRequest(_) => "BadRequest",
            Failure::Invalid(_) => "Invalid",
            Failure::MethodNotAllowed => "MethodNotAllowed",
            Failure::MediaType => "UnsupportedMediaType",
        }
    }

    /// A `metav1.Status`.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": self.reason(), "code": self.code(),
        });
        match self {
            Failure::NotFound(kind, name)
            | Failure::AlreadyExists(kind, name)
            | Failure::Conflict(kind, name)
            | Failure::Managed(kind, name, _) => {
                status["details"] = json!({ "name": name, "kind": kind });
            }
            // By this cause clients know that it will come, and try again.
            Failure::TooLarge(..) => {
                let cause =
                    json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
                status["details"] = json!({ "causes": [cause], "retryAfterSeconds": 1 });
            }
            _ => {}
        }
        status
    }
}
