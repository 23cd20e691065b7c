//! Length-prefixed JSON frames with bounded memory.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Largest body of a frame, bytes.
pub const MAX_FRAME: u32 = 64 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The stream ended between two frames.
    #[error("the connection ended")]
    Closed,
    /// The stream ended inside a frame.
    #[error("the connection ended inside a message")]
    Truncated,
    /// The length cannot be right: most often text of a login shell's start-up files in front of the first frame.
    #[error("not a homelab message: it begins with {0:?}")]
    NotAFrame(String),
    /// The body is no message of this protocol.
    #[error("a message that cannot be understood: {0}")]
    Decode(#[from] serde_json::Error),
    /// The message to send is larger than [`MAX_FRAME`].
    #[error("a message of {0} bytes is too large to send")]
    TooLarge(usize),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes `message` as one frame and flushes.
pub fn write_frame<W: Write, T: Serialize>(writer: &mut W, message: &T) -> Result<(), FrameError> {
    let body = serde_json::to_vec(message)?;
    let length =
        u32::try_from(body.len()).ok().filter(|&l| l <= MAX_FRAME).ok_or(FrameError::TooLarge(body.len()))?;
    // One write: two small ones would wait for each other's acknowledgement (Nagle, RFC 896).
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    writer.write_all(&frame)?;
    writer.flush()?;
    Ok(())
}

/// Reads one frame. Memory grows with what really arrives, never with what a length claims.
pub fn read_frame<R: Read, T: DeserializeOwned>(reader: &mut R) -> Result<T, FrameError> {
    let mut head = [0_u8; 4];
    let mut got = 0;
    while got < 4 {
        match reader.read(&mut head[got..]) {
            Ok(0) if got == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(FrameError::Truncated),
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let length = u32::from_be_bytes(head);
    if length > MAX_FRAME {
        let mut text = head.to_vec();
        let mut rest = [0_u8; 120];
        if let Ok(n) = reader.read(&mut rest) {
            text.extend_from_slice(&rest[..n]);
        }
        return Err(FrameError::NotAFrame(String::from_utf8_lossy(&text).into_owned()));
    }
    let mut body = Vec::with_capacity(length.min(64 << 10) as usize);
    reader.take(u64::from(length)).read_to_end(&mut body)?;
    if body.len() < length as usize {
        return Err(FrameError::Truncated);
    }
    Ok(serde_json::from_slice(&body)?)
}
