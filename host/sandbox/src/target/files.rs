//! What a target does with files, beyond what wasmtime-wasi has: functions of `wasi:filesystem/types` that are replaced by ones of the
//! same meaning.
//!
//! - Folders are listed as they are read. wasmtime-wasi reads all names at once and keeps them for as long as the guest keeps the
//!   listing, which a guest with many files and many listings could fill the host's memory by.
//! - What is done counts as progress, and a sync has more time than anything else.
//! - Files, folders and streams are bounded together, so that a guest cannot use up what the process may have open.

use crate::limits::OPEN_FILES;
use crate::state::State;
use rustix::fs::{AtFlags, Dir, FileType, statat};
use std::io;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, DescriptorType, DirectoryEntry, ErrorCode, HostDescriptor, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsResult};

/// The version of WASI in wasmtime's bindings; guests of other 0.2 versions find the same functions.
const TYPES: &str = "wasi:filesystem/types@0.2.12";

/// Replaces file functions by ones that tell of what was done.
macro_rules! work {
    ($types:ident, $trait:ident, {
        $($name:literal => $function:ident($($argument:ident: $type:ty),*),)*
        $(@syncing $sync_name:literal => $sync:ident($file:ident: $file_type:ty),)*
    }) => {
        $($types.func_wrap_async($name, |mut store: StoreContextMut<'_, State>, ($($argument,)*): ($($type,)*)| {
            Box::new(async move {
                let state = store.data_mut();
                let done = answer($trait::$function(&mut state.filesystem(), $($argument),*).await)?;
                Ok((state.worked(done),))
            })
        })?;)*
        $($types.func_wrap_async($sync_name, |mut store: StoreContextMut<'_, State>, ($file,): ($file_type,)| {
            Box::new(async move {
                let state = store.data_mut();
                let progress = state.data.progress.clone();
                let done = answer(progress.syncing($trait::$sync(&mut state.filesystem(), $file)).await)?;
                Ok((state.worked(done),))
            })
        })?;)*
    };
}

/// What a guest is told that may open no more. There is no code for it; those for space would be believed.
const TOO_MANY: ErrorCode = ErrorCode::InsufficientMemory;

/// Replaces them in a linker that has `wasi:filesystem/types`.
pub(crate) fn bound(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES)?;
    types.resource("directory-entry-stream", ResourceType::host::<Listing>(), |mut store, listing| {
        store.data_mut().table.delete(Resource::<Listing>::new_own(listing))?;
        Ok(())
    })?;
    types.func_wrap(
        "[method]descriptor.read-directory",
        |mut store: StoreContextMut<'_, State>, (folder,): (Resource<Descriptor>,)| {
            let listing = store.data_mut().list(&folder)?;
            Ok((store.data_mut().worked(listing),))
        },
    )?;
    types.func_wrap(
        "[method]directory-entry-stream.read-directory-entry",
        |mut store: StoreContextMut<'_, State>, (listing,): (Resource<Listing>,)| {
            let entry = store.data_mut().table.get_mut(&listing)?.next();
            Ok((store.data_mut().worked(entry),))
        },
    )?;
    type Open = (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);
    types.func_wrap_async(
        "[method]descriptor.open-at",
        |mut store: StoreContextMut<'_, State>, (folder, follow, path, open, flags): Open| {
            Box::new(async move {
                let state = store.data_mut();
                if !state.may_open() {
                    return Ok((Err(TOO_MANY),));
                }
                let opened = HostDescriptor::open_at(&mut state.filesystem(), folder, follow, path, open, flags).await;
                let opened = answer(opened)?;
                Ok((state.worked(opened),))
            })
        },
    )?;
    type File = Resource<Descriptor>;
    work!(types, HostDescriptor, {
        "[method]descriptor.read" => read(file: File, length: u64, offset: u64),
        "[method]descriptor.write" => write(file: File, bytes: Vec<u8>, offset: u64),
        "[method]descriptor.set-size" => set_size(file: File, size: u64),
        "[method]descriptor.stat" => stat(file: File),
        "[method]descriptor.stat-at" => stat_at(folder: File, follow: PathFlags, path: String),
        "[method]descriptor.create-directory-at" => create_directory_at(folder: File, path: String),
        "[method]descriptor.link-at" => link_at(from: File, follow: PathFlags, old: String, to: File, new: String),
        "[method]descriptor.rename-at" => rename_at(from: File, old: String, to: File, new: String),
        "[method]descriptor.unlink-file-at" => unlink_file_at(folder: File, path: String),
        "[method]descriptor.remove-directory-at" => remove_directory_at(folder: File, path: String),
        @syncing "[method]descriptor.sync" => sync(file: File),
        @syncing "[method]descriptor.sync-data" => sync_data(file: File),
    });
    linker.allow_shadowing(false);
    Ok(())
}

/// A file function's result as the guest gets it.
fn answer<T>(result: FsResult<T>) -> wasmtime::Result<Result<T, ErrorCode>> {
    match result {
        Ok(done) => Ok(Ok(done)),
        Err(error) => Ok(Err(error.downcast()?)),
    }
}

impl State {
    /// A result as it is, which is progress if something was done.
    fn worked<T>(&self, done: Result<T, ErrorCode>) -> Result<T, ErrorCode> {
        if done.is_ok() {
            self.data.progress.worked();
        }
        done
    }

    /// Whether one more file may be opened, or a line in the log. A stream keeps the file that it is of open, so all are counted.
    fn may_open(&mut self) -> bool {
        let keeps_a_file = |object: &&mut (dyn std::any::Any + Send)| {
            object.is::<Descriptor>()
                || object.is::<Listing>()
                || object.is::<DynInputStream>()
                || object.is::<DynOutputStream>()
        };
        let may = self.table.iter_mut().filter(keeps_a_file).count() < OPEN_FILES;
        if !may {
            let said = format!("no more files: {OPEN_FILES} files, folders and streams of one call are open");
            self.log.write(tracing::Level::WARN, &said, &[]);
        }
        may
    }

    fn list(&mut self, folder: &Resource<Descriptor>) -> wasmtime::Result<Result<Resource<Listing>, ErrorCode>> {
        let Descriptor::Dir(folder) = self.table.get(folder)? else { return Ok(Err(ErrorCode::NotDirectory)) };
        let listing = match Dir::read_from(&*folder.dir) {
            Ok(entries) => Listing(entries),
            Err(problem) => return Ok(Err(io::Error::from(problem).into())),
        };
        if !self.may_open() {
            return Ok(Err(TOO_MANY));
        }
        Ok(Ok(self.table.push(listing)?))
    }
}

/// A folder that is being listed.
struct Listing(Dir);

impl Listing {
    fn next(&mut self) -> Result<Option<DirectoryEntry>, ErrorCode> {
        loop {
            let Some(entry) = self.0.read() else { return Ok(None) };
            let entry = entry.map_err(io::Error::from)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let found = match entry.file_type() {
                // The file system does not tell as it lists; one that is gone by now is of no type any more.
                FileType::Unknown => {
                    let looked_at = self.0.fd().and_then(|folder| statat(folder, name, AtFlags::SYMLINK_NOFOLLOW));
                    looked_at.map_or(FileType::Unknown, |found| FileType::from_raw_mode(found.st_mode))
                }
                told => told,
            };
            let name = name.to_str().map_err(|_| ErrorCode::IllegalByteSequence)?.to_owned();
            return Ok(Some(DirectoryEntry { type_: kind(found), name }));
        }
    }
}

fn kind(found: FileType) -> DescriptorType {
    match found {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        FileType::Fifo | FileType::Socket | FileType::Unknown => DescriptorType::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_listing_has_every_entry_once_and_keeps_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let names: Vec<_> = (0..5_000).map(|at| format!("{at:0200}")).collect();
        for name in &names {
            std::fs::write(folder.path().join(name), []).expect("a file");
        }
        std::fs::create_dir(folder.path().join("inner")).expect("a folder");
        std::os::unix::fs::symlink("inner", folder.path().join("link")).expect("a link");
        let opened = std::fs::File::open(folder.path()).expect("a folder");
        let mut listing = Listing(Dir::read_from(opened).expect("a listing"));
        let mut found = BTreeMap::new();
        while let Some(DirectoryEntry { name, type_ }) = listing.next().expect("an entry") {
            assert!(found.insert(name, type_).is_none());
        }
        assert_eq!(found.remove("inner"), Some(DescriptorType::Directory));
        assert_eq!(found.remove("link"), Some(DescriptorType::SymbolicLink));
        assert!(found.values().all(|found| *found == DescriptorType::RegularFile) && found.keys().eq(&names));
    }
}
