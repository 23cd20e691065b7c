//! The server's thread, and its handle.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::answer::answer;
use crate::select::Selector;
use crate::store::{Place, Scope, Store};
use crate::{Asked, Failure, Resource};

/// A server that runs until it is dropped. What is done by its methods is seen by clients as if a client had done it.
pub struct Api {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What all connections share.
pub(crate) struct Shared {
    store: Mutex<Store>,
    /// The token that may do everything; None: nobody is asked who he is.
    pub(crate) admin: Option<String>,
    pub(crate) known: Vec<Resource>,
    tick: watch::Sender<Tick>,
    asked: Mutex<BTreeMap<Asked, usize>>,
}

/// What wakes watches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tick {
    /// Changes so far.
    changes: u64,
    /// How often bookmarks were sent.
    pub(crate) bookmarks: u64,
    /// How often all watches were ended.
    pub(crate) ends: u64,
}

impl Shared {
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request.
    pub(crate) fn asked(&self, what: Option<Asked>) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(what) = what {
            *asked.entry(what).or_default() += 1;
        }
    }

    /// Changes objects and wakes watches.
    pub(crate) fn change<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        let result = work(&mut self.store());
        self.tick.send_modify(|tick| tick.changes += 1);
        result
    }

    pub(crate) fn ticks(&self) -> watch::Receiver<Tick> {
        self.tick.subscribe()
    }
}

/// This moment, seconds since 1970.
pub(crate) fn seconds() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default()
}

/// This moment as Kubernetes writes it: RFC 3339, whole seconds.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What a server has that not all have.
#[derive(Default)]
pub struct Setup<'a> {
    /// Resources besides [`Resource::KNOWN`].
    pub more: &'a [Resource],
    /// Certificates and key, PEM: HTTPS. None: HTTP.
    pub tls: Option<(&'a str, &'a str)>,
    /// The token that may do everything. Then tokens of ServiceAccounts are asked for, too, and roles count.
    pub admin: Option<&'a str>,
    /// What a server has left behind.
    pub state: Option<State>,
}

/// All that a server knows: what it has in place of etcd's files.
#[derive(Clone)]
pub struct State(Store);

impl Api {
    /// Listens on `address` for the resources of [`Resource::KNOWN`]; port 0 takes a free one.
    ///
    /// # Errors
    /// The address cannot be had, or the thread not be started.
    pub fn start(address: impl ToSocketAddrs) -> io::Result<Api> {
        Api::with(TcpListener::bind(address)?, &[])
    }

    /// Serves `listener`, in whatever network namespace that was opened, with resources besides [`Resource::KNOWN`].
    ///
    /// # Errors
    /// The runtime or the thread cannot be started.
    pub fn with(listener: TcpListener, more: &[Resource]) -> io::Result<Api> {
        Api::set_up(listener, Setup { more, ..Setup::default() })
    }

    /// Serves `listener` as `setup` says.
    ///
    /// # Errors
    /// The runtime or the thread cannot be started, or certificates and key are of no use.
    pub fn set_up(listener: TcpListener, setup: Setup<'_>) -> io::Result<Api> {
        let address = listener.local_addr()?;
        let tls = setup.tls.map(|(certificates, key)| acceptor(certificates, key)).transpose()?;
        let shared = Arc::new(Shared {
            store: Mutex::new(setup.state.map_or_else(Store::new, |state| state.0)),
            admin: setup.admin.map(str::to_owned),
            known: Resource::KNOWN.iter().chain(setup.more).copied().collect(),
            tick: watch::Sender::new(Tick::default()),
            asked: Mutex::default(),
        });
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let desk = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("api".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, tls, desk) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Api { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Creates an object, in the namespace that its metadata name, else `default`. Gives it as it is now.
    ///
    /// # Errors
    /// As the API refuses it.
    pub fn create(&self, resource: &Resource, object: Value) -> Result<Value, Failure> {
        let namespace = namespace(resource, &object);
        let created =
            self.shared.change(|store| store.create(resource, namespace.as_deref(), object, &now()))?;
        Ok(Value::clone(&created))
    }

    /// Replaces an object, its status too.
    ///
    /// # Errors
    /// As the API refuses it, a conflict for one.
    pub fn update(&self, resource: &Resource, object: Value) -> Result<Value, Failure> {
        let namespace = namespace(resource, &object);
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let place = Place { resource, namespace: namespace.as_deref(), name: &name };
        let updated = self.shared.change(|store| {
            let mut updated = store.update(place, object.clone(), false)?;
            if resource.status && object.get("status") != updated.get("status") {
                let mut with_status = object;
                with_status["metadata"]["resourceVersion"] = updated["metadata"]["resourceVersion"].clone();
                updated = store.update(place, with_status, true)?;
            }
            Ok(updated)
        })?;
        Ok(Value::clone(&updated))
    }

    /// Deletes an object, or marks it so while it has finalizers; gives it as it last was.
    ///
    /// # Errors
    /// There is none.
    pub fn delete(&self, resource: &Resource, namespace: Option<&str>, name: &str) -> Result<Value, Failure> {
        let deleted =
            self.shared.change(|store| store.delete(Place { resource, namespace, name }, &now()))?;
        Ok(Value::clone(&deleted))
    }

    /// An object as it is.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, resource: &Resource, namespace: Option<&str>, name: &str) -> Result<Value, Failure> {
        Ok(Value::clone(&*self.shared.store().get(Place { resource, namespace, name })?))
    }

    /// All objects of a resource, by namespace and name.
    pub fn list(&self, resource: &Resource) -> Vec<Value> {
        let scope = Scope { resource: *resource, namespace: None, selector: Selector::default() };
        self.shared.store().list(&scope).map(|object| Value::clone(object)).collect()
    }

    /// All that it knows, for another server.
    pub fn state(&self) -> State {
        State(self.shared.store().clone())
    }

    /// What clients have asked for so far, and how often.
    pub fn asked(&self) -> BTreeMap<Asked, usize> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what has happened so far: who then begins to watch at an earlier version is told 410, Expired.
    pub fn compact(&self) {
        self.shared.change(Store::compact);
    }

    /// Sends a bookmark on every watch that takes them. The real server does so about once a minute.
    pub fn send_bookmarks(&self) {
        self.shared.tick.send_modify(|tick| tick.bookmarks += 1);
    }

    /// Ends all watches in good order before their time, as the real server does when it is shut down.
    pub fn end_watches(&self) {
        self.shared.tick.send_modify(|tick| tick.ends += 1);
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A thread that panicked has said so.
        self.thread.take().map(JoinHandle::join);
    }
}

fn namespace(resource: &Resource, object: &Value) -> Option<String> {
    let named = object["metadata"]["namespace"].as_str();
    resource.namespaced.then(|| named.unwrap_or("default").to_owned())
}

fn acceptor(certificates: &str, key: &str) -> io::Result<TlsAcceptor> {
    let all = CertificateDer::pem_slice_iter(certificates.as_bytes()).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(io::Error::other)?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(all, key));
    Ok(TlsAcceptor::from(Arc::new(config.map_err(io::Error::other)?)))
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
    // What goes wrong with a connection is its client's business.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // No file descriptor is left; connections will end.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        // An event is not to wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(stream, shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, shared).await;
                    }
                }
            }
        });
    }
}
