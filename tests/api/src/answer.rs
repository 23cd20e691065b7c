//! A request and its answer.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::Failure;
use crate::access::{self, Deed};
use crate::asked::Asked;
use crate::body::Body;
use crate::patch;
use crate::query::Query;
use crate::resource::Target;
use crate::server::{Shared, now, seconds};
use crate::store::{Place, Scope, has_finalizers};

/// Answers; what is not carried out is a `Status`.
pub(crate) async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Body>, Infallible> {
    let (code, body) = match handle(request, &shared).await {
        Ok(answer) => answer,
        Err(failure) => {
            let code = StatusCode::from_u16(failure.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (code, whole(&failure.status()))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn whole(value: &Value) -> Body {
    Body::Whole(Some(value.to_string().into()))
}

async fn handle(request: Request<Incoming>, shared: &Arc<Shared>) -> Result<(StatusCode, Body), Failure> {
    let (head, body) = request.into_parts();
    if head.method == Method::GET {
        match head.uri.path() {
            "/healthz" | "/livez" | "/readyz" => {
                return Ok((StatusCode::OK, Body::Whole(Some(Bytes::from_static(b"ok")))));
            }
            "/version" => {
                let version = json!({ "major": "1", "minor": "36", "gitVersion": "v1.36.0" });
                return Ok((StatusCode::OK, whole(&version)));
            }
            _ => {}
        }
    }
    shared.asked(Asked::parse(&head.method, head.uri.path(), head.uri.query()));
    let target = Target::parse(head.uri.path(), &shared.known)?;
    let query = head.uri.query().unwrap_or_default();
    let query = Query::parse(query, &target.resource);
    if let Some(admin) = &shared.admin {
        let authorization = head.headers.get(AUTHORIZATION).map(|value| value.to_str().unwrap_or_default());
        let store = shared.store();
        let who = access::who(authorization, admin, &store, seconds())?;
        access::allow(&who, &deed(&head.method, &target, &query), &store)?;
    }
    let query = query?;
    let json =
        head.headers.get(CONTENT_TYPE).is_none_or(|kind| kind.as_bytes().starts_with(b"application/json"));
    let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| patch::Kind::of(kind.as_bytes()));
    let Target { resource, namespace, name, status, token } = target;
    let namespace = namespace.as_deref();
    let place = name.as_deref().map(|name| Place { resource: &resource, namespace, name });
    let object = async |body| if json { read(body).await } else { Err(Failure::MediaType) };
    match (head.method, place) {
        (Method::POST, Some(place)) if token => {
            let request = object(body).await?;
            let issued = access::issue(place, &request, &shared.store(), seconds())?;
            Ok((StatusCode::CREATED, whole(&issued)))
        }
        (_, Some(_)) if token => Err(Failure::MethodNotAllowed),
        (Method::GET, Some(place)) => {
            let object = shared.store().get(place)?;
            Ok((StatusCode::OK, whole(&object)))
        }
        (Method::GET, None) => {
            let namespace = namespace.map(str::to_owned);
            let scope = Scope { resource, namespace, selector: query.selector.clone() };
            let body = if query.watch {
                crate::watch::start(shared, scope, &query)?
            } else {
                list(shared, &scope, &query)?
            };
            Ok((StatusCode::OK, body))
        }
        (Method::POST, None) if namespace.is_some() == resource.namespaced => {
            let object = object(body).await?;
            let object = shared.change(|store| store.create(&resource, namespace, object, &now()))?;
            Ok((StatusCode::CREATED, whole(&object)))
        }
        (Method::PUT, Some(place)) => {
            let object = object(body).await?;
            let object = shared.change(|store| store.update(place, object, status))?;
            Ok((StatusCode::OK, whole(&object)))
        }
        (Method::PATCH, Some(place)) => {
            let kind = kind.ok_or(Failure::MediaType)?;
            let patch = read(body).await?;
            if kind == patch::Kind::Apply {
                let how = (query.manager.as_str(), query.force);
                let (object, new) = shared.change(|store| store.apply(place, patch, how, &now()))?;
                return Ok((if new { StatusCode::CREATED } else { StatusCode::OK }, whole(&object)));
            }
            let object = shared.change(|store| store.patch(place, kind, patch, status))?;
            Ok((StatusCode::OK, whole(&object)))
        }
        (Method::DELETE, Some(place)) if !status => {
            let object = shared.change(|store| store.delete(place, &now()))?;
            let waits = has_finalizers(&object);
            Ok((StatusCode::OK, whole(&if waits { Value::clone(&object) } else { deleted(place, &object) })))
        }
        _ => Err(Failure::MethodNotAllowed),
    }
}

/// What a request is about.
fn deed<'a>(method: &Method, target: &'a Target, query: &Result<Query, Failure>) -> Deed<'a> {
    let verb = match (method, &target.name) {
        (&Method::GET, Some(_)) => "get",
        (&Method::GET, None) if query.as_ref().is_ok_and(|query| query.watch) => "watch",
        (&Method::GET, None) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        _ => "delete",
    };
    let part = if target.status {
        "status"
    } else if target.token {
        "token"
    } else {
        ""
    };
    let (namespace, name) = (target.namespace.as_deref(), target.name.as_deref());
    Deed { verb, resource: &target.resource, part, namespace, name }
}

/// The answer to a deletion.
fn deleted(place: Place<'_>, object: &Value) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": { "name": place.name, "kind": place.resource.plural, "uid": object["metadata"]["uid"] },
    })
}

async fn read(mut body: Incoming) -> Result<Value, Failure> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| Failure::BadRequest(error.to_string()))?;
        bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    serde_json::from_slice(&bytes).map_err(|error| Failure::BadRequest(error.to_string()))
}

fn list(shared: &Shared, scope: &Scope, query: &Query) -> Result<Body, Failure> {
    let store = shared.store();
    let current = store.version();
    match query.version {
        Some(wanted) if wanted > current => return Err(Failure::TooLarge(wanted, current)),
        // What was is not kept.
        Some(wanted) if query.exact && wanted < current => return Err(Failure::Expired(wanted, current)),
        _ => {}
    }
    let items = store.list(scope).map(|object| {
        let mut object = Value::clone(object);
        if let Some(object) = object.as_object_mut() {
            object.remove("kind");
            object.remove("apiVersion");
        }
        object
    });
    Ok(whole(&json!({
        "kind": format!("{}List", scope.resource.kind), "apiVersion": scope.resource.api_version(),
        "metadata": { "resourceVersion": current.to_string() }, "items": items.collect::<Vec<_>>(),
    })))
}
