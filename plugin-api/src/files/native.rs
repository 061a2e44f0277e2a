//! Files of the machine, for tests.

use super::{Entry, EntryKind, Input, Open, Output, Problem, Stat};
use crate::Error;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

#[derive(Debug)]
pub(super) struct Folder(PathBuf);

#[derive(Debug)]
pub(super) struct File(fs::File);

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::AlreadyExists => Self::Exists,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Denied(error.to_string()),
            _ => Self::Other(error.to_string()),
        }
    }
}

impl Folder {
    pub(super) fn open(path: &str) -> Result<Self, Error> {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => Ok(Self(path.into())),
            Ok(_) => Err(Problem::Other("it is no folder".to_owned()).into_error("open", path)),
            Err(error) => Err(Problem::from(error).into_error("open", path)),
        }
    }

    /// A path inside. A host lets none out, so a test does not either.
    fn inside(&self, path: &str) -> Result<PathBuf, Problem> {
        match Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            true => Ok(self.0.join(path)),
            false => Err(Problem::Denied("it leads out of the folder".to_owned())),
        }
    }

    pub(super) fn folder(&self, path: &str) -> Result<Self, Problem> {
        let path = self.inside(path)?;
        match fs::metadata(&path)?.is_dir() {
            true => Ok(Self(path)),
            false => Err(Problem::Other("it is no folder".to_owned())),
        }
    }

    pub(super) fn create_folder(&self, path: &str) -> Result<(), Problem> {
        Ok(fs::create_dir(self.inside(path)?)?)
    }

    pub(super) fn file(&self, path: &str, how: Open) -> Result<File, Problem> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(how != Open::Read);
        options.create(how == Open::Create).truncate(how == Open::Create).create_new(how == Open::CreateNew);
        Ok(File(options.open(self.inside(path)?)?))
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), Problem> {
        Ok(fs::rename(self.inside(from)?, self.inside(to)?)?)
    }

    pub(super) fn link(&self, from: &str, to: &str) -> Result<(), Problem> {
        Ok(fs::hard_link(self.inside(from)?, self.inside(to)?)?)
    }

    pub(super) fn remove(&self, path: &str) -> Result<(), Problem> {
        Ok(fs::remove_file(self.inside(path)?)?)
    }

    pub(super) fn remove_folder(&self, path: &str) -> Result<(), Problem> {
        Ok(fs::remove_dir(self.inside(path)?)?)
    }

    /// What is in the folder. The problem of one entry is not the folder's. All names are read before the first is looked at, as
    /// a host does it.
    pub(super) fn list(&self) -> Result<impl Iterator<Item = Result<Entry, Problem>>, Problem> {
        let names = fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name())).collect::<Vec<Result<_, Problem>>>();
        double::between(&self.0);
        Ok(names.into_iter().map(|name| {
            let name = name?.into_string().map_err(|_| Problem::Other("a name is not UTF-8".to_owned()))?;
            let found = fs::symlink_metadata(self.0.join(&name))?;
            Ok(Entry { name, kind: kind(found.file_type()) })
        }))
    }

    pub(super) fn stat(&self, path: &str) -> Result<Stat, Problem> {
        let found = fs::symlink_metadata(self.inside(path)?)?;
        #[cfg(unix)]
        let links = std::os::unix::fs::MetadataExt::nlink(&found);
        #[cfg(not(unix))]
        let links = 1;
        Ok(Stat { kind: kind(found.file_type()), size: found.len(), links })
    }

    pub(super) fn sync(&self) -> Result<(), Problem> {
        Ok(fs::File::open(&self.0)?.sync_all()?)
    }
}

/// What happens to the files of a test meanwhile.
pub mod double {
    use std::cell::RefCell;
    use std::path::Path;

    type Act = Box<dyn FnMut(&Path)>;

    thread_local! {
        static ACT: RefCell<Option<Act>> = const { RefCell::new(None) };
    }

    /// Has every listing of this thread do `act` with the folder's path when it has read the names and looked at no entry yet. So a
    /// test removes an entry as another host would.
    pub fn on_list(act: impl FnMut(&Path) + 'static) {
        ACT.set(Some(Box::new(act)));
    }

    pub(super) fn between(folder: &Path) {
        // Out of its place meanwhile, so that the act itself may list.
        if let Some(mut act) = ACT.take() {
            act(folder);
            ACT.set(Some(act));
        }
    }
}

fn kind(found: fs::FileType) -> EntryKind {
    if found.is_file() {
        EntryKind::File
    } else if found.is_dir() {
        EntryKind::Folder
    } else {
        EntryKind::Other
    }
}

impl File {
    fn at(&self, offset: u64) -> Result<At, Problem> {
        Ok(At { file: self.0.try_clone()?, offset })
    }

    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Problem> {
        Ok(self.at(offset)?.write_all(bytes)?)
    }

    pub(super) fn read_at(&self, offset: u64, length: u64) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        self.at(offset)?.take(length).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn input(&self, offset: u64, path: &str) -> Result<Input, Problem> {
        Ok(Input::double(self.at(offset)?, path))
    }

    pub(super) fn output(&self, offset: u64, path: &str) -> Result<Output, Problem> {
        Ok(Output::double(self.at(offset)?, path))
    }

    pub(super) fn size(&self) -> Result<u64, Problem> {
        Ok(self.0.metadata()?.len())
    }

    pub(super) fn set_size(&self, size: u64) -> Result<(), Problem> {
        Ok(self.0.set_len(size)?)
    }

    pub(super) fn modified(&self) -> Result<Option<u64>, Problem> {
        let since = self.0.metadata()?.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        Ok(Some(since.map_or(0, |since| since.as_secs())))
    }

    pub(super) fn set_modified(&self, seconds: u64) -> Result<(), Problem> {
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        let time = time.ok_or_else(|| Problem::Other("there is no such time".to_owned()))?;
        Ok(self.0.set_modified(time)?)
    }

    pub(super) fn sync(&self) -> Result<(), Problem> {
        Ok(self.0.sync_all()?)
    }
}

/// A place in a file. Clones of a handle share their position, so it is set before each use.
struct At {
    file: fs::File,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.file.seek(SeekFrom::Start(self.offset))?;
        let read = self.file.read(bytes)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl Write for At {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.seek(SeekFrom::Start(self.offset))?;
        let written = self.file.write(bytes)?;
        self.offset += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
