//! A Kubernetes API server in the test's own process: HTTP or HTTPS, and JSON; no etcd, no schemas.
//!
//! Any object of a known [`Resource`] is kept as it is given. What clients build on is as in the real one, and the same
//! contract tests run against both (`tests/contract`): resource versions from one counter, conflicts, list and watch
//! with selectors, watches from a resource version, bookmarks, the initial events of a streaming list, 410 for what is
//! forgotten, the status subresource, merge patches, server-side apply, finalizers, tokens of ServiceAccounts and their
//! RBAC. Whoever comes may do everything unless [`Setup::admin`] is set.
//!
//! Not there: JSON patches, lists in pages (a list is always whole), validation, defaulting and conversion of objects,
//! `managedFields`, tables, protobuf, client certificates.
//!
//! ```
//! use homelab_test_api::{Api, Resource};
//! let api = Api::start("127.0.0.1:0")?;
//! let node = serde_json::json!({ "metadata": { "name": "node1" } });
//! let node = api.create(&Resource::NODES, node)?;
//! assert_eq!(node["kind"], "Node");
//! // GET http://ADDRESS/api/v1/nodes?watch=1 now says that there is a node1.
//! println!("http://{}", api.address());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod access;
mod answer;
mod apply;
mod asked;
mod body;
mod failure;
mod patch;
mod query;
mod resource;
mod select;
mod server;
mod store;
mod watch;

pub use asked::{Asked, Grant, compare};
pub use failure::Failure;
pub use resource::Resource;
pub use server::{Api, Setup, State};
