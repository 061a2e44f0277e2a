//! The table of a disk's leaves: a sparse file.
//!
//! ```text
//! byte 0   "vmfleaf1"              byte 16 · (n + 1)   leaf n
//! byte 8   disk size, u64 LE
//! ```
//!
//! Leaves of zeroes are holes where the filesystem has holes. A table appears under its name
//! only when it is complete: a [`DraftTable`] is written beside it and renamed by its commit.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::leaf::{LEAF_DIGEST, LEAF_SIZE, Leaf, is_zero, leaf_count};
use super::root::Root;
use crate::extent::{Extent, Extents};

const MAGIC: &[u8; 8] = b"vmfleaf1";
const SLOT: u64 = LEAF_DIGEST as u64;

/// Bytes kept in memory of a draft: 16 MiB of disk share one read and one write.
const PAGE_SIZE: usize = 4096;
/// Bytes read at a time where a whole table is read.
const READ_SIZE: usize = 256 << 10;

/// A table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file failed.
    #[error("digest table {}", .path.display())]
    Io {
        /// The table.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else, or cut.
    #[error("{} is not a complete digest table", .path.display())]
    NotATable {
        /// The file.
        path: PathBuf,
    },
    /// The disk is smaller than its base, which no platform does.
    #[error("the base table {} is of {base_size} bytes, the disk has only {disk_size}", .path.display())]
    Shrunk {
        /// The base table.
        path: PathBuf,
        /// Size of its disk in bytes.
        base_size: u64,
        /// Size of the disk in bytes.
        disk_size: u64,
    },
    /// The base's last leaf stands for fewer bytes than the grown disk has there, so it is unknown.
    #[error("the disk of {} grew from {base_size} bytes, the middle of a digest leaf", .path.display())]
    GrownInsideLeaf {
        /// The base table.
        path: PathBuf,
        /// Size of its disk in bytes.
        base_size: u64,
    },
}

/// A complete table, read only.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    file: File,
    disk_size: u64,
}

impl Table {
    /// Starts the table of a new disk of `disk_size` bytes, all zeroes.
    pub fn create(path: impl Into<PathBuf>, disk_size: u64) -> Result<DraftTable, TableError> {
        DraftTable::new(path.into(), disk_size)
    }

    /// Starts a table with the leaves of the one at `base`. What a grown disk has more is zeroes.
    pub fn derive_from(base: &Path, path: impl Into<PathBuf>, disk_size: u64) -> Result<DraftTable, TableError> {
        let base = Self::open(base)?;
        let base_size = base.disk_size;
        if disk_size < base_size {
            return Err(TableError::Shrunk { path: base.path, base_size, disk_size });
        }
        let short = !base_size.is_multiple_of(LEAF_SIZE);
        if disk_size > base_size && short && base.leaf(leaf_count(base_size) - 1)? != Leaf::ZERO {
            return Err(TableError::GrownInsideLeaf { path: base.path, base_size });
        }
        let draft = DraftTable::new(path.into(), disk_size)?;
        base.for_each_chunk(|at, chunk| if is_zero(chunk) { Ok(()) } else { draft.file.write_all_at(chunk, at) })?;
        Ok(draft)
    }

    /// Opens a complete table.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, TableError> {
        let path = path.into();
        match open(&path) {
            Ok(Some((file, disk_size))) => Ok(Self { path, file, disk_size }),
            Ok(None) => Err(TableError::NotATable { path }),
            Err(source) => Err(TableError::Io { path, source }),
        }
    }

    /// Size of the disk in bytes.
    pub fn disk_size(&self) -> u64 {
        self.disk_size
    }

    /// Leaf `index`. Beyond the end of the disk there are zeroes.
    pub fn leaf(&self, index: u64) -> Result<Leaf, TableError> {
        let mut leaf = Leaf::ZERO;
        if index < leaf_count(self.disk_size) {
            let at = (index + 1) * SLOT;
            self.file.read_exact_at(&mut leaf.0, at).map_err(|source| self.error(source))?;
        }
        Ok(leaf)
    }

    /// The root of all leaves. Reads the whole table: 256 MiB for a disk of 1 TiB, holes included.
    pub fn root(&self) -> Result<Root, TableError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.disk_size.to_le_bytes());
        self.for_each_chunk(|_, chunk| {
            hasher.update(chunk);
            Ok(())
        })?;
        Ok(Root(*hasher.finalize().as_bytes()))
    }

    /// Where the two disks differ, in whole leaves. Where one of them ends, the other is compared with zeroes.
    pub fn differences(&self, other: &Self) -> Result<Extents, TableError> {
        let disk_size = self.disk_size.max(other.disk_size);
        let (mut here, mut there) = (vec![0; READ_SIZE], vec![0; READ_SIZE]);
        let mut found = Extents::new();
        for first in (0..leaf_count(disk_size)).step_by(READ_SIZE / LEAF_DIGEST) {
            self.read_leaves(first, &mut here)?;
            other.read_leaves(first, &mut there)?;
            if here == there {
                continue;
            }
            let pairs = here.chunks_exact(LEAF_DIGEST).zip(there.chunks_exact(LEAF_DIGEST));
            for (leaf, _) in (first..).zip(pairs).filter(|(_, (here, there))| here != there) {
                found.insert(Extent { offset: leaf * LEAF_SIZE, length: LEAF_SIZE });
            }
        }
        Ok(found.clipped(disk_size))
    }

    /// Where the disk holds anything but zeroes, in whole leaves. Reads the whole table.
    pub fn data_extents(&self) -> Result<Extents, TableError> {
        let mut found = Extents::new();
        self.for_each_chunk(|at, chunk| {
            if is_zero(chunk) {
                return Ok(());
            }
            let leaves = (at / SLOT - 1..).zip(chunk.chunks_exact(LEAF_DIGEST));
            for (leaf, _) in leaves.filter(|(_, digest)| !is_zero(digest)) {
                found.insert(Extent { offset: leaf * LEAF_SIZE, length: LEAF_SIZE });
            }
            Ok(())
        })?;
        Ok(found.clipped(self.disk_size))
    }

    /// Fills `buffer` with the leaves from `first` on, with zeroes behind the end of the disk.
    fn read_leaves(&self, first: u64, buffer: &mut [u8]) -> Result<(), TableError> {
        let at = (first + 1) * SLOT;
        let there = file_length(self.disk_size).saturating_sub(at).min(buffer.len() as u64) as usize;
        buffer[there..].fill(0);
        self.file.read_exact_at(&mut buffer[..there], at).map_err(|source| self.error(source))
    }

    /// Visits the leaves in order, many at a time, with their place in the file.
    fn for_each_chunk(&self, mut visit: impl FnMut(u64, &[u8]) -> io::Result<()>) -> Result<(), TableError> {
        let end = file_length(self.disk_size);
        let mut buffer = vec![0; READ_SIZE];
        let mut at = SLOT;
        while at < end {
            let length = (end - at).min(READ_SIZE as u64) as usize;
            let chunk = &mut buffer[..length];
            self.file.read_exact_at(chunk, at).and_then(|()| visit(at, chunk)).map_err(|source| self.error(source))?;
            at += length as u64;
        }
        Ok(())
    }

    fn error(&self, source: io::Error) -> TableError {
        TableError::Io { path: self.path.clone(), source }
    }
}

/// A table that is being written, under a temporary name that a drop without commit removes.
#[derive(Debug)]
pub struct DraftTable {
    path: PathBuf,
    draft_path: PathBuf,
    file: File,
    disk_size: u64,
    page: Page,
    /// The first failure of a [`set`](Self::set), told by the next call that can.
    failed: Option<io::Error>,
}

impl DraftTable {
    fn new(path: PathBuf, disk_size: u64) -> Result<Self, TableError> {
        let draft_path = draft_path(&path);
        match start(&draft_path, disk_size) {
            Ok(file) => Ok(Self { path, draft_path, file, disk_size, page: Page::NONE, failed: None }),
            Err(source) => Err(TableError::Io { path, source }),
        }
    }

    /// Records a leaf; one beyond the end of the disk is an error. A failure is kept and told by
    /// [`root`](Self::root) and [`commit`](Self::commit), so that this fits where leaves are made.
    pub fn set(&mut self, leaf: u64, digest: Leaf) {
        if self.failed.is_none() {
            self.failed = self.try_set(leaf, digest).err();
        }
    }

    fn try_set(&mut self, leaf: u64, digest: Leaf) -> io::Result<()> {
        if leaf >= leaf_count(self.disk_size) {
            let text = format!("leaf {leaf} is beyond a disk of {} bytes", self.disk_size);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let at = (leaf + 1) * SLOT;
        let page_start = at - at % PAGE_SIZE as u64;
        if self.page.start != Some(page_start) {
            self.flush()?;
            self.page = Page::load(&self.file, page_start, file_length(self.disk_size))?;
        }
        self.page.set((at - page_start) as usize, digest);
        Ok(())
    }

    /// The root of what is recorded so far.
    pub fn root(&mut self) -> Result<Root, TableError> {
        self.so_far()?.root()
    }

    /// Where what is recorded so far differs from another disk: see [`Table::differences`].
    pub fn differences(&mut self, other: &Table) -> Result<Extents, TableError> {
        self.so_far()?.differences(other)
    }

    fn so_far(&mut self) -> Result<Table, TableError> {
        let written = match self.failed.take() {
            Some(error) => Err(error),
            None => self.flush(),
        };
        let file = written.and_then(|()| self.file.try_clone()).map_err(|source| {
            // Kept as well: the draft stays unusable.
            self.failed = Some(io::Error::new(source.kind(), source.to_string()));
            TableError::Io { path: self.path.clone(), source }
        })?;
        Ok(Table { path: self.path.clone(), file, disk_size: self.disk_size })
    }

    /// Commits under another name in the same folder.
    pub fn commit_as(mut self, path: impl Into<PathBuf>) -> Result<Root, TableError> {
        self.path = path.into();
        self.commit()
    }

    /// Makes what is recorded so far durable, so that a commit soon after takes no time.
    pub fn sync(&mut self) -> Result<(), TableError> {
        let file = self.so_far()?.file;
        file.sync_all().map_err(|source| TableError::Io { path: self.path.clone(), source })
    }

    /// Makes the table durable under its name, in place of an older one, and tells its root.
    pub fn commit(mut self) -> Result<Root, TableError> {
        let root = self.root()?;
        self.publish().map_err(|source| TableError::Io { path: self.path.clone(), source })?;
        Ok(root)
    }

    fn publish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.draft_path, &self.path)?;
        // The rename itself is durable only when the folder is.
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.page.store(&self.file)
    }
}

impl Drop for DraftTable {
    fn drop(&mut self) {
        // After a commit there is nothing under this name; otherwise a leftover only costs space.
        let _ = fs::remove_file(&self.draft_path);
    }
}

/// One page of the file, changed in memory: leaves come in order, 32 and more to a page.
#[derive(Debug)]
struct Page {
    start: Option<u64>,
    bytes: Vec<u8>,
    changed: bool,
}

impl Page {
    const NONE: Self = Self { start: None, bytes: Vec::new(), changed: false };

    fn load(file: &File, start: u64, file_length: u64) -> io::Result<Self> {
        let length = (file_length - start).min(PAGE_SIZE as u64);
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, start)?;
        Ok(Self { start: Some(start), bytes, changed: false })
    }

    fn set(&mut self, at: usize, digest: Leaf) {
        let slot = &mut self.bytes[at..at + LEAF_DIGEST];
        // An unchanged page is not written, so a hole that is set to zeroes stays a hole.
        if slot != digest.0 {
            slot.copy_from_slice(&digest.0);
            self.changed = true;
        }
    }

    fn store(&mut self, file: &File) -> io::Result<()> {
        if let (Some(start), true) = (self.start, self.changed) {
            file.write_all_at(&self.bytes, start)?;
            self.changed = false;
        }
        Ok(())
    }
}

fn file_length(disk_size: u64) -> u64 {
    (leaf_count(disk_size) + 1) * SLOT
}

/// A name that no other draft has, not even one of the same table, and that tells whose it is: `<table>.<pid>-<n>.draft`.
fn draft_path(path: &Path) -> PathBuf {
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{}.draft", std::process::id(), DRAFTS.fetch_add(1, Ordering::Relaxed)));
    name.into()
}

/// Removes the drafts in `folder` whose process is gone: they were left by a kill.
pub fn remove_abandoned_drafts(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_suffix(".draft")?.rsplit_once('.')?.1.split_once('-'));
        if let Some((pid, _)) = pid
            && !Path::new("/proc").join(pid).exists()
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn start(path: &Path, disk_size: u64) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(file_length(disk_size))?;
    file.write_all_at(MAGIC, 0)?;
    file.write_all_at(&disk_size.to_le_bytes(), MAGIC.len() as u64)?;
    Ok(file)
}

/// The file and its disk's size; `None` if it is no complete table.
fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length < SLOT {
        return Ok(None);
    }
    let (mut magic, mut size) = ([0; 8], [0; 8]);
    file.read_exact_at(&mut magic, 0)?;
    file.read_exact_at(&mut size, magic.len() as u64)?;
    let disk_size = u64::from_le_bytes(size);
    Ok((magic == *MAGIC && length == file_length(disk_size)).then_some((file, disk_size)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use tempfile::TempDir;

    use super::*;

    fn leaf(fill: u8) -> Leaf {
        Leaf([fill; LEAF_DIGEST])
    }

    fn folder() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn the_root_is_blake3_over_size_and_leaves() {
        let folder = folder();
        let mut draft = Table::create(folder.path().join("t"), 3 * LEAF_SIZE).unwrap();
        draft.set(2, leaf(2));
        draft.set(0, leaf(7));
        let mut bytes = (3 * LEAF_SIZE).to_le_bytes().to_vec();
        bytes.extend([[7; 16], [0; 16], [2; 16]].concat());
        let expected = Root(*blake3::hash(&bytes).as_bytes());
        assert_eq!(draft.root().unwrap(), expected);
        assert_eq!(draft.commit().unwrap(), expected);
        assert_eq!(Table::open(folder.path().join("t")).unwrap().root().unwrap(), expected);
    }

    #[test]
    fn a_derived_table_differs_where_it_was_set() {
        let folder = folder();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let leaves = 3000;
        let mut draft = Table::create(&a, leaves * LEAF_SIZE).unwrap();
        (0..leaves).step_by(3).for_each(|index| draft.set(index, leaf(index as u8 | 1)));
        draft.commit().unwrap();
        let mut draft = Table::derive_from(&a, &b, (leaves + 5) * LEAF_SIZE).unwrap();
        draft.set(1, leaf(0xee));
        draft.set(3, Leaf::ZERO);
        draft.commit().unwrap();
        let table = Table::open(&b).unwrap();
        assert_eq!(table.disk_size(), (leaves + 5) * LEAF_SIZE);
        for index in 0..leaves + 5 {
            let expected = match index {
                1 => leaf(0xee),
                3 => Leaf::ZERO,
                _ if index < leaves && index % 3 == 0 => leaf(index as u8 | 1),
                _ => Leaf::ZERO,
            };
            assert_eq!(table.leaf(index).unwrap(), expected, "leaf {index}");
        }
        assert_eq!(Table::open(&a).unwrap().leaf(1).unwrap(), Leaf::ZERO);
    }

    #[test]
    fn the_table_of_a_sparse_disk_is_a_sparse_file() {
        let folder = folder();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let size = 1 << 40;
        let mut draft = Table::create(&a, size).unwrap();
        draft.set(0, Leaf::ZERO);
        draft.set(9_000_000, leaf(1));
        draft.set(9_000_001, Leaf::ZERO);
        draft.commit().unwrap();
        Table::derive_from(&a, &b, size).unwrap().commit().unwrap();
        let data = [Extent { offset: 9_000_000 * LEAF_SIZE, length: LEAF_SIZE }];
        assert_eq!(Table::open(&b).unwrap().data_extents().unwrap().iter().collect::<Vec<_>>(), data);
        for path in [a, b] {
            let metadata = fs::metadata(path).unwrap();
            assert_eq!(metadata.len(), (size / LEAF_SIZE + 1) * 16);
            assert!(metadata.blocks() * 512 <= 1 << 20, "{} blocks", metadata.blocks());
        }
    }

    #[test]
    fn tables_tell_where_disks_differ() {
        let folder = folder();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let leaves = 40_000;
        let mut draft = Table::create(&a, leaves * LEAF_SIZE).unwrap();
        (0..leaves).for_each(|index| draft.set(index, leaf(index as u8 | 1)));
        draft.commit().unwrap();
        let a = Table::open(&a).unwrap();
        let mut draft = Table::derive_from(a.path.as_path(), &b, (leaves + 1) * LEAF_SIZE + 512).unwrap();
        assert_eq!(draft.differences(&a).unwrap(), Extents::new());
        for index in [0, 17_000, 17_001, leaves - 1, leaves + 1] {
            draft.set(index, leaf(0xee));
        }
        let of = |first: u64, length| Extent { offset: first * LEAF_SIZE, length };
        let expected: Extents =
            [of(0, LEAF_SIZE), of(17_000, 2 * LEAF_SIZE), of(leaves - 1, LEAF_SIZE), of(leaves + 1, 512)]
                .into_iter()
                .collect();
        assert_eq!(draft.differences(&a).unwrap(), expected);
        draft.commit_as(folder.path().join("c")).unwrap();
        assert_eq!(a.differences(&Table::open(folder.path().join("c")).unwrap()).unwrap(), expected);
        assert!(!b.exists());
    }

    #[test]
    fn a_table_without_commit_leaves_nothing() {
        let folder = folder();
        let path = folder.path().join("t");
        let mut draft = Table::create(&path, LEAF_SIZE).unwrap();
        draft.set(0, leaf(1));
        drop(draft);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(matches!(Table::open(path), Err(TableError::Io { .. })));
    }

    #[test]
    fn a_commit_replaces_an_older_table() {
        let folder = folder();
        let path = folder.path().join("t");
        for fill in [1, 2] {
            let mut draft = Table::create(&path, LEAF_SIZE).unwrap();
            draft.set(0, leaf(fill));
            draft.commit().unwrap();
            assert_eq!(Table::open(&path).unwrap().leaf(0).unwrap(), leaf(fill));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_set_fails_the_commit() {
        let folder = folder();
        let mut draft = Table::create(folder.path().join("t"), LEAF_SIZE).unwrap();
        draft.set(1, leaf(1));
        draft.set(0, leaf(1));
        draft.root().unwrap_err();
        let error = draft.commit().unwrap_err();
        let TableError::Io { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.to_string(), "leaf 1 is beyond a disk of 65536 bytes");
    }

    #[test]
    fn a_base_that_cannot_be_one_is_refused() {
        let folder = folder();
        let (base, path) = (folder.path().join("a"), folder.path().join("b"));
        let mut draft = Table::create(&base, LEAF_SIZE + 512).unwrap();
        draft.set(1, leaf(1));
        draft.commit().unwrap();
        let derive = |size| Table::derive_from(&base, &path, size).map(|_| ());
        assert!(matches!(derive(LEAF_SIZE), Err(TableError::Shrunk { .. })));
        assert!(matches!(derive(2 * LEAF_SIZE), Err(TableError::GrownInsideLeaf { .. })));
        derive(LEAF_SIZE + 512).unwrap();
        fs::write(&base, [0; 48]).unwrap();
        assert!(matches!(derive(2 * LEAF_SIZE), Err(TableError::NotATable { .. })));
        let mut cut = MAGIC.to_vec();
        cut.extend(u64::MAX.to_le_bytes());
        fs::write(&base, cut).unwrap();
        assert!(matches!(derive(2 * LEAF_SIZE), Err(TableError::NotATable { .. })));
    }

    #[test]
    fn drafts_of_a_dead_process_are_removed_and_others_stay() {
        let folder = folder();
        let live = Table::create(folder.path().join("a"), LEAF_SIZE).unwrap();
        let twin = Table::create(folder.path().join("a"), LEAF_SIZE).unwrap();
        fs::write(folder.path().join("b.leaves.4294967295-0.draft"), b"").unwrap();
        fs::write(folder.path().join("c.leaves"), b"").unwrap();
        remove_abandoned_drafts(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        assert_eq!(live.commit().unwrap(), twin.commit().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
