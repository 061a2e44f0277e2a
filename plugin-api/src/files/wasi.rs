//! Files as a host lends them.

use super::{Entry, EntryKind, Input, Open, Output, Problem, Stat};
use crate::bindings::target::wasi::filesystem::preopens::get_directories;
use crate::bindings::target::wasi::filesystem::types::{
    Datetime, Descriptor, DescriptorFlags, DescriptorType, NewTimestamp, OpenFlags, PathFlags,
};
use crate::{Error, ErrorCode};

/// Handed over at once: well below what a host lets a plugin hand over in one call.
const WRITE_SIZE: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Folder(Descriptor);

#[derive(Debug)]
pub(super) struct File(Descriptor);

impl Folder {
    pub(super) fn open(path: &str) -> Result<Self, Error> {
        let inside = |granted: &str| {
            let rest = path.strip_prefix(granted.trim_end_matches('/'))?;
            match rest.trim_matches('/') {
                "" => Some(".".to_owned()),
                inner if rest.starts_with('/') => Some(inner.to_owned()),
                _ => None,
            }
        };
        let found = get_directories().into_iter().find_map(|(folder, granted)| Some((folder, inside(&granted)?)));
        let Some((folder, inner)) = found else {
            return Err(Error::with_code(
                ErrorCode::Denied,
                format!(
                    "the folder {path} was not granted; to allow it, add to the plugin's grants: folders = [{path:?}]"
                ),
            ));
        };
        Self(folder).folder(&inner).map_err(|problem| problem.into_error("open", path))
    }

    pub(super) fn folder(&self, path: &str) -> Result<Self, Problem> {
        let flags = DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY;
        Ok(Self(self.0.open_at(PathFlags::SYMLINK_FOLLOW, path, OpenFlags::DIRECTORY, flags)?))
    }

    pub(super) fn create_folder(&self, path: &str) -> Result<(), Problem> {
        Ok(self.0.create_directory_at(path)?)
    }

    pub(super) fn file(&self, path: &str, how: Open) -> Result<File, Problem> {
        let open = match how {
            Open::Read | Open::Write => OpenFlags::empty(),
            Open::Create => OpenFlags::CREATE | OpenFlags::TRUNCATE,
            Open::CreateNew => OpenFlags::CREATE | OpenFlags::EXCLUSIVE,
        };
        let flags = match how {
            Open::Read => DescriptorFlags::READ,
            _ => DescriptorFlags::READ | DescriptorFlags::WRITE,
        };
        Ok(File(self.0.open_at(PathFlags::SYMLINK_FOLLOW, path, open, flags)?))
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), Problem> {
        Ok(self.0.rename_at(from, &self.0, to)?)
    }

    pub(super) fn link(&self, from: &str, to: &str) -> Result<(), Problem> {
        Ok(self.0.link_at(PathFlags::empty(), from, &self.0, to)?)
    }

    pub(super) fn remove(&self, path: &str) -> Result<(), Problem> {
        Ok(self.0.unlink_file_at(path)?)
    }

    pub(super) fn remove_folder(&self, path: &str) -> Result<(), Problem> {
        Ok(self.0.remove_directory_at(path)?)
    }

    /// What is in the folder. The problem of one entry is not the folder's.
    pub(super) fn list(&self) -> Result<impl Iterator<Item = Result<Entry, Problem>>, Problem> {
        let stream = self.0.read_directory()?;
        Ok(std::iter::from_fn(move || {
            let entry = stream.read_directory_entry().map_err(Problem::from).transpose()?;
            Some(entry.map(|entry| Entry { name: entry.name, kind: kind(entry.type_) }))
        }))
    }

    pub(super) fn stat(&self, path: &str) -> Result<Stat, Problem> {
        let stat = self.0.stat_at(PathFlags::empty(), path)?;
        Ok(Stat { kind: kind(stat.type_), size: stat.size, links: stat.link_count })
    }

    pub(super) fn sync(&self) -> Result<(), Problem> {
        Ok(self.0.sync()?)
    }
}

fn kind(found: DescriptorType) -> EntryKind {
    match found {
        DescriptorType::RegularFile => EntryKind::File,
        DescriptorType::Directory => EntryKind::Folder,
        _ => EntryKind::Other,
    }
}

impl File {
    pub(super) fn write_at(&self, mut offset: u64, mut bytes: &[u8]) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let written = self.0.write(&bytes[..bytes.len().min(WRITE_SIZE)], offset)?;
            offset += written;
            bytes = usize::try_from(written).ok().and_then(|written| bytes.get(written..)).unwrap_or_default();
            if written == 0 {
                return Err(Problem::Other("it takes no bytes".to_owned()));
            }
        }
        Ok(())
    }

    pub(super) fn read_at(&self, offset: u64, length: u64) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < length {
            let read = bytes.len() as u64;
            let (piece, at_end) = self.0.read(length - read, offset + read)?;
            bytes.extend_from_slice(&piece);
            if at_end {
                break;
            }
        }
        Ok(bytes)
    }

    pub(super) fn input(&self, offset: u64, path: &str) -> Result<Input, Problem> {
        Ok(Input::of_host(self.0.read_via_stream(offset)?, path))
    }

    pub(super) fn output(&self, offset: u64, path: &str) -> Result<Output, Problem> {
        Ok(Output::of_host(self.0.write_via_stream(offset)?, path))
    }

    pub(super) fn size(&self) -> Result<u64, Problem> {
        Ok(self.0.stat()?.size)
    }

    pub(super) fn set_size(&self, size: u64) -> Result<(), Problem> {
        Ok(self.0.set_size(size)?)
    }

    pub(super) fn modified(&self) -> Result<Option<u64>, Problem> {
        Ok(self.0.stat()?.data_modification_timestamp.map(|time| time.seconds))
    }

    pub(super) fn set_modified(&self, seconds: u64) -> Result<(), Problem> {
        let time = NewTimestamp::Timestamp(Datetime { seconds, nanoseconds: 0 });
        Ok(self.0.set_times(NewTimestamp::NoChange, time)?)
    }

    pub(super) fn sync(&self) -> Result<(), Problem> {
        Ok(self.0.sync()?)
    }
}
