//! Looks at single elements of other programs' sets in the kernel.

use homelab_linux::netlink::{Attributes, Message, NetlinkError, Socket};
use nix::errno::Errno;

/// `NFT_MSG_GETSETELEM` (`linux/netfilter/nf_tables.h`).
const GET_ELEMENT: u16 = (10 << 8) | 13;

/// A table: family (`NFPROTO_*`) and name.
pub(crate) type Table<'a> = (u8, &'a str);

/// A question for all elements of a set.
pub(crate) fn elements((family, table): Table<'_>, set: &str) -> Message {
    let mut message = Message::new(GET_ELEMENT, 0, &[family, 0, 0, 0]);
    message.text(1, table).text(2, set);
    message
}

/// What a set has at a key: nothing, or the values that belong to it, none in a set that is no map.
pub(crate) fn at(kernel: &mut Socket, table: Table<'_>, set: &str, key: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut message = elements(table, set);
    message.nest(3, |list| {
        list.nest(1, |element| {
            element.nest(1, |data| {
                data.bytes(1, key);
            });
        });
    });
    match kernel.query(message) {
        Ok(answers) => Some(answers.iter().flat_map(|body| values(body)).collect()),
        Err(error) if error.is(Errno::ENOENT) => None,
        Err(error) => panic!("asking for an element of {set}: {error}"),
    }
}

/// How many elements a set has; none if there is no such set.
pub(crate) fn count(kernel: &mut Socket, table: Table<'_>, set: &str) -> usize {
    let list = |body: &[u8]| inner(body, 4, 3).map(|list| inner(list, 0, 1).count()).collect();
    dump(kernel, elements(table, set), list).into_iter().sum()
}

/// The values of the elements of an answer.
pub(crate) fn values(body: &[u8]) -> Vec<Vec<u8>> {
    let elements = inner(body, 4, 3).flat_map(|list| inner(list, 0, 1));
    elements.flat_map(|one| inner(one, 0, 2)).flat_map(|data| inner(data, 0, 1)).map(<[u8]>::to_vec).collect()
}

/// The attributes of one kind after a header of `skip` bytes.
pub(crate) fn inner(bytes: &[u8], skip: usize, kind: u16) -> impl Iterator<Item = &[u8]> {
    Attributes::after(bytes, skip).filter(move |(found, _)| *found == kind).map(|(_, value)| value)
}

/// What `read` finds in all messages of a dump; nothing where there is nothing to dump, or too much changes meanwhile.
pub(crate) fn dump<T>(
    kernel: &mut Socket,
    message: Message,
    mut read: impl FnMut(&[u8]) -> Vec<T>,
) -> Vec<T> {
    match kernel.dump(message, |body| Some(read(body))) {
        Ok(all) => all.into_iter().flatten().collect(),
        Err(NetlinkError::Interrupted) => Vec::new(),
        Err(error) if error.is(Errno::ENOENT) => Vec::new(),
        Err(error) => panic!("reading rules: {error}"),
    }
}
