//! Elements of nftables sets and maps by netlink itself: a hundred thousand of them are too many for text
//! (`linux/netfilter/nf_tables.h`, subsystem `NFNL_SUBSYS_NFTABLES`). Tables are of the family inet where their name does not
//! begin with another (`bridge homelab`).
//!
//! Keys and data are bytes as the kernel stores them: the fields of a concatenation one after the other, each padded
//! to four bytes.

use std::collections::HashSet;
use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;

use crate::netlink::{Attributes, Message, NFT, NetlinkError, Refusal, Socket, ne_u32, nft_table, text};

/// Message types (`NFT_MSG_*SETELEM`).
const NEW: u16 = NFT | 12;
const GET: u16 = NFT | 13;
const DELETE: u16 = NFT | 14;
const CREATE: u16 = 0x400;

/// `NFTA_SET_ELEM_LIST_*`.
mod list {
    pub(super) const TABLE: u16 = 1;
    pub(super) const SET: u16 = 2;
    pub(super) const ELEMENTS: u16 = 3;
}

/// `NFTA_SET_ELEM_*`.
mod attribute {
    pub(super) const KEY: u16 = 1;
    pub(super) const DATA: u16 = 2;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const EXPIRATION: u16 = 5;
    pub(super) const USERDATA: u16 = 6;
    pub(super) const KEY_END: u16 = 10;
}

/// `NFTA_LIST_ELEM`.
const LIST_ELEMENT: u16 = 1;
/// `NFTA_DATA_VALUE`.
const VALUE: u16 = 1;
/// `NFTNL_UDATA_SET_ELEM_COMMENT` and `NFTNL_UDATA_RULE_COMMENT` of libnftnl.
const COMMENT: u8 = 0;
/// Header and `nfgenmsg` of a message.
const FIXED: usize = 16 + 4;
/// The elements of a message are one attribute, whose length has 16 bits.
const MESSAGE_ELEMENTS: usize = 60_000;
/// `NFT_DATA_VALUE_MAXLEN`.
const VALUE_MAX: usize = 64;
/// Comments named where the kernel does not say which element of a message is at fault.
const NAMED: usize = 5;
/// A reading that shows an element twice is done again this many times.
const DUMP_TRIES: usize = 10;
const DUMP_PAUSE: Duration = Duration::from_millis(20);

/// The longest comment in bytes: what `nft` takes.
pub const COMMENT_MAX: usize = 128;

/// An element of a set or a map.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Element {
    /// The key (`NFTA_SET_ELEM_KEY`), or the first one of an interval of concatenations.
    pub key: Vec<u8>,
    /// The last key of an interval of concatenations (`NFTA_SET_ELEM_KEY_END`).
    pub key_end: Option<Vec<u8>>,
    /// What a map has for the key (`NFTA_SET_ELEM_DATA`). Verdicts are left out.
    pub data: Option<Vec<u8>>,
    /// The comment (`NFTA_SET_ELEM_USERDATA`), empty if there is none. Of at most [`COMMENT_MAX`] bytes.
    pub comment: String,
    /// Time until the kernel removes it (`NFTA_SET_ELEM_EXPIRATION`). Read, never written.
    pub expires: Option<Duration>,
}

/// Why elements could not be read or changed.
#[derive(Debug, Error)]
pub enum ElementError {
    /// The table or the set does not exist.
    #[error("there is no set {set} in table {}{table}", if .table.contains(' ') { "" } else { "inet " })]
    NoSuchSet {
        /// Table, with its family unless that is inet.
        table: String,
        /// Set.
        set: String,
    },
    /// The kernel refused an element, and with it the whole batch.
    #[error("set {set}: {} {}: {}", if *.adding { "adding" } else { "deleting" }, whose(.comments, .element.is_some()), words(*.code, .message))]
    Refused {
        /// Set.
        set: String,
        /// Whether the element was to be added, else deleted.
        adding: bool,
        /// The element at fault, where the kernel says which.
        element: Option<Box<Element>>,
        /// Its comment; where the kernel does not say which element it is, the first few comments, each once, of the
        /// elements that it may be. Elements without a comment give an empty one.
        comments: Vec<String>,
        /// errno: `ENOENT` where an element to delete is missing, `EEXIST` or `EBUSY` where one to add is there with
        /// other data or overlaps.
        code: Errno,
        /// The kernel's explanation, empty if it gave none.
        message: String,
    },
    /// An element that no set can hold. Nothing was sent.
    #[error("set {set}: element of {comment:?}: {reason}")]
    Invalid {
        /// Set.
        set: String,
        /// Comment of the element.
        comment: String,
        /// Why.
        reason: &'static str,
    },
    /// A set with elements that [`Element`] cannot stand for: plain intervals, a catch-all.
    #[error("set {set} has elements of a kind that cannot be read here")]
    Unsupported {
        /// Set.
        set: String,
    },
    /// The kernel refused the batch as a whole, or netlink failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

fn whose(comments: &[String], exact: bool) -> String {
    let all = comments.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>().join(", ");
    if exact { format!("the element of {all}") } else { format!("one of the elements of {all}, ...") }
}

fn words(code: Errno, message: &str) -> String {
    if message.is_empty() { code.desc().to_owned() } else { format!("{} ({message})", code.desc()) }
}

impl Element {
    fn invalid(&self) -> Option<&'static str> {
        let long = |value: &Option<Vec<u8>>| value.as_ref().is_some_and(|v| v.len() > VALUE_MAX);
        if self.key.is_empty() {
            Some("its key is empty")
        } else if self.key.len() > VALUE_MAX || long(&self.key_end) || long(&self.data) {
            Some("a key or data of more than 64 bytes")
        } else if self.comment.len() > COMMENT_MAX {
            Some("a comment of more than 128 bytes")
        } else if self.comment.contains('\0') {
            Some("a comment with a NUL")
        } else {
            None
        }
    }

    fn write(&self, message: &mut Message, adding: bool) {
        message.nest(LIST_ELEMENT, |m| {
            let mut value = |kind: u16, bytes: &[u8]| {
                m.nest(kind, |m| {
                    m.bytes(VALUE, bytes);
                });
            };
            value(attribute::KEY, &self.key);
            if let Some(end) = &self.key_end {
                value(attribute::KEY_END, end);
            }
            if let Some(data) = self.data.as_ref().filter(|_| adding) {
                value(attribute::DATA, data);
            }
            // The kernel does not look at it in a deletion; it is there to be named in an error.
            if !self.comment.is_empty() {
                let mut userdata = vec![COMMENT, u8::try_from(self.comment.len() + 1).unwrap_or(u8::MAX)];
                userdata.extend_from_slice(self.comment.as_bytes());
                userdata.push(0);
                m.bytes(attribute::USERDATA, &userdata);
            }
        });
    }
}

/// The comment in the user data of an element or a rule: TLVs of a byte of type and a byte of length.
pub(super) fn comment(mut userdata: &[u8]) -> String {
    while let [kind, length, rest @ ..] = userdata {
        let length = usize::from(*length);
        let Some(value) = rest.get(..length) else { break };
        if *kind == COMMENT {
            return text(value);
        }
        userdata = &rest[length..];
    }
    String::new()
}

fn value(bytes: &[u8]) -> Option<Vec<u8>> {
    Attributes::after(bytes, 0).find(|(kind, _)| *kind == VALUE).map(|(_, value)| value.to_vec())
}

/// Reads an element (what is in a `NFTA_LIST_ELEM`). None if [`Element`] cannot stand for it.
fn element(bytes: &[u8]) -> Option<Element> {
    let mut read = Element::default();
    let mut key = None;
    for (kind, bytes) in Attributes::after(bytes, 0) {
        match kind {
            attribute::KEY => key = value(bytes),
            attribute::KEY_END => read.key_end = value(bytes),
            attribute::DATA => read.data = value(bytes),
            attribute::USERDATA => read.comment = comment(bytes),
            attribute::FLAGS if ne_u32(bytes).is_some_and(|flags| flags != 0) => return None,
            attribute::EXPIRATION => {
                let milliseconds = <[u8; 8]>::try_from(bytes).ok().map(u64::from_be_bytes);
                read.expires = milliseconds.map(Duration::from_millis);
            }
            _ => {}
        }
    }
    Some(Element { key: key?, ..read })
}

/// Reads the elements in the body of a message (`nfgenmsg` and attributes). None where there is one that [`Element`]
/// cannot stand for.
fn elements(body: &[u8]) -> Option<Vec<Element>> {
    Attributes::after(body, 4)
        .filter(|(kind, _)| *kind == list::ELEMENTS)
        .flat_map(|(_, elements)| Attributes::after(elements, 0))
        .map(|(_, bytes)| element(bytes))
        .collect()
}

/// The beginning of a message for elements of a set.
fn header(kind: u16, flags: u16, table: &str, set: &str) -> Message {
    let (family, table) = nft_table(table);
    let mut message = Message::new(kind, flags, &[family, 0, 0, 0]);
    message.text(list::TABLE, table).text(list::SET, set);
    message
}

/// Whether no element is there twice.
fn distinct(elements: &[Element]) -> bool {
    let mut seen = HashSet::with_capacity(elements.len());
    elements.iter().all(|e| seen.insert((&e.key, &e.key_end)))
}

/// Reads all elements of a set or map of a table, in no order.
///
/// The kernel's marks of an interrupted reading are heeded. It sets none when it rearranges the hash table of a set
/// that has just grown: the elements that this hides are as many as those it shows twice, so a reading with an element
/// twice is done again as well.
pub fn dump(socket: &mut Socket, table: &str, set: &str) -> Result<Vec<Element>, ElementError> {
    for _ in 0..DUMP_TRIES {
        let read = socket.dump(header(GET, 0, table, set), |body| Some(elements(body)));
        let messages = match read {
            Err(error) if error.is(Errno::ENOENT) => {
                return Err(ElementError::NoSuchSet { table: table.to_owned(), set: set.to_owned() });
            }
            read => read?,
        };
        let mut all = Vec::new();
        for message in messages {
            all.extend(message.ok_or_else(|| ElementError::Unsupported { set: set.to_owned() })?);
        }
        if distinct(&all) {
            return Ok(all);
        }
        std::thread::sleep(DUMP_PAUSE);
    }
    Err(NetlinkError::Interrupted.into())
}

/// How many elements a set has, without reading them; None where the kernel does not say (`NFTA_SET_COUNT`, Linux 6.16),
/// or there is no such set.
pub fn count(socket: &mut Socket, table: &str, set: &str) -> Result<Option<usize>, ElementError> {
    const GET_SET: u16 = NFT | 10;
    const COUNT: u16 = 20;
    let answers = match socket.query(header(GET_SET, 0, table, set)) {
        Err(NetlinkError::Refused { .. }) => return Ok(None),
        answers => answers?,
    };
    let of = |body: &Vec<u8>| {
        let (_, value) = Attributes::after(body, 4).find(|(kind, _)| *kind == COUNT)?;
        usize::try_from(u32::from_be_bytes(value.try_into().ok()?)).ok()
    };
    Ok(answers.iter().find_map(of))
}

/// Whether a set is seen to have each of these elements, just as they are here. Each costs the same, whatever the size of the set;
/// for each 32 KiB of a [`dump`] the kernel walks through the set from its beginning.
pub fn has_all(
    socket: &mut Socket,
    table: &str,
    set: &str,
    elements: impl IntoIterator<Item = Element>,
) -> Result<bool, ElementError> {
    // Each answer is a message of its own, for which the kernel takes 4 KiB and more of the receive buffer.
    const ASKED: usize = 16;
    let mut rest = elements.into_iter();
    loop {
        let asked: Vec<Element> = rest.by_ref().take(ASKED).collect();
        if asked.is_empty() {
            return Ok(true);
        }
        let mut message = header(GET, 0, table, set);
        message.nest(list::ELEMENTS, |m| asked.iter().for_each(|element| element.write(m, false)));
        let answers = match socket.query(message) {
            // One is not there, or the kernel cannot say it: then all have to be read.
            Err(NetlinkError::Refused { .. }) => return Ok(false),
            answers => answers?,
        };
        let found: Option<Vec<Vec<Element>>> = answers.iter().map(|body| self::elements(body)).collect();
        if found.is_none_or(|found| found.concat() != asked) {
            return Ok(false);
        }
    }
}

/// A message under construction.
#[derive(Debug)]
struct Open {
    message: Message,
    set: String,
    adding: bool,
    /// Where its attribute with the elements begins.
    start: usize,
}

impl Open {
    fn close(mut self) -> Message {
        self.message.close(self.start);
        self.message
    }
}

/// Changes of elements of one table that the kernel makes all at once, in the order in which they were added here, or
/// not at all.
#[derive(Debug)]
pub struct Batch {
    table: String,
    done: Vec<Message>,
    open: Option<Open>,
    changes: usize,
}

impl Batch {
    /// No changes yet of this table.
    pub fn new(table: &str) -> Batch {
        Batch { table: table.to_owned(), done: Vec::new(), open: None, changes: 0 }
    }

    /// How many elements are added or deleted.
    pub fn len(&self) -> usize {
        self.changes
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes == 0
    }

    /// Adds an element to a set. One that is there already with the same data is left as it is, with its comment.
    pub fn add(&mut self, set: &str, element: &Element) -> Result<(), ElementError> {
        self.push(set, element, true)
    }

    /// Deletes an element from a set by its key, and its end if it has one. Its comment is for errors only.
    pub fn delete(&mut self, set: &str, element: &Element) -> Result<(), ElementError> {
        self.push(set, element, false)
    }

    fn push(&mut self, set: &str, element: &Element, adding: bool) -> Result<(), ElementError> {
        if let Some(reason) = element.invalid() {
            let comment = element.comment.clone();
            return Err(ElementError::Invalid { set: set.to_owned(), comment, reason });
        }
        let fits = |open: &Open| {
            let used = open.message.as_bytes().len() - open.start;
            open.set == set && open.adding == adding && used < MESSAGE_ELEMENTS
        };
        let mut open = match self.open.take() {
            Some(open) if fits(&open) => open,
            other => {
                self.done.extend(other.map(Open::close));
                let (kind, flags) = if adding { (NEW, CREATE) } else { (DELETE, 0) };
                let mut message = header(kind, flags, &self.table, set);
                let start = message.open(list::ELEMENTS);
                Open { message, set: set.to_owned(), adding, start }
            }
        };
        element.write(&mut open.message, adding);
        self.open = Some(open);
        self.changes += 1;
        Ok(())
    }

    /// Makes the changes in one transaction. Nothing has changed where this fails because the kernel refused.
    pub fn commit(mut self, socket: &mut Socket) -> Result<(), ElementError> {
        self.done.extend(self.open.take().map(Open::close));
        match socket.transaction(NFT, &mut self.done)? {
            None => Ok(()),
            Some(refusal) => Err(self.blame(refusal)),
        }
    }

    /// Finds the element at fault in the messages that were sent.
    fn blame(&self, refusal: Refusal) -> ElementError {
        let Refusal { message: index, code, words, offset } = refusal;
        let Some(message) = index.and_then(|index| self.done.get(index)) else {
            return NetlinkError::Refused { code, message: words }.into();
        };
        let bytes = message.as_bytes();
        let adding = bytes.get(4..6) == Some(&NEW.to_ne_bytes());
        let Sent { set, places } = sent(bytes);
        // The kernel points at the attribute of the set or of the table where that is missing.
        let first = places.first().map_or(bytes.len(), |(start, _)| *start);
        if code == Errno::ENOENT && offset.is_some_and(|offset| offset < first) {
            return ElementError::NoSuchSet { table: self.table.clone(), set };
        }
        let at_fault = match (offset, &places[..]) {
            (_, [(_, only)]) => Some(only.clone()),
            (Some(offset), _) if offset >= first => {
                places.iter().rev().find(|(start, _)| *start <= offset).map(|(_, element)| element.clone())
            }
            _ => None,
        };
        let comments = match &at_fault {
            Some(element) => vec![element.comment.clone()],
            None => {
                let mut comments: Vec<String> = Vec::new();
                for (_, Element { comment, .. }) in places {
                    if comments.len() < NAMED && !comments.contains(&comment) {
                        comments.push(comment);
                    }
                }
                comments
            }
        };
        ElementError::Refused { set, adding, element: at_fault.map(Box::new), comments, code, message: words }
    }
}

/// What a message of ours says.
struct Sent {
    set: String,
    /// The elements, each with its place from the beginning of the message.
    places: Vec<(usize, Element)>,
}

fn sent(message: &[u8]) -> Sent {
    let place = |part: &[u8]| part.as_ptr().addr().saturating_sub(message.as_ptr().addr() + 4);
    let mut sent = Sent { set: String::new(), places: Vec::new() };
    for (kind, bytes) in Attributes::after(message, FIXED) {
        match kind {
            list::SET => sent.set = text(bytes),
            list::ELEMENTS => {
                let elements = Attributes::after(bytes, 0);
                sent.places = elements.filter_map(|(_, e)| Some((place(e), element(e)?))).collect();
            }
            _ => {}
        }
    }
    sent
}

#[cfg(test)]
#[path = "elements_tests.rs"]
mod tests;
