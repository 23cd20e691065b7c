//! Transactions of every kind, each on a machine of its own.

use homelab_model::{Content, File, Key, KeyRing, Module, NodeObject, Previous, Spec, ours};
use homelab_protocol::{Request, Response, Transaction};

use crate::fake::World;
use crate::fake::laptop::{Known, apply, hello, holder, send, talk, transaction};
use crate::fake::objects::{digest, keys, spec};

/// A machine, and a transaction that is about to be begun on it.
pub(super) struct Scenario {
    pub(super) world: World,
    pub(super) transaction: Transaction,
    /// What the node shall hold.
    pub(super) desired: Vec<NodeObject>,
}

impl Scenario {
    /// The same on a machine of its own.
    pub(super) fn fork(&self) -> Scenario {
        let Scenario { world, transaction, desired } = self;
        Scenario { world: world.fork(), transaction: transaction.clone(), desired: desired.clone() }
    }
}

pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) make: fn() -> Scenario,
}

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "first apply", make: first },
    Kind { name: "update with replace and upgrade", make: update },
    Kind { name: "drift repair", make: drift },
    Kind { name: "destroy", make: destroy },
    Kind { name: "rollback of the last", make: last },
    Kind { name: "change of keys", make: rotate },
];

fn ring() -> KeyRing {
    KeyRing::first([7; 32])
}

fn with_keys(version: u8, vni: u32, peers: u8, ring: &KeyRing) -> Vec<NodeObject> {
    let mut objects = homelab_desired::desired(&spec(version, vni, peers));
    objects.push(keys(ring).0);
    objects
}

fn begin(world: &World, id: &str, desired: &[NodeObject], ring: &KeyRing) -> Transaction {
    let mut transaction = transaction(world, id, desired);
    transaction.secrets.extend([keys(ring).1]);
    transaction
}

/// A node after a first apply.
fn applied() -> World {
    let Scenario { world, transaction, .. } = first();
    assert_eq!(apply(&world, &transaction), Known::Confirmed);
    world
}

fn first() -> Scenario {
    let world = World::new();
    let desired = with_keys(1, 1, 2, &ring());
    let transaction = begin(&world, "a1", &desired, &ring());
    Scenario { world, transaction, desired }
}

fn update() -> Scenario {
    let world = applied();
    // A newer laptop with another VNI, one node more, and new keys.
    world.0.borrow_mut().digest = digest(2);
    let ring = ring().adding([8; 32]);
    let desired = with_keys(2, 2, 3, &ring);
    let transaction = begin(&world, "b2", &desired, &ring);
    Scenario { world, transaction, desired }
}

fn drift() -> Scenario {
    let world = applied();
    {
        let mut state = world.0.borrow_mut();
        // The agent is down, a route is gone, a file is somebody's own, another one is no text.
        state.volatile.agent = None;
        state.disk.enabled.clear();
        let route = state.volatile.kernel.keys().find(|k| matches!(k, Key::Route(..))).cloned();
        state.volatile.kernel.remove(&route.expect("there are routes"));
        for (path, content) in [
            (ours::SYSCTL_FILE.to_owned(), Content::Text("net.ipv4.ip_forward = 0\n".into())),
            (format!("{}/{}", ours::CNI_CONF_DIR, ours::CONFLIST), Content::Opaque("binary file".into())),
        ] {
            let file = File { path: path.clone(), mode: 0o600, owner: "1:1".into(), content };
            let object = NodeObject { module: Module::Cni, spec: Spec::File(file) };
            assert!(state.disk.files.insert(Key::File(path), object).is_some());
        }
    }
    let desired = with_keys(1, 1, 2, &ring());
    let transaction = begin(&world, "c3", &desired, &ring());
    Scenario { world, transaction, desired }
}

fn destroy() -> Scenario {
    let world = applied();
    let mut transaction = begin(&world, "d4", &[], &ring());
    transaction.farewell = true;
    Scenario { world, transaction, desired: Vec::new() }
}

/// What the node says of its last transaction.
pub(super) fn previous(world: &World) -> Option<Previous> {
    world.strike(&[]);
    let heard = talk(world, vec![hello(), send(Request::Previous)]);
    match heard.last() {
        Some(Response::Previous(previous)) => previous.as_deref().cloned(),
        other => panic!("{other:?}"),
    }
}

fn last() -> Scenario {
    let Scenario { world, transaction, .. } = update();
    assert_eq!(apply(&world, &transaction), Known::Confirmed);
    let desired = previous(&world).expect("there is one").before;
    // No secrets and not the old binary: the node has them.
    let mut transaction = begin(&world, "e5", &desired, &ring());
    transaction.secrets.clear();
    transaction.by = holder("rollback");
    Scenario { world, transaction, desired }
}

fn rotate() -> Scenario {
    let world = applied();
    let ring = ring().adding([8; 32]);
    let desired = with_keys(1, 1, 2, &ring);
    let transaction = begin(&world, "f6", &desired, &ring);
    assert_eq!(transaction.changes.len(), 1);
    Scenario { world, transaction, desired }
}
