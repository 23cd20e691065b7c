//! What an agent hears of the API: Services, EndpointSlices and Nodes, each watched on its own.

use std::cell::Cell;

use homelab_kubernetes::{Kind, Name, SLICES, World};
use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use crate::link::Link;
use crate::watch::{Told, Watch, WatchError};

/// What is heard.
#[derive(Debug)]
pub enum Heard {
    /// Of Services.
    Service(Told<Service>),
    /// Of EndpointSlices.
    Slice(Told<EndpointSlice>),
    /// Of Nodes.
    Node(Told<Node>),
    /// A watch broke: which one, at which server, and why. It is taken up again after a while.
    Down(Kind, String, String),
}

impl Heard {
    /// Has a world take it over.
    pub fn tell(&self, world: &mut World) {
        match self {
            Heard::Service(told) => take(Kind::Services, told, world, World::service),
            Heard::Slice(told) => take(Kind::Slices, told, world, World::slice),
            Heard::Node(told) => take(Kind::Nodes, told, world, World::node),
            Heard::Down(..) => {}
        }
    }
}

fn take<K: Metadata<Ty = ObjectMeta>>(
    kind: Kind,
    told: &Told<K>,
    world: &mut World,
    object: impl Fn(&mut World, &K),
) {
    match told {
        Told::Begin => world.begin(kind),
        Told::Object(one) => object(world, one),
        Told::Gone(one) => {
            let meta = one.metadata();
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            world.gone(kind, &Name::new(namespace, meta.name.as_deref().unwrap_or_default()));
        }
        Told::Complete => world.complete(kind),
        Told::Asks | Told::UpToDate => {}
    }
}

/// Watches all three for ever.
pub async fn watch(link: &Link, tell: &dyn Fn(Heard)) {
    let of_service = |told| tell(Heard::Service(told));
    let of_slice = |told| tell(Heard::Slice(told));
    let of_node = |told| tell(Heard::Node(told));
    let slices = "/apis/discovery.k8s.io/v1/endpointslices";
    tokio::join!(
        keep(link, Kind::Services, "/api/v1/services", "", &of_service, tell),
        keep(link, Kind::Slices, slices, SLICES, &of_slice, tell),
        keep(link, Kind::Nodes, "/api/v1/nodes", "", &of_node, tell),
    );
}

/// Watches one kind for ever.
async fn keep<K>(
    link: &Link,
    kind: Kind,
    path: &str,
    labels: &str,
    told: &dyn Fn(Told<K>),
    down: &dyn Fn(Heard),
) where
    K: Clone + DeserializeOwned + Metadata<Ty = ObjectMeta>,
{
    let patience = *link.patience();
    let mut streams = true;
    let mut pause = patience.pause;
    loop {
        let server = link.server().to_owned();
        let why = match link.client() {
            Err(error) => error.to_string(),
            Ok((number, client)) => {
                let complete = Cell::new(false);
                let note = |one: Told<K>| {
                    complete.set(complete.get() || matches!(one, Told::Complete));
                    told(one);
                };
                let mut watch = Watch::new(&client, &patience, path, labels);
                let error = watch.run(&mut streams, &note).await;
                match &error {
                    WatchError::Unauthorized(_) => drop(link.renew(number)),
                    // Another server would say the same.
                    WatchError::Refused(_) => {}
                    WatchError::Silent(_) | WatchError::Broken(_) => link.failed(number),
                }
                if complete.get() {
                    pause = patience.pause;
                }
                error.to_string()
            }
        };
        down(Heard::Down(kind, server, why));
        sleep(pause).await;
        pause = patience.longest_pause.min(pause * 2);
    }
}
