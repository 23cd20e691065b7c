//! Watching the objects of one kind: a complete list, then what changes, for ever.
//!
//! The list is streamed (KEP-3157) where the server does that, else read in pages. A watch that the server ends is taken
//! up where it ended, if that was when it was to end and the server's versions have not gone back meanwhile: a server whose
//! etcd was restored from a backup would say nothing until its versions have grown beyond ours, and then nothing of what
//! was before. After any failure, and after a server that goes down, all is listed again.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{ObjectList, Request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use crate::link::{Patience, reasons};

/// The annotation of the bookmark at the end of a streamed list.
const LIST_ENDS: &str = "k8s.io/initial-events-end";
/// A watch that ends by more than this before its time was ended by a server that goes down.
const EARLY: Duration = Duration::from_millis(500);
/// Objects of one page of a list.
const PAGE: u32 = 500;

/// What is heard of one kind of objects.
#[derive(Debug)]
pub enum Told<K> {
    /// A request goes out.
    Asks,
    /// A list begins.
    Begin,
    /// An object is there, or is another.
    Object(Box<K>),
    /// An object is deleted; as it last was.
    Gone(Box<K>),
    /// The list is complete.
    Complete,
    /// All that has happened so far is told.
    UpToDate,
}

/// Why a watch broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The server does not know who we are: the token has expired or is revoked.
    #[error("the token is refused: {0}; run homelab apply")]
    Unauthorized(String),
    /// The server says no.
    #[error("{0}")]
    Refused(String),
    /// The server says nothing.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The connection failed, or what came is no answer.
    #[error("{0}")]
    Broken(String),
}

/// What a step came to but for a failure.
enum End {
    /// The server ended the watch in good order.
    Ended,
    /// It has forgotten what happened since our version, or does not know the version yet.
    Expired,
    /// It streams no lists.
    NoStreams,
}

/// A watch of one kind.
pub(crate) struct Watch<'a> {
    client: &'a Client,
    patience: &'a Patience,
    /// `/api/v1/services`.
    path: &'a str,
    /// Label selector; empty: all.
    labels: &'a str,
    version: String,
}

#[derive(Deserialize)]
struct Head {
    metadata: ListMeta,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(
        client: &'a Client,
        patience: &'a Patience,
        path: &'a str,
        labels: &'a str,
    ) -> Watch<'a> {
        Watch { client, patience, path, labels, version: String::new() }
    }

    /// Lists and watches until something fails. `streams` says whether this server streams lists, and learns it.
    pub(crate) async fn run<K>(&mut self, streams: &mut bool, tell: &dyn Fn(Told<K>)) -> WatchError
    where
        K: Clone + DeserializeOwned + Metadata<Ty = ObjectMeta>,
    {
        let mut pause = self.patience.pause;
        loop {
            let begun = Instant::now();
            if let Err(error) = self.once(streams, tell).await {
                return error;
            }
            // A server that forgets at once must not be asked for everything all the time.
            if begun.elapsed() > self.patience.longest_pause {
                pause = self.patience.pause;
            }
            sleep(pause).await;
            pause = self.patience.longest_pause.min(pause * 2);
        }
    }

    /// One list, and watches until there must be another one.
    async fn once<K>(&mut self, streams: &mut bool, tell: &dyn Fn(Told<K>)) -> Result<(), WatchError>
    where
        K: Clone + DeserializeOwned + Metadata<Ty = ObjectMeta>,
    {
        self.version.clear();
        tell(Told::Begin);
        let mut end = if *streams {
            self.follow(true, tell).await
        } else {
            self.list(tell).await?;
            Ok(End::Ended)
        };
        // A server that streams no lists may also say nothing at all.
        if matches!(end, Ok(End::NoStreams))
            || (self.version.is_empty() && matches!(end, Err(WatchError::Silent(_))))
        {
            *streams = false;
        }
        loop {
            match end? {
                End::Expired | End::NoStreams => return Ok(()),
                End::Ended => {}
            }
            if self.has_gone_back(tell).await? {
                return Ok(());
            }
            end = self.follow(false, tell).await;
        }
    }

    /// A list in pages.
    async fn list<K>(&mut self, tell: &dyn Fn(Told<K>)) -> Result<(), WatchError>
    where
        K: Clone + DeserializeOwned,
    {
        let mut next = String::new();
        loop {
            let mut params = self.list_params(PAGE);
            if !next.is_empty() {
                params = params.continue_token(&next);
            }
            let page: ObjectList<K> = self.ask(&params, tell).await?;
            page.items.into_iter().for_each(|object| tell(Told::Object(Box::new(object))));
            self.version = page.metadata.resource_version.unwrap_or_default();
            next = page.metadata.continue_.unwrap_or_default();
            if next.is_empty() {
                tell(Told::Complete);
                return Ok(());
            }
        }
    }

    /// Whether the server's last version comes before what we have seen.
    async fn has_gone_back<K>(&self, tell: &dyn Fn(Told<K>)) -> Result<bool, WatchError> {
        let head: Head = self.ask(&self.list_params(1), tell).await?;
        let now = head.metadata.resource_version.unwrap_or_default();
        Ok(match (now.parse::<u128>(), self.version.parse::<u128>()) {
            (Ok(now), Ok(seen)) => now < seen,
            // Comparable since Kubernetes 1.35 (KEP-5504), and in fact always; else a list is right.
            _ => now != self.version,
        })
    }

    /// One watch to its end, from our version or with a list at its beginning.
    async fn follow<K>(&mut self, list: bool, tell: &dyn Fn(Told<K>)) -> Result<End, WatchError>
    where
        K: Clone + DeserializeOwned + Metadata<Ty = ObjectMeta>,
    {
        let seconds = u32::try_from(self.patience.watch.as_secs()).unwrap_or(u32::MAX).max(1);
        let mut params = WatchParams { label_selector: self.selector(), ..WatchParams::default() };
        params = if list { params.initial_events() } else { params }.timeout(seconds);
        let request = Request::new(self.path).watch(&params, &self.version).map_err(|e| broken(&e))?;
        tell(Told::Asks);
        let events = match self.soon(self.client.request_events::<K>(request)).await? {
            Ok(events) => events,
            Err(kube::Error::Api(status)) if list && streams_none(status.code) => {
                return Ok(End::NoStreams);
            }
            Err(error) => return ended(error),
        };
        let mut events = pin!(events);
        let mut listing = list;
        let due = Instant::now() + Duration::from_secs(seconds.into()) - EARLY;
        let last = Instant::now() + self.patience.watch + self.patience.grace;
        loop {
            let wait =
                if listing { self.patience.answer } else { last.saturating_duration_since(Instant::now()) };
            let event = match timeout(wait, events.try_next()).await {
                Err(_) => return Err(WatchError::Silent(wait)),
                Ok(Err(kube::Error::Api(status))) if listing && streams_none(status.code) => {
                    return Ok(End::NoStreams);
                }
                Ok(Err(error)) => return ended(error),
                Ok(Ok(None)) if listing => {
                    return Err(WatchError::Broken("the list was broken off".to_owned()));
                }
                Ok(Ok(None)) if Instant::now() < due => return Ok(End::Expired),
                Ok(Ok(None)) => return Ok(End::Ended),
                Ok(Ok(Some(event))) => event,
            };
            let mut note = |object: &K| {
                if let Some(version) = &object.metadata().resource_version {
                    self.version.clone_from(version);
                }
            };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    // Objects of a list are in the order of their names.
                    if !listing {
                        note(&object);
                    }
                    tell(Told::Object(Box::new(object)));
                }
                WatchEvent::Deleted(object) => {
                    note(&object);
                    tell(Told::Gone(Box::new(object)));
                }
                WatchEvent::Bookmark(bookmark) => {
                    let ends = bookmark.metadata.annotations.contains_key(LIST_ENDS);
                    if listing && !ends {
                        continue;
                    }
                    self.version = bookmark.metadata.resource_version;
                    if listing {
                        listing = false;
                        tell(Told::Complete);
                    }
                    tell(Told::UpToDate);
                }
                WatchEvent::Error(status) if listing && streams_none(status.code) => {
                    return Ok(End::NoStreams);
                }
                WatchEvent::Error(status) => return ended(kube::Error::Api(status)),
            }
        }
    }

    fn selector(&self) -> Option<String> {
        (!self.labels.is_empty()).then(|| self.labels.to_owned())
    }

    fn list_params(&self, limit: u32) -> ListParams {
        ListParams { label_selector: self.selector(), ..ListParams::default() }.limit(limit)
    }

    async fn ask<T: DeserializeOwned, K>(
        &self,
        params: &ListParams,
        tell: &dyn Fn(Told<K>),
    ) -> Result<T, WatchError> {
        let request = Request::new(self.path).list(params).map_err(|e| broken(&e))?;
        tell(Told::Asks);
        // As text: kube's client logs whatever it cannot read.
        match self.soon(self.client.request_text(request)).await? {
            Ok(text) => serde_json::from_str(&text).map_err(|e| broken(&e)),
            // The next page of a list that is too old: all anew.
            Err(error) => match ended(error)? {
                End::Expired => Err(WatchError::Broken("the list has expired".to_owned())),
                End::Ended | End::NoStreams => Err(WatchError::Broken("the list was broken off".to_owned())),
            },
        }
    }

    async fn soon<T>(&self, what: impl Future<Output = T>) -> Result<T, WatchError> {
        timeout(self.patience.answer, what).await.map_err(|_| WatchError::Silent(self.patience.answer))
    }
}

/// Whether an answer to a streamed list may mean that there are none: an old server says 400 or 422, one with an etcd
/// before 3.5.13 says 500. What else is wrong the list in pages will tell.
fn streams_none(code: u16) -> bool {
    !matches!(code, 401 | 403 | 410 | 429)
}

fn broken(error: &dyn std::error::Error) -> WatchError {
    WatchError::Broken(reasons(error))
}

/// What an error of the client means.
fn ended(error: kube::Error) -> Result<End, WatchError> {
    let kube::Error::Api(status) = &error else { return Err(broken(&error)) };
    let told = || format!("{} ({})", status.message, status.code);
    match status.code {
        410 => Ok(End::Expired),
        401 => Err(WatchError::Unauthorized(status.message.clone())),
        // A version of the future: etcd is behind what we have seen.
        504 if status.message.contains("Too large resource version") => Ok(End::Expired),
        403 | 404 => Err(WatchError::Refused(told())),
        _ => Err(WatchError::Broken(told())),
    }
}
