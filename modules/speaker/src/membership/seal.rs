//! Sealed datagrams: who sent one, that it is for us, and that it is new; nothing of it is believed before.
//!
//! XChaCha20-Poly1305 (RFC 8439, draft-irtf-cfrg-xchacha) under a key derived from the cluster's key ring. The nonce is
//! the sender's session (random, one per start) and its counter, so no nonce comes twice and no clock is trusted. A
//! session counts only after its sender has answered a fresh challenge in it: a recording of an earlier session proves
//! nothing. Within a session a window (RFC 4303 3.4.3, in the form of RFC 6479) refuses what was seen.
//!
//! ```text
//! 0        1         5           13           29           37
//! | version | key hint | sender    | session    | counter    | payload, 16 bytes of Poly1305
//! ```

use std::time::Duration;

use chacha20poly1305::{AeadInOut, Key, KeyInit, Tag as Mac, XChaCha20Poly1305, XNonce};
use homelab_model::KeyRing;
use rand::RngExt;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::Time;

/// Largest datagram, in bytes: with IPv6 and UDP headers it fits an Ethernet frame with room to spare.
pub const MAX_DATAGRAM: usize = 1400;
/// First byte of every datagram: version of the format.
const VERSION: u8 = 1;
const HEADER: usize = 37;
const MAC: usize = 16;
/// Largest payload of a datagram, in bytes.
pub(super) const MAX_PAYLOAD: usize = MAX_DATAGRAM - HEADER - MAC;
/// How long a challenge may wait for its answer. After that a new one is made, so that an answer is never older.
const CHALLENGE_LIFE: Duration = Duration::from_secs(2);

/// Short name of a node on the wire: a digest of the cluster's and the node's name.
pub(super) type Tag = u64;
/// Random number of a challenge.
pub(super) type Nonce = [u8; 16];
/// A sender's session: random, one per start.
pub(super) type Session = [u8; 16];

/// Why a datagram was refused. For counters, not for a log: anyone on the LAN can cause these at line rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Error)]
pub enum Refused {
    /// Too short or too long for a datagram of ours.
    #[error("no datagram of ours: length")]
    Length,
    /// Another version of the format.
    #[error("another version of the format")]
    Version,
    /// The sender is no node of the cluster, or this node itself.
    #[error("sender is no other node of the cluster")]
    Stranger,
    /// Sealed with a key that is not in the ring.
    #[error("sealed with a key that is not accepted")]
    Key,
    /// It does not open: forged, damaged, or meant for another node.
    #[error("forged, damaged or for another node")]
    Forged,
    /// It was received before, or is too old to tell.
    #[error("received before")]
    Replayed,
    /// Its session has not answered a challenge yet: the first datagrams after a start, or a recording.
    #[error("of a session that is not proven")]
    Unproven,
    /// It opened, and its content makes no sense: another version of homelab.
    #[error("content is not understood")]
    Content,
}

impl Refused {
    /// All reasons.
    pub const ALL: [Refused; 8] = [
        Refused::Length,
        Refused::Version,
        Refused::Stranger,
        Refused::Key,
        Refused::Forged,
        Refused::Replayed,
        Refused::Unproven,
        Refused::Content,
    ];

    /// Word for a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Refused::Length => "length",
            Refused::Version => "version",
            Refused::Stranger => "stranger",
            Refused::Key => "key",
            Refused::Forged => "forged",
            Refused::Replayed => "replayed",
            Refused::Unproven => "unproven",
            Refused::Content => "content",
        }
    }
}

/// Digest of texts, each with its length before it, so that no two lists of texts are the same.
fn digest(texts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    hash.finalize().into()
}

fn head<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut head = [0; N];
    head.copy_from_slice(&bytes[..N]);
    head
}

/// The tag of a node.
pub(super) fn tag_of(cluster: &str, node: &str) -> Tag {
    u64::from_be_bytes(head(&digest(&[b"homelab node", cluster.as_bytes(), node.as_bytes()])))
}

struct Sealing {
    hint: [u8; 4],
    cipher: XChaCha20Poly1305,
}

/// This node's side: its keys and its session.
pub(super) struct Seal {
    cluster: String,
    node: String,
    tag: Tag,
    session: Session,
    counter: u64,
    /// The first one seals, all open.
    keys: Vec<Sealing>,
}

/// A datagram that opened. Whether it is new is a question to [`Link::admit`].
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) counter: u64,
    pub(super) payload: Vec<u8>,
}

impl Seal {
    pub(super) fn new(cluster: &str, node: &str, keys: &KeyRing, rng: &mut StdRng) -> Seal {
        let mut seal = Seal {
            cluster: cluster.to_owned(),
            node: node.to_owned(),
            tag: tag_of(cluster, node),
            session: rng.random(),
            counter: 0,
            keys: Vec::new(),
        };
        seal.set_keys(keys);
        seal
    }

    /// Uses another ring from now on. Sessions go on: they hold nothing of the keys.
    pub(super) fn set_keys(&mut self, keys: &KeyRing) {
        let sealing = |key: &[u8; 32]| {
            let derived = digest(&[b"homelab membership", self.cluster.as_bytes(), key]);
            let hint = head(&digest(&[b"homelab key hint", &derived]));
            Sealing { hint, cipher: XChaCha20Poly1305::new(&Key::from(derived)) }
        };
        self.keys = keys.accepted().iter().map(sealing).collect();
    }

    /// What both ends of a link put under every seal: a datagram from one node to another is nothing to a third.
    pub(super) fn link(&self, peer: &str) -> Link {
        let bound = |from: &str, to: &str| digest(&[self.cluster.as_bytes(), from.as_bytes(), to.as_bytes()]);
        Link {
            outward: bound(&self.node, peer),
            inward: bound(peer, &self.node),
            proven: None,
            challenge: None,
        }
    }

    /// A datagram with `payload` of at most [`MAX_PAYLOAD`] bytes; None if it is longer.
    pub(super) fn seal(&mut self, link: &Link, payload: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.first().filter(|_| payload.len() <= MAX_PAYLOAD)?;
        self.counter += 1;
        let mut datagram = Vec::with_capacity(HEADER + payload.len() + MAC);
        datagram.push(VERSION);
        datagram.extend_from_slice(&key.hint);
        datagram.extend_from_slice(&self.tag.to_be_bytes());
        datagram.extend_from_slice(&self.session);
        datagram.extend_from_slice(&self.counter.to_be_bytes());
        let bound = bind(&datagram, &link.outward);
        datagram.extend_from_slice(payload);
        let nonce = nonce_of(&datagram);
        let mac = key.cipher.encrypt_inout_detached(&nonce, &bound, (&mut datagram[HEADER..]).into()).ok()?;
        datagram.extend_from_slice(&mac);
        Some(datagram)
    }

    /// Who claims to have sent a datagram. Nothing is proven by it; it says whose link to open it with.
    pub(super) fn sender(&self, datagram: &[u8]) -> Result<Tag, Refused> {
        if !(HEADER + MAC..=MAX_DATAGRAM).contains(&datagram.len()) {
            return Err(Refused::Length);
        }
        if datagram[0] != VERSION {
            return Err(Refused::Version);
        }
        Ok(u64::from_be_bytes(head(&datagram[5..])))
    }

    /// Opens a datagram from the peer of a link.
    pub(super) fn open(&self, link: &Link, datagram: &[u8]) -> Result<Opened, Refused> {
        self.sender(datagram)?;
        let (front, mac) = datagram.split_at(datagram.len() - MAC);
        let (header, sealed) = front.split_at(HEADER);
        let bound = bind(header, &link.inward);
        let mut refused = Refused::Key;
        for key in self.keys.iter().filter(|key| key.hint == header[1..5]) {
            refused = Refused::Forged;
            // On the stack: what is not authentic costs no memory.
            let mut buffer = [0; MAX_PAYLOAD];
            let text = &mut buffer[..sealed.len()];
            text.copy_from_slice(sealed);
            let mac = Mac::from(head::<MAC>(mac));
            let opened =
                key.cipher.decrypt_inout_detached(&nonce_of(header), &bound, (&mut *text).into(), &mac);
            if opened.is_ok() {
                let counter = u64::from_be_bytes(head(&header[29..]));
                return Ok(Opened { session: head(&header[13..]), counter, payload: text.to_vec() });
            }
        }
        Err(refused)
    }
}

fn bind(header: &[u8], ends: &[u8; 32]) -> [u8; HEADER + 32] {
    let mut bound = [0; HEADER + 32];
    bound[..HEADER].copy_from_slice(header);
    bound[HEADER..].copy_from_slice(ends);
    bound
}

/// Session and counter: the last 24 bytes of the header.
fn nonce_of(header: &[u8]) -> XNonce {
    XNonce::from(head::<24>(&header[13..]))
}

/// What is known of one peer's sessions. Its size does not depend on what the peer sends.
pub(super) struct Link {
    outward: [u8; 32],
    inward: [u8; 32],
    proven: Option<(Session, Window)>,
    challenge: Option<(Nonce, Time)>,
}

/// What [`Link::admit`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// New, and of the proven session.
    Fresh,
    /// Of the proven session, and seen before.
    Replayed,
    /// Of another session.
    Unproven,
}

impl Link {
    /// Whether the peer has a proven session.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.is_some()
    }

    /// Judges a datagram that opened, and remembers it.
    pub(super) fn admit(&mut self, opened: &Opened) -> Admission {
        match &mut self.proven {
            Some((session, window)) if *session == opened.session => {
                if window.admit(opened.counter) {
                    Admission::Fresh
                } else {
                    Admission::Replayed
                }
            }
            _ => Admission::Unproven,
        }
    }

    /// The challenge that is waiting for an answer, or a new one.
    pub(super) fn challenge(&mut self, rng: &mut StdRng, now: Time) -> Nonce {
        match self.challenge {
            Some((nonce, at)) if now < at + CHALLENGE_LIFE => nonce,
            _ => {
                let nonce = rng.random();
                self.challenge = Some((nonce, now));
                nonce
            }
        }
    }

    /// Takes the session of `opened` for the peer's present one, if it answers the challenge that waits. Everything
    /// up to that datagram counts as seen: we may have forgotten it in a restart.
    pub(super) fn prove(&mut self, answer: Nonce, opened: &Opened, now: Time) -> bool {
        match self.challenge {
            Some((nonce, at)) if nonce == answer && now < at + CHALLENGE_LIFE => {
                self.challenge = None;
                if self.proven.as_ref().is_none_or(|(session, _)| *session != opened.session) {
                    self.proven = Some((opened.session, Window::closed_at(opened.counter)));
                }
                true
            }
            _ => false,
        }
    }
}

const WORDS: usize = 16;

/// Which of the last counters were seen. A sender counts over all of its peers, so this spans more than one peer's
/// share of disorder.
struct Window {
    top: u64,
    seen: [u64; WORDS],
}

impl Window {
    fn closed_at(top: u64) -> Window {
        let mut seen = [u64::MAX; WORDS];
        seen[word(top)] = u64::MAX >> (63 - top % 64);
        Window { top, seen }
    }

    fn admit(&mut self, counter: u64) -> bool {
        if counter > self.top {
            let steps = (counter / 64 - self.top / 64).min(WORDS as u64);
            for step in 1..=steps {
                self.seen[word(self.top.wrapping_add(step * 64))] = 0;
            }
            self.top = counter;
        } else if self.top / 64 - counter / 64 >= WORDS as u64 {
            return false;
        }
        let bit = 1 << (counter % 64);
        let new = self.seen[word(counter)] & bit == 0;
        self.seen[word(counter)] |= bit;
        new
    }
}

fn word(counter: u64) -> usize {
    (counter / 64 % WORDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    fn seal(node: &str, keys: &KeyRing) -> Seal {
        Seal::new("home", node, keys, &mut StdRng::seed_from_u64(1))
    }

    proptest! {
        #[test]
        fn a_window_admits_every_counter_once(
            start in 0u64..3000,
            counters in proptest::collection::vec((0u64..3000, any::<bool>()), 1..300),
        ) {
            let mut window = Window::closed_at(start);
            let mut seen: BTreeSet<u64> = (0..=start).collect();
            let mut top = start;
            for (counter, near) in counters {
                let counter = if near { (top + counter % 40).saturating_sub(20) } else { counter };
                let admitted = window.admit(counter);
                top = top.max(counter);
                prop_assert!(!(admitted && seen.contains(&counter)));
                // The last 960 at least are told apart; what is older may be refused, never admitted twice.
                if counter + 960 > top && !seen.contains(&counter) {
                    prop_assert!(admitted);
                }
                seen.insert(counter);
            }
        }
    }

    #[test]
    fn a_window_survives_large_steps() {
        let mut window = Window::closed_at(5);
        for counter in [u64::MAX / 2, 6, u64::MAX / 2 - 1, u64::MAX] {
            assert_eq!(window.admit(counter), counter != 6, "{counter}");
            assert!(!window.admit(counter));
        }
    }

    #[test]
    fn payloads_of_all_lengths_come_back() {
        let keys = KeyRing::first([1; 32]);
        let (mut a, b) = (seal("a", &keys), seal("b", &keys));
        let (to_b, from_a) = (a.link("b"), b.link("a"));
        for length in [0, 1, 100, MAX_PAYLOAD] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let datagram = a.seal(&to_b, &payload).expect("sealed");
            assert_eq!(datagram.len(), HEADER + length + MAC);
            assert_eq!(b.sender(&datagram), Ok(tag_of("home", "a")));
            assert_eq!(b.open(&from_a, &datagram).expect("opens").payload, payload);
        }
        assert_eq!(a.seal(&to_b, &[0; MAX_PAYLOAD + 1]), None);
    }

    #[test]
    fn every_bit_counts() {
        let keys = KeyRing::first([1; 32]);
        let (mut a, b) = (seal("a", &keys), seal("b", &keys));
        let datagram = a.seal(&a.link("b"), b"payload").expect("sealed");
        for bit in 0..datagram.len() * 8 {
            let mut damaged = datagram.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(b.open(&b.link("a"), &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_answer_proves_only_in_time_and_once() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut link = seal("a", &KeyRing::first([1; 32])).link("b");
        let opened = |counter| Opened { session: [7; 16], counter, payload: Vec::new() };
        let nonce = link.challenge(&mut rng, Duration::ZERO);
        assert_eq!(link.challenge(&mut rng, Duration::from_secs(1)), nonce);
        assert!(!link.prove([0; 16], &opened(1), Duration::ZERO));
        assert!(!link.prove(nonce, &opened(1), CHALLENGE_LIFE));
        let nonce = link.challenge(&mut rng, CHALLENGE_LIFE);
        assert!(link.prove(nonce, &opened(70), CHALLENGE_LIFE));
        assert!(!link.prove(nonce, &opened(71), CHALLENGE_LIFE));
        // What came before the proof counts as seen.
        assert_eq!(link.admit(&opened(70)), Admission::Replayed);
        assert_eq!(link.admit(&opened(69)), Admission::Replayed);
        assert_eq!(link.admit(&opened(71)), Admission::Fresh);
        assert_eq!(link.admit(&opened(71)), Admission::Replayed);
        assert_eq!(
            link.admit(&Opened { session: [8; 16], counter: 1, payload: Vec::new() }),
            Admission::Unproven
        );
    }
}
