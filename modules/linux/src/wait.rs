//! Waiting for several descriptors.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// Waits until one of the descriptors is readable, or the time is over (None: however long it takes).
///
/// # Errors
/// The kernel's, of which there is none for descriptors that are open.
pub fn wait(descriptors: &[BorrowedFd<'_>], time: Option<Duration>) -> io::Result<()> {
    let mut polled: Vec<PollFd<'_>> =
        descriptors.iter().map(|descriptor| PollFd::new(*descriptor, PollFlags::POLLIN)).collect();
    match ppoll(&mut polled, time.map(TimeSpec::from_duration), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn it_ends_by_time_and_by_any_descriptor() {
        let (quiet, _other) = UnixStream::pair().unwrap();
        let (heard, mut speaks) = UnixStream::pair().unwrap();
        let start = Instant::now();
        wait(&[quiet.as_fd(), heard.as_fd()], Some(Duration::from_micros(1500))).unwrap();
        assert!(start.elapsed() >= Duration::from_micros(1500));
        speaks.write_all(b"x").unwrap();
        wait(&[quiet.as_fd(), heard.as_fd()], None).unwrap();
    }
}
