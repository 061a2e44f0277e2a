//! Files in the folders that the operator granted. Natively they are the machine's, so that tests run in a folder of their own.
//!
//! ```
//! # fn main() -> Result<(), vmferry_plugin_api::Error> {
//! use vmferry_plugin_api::files::Folder;
//!
//! # let scratch = std::env::temp_dir().join(format!("vmferry-files-{}", std::process::id()));
//! # std::fs::create_dir_all(&scratch).expect("a folder");
//! # let granted = scratch.to_str().expect("UTF-8");
//! let folder = Folder::open(granted)?.create_folder("points")?;
//! folder.replace("newest.json", b"{}")?;
//! assert_eq!(folder.read("newest.json")?, b"{}");
//! # std::fs::remove_dir_all(&scratch).expect("removed");
//! # Ok(())
//! # }
//! ```
//!
//! Large data goes into a file and out of it by [`File::splice_at`] and [`File::input`], without passing through the plugin.

use crate::stream::{Input, Output};
use crate::{Error, ErrorCode};

#[cfg(not(target_arch = "wasm32"))]
mod native;
#[cfg(target_arch = "wasm32")]
mod wasi;

#[cfg(not(target_arch = "wasm32"))]
use native as imp;
#[cfg(not(target_arch = "wasm32"))]
pub use native::double;
#[cfg(target_arch = "wasm32")]
use wasi as imp;

/// A folder. Paths given to its methods are relative to it, their parts separated by `/`; none leads out of it.
#[derive(Debug)]
pub struct Folder {
    handle: imp::Folder,
    /// As an operator would find it.
    path: String,
}

/// An open file.
#[derive(Debug)]
pub struct File {
    handle: imp::File,
    path: String,
}

/// One entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, a device, or something else.
    Other,
}

/// What is known of a path without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: EntryKind,
    /// Its size in bytes.
    pub size: u64,
    /// How many names the file has.
    pub links: u64,
}

impl Folder {
    /// Opens a granted folder, or one inside of it, by its absolute path.
    pub fn open(path: &str) -> Result<Self, Error> {
        Ok(Self { handle: imp::Folder::open(path)?, path: path.trim_end_matches('/').to_owned() })
    }

    /// Opens a folder inside.
    pub fn folder(&self, path: &str) -> Result<Self, Error> {
        let handle = self.handle.folder(path).map_err(|problem| self.failed("open", path, problem))?;
        Ok(Self { handle, path: self.path_of(path) })
    }

    /// Opens a folder inside, and makes it if it is not there. The folder above it has to be.
    pub fn create_folder(&self, path: &str) -> Result<Self, Error> {
        match self.handle.create_folder(path) {
            Ok(()) | Err(Problem::Exists) => self.folder(path),
            Err(problem) => Err(self.failed("make", path, problem)),
        }
    }

    /// Opens a file to read it.
    pub fn open_file(&self, path: &str) -> Result<File, Error> {
        self.open_as("open", path, Open::Read)
    }

    /// Opens a file to read and write it.
    pub fn open_to_write(&self, path: &str) -> Result<File, Error> {
        self.open_as("open", path, Open::Write)
    }

    /// Makes a file, or empties the one that is there.
    pub fn create(&self, path: &str) -> Result<File, Error> {
        self.open_as("make", path, Open::Create)
    }

    /// Makes a file. Fails with `other("exists")` if it is there: see [`is_exists`].
    pub fn create_new(&self, path: &str) -> Result<File, Error> {
        self.open_as("make", path, Open::CreateNew)
    }

    fn open_as(&self, action: &str, path: &str, how: Open) -> Result<File, Error> {
        let handle = self.handle.file(path, how).map_err(|problem| self.failed(action, path, problem))?;
        Ok(File { handle, path: self.path_of(path) })
    }

    /// A whole file, which has to fit into the plugin's memory.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        let file = self.open_file(path)?;
        file.read_at(0, file.size()?)
    }

    /// Puts a file in the place of one that may be there, so that after any failure either is there whole. What it writes first
    /// is called as the file with `.new` behind it.
    pub fn replace(&self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        let new = format!("{path}.new");
        let file = self.create(&new)?;
        file.write_at(0, bytes)?;
        file.sync()?;
        self.rename(&new, path)?;
        self.sync_above(path)
    }

    /// Syncs the folder that a path is in.
    fn sync_above(&self, path: &str) -> Result<(), Error> {
        match path.rsplit_once('/') {
            Some((above, _)) => self.folder(above)?.sync(),
            None => self.sync(),
        }
    }

    /// Gives a file or folder another name; a file that has it is replaced.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        self.handle.rename(from, to).map_err(|problem| self.failed("rename", from, problem))
    }

    /// Gives a file one name more. Fails with `other("exists")` if something has it: see [`is_exists`].
    pub fn link(&self, from: &str, to: &str) -> Result<(), Error> {
        self.handle.link(from, to).map_err(|problem| self.failed("link", to, problem))
    }

    /// Removes a file; an absent one is no error.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.gone(path, self.handle.remove(path))
    }

    /// Removes an empty folder; an absent one is no error.
    pub fn remove_folder(&self, path: &str) -> Result<(), Error> {
        self.gone(path, self.handle.remove_folder(path))
    }

    fn gone(&self, path: &str, removed: Result<(), Problem>) -> Result<(), Error> {
        match removed {
            Ok(()) | Err(Problem::NotFound) => Ok(()),
            Err(problem) => Err(self.failed("remove", path, problem)),
        }
    }

    /// What is in the folder, in the order of the names. An entry that somebody removes meanwhile may be left out, and no other;
    /// not found is the folder itself.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let failed = |problem: Problem| problem.into_error("list", &self.path);
        let mut entries = Vec::new();
        for entry in self.handle.list().map_err(failed)? {
            match entry {
                // A host reads the names first and looks at each then, when it may be gone.
                Err(Problem::NotFound) => {}
                entry => entries.push(entry.map_err(failed)?),
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// What is known of a path, `None` if nothing is there. Links are not followed.
    pub fn stat(&self, path: &str) -> Result<Option<Stat>, Error> {
        match self.handle.stat(path) {
            Ok(stat) => Ok(Some(stat)),
            Err(Problem::NotFound) => Ok(None),
            Err(problem) => Err(self.failed("look at", path, problem)),
        }
    }

    /// Makes the names in the folder survive a power failure.
    pub fn sync(&self) -> Result<(), Error> {
        self.handle.sync().map_err(|problem| problem.into_error("sync", &self.path))
    }

    fn path_of(&self, path: &str) -> String {
        format!("{}/{path}", self.path)
    }

    fn failed(&self, action: &str, path: &str, problem: Problem) -> Error {
        problem.into_error(action, &self.path_of(path))
    }
}

impl File {
    /// Moves exactly `length` bytes from `input` into the file from `offset` on.
    pub fn splice_at(&self, offset: u64, input: &Input, length: u64) -> Result<(), Error> {
        self.output(offset)?.splice_all(input, length)
    }

    /// Writes bytes of the plugin's own.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.handle.write_at(offset, bytes).map_err(|problem| self.failed("write", problem))
    }

    /// The bytes from `offset` on: `length` of them, or less at the end of the file.
    pub fn read_at(&self, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
        self.handle.read_at(offset, length).map_err(|problem| self.failed("read", problem))
    }

    /// A stream of the file's bytes from `offset` on.
    pub fn input(&self, offset: u64) -> Result<Input, Error> {
        self.handle.input(offset, &self.path).map_err(|problem| self.failed("read", problem))
    }

    /// A stream into the file from `offset` on.
    pub fn output(&self, offset: u64) -> Result<Output, Error> {
        self.handle.output(offset, &self.path).map_err(|problem| self.failed("write", problem))
    }

    /// Its size in bytes.
    pub fn size(&self) -> Result<u64, Error> {
        self.handle.size().map_err(|problem| self.failed("look at", problem))
    }

    /// Cuts it, or makes it longer by a hole.
    pub fn set_size(&self, size: u64) -> Result<(), Error> {
        self.handle.set_size(size).map_err(|problem| self.failed("resize", problem))
    }

    /// When it was last written to, in seconds since 1970; `None` where the file system does not remember it.
    pub fn modified(&self) -> Result<Option<u64>, Error> {
        self.handle.modified().map_err(|problem| self.failed("look at", problem))
    }

    /// Says when it was last written to, in seconds since 1970.
    pub fn set_modified(&self, seconds: u64) -> Result<(), Error> {
        self.handle.set_modified(seconds).map_err(|problem| self.failed("set the time of", problem))
    }

    /// Makes its bytes survive a power failure; its name needs [`Folder::sync`].
    pub fn sync(&self) -> Result<(), Error> {
        self.handle.sync().map_err(|problem| self.failed("sync", problem))
    }

    fn failed(&self, action: &str, problem: Problem) -> Error {
        problem.into_error(action, &self.path)
    }
}

/// The code of an error that says that something is there already.
const EXISTS: &str = "exists";

/// Whether it failed because something is there already.
pub fn is_exists(error: &Error) -> bool {
    matches!(&error.code, ErrorCode::Other(code) if code == EXISTS)
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Read,
    Write,
    Create,
    CreateNew,
}

/// What the file system said no with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    NotFound,
    Exists,
    NoSpace,
    Denied(String),
    Other(String),
}

impl Problem {
    /// The same for an operator: what was tried on what, and what to do.
    pub(crate) fn into_error(self, action: &str, path: &str) -> Error {
        /// A full disk may have room again by then.
        const RETRY_AFTER_SECONDS: u64 = 60;
        let cannot = format!("cannot {action} {path}");
        match self {
            Self::NotFound => Error::not_found(format!("{cannot}: it does not exist")),
            Self::Exists => Error::with_code(ErrorCode::Other(EXISTS.to_owned()), format!("{cannot}: it exists")),
            Self::NoSpace => Error::unavailable(
                format!("{cannot}: the storage is full; make room there or let retention keep less"),
                RETRY_AFTER_SECONDS,
            ),
            Self::Denied(why) => Error::with_code(
                ErrorCode::Denied,
                format!("{cannot}: {why}; let the user that vmferry runs as write there"),
            ),
            Self::Other(why) => Error::unavailable(format!("{cannot}: {why}"), RETRY_AFTER_SECONDS),
        }
    }
}

impl From<crate::bindings::target::wasi::filesystem::types::ErrorCode> for Problem {
    fn from(code: crate::bindings::target::wasi::filesystem::types::ErrorCode) -> Self {
        use crate::bindings::target::wasi::filesystem::types::ErrorCode as Code;
        match code {
            Code::NoEntry => Self::NotFound,
            Code::Exist => Self::Exists,
            Code::InsufficientSpace | Code::Quota => Self::NoSpace,
            Code::Access | Code::NotPermitted | Code::ReadOnly => Self::Denied(code.message().to_owned()),
            code => Self::Other(code.message().to_owned()),
        }
    }
}
