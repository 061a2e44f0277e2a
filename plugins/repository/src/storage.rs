//! What a repository asks of the place that it is in: a folder, or an object store.

use std::borrow::Cow;
use vmferry_plugin_api::delta::Payload;
use vmferry_plugin_api::stream::Input;
use vmferry_plugin_api::{Error, ErrorCode};

/// Keeps objects: whole, by name, never changed. Names are parts of `[a-z0-9.~-]` separated by `/`.
///
/// Whoever lists sees what was made, and no longer what was deleted, before the listing began, by whichever host. Beyond that,
/// nothing is asked of the order in which things are seen.
pub trait Storage {
    /// Makes an object of these pieces, whose lengths are known before the first byte moves. Nobody ever sees a part of it,
    /// except that after a power failure before [`sync`](Self::sync) it may be there in part. One of the same name is replaced.
    fn put(&self, name: &str, pieces: &[Piece<'_>]) -> Result<(), Error>;

    /// The same for a small object, which must not exist; false when it does.
    fn create(&self, name: &str, bytes: &[u8]) -> Result<bool, Error>;

    /// Whether an object may have a [`Piece::Range`]. Where none may, packs stay whole until nobody needs anything of them.
    fn takes_ranges(&self) -> bool {
        true
    }

    /// The bytes of an object from `offset` on, of which nobody takes more than `length`. `None` when it does not exist.
    fn open(&self, name: &str, offset: u64, length: u64) -> Result<Option<Input>, Error>;

    /// Objects whose names begin with `prefix`, which ends with `/` or is a whole name, in the order of their names.
    fn list(&self, prefix: &str) -> Result<Vec<Object>, Error>;

    /// Deletes an object; an absent one is no error. One that must not be deleted yet may stay and go on being listed.
    fn delete(&self, name: &str) -> Result<(), Error>;

    /// Counts an object that is there as made through this value, whoever made it: from the next [`sync`](Self::sync) on it survives a
    /// power failure. One that another host deletes meanwhile is no error.
    fn adopt(&self, name: &str) -> Result<(), Error>;

    /// Everything made, adopted and deleted through this value survives a power failure from now on. When it fails, the next one
    /// is for the same again.
    fn sync(&self) -> Result<(), Error>;
}

/// A piece of an object that is made.
pub enum Piece<'a> {
    /// Bytes of the plugin's own.
    Bytes(Cow<'a, [u8]>),
    /// A chunk's, which stay with the host.
    Payload(&'a dyn Payload),
    /// A range of another object, which stays with the host.
    Range {
        /// Its name.
        name: &'a str,
        /// Where the range begins, in bytes.
        offset: u64,
        /// How long it is.
        length: u64,
    },
}

impl Piece<'_> {
    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Payload(payload) => payload.length(),
            Self::Range { length, .. } => *length,
        }
    }
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
}

/// Attempts at what breaks off in the middle of an object's bytes. The storage itself tries again only until these begin to come.
pub(crate) const ATTEMPTS: usize = 3;

/// Up to `length` bytes of an object, `None` when it does not exist.
pub(crate) fn get(storage: &dyn Storage, name: &str, offset: u64, length: u64) -> Result<Option<Vec<u8>>, Error> {
    let mut attempt = 1;
    loop {
        match get_once(storage, name, offset, length) {
            Err(error) if error.code == ErrorCode::Unavailable && attempt < ATTEMPTS => attempt += 1,
            got => return got,
        }
    }
}

fn get_once(storage: &dyn Storage, name: &str, offset: u64, length: u64) -> Result<Option<Vec<u8>>, Error> {
    let Some(input) = storage.open(name, offset, length)? else { return Ok(None) };
    let mut all = Vec::new();
    while (all.len() as u64) < length {
        let read = input.read(length - all.len() as u64)?;
        if read.is_empty() {
            break;
        }
        if all.is_empty() { all = read } else { all.extend_from_slice(&read) }
    }
    Ok(Some(all))
}

/// Makes an object of bytes.
pub(crate) fn put_bytes(storage: &dyn Storage, name: &str, bytes: &[u8]) -> Result<(), Error> {
    storage.put(name, &[Piece::Bytes(bytes.into())])
}
