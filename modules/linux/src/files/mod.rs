//! Files, symbolic links, the node binary, and the records of what must be put back.

mod digest;
mod observe;
mod records;
mod write;

pub use digest::{digest_of_self, file_digest};
pub(crate) use observe::{LEFT_BEHIND, binaries, binary, file, is_digest, symlink};
pub(crate) use records::{Original, Records};
pub(crate) use write::{
    aside, copy_self, delete, keep, make_symlink, remove_digest_directory, set_aside, write_file,
};
