//! Where files are: a granted folder, or what a test makes of it.

use std::io;
use vmferry_plugin_api::files::{self, EntryKind, Folder};
use vmferry_plugin_api::stream::Input;
use vmferry_plugin_api::{Error, ErrorCode};
use vmferry_vhd::VhdError;
use vmferry_vhdx::{Storage, VhdxError};

/// A file of a [`Place`]: small pieces by [`Storage`], large ones by splice.
pub trait DiskFile: Storage {
    /// Moves `length` bytes from `input` to `offset` and on.
    fn splice_at(&self, offset: u64, input: &Input, length: u64) -> Result<(), Error>;

    /// A stream of the bytes from `offset` on.
    fn input(&self, offset: u64) -> Result<Input, Error>;

    /// When it was last written to, in seconds since 1970.
    fn modified(&self) -> io::Result<u64>;

    /// Says when it was last written to.
    fn set_modified(&self, seconds: u64) -> io::Result<()>;
}

/// A folder with folders in it. Paths have `/` between their parts.
pub trait Place {
    /// Its files.
    type File: DiskFile;

    /// Opens a file that is there, to read it, or to write it as well.
    fn open(&self, path: &str, to_write: bool) -> Result<Self::File, Error>;

    /// Makes a file, or empties the one that is there.
    fn create(&self, path: &str) -> Result<Self::File, Error>;

    /// Makes a folder, unless it is there.
    fn create_folder(&self, path: &str) -> Result<(), Error>;

    /// Gives a file another name; one that has it is replaced.
    fn rename(&self, from: &str, to: &str) -> Result<(), Error>;

    /// Removes a file, if it is there.
    fn remove(&self, path: &str) -> Result<(), Error>;

    /// Makes the names in a folder survive a power failure. The place itself has no name.
    fn sync_folder(&self, path: &str) -> Result<(), Error>;

    /// Names of what is in a folder, and whether it is a folder; nothing where there is none.
    fn list(&self, path: &str) -> Result<Vec<(String, bool)>, Error>;

    /// Size of a file in bytes, if it is there.
    fn size(&self, path: &str) -> Result<Option<u64>, Error>;

    /// A whole file, if it is there.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(size) = self.size(path)? else { return Ok(None) };
        let mut bytes = vec![0; size as usize];
        self.open(path, false)?.read_at(0, &mut bytes).map_err(|error| of_io(path, error))?;
        Ok(Some(bytes))
    }

    /// Puts a file in the place of one that may be there; after any failure either is there whole.
    fn replace(&self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        let new = format!("{path}{NEW}");
        let file = self.create(&new)?;
        file.write_at(0, bytes).and_then(|()| file.sync()).map_err(|error| of_io(path, error))?;
        self.rename(&new, path)?;
        self.sync_folder(path.rsplit_once('/').map_or("", |(above, _)| above))
    }
}

/// What a file is called until it is whole.
pub(crate) const NEW: &str = ".new";

/// What the operator reads when a disk file cannot be used.
pub(crate) fn of_vhdx(path: &str, error: VhdxError) -> Error {
    match error {
        VhdxError::Io(error) => of_io(path, error),
        error => Error::damaged(format!("{path}: {error}")),
    }
}

/// The error that a storage was failed with, or that it ended where it should not.
pub(crate) fn of_io(path: &str, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::damaged(format!("{path}: it is shorter than it has to be"))
        }
        Err(error) => Error::unavailable(format!("{path}: {error}"), RETRY_AFTER_SECONDS),
    }
}

/// The same of a VHD.
pub(crate) fn of_vhd(path: &str, error: VhdError) -> Error {
    match error {
        VhdError::Io(error) => of_io(path, error),
        VhdError::Full => Error::with_code(ErrorCode::Limit, format!("{path}: {error}; {TAKE_VHDX}")),
        VhdError::NoSuchDisk { .. } => {
            Error::with_code(ErrorCode::Unsupported, format!("{path}: {error}; {TAKE_VHDX}"))
        }
        error => Error::damaged(format!("{path}: {error}")),
    }
}

const TAKE_VHDX: &str = "set `format = \"vhdx\"` in the target's `with`";
const NO_TIMES: &str =
    "this file system does not remember when a file was written, without which nothing tells that a VHD was";

/// When a storage that failed may be asked again.
const RETRY_AFTER_SECONDS: u64 = 60;

/// A file in a granted folder.
#[derive(Debug)]
pub struct Granted(files::File);

impl Storage for Granted {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.read_at(offset, buffer.len() as u64).map_err(io::Error::other)?;
        if bytes.len() != buffer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.copy_from_slice(&bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes).map_err(io::Error::other)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync().map_err(io::Error::other)
    }

    fn length(&self) -> io::Result<u64> {
        self.0.size().map_err(io::Error::other)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_size(length).map_err(io::Error::other)
    }
}

impl DiskFile for Granted {
    fn splice_at(&self, offset: u64, input: &Input, length: u64) -> Result<(), Error> {
        self.0.splice_at(offset, input, length)
    }

    fn input(&self, offset: u64) -> Result<Input, Error> {
        self.0.input(offset)
    }

    fn modified(&self) -> io::Result<u64> {
        let none = || Error::with_code(ErrorCode::Unsupported, NO_TIMES);
        self.0.modified().and_then(|found| found.ok_or_else(none)).map_err(io::Error::other)
    }

    fn set_modified(&self, seconds: u64) -> io::Result<()> {
        self.0.set_modified(seconds).map_err(io::Error::other)
    }
}

impl Place for Folder {
    type File = Granted;

    fn open(&self, path: &str, to_write: bool) -> Result<Granted, Error> {
        if to_write { self.open_to_write(path) } else { self.open_file(path) }.map(Granted)
    }

    fn create(&self, path: &str) -> Result<Granted, Error> {
        Self::create(self, path).map(Granted)
    }

    fn create_folder(&self, path: &str) -> Result<(), Error> {
        Self::create_folder(self, path).map(drop)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        Self::rename(self, from, to)
    }

    fn remove(&self, path: &str) -> Result<(), Error> {
        Self::remove(self, path)
    }

    fn sync_folder(&self, path: &str) -> Result<(), Error> {
        if path.is_empty() { self.sync() } else { self.folder(path)?.sync() }
    }

    fn list(&self, path: &str) -> Result<Vec<(String, bool)>, Error> {
        let entries = match path {
            "" => Self::list(self)?,
            path if self.stat(path)?.is_none() => return Ok(Vec::new()),
            path => self.folder(path)?.list()?,
        };
        Ok(entries.into_iter().map(|entry| (entry.name, entry.kind == EntryKind::Folder)).collect())
    }

    fn size(&self, path: &str) -> Result<Option<u64>, Error> {
        Ok(self.stat(path)?.map(|stat| stat.size))
    }
}
