//! Requests as they come in, and silence.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use homelab_protocol::{FrameError, Request, read_frame};

/// Where requests come from.
pub(crate) trait Input {
    /// The next request; None if there was none for `patience`. Without patience it waits for good.
    fn next(&mut self, patience: Option<Duration>) -> Result<Option<Request>, FrameError>;
}

/// Requests on stdin, read by a thread of their own: half a frame is silence, too.
pub(super) struct Stdin {
    frames: Receiver<Result<Request, FrameError>>,
}

impl Stdin {
    /// Begins to read.
    pub(super) fn start() -> io::Result<Stdin> {
        // A laptop that sends faster than it is answered has to wait.
        let (sender, frames) = sync_channel(1);
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            let mut stdin = io::stdin().lock();
            loop {
                let frame = read_frame(&mut stdin);
                let ends = matches!(&frame, Err(error) if !matches!(error, FrameError::Decode(_)));
                if sender.send(frame).is_err() || ends {
                    return;
                }
            }
        })?;
        Ok(Stdin { frames })
    }
}

impl Input for Stdin {
    fn next(&mut self, patience: Option<Duration>) -> Result<Option<Request>, FrameError> {
        let frame = match patience {
            Some(patience) => self.frames.recv_timeout(patience),
            None => self.frames.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match frame {
            Ok(frame) => frame.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(FrameError::Closed),
        }
    }
}
