//! Files, symbolic links, the node binary, and the records of what must be put back.

mod aside;
mod digest;
mod observe;
mod records;
mod write;

pub(crate) use aside::{
    is_stray, is_wordless, keep, path_of, previous, remove_stray, remove_temporaries, restore, undo,
};
pub(crate) use digest::{carry_digest, known_digest_of_self};
pub use digest::{digest_of_self, file_digest};
pub(crate) use observe::{binaries, binary, file, is_digest, symlink};
pub(crate) use records::{JOURNAL, Original, Records};
pub(crate) use write::{copy_self, delete, make_symlink, sync_parent, write_atomic, write_file};
