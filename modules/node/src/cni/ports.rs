//! How many claims there are of each port of the node, so that an ADD reads the claims of other pods only where one of
//! them has its port: what it costs does not grow with the pods of the node.
//!
//! `<dataDir>/.hostports/ports` has a byte for each protocol and port, and one more when it is complete; where there are
//! no claims it takes no space on the disk. Only who holds the lock of the claims reads or writes it. A count is raised
//! before a claim is written and lowered after it is gone: it may be too large, where a process was killed, and is never
//! too small. One that is too large costs the next ADD a look at all claims, which sets it right.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use homelab_cni::hostport::Claim;
use homelab_model::service::Protocol;

/// Ports of a protocol.
const PORTS: u64 = 1 << 16;
/// Length of a file that is complete.
const COMPLETE: u64 = 3 * PORTS + 1;
/// As many or more: it stays.
const MANY: u8 = u8::MAX;

/// Places in the file of a claim's ports, each once.
pub(super) fn places(claim: &Claim) -> Vec<u64> {
    let place = |protocol: Protocol, port: u16| {
        let number = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Sctp => 2,
        };
        number * PORTS + u64::from(port)
    };
    let mut places: Vec<u64> = claim.ports.iter().map(|p| place(p.protocol, p.host_port)).collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// The open file.
#[derive(Debug)]
pub(super) struct Counts(File);

impl Counts {
    /// The counts at `path`. Where they are missing or incomplete, they are made of all `claims`.
    pub(super) fn open<E: From<io::Error>>(
        path: &Path,
        claims: impl FnOnce() -> Result<Vec<Claim>, E>,
    ) -> Result<Counts, E> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let counts = Counts(file);
        if counts.0.metadata()?.len() != COMPLETE {
            counts.0.set_len(0)?;
            for claim in claims()? {
                counts.change(&places(&claim), |count| count.saturating_add(1))?;
            }
            counts.0.set_len(COMPLETE)?;
        }
        Ok(counts)
    }

    fn get(&self, place: u64) -> io::Result<u8> {
        let mut count = [0];
        // Beyond the end there is nothing yet.
        self.0.read_at(&mut count, place)?;
        Ok(count[0])
    }

    fn change(&self, places: &[u64], to: impl Fn(u8) -> u8) -> io::Result<()> {
        for place in places {
            let count = self.get(*place)?;
            let changed = to(count);
            if changed != count {
                self.0.write_all_at(&[changed], *place)?;
            }
        }
        Ok(())
    }

    /// Whether there may be a claim of one of the ports.
    pub(super) fn any(&self, places: &[u64]) -> io::Result<bool> {
        for place in places {
            if self.get(*place)? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sets the counts of `places` to what `claims` hold of them: all claims that there are.
    pub(super) fn correct(&self, places: &[u64], claims: &[Claim]) -> io::Result<()> {
        let held: Vec<u64> = claims.iter().flat_map(self::places).collect();
        for place in places {
            let count = held.iter().filter(|other| *other == place).count();
            self.change(&[*place], |_| u8::try_from(count).unwrap_or(MANY))?;
        }
        Ok(())
    }

    /// One claim more, which is about to be written.
    pub(super) fn raise(&self, places: &[u64]) -> io::Result<()> {
        self.change(places, |count| count.saturating_add(1))
    }

    /// One claim less, which is gone.
    pub(super) fn lower(&self, places: &[u64]) -> io::Result<()> {
        self.change(places, |count| if count == MANY { MANY } else { count.saturating_sub(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(ports: &[(Protocol, u16)]) -> Claim {
        let ports: Vec<_> = ports
            .iter()
            .map(|(protocol, port)| {
                serde_json::json!({ "protocol": protocol, "host_port": port, "container_port": 80 })
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "owner": "hl1", "network": "home", "container": "c", "bridge": "b", "addresses": ["10.0.0.2"],
            "ports": ports,
        }))
        .unwrap()
    }

    fn open(path: &Path, claims: &[Claim]) -> Counts {
        Counts::open(path, || Ok::<_, io::Error>(claims.to_vec())).unwrap()
    }

    #[test]
    fn counts_are_never_too_small_and_what_is_too_large_is_set_right() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ports");
        let (web, last) =
            (claim(&[(Protocol::Tcp, 80), (Protocol::Tcp, 80)]), claim(&[(Protocol::Sctp, 65535)]));
        let (of_web, of_last, udp) = (places(&web), places(&last), places(&claim(&[(Protocol::Udp, 80)])));
        assert_eq!((of_web.len(), of_last[0]), (1, COMPLETE - 2));
        let counts = open(&path, &[]);
        assert!(!counts.any(&of_web).unwrap());
        for _ in 0..300 {
            counts.raise(&of_web).unwrap();
        }
        for _ in 0..300 {
            counts.lower(&of_web).unwrap();
        }
        // More than a byte can count: not known how many, so some.
        assert!(counts.any(&of_web).unwrap());
        assert!(!counts.any(&udp).unwrap() && !counts.any(&of_last).unwrap());
        counts.correct(&of_web, std::slice::from_ref(&last)).unwrap();
        assert!(!counts.any(&of_web).unwrap());
        counts.raise(&of_last).unwrap();
        counts.lower(&of_last).unwrap();
        counts.lower(&of_last).unwrap();
        assert!(!counts.any(&of_last).unwrap());
        // A complete file is believed, one that is not is made anew.
        drop(counts);
        assert!(!open(&path, std::slice::from_ref(&web)).any(&of_web).unwrap());
        File::options().write(true).open(&path).unwrap().set_len(COMPLETE - 1).unwrap();
        let counts = open(&path, &[web, last]);
        assert!(counts.any(&of_web).unwrap() && counts.any(&of_last).unwrap());
        assert_eq!(path.metadata().unwrap().len(), COMPLETE);
    }
}
