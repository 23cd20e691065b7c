//! Events that are written.

use std::cell::RefCell;

use homelab_kubernetes::events::{EventWrite, Recorder, Said};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};

use crate::duty::{DutyError, ask, refusal};

/// Says things about Services and Nodes, by Events, and none too often.
pub struct Voice {
    recorder: RefCell<Recorder>,
}

impl Voice {
    /// Speaks for the agent of a node.
    pub fn new(node: &str) -> Voice {
        Voice { recorder: RefCell::new(Recorder::new(node)) }
    }

    /// Says something about a Service or a Node, unless it has been said too often.
    ///
    /// # Errors
    /// It could not be said.
    pub async fn say(&self, client: &Client, said: Said) -> Result<(), DutyError> {
        match self.write(client, said.clone()).await {
            // The API has forgotten the Event that was to be counted up: it is made anew, as client-go does.
            Ok(false) => self.write(client, said).await.map(drop),
            Ok(true) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// False: there is no Event any more that could be counted up.
    async fn write(&self, client: &Client, said: Said) -> Result<bool, DutyError> {
        let write = self.recorder.borrow_mut().record(said, Timestamp::now());
        let (name, answer) = match write {
            None => return Ok(true),
            Some(EventWrite::Create { namespace, body }) => {
                let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
                let event: Event =
                    serde_json::from_value(body).map_err(|e| DutyError::Refused(e.to_string()))?;
                let name = event.metadata.name.clone().unwrap_or_default();
                (name, ask(events.create(&PostParams::default(), &event)).await)
            }
            Some(EventWrite::Patch { namespace, name, body }) => {
                let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
                let patched = ask(events.patch(&name, &PatchParams::default(), &Patch::Merge(body))).await;
                if let Ok(Err(kube::Error::Api(status))) = &patched
                    && status.code == 404
                {
                    self.recorder.borrow_mut().forgotten(&name);
                    return Ok(false);
                }
                (name, patched)
            }
        };
        let error = match answer {
            Ok(Ok(_)) => return Ok(true),
            Ok(Err(error)) => refusal(error),
            Err(error) => error,
        };
        self.recorder.borrow_mut().forgotten(&name);
        Err(error)
    }
}
