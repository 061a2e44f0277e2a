//! A storage in memory that loses power, disks that are a few chunks, and a host's view of a repository.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use vmferry_plugin_api::delta::{self, Encoding, Info, Kind, double};
use vmferry_plugin_api::stream::{Input, Output};
use vmferry_plugin_api::target::{Damage, DiskReceipt, Draft, Extent, Garbage, Point};
use vmferry_plugin_api::{Error, Timestamp};
use vmferry_repository::{Object, Piece, Repository, Settings, Storage};

pub(crate) const CHUNK: u64 = 64 << 10;

/// What a disk has: by the number of a chunk the letter that it is full of.
pub(crate) type Content = BTreeMap<u64, u8>;

pub(crate) fn content(text: &str) -> Content {
    text.bytes().enumerate().filter(|(_, letter)| *letter != b'.').map(|(at, letter)| (at as u64, letter)).collect()
}

type Objects = BTreeMap<String, Arc<Vec<u8>>>;

#[derive(Clone)]
enum Change {
    Put(String, Arc<Vec<u8>>),
    Delete(String),
}

/// What becomes of the change during which the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strike {
    /// Nothing.
    Before,
    /// It is made, and nobody hears of it.
    After,
    /// Nothing, and the power stays.
    Refused,
}

/// What becomes of changes that were not synced when the power failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    /// They are all there.
    Kept,
    /// They are lost.
    Lost,
    /// Every other one is lost, and of objects that were made only the first half is there.
    Torn(bool),
}

/// A place for objects. Several threads may use it, as hosts do.
#[derive(Default)]
pub(crate) struct Memory {
    state: Mutex<State>,
    /// Whether it makes again what exists, as an object store does that knows no conditions.
    pub(crate) replaces: bool,
    /// Refuses ranges of other objects, as a store with Object Lock does that wants a check sum of everything.
    pub(crate) locks: bool,
    /// Who may act next, where a test decides that.
    pub(crate) turns: Option<Arc<Turns>>,
}

#[derive(Default)]
struct State {
    now: Objects,
    durable: Objects,
    /// With the process that made them.
    unsynced: Vec<(usize, Change)>,
    process: usize,
    changes: usize,
    opened: usize,
    strike: Option<(usize, Strike)>,
    dark: bool,
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test died")
    }

    /// Lets the power fail at the change with this number, counted from now.
    pub(crate) fn strike_at(&self, change: usize, strike: Strike) {
        let mut state = self.state();
        state.strike = Some((state.changes + change, strike));
    }

    pub(crate) fn is_dark(&self) -> bool {
        self.state().dark
    }

    /// Ranges that were opened so far.
    pub(crate) fn opened(&self) -> usize {
        self.state().opened
    }

    /// The process died alone: the machine has all that it made, and another begins.
    pub(crate) fn begin_anew(&self) {
        let mut state = self.state();
        state.dark = false;
        state.process += 1;
    }

    /// The power is back.
    pub(crate) fn restart(&self, unsynced: Unsynced) {
        let mut state = self.state();
        let mut objects = state.durable.clone();
        for (number, (_, change)) in std::mem::take(&mut state.unsynced).into_iter().enumerate() {
            let (there, torn) = match unsynced {
                Unsynced::Kept => (true, false),
                Unsynced::Lost => (false, false),
                Unsynced::Torn(odd) => ((number % 2 == 1) == odd, true),
            };
            match change {
                _ if !there => {}
                Change::Put(name, bytes) if torn => {
                    objects.insert(name, Arc::new(bytes[..bytes.len() / 2].to_vec()));
                }
                change => change.apply(&mut objects),
            }
        }
        let (changes, opened) = (state.changes, state.opened);
        *state = State { now: objects.clone(), durable: objects, changes, opened, ..State::default() };
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state().now.keys().cloned().collect()
    }

    pub(crate) fn length(&self, name: &str) -> usize {
        self.state().now[name].len()
    }

    /// Bytes of all objects.
    pub(crate) fn size(&self) -> u64 {
        self.state().now.values().map(|bytes| bytes.len() as u64).sum()
    }

    /// Changes an object behind everybody's back.
    pub(crate) fn alter(&self, name: &str, alter: impl Fn(&mut Vec<u8>)) {
        let mut state = self.state();
        let mut bytes = (**state.now.get(name).expect("there")).clone();
        alter(&mut bytes);
        state.now.insert(name.to_owned(), Arc::new(bytes));
        state.durable = state.now.clone();
    }

    pub(crate) fn remove(&self, name: &str) {
        let mut state = self.state();
        state.now.remove(name).expect("there");
        state.durable = state.now.clone();
    }

    /// Begins an act, when it is this thread's turn.
    fn act(&self) -> Result<MutexGuard<'_, State>, Error> {
        if let Some(turns) = &self.turns {
            turns.wait();
        }
        let state = self.state();
        if state.dark { Err(dark()) } else { Ok(state) }
    }
}

impl State {
    fn change(&mut self, change: Option<Change>) -> Result<(), Error> {
        let strike = self.strike.filter(|(at, _)| *at == self.changes).map(|(_, strike)| strike);
        self.changes += 1;
        if matches!(strike, None | Some(Strike::After)) {
            match change {
                Some(change) => {
                    change.clone().apply(&mut self.now);
                    self.unsynced.push((self.process, change));
                }
                None => self.sync(),
            }
        }
        self.dark = matches!(strike, Some(Strike::Before | Strike::After));
        if strike.is_some() { Err(dark()) } else { Ok(()) }
    }

    /// What this process changed is durable; of what an earlier one changed, nobody knows.
    fn sync(&mut self) {
        let process = self.process;
        let own = |(by, change): &(usize, Change)| (*by == process).then(|| change.name().to_owned());
        for name in self.unsynced.iter().filter_map(own).collect::<BTreeSet<_>>() {
            self.unsynced.retain(|(_, change)| change.name() != name);
            match self.now.get(&name) {
                Some(bytes) => drop(self.durable.insert(name, Arc::clone(bytes))),
                None => drop(self.durable.remove(&name)),
            }
        }
    }
}

impl Change {
    fn name(&self) -> &str {
        match self {
            Self::Put(name, _) | Self::Delete(name) => name,
        }
    }

    fn apply(self, objects: &mut Objects) {
        match self {
            Self::Put(name, bytes) => drop(objects.insert(name, bytes)),
            Self::Delete(name) => drop(objects.remove(&name)),
        }
    }
}

fn dark() -> Error {
    Error::unavailable("there is no power", 1)
}

impl Storage for Memory {
    fn put(&self, name: &str, pieces: &[Piece<'_>]) -> Result<(), Error> {
        let mut state = self.act()?;
        let mut bytes = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Bytes(piece) => bytes.extend_from_slice(piece),
                Piece::Payload(payload) => bytes.extend(all(&payload.body()?)?),
                Piece::Range { .. } if self.locks => return Err(Error::config("no check sum")),
                Piece::Range { name, offset, length } => {
                    let from = state.now.get(*name).ok_or_else(|| Error::not_found(*name))?;
                    bytes.extend_from_slice(&from[*offset as usize..(offset + length) as usize]);
                }
            }
        }
        assert_eq!(bytes.len() as u64, pieces.iter().map(Piece::length).sum::<u64>());
        state.change(Some(Change::Put(name.to_owned(), Arc::new(bytes))))
    }

    fn takes_ranges(&self) -> bool {
        !self.locks
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<bool, Error> {
        let mut state = self.act()?;
        if state.now.contains_key(name) && !self.replaces {
            return Ok(false);
        }
        state.change(Some(Change::Put(name.to_owned(), Arc::new(bytes.to_vec())))).map(|()| true)
    }

    fn open(&self, name: &str, offset: u64, length: u64) -> Result<Option<Input>, Error> {
        let mut state = self.act()?;
        state.opened += 1;
        let Some(bytes) = state.now.get(name) else { return Ok(None) };
        let from = bytes.len().min(offset as usize);
        let to = bytes.len().min((offset + length) as usize);
        Ok(Some(Input::double(Cursor::new(bytes[from..to].to_vec()), name)))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>, Error> {
        let state = self.act()?;
        let found = state.now.iter().filter(|(name, _)| name.starts_with(prefix));
        Ok(found.map(|(name, bytes)| Object { name: name.clone(), length: bytes.len() as u64 }).collect())
    }

    fn delete(&self, name: &str) -> Result<(), Error> {
        self.act()?.change(Some(Change::Delete(name.to_owned())))
    }

    fn adopt(&self, name: &str) -> Result<(), Error> {
        let mut state = self.act()?;
        let process = state.process;
        state.unsynced.iter_mut().filter(|(_, change)| change.name() == name).for_each(|(by, _)| *by = process);
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        self.act()?.change(None)
    }
}

fn all(input: &Input) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    loop {
        match input.read(1 << 20)? {
            read if read.is_empty() => return Ok(bytes),
            read => bytes.extend(read),
        }
    }
}

/// Takes what is restored, piece by piece, so that a disk may be large.
#[derive(Default)]
pub(crate) struct Taken {
    open: RefCell<Option<(u64, double::Restore)>>,
    pub(crate) pieces: RefCell<BTreeMap<u64, Vec<u8>>>,
    /// Offsets in the order in which they came.
    pub(crate) order: RefCell<Vec<u64>>,
}

impl delta::Restore for Taken {
    fn put(&self, offset: u64, length: u64, encoding: &Encoding, digest: Option<&[u8]>) -> Result<Output, Error> {
        let piece = double::Restore::default();
        let output = piece.put(0, length, encoding, digest)?;
        self.open.replace(Some((offset, piece)));
        Ok(output)
    }

    fn finish(&self, output: Output) -> Result<(), Error> {
        let (offset, piece) = self.open.take().expect("open");
        piece.finish(output)?;
        self.pieces.borrow_mut().insert(offset, piece.disk());
        self.order.borrow_mut().push(offset);
        Ok(())
    }
}

impl Taken {
    /// What came, if every chunk is full of one letter.
    pub(crate) fn content(&self) -> Content {
        let pieces = self.pieces.borrow();
        let letters = pieces.iter().map(|(offset, bytes)| {
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a chunk of one letter at {offset}");
            (offset / CHUNK, bytes[0])
        });
        letters.collect()
    }
}

/// One host that uses the repository. Its clock stands unless a test turns it.
pub(crate) struct Host {
    pub(crate) storage: Arc<Memory>,
    pub(crate) settings: Settings,
    pub(crate) now: Arc<AtomicI64>,
    /// Size of the disks that it writes, in chunks.
    pub(crate) chunks: u64,
}

impl Default for Host {
    fn default() -> Self {
        Self::on(Arc::default())
    }
}

impl Host {
    pub(crate) fn on(storage: Arc<Memory>) -> Self {
        // Small packs, so that a few chunks are several.
        let settings = Settings { pack_size: 4 * CHUNK, grace: 0, ..Settings::default() };
        Self { storage, settings, now: Arc::new(AtomicI64::new(1_000_000)), chunks: 16 }
    }

    /// Lets so many seconds pass.
    pub(crate) fn pass(&self, seconds: i64) {
        self.now.fetch_add(seconds, SeqCst);
    }

    pub(crate) fn with<T>(&self, act: impl FnOnce(&Repository<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let clock = || -> Timestamp { self.now.load(SeqCst) };
        act(&Repository::make(&*self.storage, self.settings.clone(), &clock, [7; 32])?)
    }

    /// Writes a disk for the draft `id`; with a base, only what differs from `before`.
    pub(crate) fn write(
        &self,
        id: &str,
        disk: &str,
        base: Option<(&str, &Content)>,
        now: &Content,
    ) -> Result<DiskReceipt, Error> {
        let empty = Content::new();
        let before = base.map_or(&empty, |(_, before)| before);
        let changed = (0..self.chunks).filter(|at| before.get(at) != now.get(at));
        let chunks: Vec<_> =
            changed.map(|at| (at * CHUNK, vec![now.get(&at).copied().unwrap_or_default(); CHUNK as usize])).collect();
        let info = Info {
            disk: disk.to_owned(),
            content: format!("content of {disk} at {id}"),
            size: self.chunks * CHUNK,
            kind: base.map_or(Kind::Full, |(base, _)| Kind::Delta(base.to_owned())),
            // Enough to make an index worth reading.
            expected_bytes: 1 << 30,
            extensions: Vec::new(),
        };
        let delta = double::Delta::new(info, chunks);
        let draft = draft(id, base.map(|(base, _)| base));
        let receipt = self.with(|repository| repository.write(&draft, &delta))?;
        Ok(DiskReceipt { disk: disk.to_owned(), receipt, digest: Some("ab12".to_owned()) })
    }

    pub(crate) fn commit(&self, id: &str, base: Option<&str>, receipts: &[DiskReceipt]) -> Result<Point, Error> {
        self.with(|repository| repository.commit(&draft(id, base), receipts))
    }

    /// A point of one disk from its write to its commit.
    pub(crate) fn point(&self, id: &str, base: Option<(&str, &Content)>, now: &Content) -> Result<Point, Error> {
        let receipt = self.write(id, "disk", base, now)?;
        self.commit(id, base.map(|(base, _)| base), &[receipt])
    }

    pub(crate) fn points(&self) -> Vec<String> {
        let points = self.with(|repository| repository.points(None)).expect("listed");
        points.into_iter().map(|point| point.id).collect()
    }

    pub(crate) fn restore(&self, id: &str) -> Result<Content, Error> {
        self.restore_disk(id, "disk")
    }

    pub(crate) fn restore_disk(&self, id: &str, disk: &str) -> Result<Content, Error> {
        let taken = Taken::default();
        let extents = self.layout(id, disk, None)?;
        self.with(|repository| repository.read(id, disk, &extents, &taken))?;
        assert!(taken.order.borrow().is_sorted(), "pieces ascend");
        Ok(taken.content())
    }

    pub(crate) fn layout(&self, id: &str, disk: &str, since: Option<&str>) -> Result<Vec<Extent>, Error> {
        self.with(|repository| repository.layout(id, disk, since))
    }

    pub(crate) fn verify(&self, id: &str) -> Result<Vec<Damage>, Error> {
        self.with(|repository| repository.verify(id, &Taken::default()))
    }

    pub(crate) fn delete(&self, id: &str) -> Result<(), Error> {
        self.with(|repository| repository.delete(id))
    }

    pub(crate) fn abort(&self, id: &str) -> Result<(), Error> {
        self.with(|repository| repository.abort(id))
    }

    pub(crate) fn collect(&self, drafts: &[&str], apply: bool) -> Result<Vec<Garbage>, Error> {
        let drafts: Vec<String> = drafts.iter().map(|id| (*id).to_owned()).collect();
        self.with(|repository| repository.collect(&drafts, apply))
    }

    /// Names of all objects that begin so.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        self.storage.names().into_iter().filter(|name| name.starts_with(prefix)).collect()
    }
}

pub(crate) fn draft(id: &str, base: Option<&str>) -> Draft {
    Draft {
        id: id.to_owned(),
        job: "job".to_owned(),
        vm: "vm".to_owned(),
        name: "a VM".to_owned(),
        taken_at: 1000 + id.bytes().map(i64::from).sum::<i64>(),
        base: base.map(str::to_owned),
        metadata: format!(r#"{{"format":1,"of":"{id}"}}"#),
        extensions: Vec::new(),
    }
}

thread_local! {
    static ME: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Has threads act one at a time, in an order that a number decides.
pub(crate) struct Turns {
    state: Mutex<Order>,
    changed: std::sync::Condvar,
}

struct Order {
    /// What each thread does: waits for its turn, acts, or is done.
    threads: Vec<Phase>,
    random: u64,
    /// How often out of 256 the turn goes to another thread than before.
    restless: u64,
    last: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Busy,
    Waiting,
    Done,
}

impl Turns {
    pub(crate) fn new(threads: usize, seed: u64) -> Self {
        let restless = [4, 20, 128][(seed % 3) as usize];
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let order = Order { threads: vec![Phase::Busy; threads], random, restless, last: 0 };
        Self { state: Mutex::new(order), changed: std::sync::Condvar::new() }
    }

    /// Makes the calling thread the one with this number until `act` is done.
    pub(crate) fn take_part<T>(&self, number: usize, act: impl FnOnce() -> T) -> T {
        ME.set(Some(number));
        let done = act();
        ME.set(None);
        self.to(number, Phase::Done);
        done
    }

    fn to(&self, number: usize, phase: Phase) {
        let mut order = self.state.lock().expect("no test died");
        order.threads[number] = phase;
        // Who was let go is busy until it waits again, so exactly one is.
        if order.threads.iter().all(|phase| *phase != Phase::Busy)
            && let Some(next) = order.next()
        {
            order.threads[next] = Phase::Busy;
            order.last = next;
        }
        self.changed.notify_all();
        if phase == Phase::Waiting {
            let waits = |order: &mut Order| order.threads[number] == Phase::Waiting;
            drop(self.changed.wait_while(order, waits).expect("no test died"));
        }
    }

    fn wait(&self) {
        if let Some(number) = ME.get() {
            self.to(number, Phase::Waiting);
        }
    }
}

impl Order {
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn next(&mut self) -> Option<usize> {
        let waiting: Vec<usize> = (0..self.threads.len()).filter(|at| self.threads[*at] == Phase::Waiting).collect();
        if waiting.contains(&self.last) && self.random() % 256 >= self.restless {
            return Some(self.last);
        }
        let at = self.random() as usize % waiting.len().max(1);
        waiting.get(at).copied()
    }
}
