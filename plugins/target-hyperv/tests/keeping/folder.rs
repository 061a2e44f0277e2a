//! A folder in memory that notes what is done to it, and what a crash leaves of that.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor};
use std::rc::Rc;
use target_hyperv::{DiskFile, Place};
use vmferry_plugin_api::Error;
use vmferry_plugin_api::stream::Input;
use vmferry_vhdx::{MemoryFile, Storage};

/// The time of all writes, until it is said to be later.
const NOW: u64 = 1_800_000_000;

/// What is on the medium.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    files: BTreeMap<String, Rc<Inode>>,
    folders: BTreeSet<String>,
}

/// A file, whatever its name.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    number: usize,
    data: MemoryFile,
    modified: Cell<u64>,
}

#[derive(Clone, Debug)]
enum Act {
    Write(usize, u64, Rc<[u8]>),
    Length(usize, u64),
    Modified(usize, u64),
    Sync(usize),
    Create(String, usize),
    Rename(String, String),
    Remove(String),
    Folder(String),
    SyncFolder(String),
}

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unsynced {
    Kept,
    Lost,
    /// Sectors of 512 bytes as chance has it; names up to a moment that chance chooses, as journals of file systems do.
    Torn(u64),
}

/// The folder.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    before: RefCell<World>,
    now: RefCell<World>,
    acts: RefCell<Vec<Act>>,
    inodes: Cell<usize>,
    /// Acts that are done before everything fails.
    left: Cell<Option<usize>>,
    /// Seconds since the first write.
    later: Cell<u64>,
}

#[derive(Debug)]
pub(crate) struct Open {
    inode: Rc<Inode>,
    inner: Rc<Inner>,
}

impl Inode {
    fn new(number: usize, now: u64) -> Self {
        Self { number, data: MemoryFile::default(), modified: now.into() }
    }

    fn write_at(&self, offset: u64, bytes: &[u8], now: u64) -> io::Result<()> {
        self.modified.set(now);
        self.data.write_at(offset, bytes)
    }

    fn set_length(&self, length: u64, now: u64) -> io::Result<()> {
        self.modified.set(now);
        self.data.set_length(length)
    }
}

impl World {
    /// The files, with the names that lead to them.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &MemoryFile)> {
        self.files.iter().map(|(path, inode)| (path.as_str(), &inode.data))
    }

    /// Nothing is shared with this one.
    fn copy(&self) -> Self {
        let files = self.files.iter().map(|(path, inode)| (path.clone(), Rc::new((**inode).clone()))).collect();
        Self { files, folders: self.folders.clone() }
    }
}

impl Recorded {
    pub(crate) fn of(world: &World) -> Self {
        let recorded = Self::default();
        let inodes = world.files.values().map(|inode| inode.number + 1).max().unwrap_or(0);
        recorded.0.inodes.set(inodes);
        recorded.0.before.replace(world.copy());
        recorded.0.now.replace(world.copy());
        recorded
    }

    /// What is there now, everything synced.
    pub(crate) fn world(&self) -> World {
        self.0.now.borrow().copy()
    }

    /// How much was done.
    pub(crate) fn acts(&self) -> usize {
        self.0.acts.borrow().len()
    }

    /// Lets everything fail after so many acts from now.
    pub(crate) fn fail_after(&self, acts: usize) {
        self.0.left.set(Some(acts));
    }

    /// Lets an hour pass.
    pub(crate) fn pass_an_hour(&self) {
        self.0.later.set(self.0.later.get() + 3600);
    }

    /// What a crash after `count` acts leaves.
    pub(crate) fn crashed(&self, count: usize, unsynced: Unsynced) -> World {
        let acts = &self.0.acts.borrow()[..count];
        let mut chance = Chance(if let Unsynced::Torn(seed) = unsynced { seed } else { 0 });
        let mut world = self.0.before.borrow().copy();
        let mut inodes: BTreeMap<usize, Rc<Inode>> =
            world.files.values().map(|it| (it.number, Rc::clone(it))).collect();

        let is_name = |act: &Act| matches!(act, Act::Create(..) | Act::Rename(..) | Act::Remove(_) | Act::Folder(_));
        let names: Vec<usize> = (0..count).filter(|number| is_name(&acts[*number])).collect();
        let durable = |number: &usize| {
            acts[*number..].iter().any(|act| matches!(act, Act::SyncFolder(path) if in_folder(&acts[*number], path)))
        };
        let sure = names.iter().rposition(durable).map_or(0, |at| at + 1);
        let kept = match unsynced {
            Unsynced::Kept => names.len(),
            Unsynced::Lost => sure,
            Unsynced::Torn(_) => sure + chance.below(names.len() - sure + 1),
        };
        let kept: BTreeSet<usize> = names[..kept].iter().copied().collect();
        for (number, act) in acts.iter().enumerate() {
            let synced =
                |inode: usize| acts[number..].iter().any(|act| matches!(act, Act::Sync(other) if *other == inode));
            match act {
                Act::Sync(_) | Act::SyncFolder(_) => {}
                Act::Create(path, inode) => {
                    let made = Rc::new(Inode::new(*inode, NOW));
                    inodes.insert(*inode, Rc::clone(&made));
                    if kept.contains(&number) {
                        world.files.insert(path.clone(), made);
                    }
                }
                act if is_name(act) => {
                    if kept.contains(&number) {
                        world.name(act);
                    }
                }
                Act::Length(inode, length) => {
                    let keep = synced(*inode) || chance.keeps(unsynced);
                    if keep {
                        inodes[inode].set_length(*length, NOW).expect("a length");
                    }
                }
                Act::Modified(inode, seconds) => {
                    if synced(*inode) || chance.keeps(unsynced) {
                        inodes[inode].modified.set(*seconds);
                    }
                }
                Act::Write(inode, offset, bytes) if synced(*inode) => {
                    inodes[inode].write_at(*offset, bytes, NOW).expect("written");
                }
                Act::Write(inode, offset, bytes) => {
                    for (index, sector) in bytes.chunks(512).enumerate() {
                        if chance.keeps(unsynced) {
                            inodes[inode].write_at(offset + 512 * index as u64, sector, NOW).expect("written");
                        }
                    }
                }
                _ => unreachable!("the names were all handled"),
            }
        }
        world
    }
}

impl World {
    fn name(&mut self, act: &Act) {
        match act {
            Act::Rename(from, to) => {
                let inode = self.files.remove(from).expect("names are kept in order");
                self.files.insert(to.clone(), inode);
            }
            Act::Remove(path) => {
                self.files.remove(path);
            }
            Act::Folder(path) => {
                self.folders.insert(path.clone());
            }
            _ => unreachable!("not a name"),
        }
    }
}

/// Whether an act changed names in this folder.
fn in_folder(act: &Act, folder: &str) -> bool {
    let above = |path: &str| path.rsplit_once('/').map_or("", |(above, _)| above) == folder;
    match act {
        Act::Create(path, _) | Act::Rename(_, path) | Act::Remove(path) | Act::Folder(path) => above(path),
        _ => false,
    }
}

struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 7
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    fn keeps(&mut self, unsynced: Unsynced) -> bool {
        match unsynced {
            Unsynced::Kept => true,
            Unsynced::Lost => false,
            Unsynced::Torn(_) => self.next() & 1 == 1,
        }
    }
}

impl Inner {
    fn now(&self) -> u64 {
        NOW + self.later.get()
    }

    fn act(&self, act: Act) -> io::Result<()> {
        match self.left.get() {
            Some(0) => return Err(io::Error::other(Error::unavailable("the machine is gone", 1))),
            left => self.left.set(left.map(|left| left - 1)),
        }
        self.acts.borrow_mut().push(act);
        Ok(())
    }
}

fn failed(error: io::Error) -> Error {
    error.downcast().expect("the error of a folder")
}

impl Storage for Open {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.inode.data.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.act(Act::Write(self.inode.number, offset, bytes.into()))?;
        self.inode.write_at(offset, bytes, self.inner.now())
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.act(Act::Sync(self.inode.number))
    }

    fn length(&self) -> io::Result<u64> {
        self.inode.data.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.inner.act(Act::Length(self.inode.number, length))?;
        self.inode.set_length(length, self.inner.now())
    }
}

impl DiskFile for Open {
    fn splice_at(&self, offset: u64, input: &Input, length: u64) -> Result<(), Error> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < length {
            let piece = input.read(length - bytes.len() as u64)?;
            assert!(!piece.is_empty(), "a stream ended too early");
            bytes.extend_from_slice(&piece);
        }
        self.write_at(offset, &bytes).map_err(failed)
    }

    fn input(&self, offset: u64) -> Result<Input, Error> {
        let end = self.inode.data.length().expect("a length").min(offset + (2 << 20));
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        self.inode.data.read_at(offset.min(end), &mut bytes).expect("read");
        Ok(Input::double(Cursor::new(bytes), "a file in memory"))
    }

    fn modified(&self) -> io::Result<u64> {
        Ok(self.inode.modified.get())
    }

    fn set_modified(&self, seconds: u64) -> io::Result<()> {
        self.inner.act(Act::Modified(self.inode.number, seconds))?;
        self.inode.modified.set(seconds);
        Ok(())
    }
}

impl Place for Recorded {
    type File = Open;

    fn open(&self, path: &str, _: bool) -> Result<Open, Error> {
        let inode = self.0.now.borrow().files.get(path).cloned();
        let inode = inode.ok_or_else(|| Error::not_found(format!("cannot open {path}: it does not exist")))?;
        Ok(Open { inode, inner: Rc::clone(&self.0) })
    }

    fn create(&self, path: &str) -> Result<Open, Error> {
        if let Ok(there) = self.open(path, true) {
            there.set_length(0).map_err(failed)?;
            return Ok(there);
        }
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        assert!(above.is_empty() || self.0.now.borrow().folders.contains(above), "{above} is there");
        let number = self.0.inodes.get();
        self.0.inodes.set(number + 1);
        self.0.act(Act::Create(path.to_owned(), number)).map_err(failed)?;
        let inode = Rc::new(Inode::new(number, self.0.now()));
        self.0.now.borrow_mut().files.insert(path.to_owned(), Rc::clone(&inode));
        Ok(Open { inode, inner: Rc::clone(&self.0) })
    }

    fn create_folder(&self, path: &str) -> Result<(), Error> {
        if self.0.now.borrow().folders.contains(path) {
            return Ok(());
        }
        let act = Act::Folder(path.to_owned());
        self.0.act(act.clone()).map_err(failed)?;
        self.0.now.borrow_mut().name(&act);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let act = Act::Rename(from.to_owned(), to.to_owned());
        self.0.act(act.clone()).map_err(failed)?;
        self.0.now.borrow_mut().name(&act);
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<(), Error> {
        if !self.0.now.borrow().files.contains_key(path) {
            return Ok(());
        }
        let act = Act::Remove(path.to_owned());
        self.0.act(act.clone()).map_err(failed)?;
        self.0.now.borrow_mut().name(&act);
        Ok(())
    }

    fn sync_folder(&self, path: &str) -> Result<(), Error> {
        self.0.act(Act::SyncFolder(path.to_owned())).map_err(failed)
    }

    fn list(&self, path: &str) -> Result<Vec<(String, bool)>, Error> {
        let now = self.0.now.borrow();
        let below = |name: &str| {
            let (above, name) = name.rsplit_once('/').unwrap_or(("", name));
            (above == path).then(|| name.to_owned())
        };
        let files = now.files.keys().filter_map(|name| Some((below(name)?, false)));
        let folders = now.folders.iter().filter_map(|name| Some((below(name)?, true)));
        Ok(files.chain(folders).collect())
    }

    fn size(&self, path: &str) -> Result<Option<u64>, Error> {
        let now = self.0.now.borrow();
        let folder = now.folders.contains(path).then_some(0);
        Ok(now.files.get(path).map(|inode| inode.data.length().expect("a length")).or(folder))
    }
}
