//! A repository that is open: its settings, and what every act on it needs.

use crate::envelope::{Kind, Sealing, damaged};
use crate::map::{Page, Place, Root, decode_page};
use crate::names::{self, Digest, Names, PackId, REPOSITORY, Tag};
use crate::storage::{Object, Storage, get, put_bytes};
use crate::table::{Form, Table};
use crate::wire::{Reader, Writer};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use vmferry_plugin_api::{Error, ErrorCode, Timestamp, seal};

/// The format that this program writes, and the newest that it reads.
const FORMAT: u32 = 1;
/// Chunks of a repository that nobody chose a size for: the grain in which changed blocks are told, so that a delta writes no more
/// than what changed.
pub const DEFAULT_CHUNK_SIZE: u32 = 64 << 10;
/// Tables that are kept at hand: 11 MiB at most.
const KEPT_TABLES: usize = 128;
/// When to ask again after something that another host did at the same time.
pub(crate) const RETRY_AFTER: u64 = 30;

/// What an operator decides about a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the host's key that everything is encrypted with; none for a repository in plain.
    pub key: Option<String>,
    /// Size of a chunk in bytes, if it has to be a certain one. It is chosen when the repository is made.
    pub chunk_size: Option<u32>,
    /// Whether chunks are compressed.
    pub compress: bool,
    /// Bytes of chunks that go into one pack. The host holds that much while a pack is made.
    pub pack_size: u64,
    /// For how many seconds what nobody needs is left alone before it is removed. A run whose write takes longer, and that
    /// another host removes garbage under, fails and has to begin anew.
    pub grace: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { key: None, chunk_size: None, compress: true, pack_size: 32 << 20, grace: 24 * 3600 }
    }
}

/// What is said of a repository in its first object, as JSON, so that somebody who finds it knows what it is.
#[derive(Serialize, Deserialize)]
struct Description {
    what: String,
    format: u32,
    chunk_size: u32,
    encrypted: bool,
    /// What names are made with and the two numbers above again, sealed if the repository is encrypted; in hex.
    secret: String,
}

impl Description {
    /// What is in `secret`, and proves that nobody changed the numbers beside it.
    fn vouched(&self, secret: &[u8; 32]) -> Vec<u8> {
        [&secret[..], &self.format.to_le_bytes(), &self.chunk_size.to_le_bytes()].concat()
    }
}

const WHAT: &str = "recovery points of virtual machines, written by vmferry";

/// A repository that exists.
pub struct Repository<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) settings: Settings,
    pub(crate) sealing: Sealing,
    pub(crate) clock: &'a dyn Fn() -> Timestamp,
    pub(crate) chunk_size: u32,
    pub(crate) names: Names,
    tables: RefCell<Tables>,
}

/// A pack that can be read.
#[derive(Debug)]
pub(crate) struct Pack {
    /// The object that it is in.
    pub(crate) object: String,
    /// Where its first entry begins.
    data: u64,
    pub(crate) table: Table,
    offsets: Vec<u64>,
}

/// Tables that were read, and when each was used last.
#[derive(Default)]
struct Tables {
    packs: HashMap<PackId, (u64, Rc<Pack>)>,
    uses: u64,
}

impl Pack {
    fn new(object: String, data: u64, table: Table) -> Self {
        let offsets = table.entries.iter().scan(data, |at, entry| {
            let offset = *at;
            *at += u64::from(entry.stored);
            Some(offset)
        });
        let offsets = offsets.collect();
        Self { object, data, table, offsets }
    }

    /// Where an entry begins in the object.
    pub(crate) fn offset(&self, entry: u16) -> u64 {
        self.offsets.get(usize::from(entry)).copied().unwrap_or_default()
    }

    /// How long the object is when it is whole.
    pub(crate) fn length(&self) -> u64 {
        self.data + self.table.stored()
    }
}

impl<'a> Repository<'a> {
    /// Opens the repository in `storage`; `None` when nothing is there yet.
    pub fn open(
        storage: &'a dyn Storage,
        settings: Settings,
        clock: &'a dyn Fn() -> Timestamp,
    ) -> Result<Option<Self>, Error> {
        let Some(json) = get(storage, REPOSITORY, 0, 64 << 10)? else { return Ok(None) };
        let foreign = |why: &str| Error::damaged(format!("the object `{REPOSITORY}` describes no repository: {why}"));
        let description: Description = serde_json::from_slice(&json).map_err(|error| foreign(&error.to_string()))?;
        if description.what != WHAT {
            return Err(foreign("it is another program's"));
        }
        if description.format != FORMAT {
            return Err(Error::with_code(
                ErrorCode::Unsupported,
                format!(
                    "the repository has format {}, and this program knows {FORMAT}; use a newer one",
                    description.format
                ),
            ));
        }
        if !is_chunk_size(description.chunk_size) {
            return Err(foreign("its chunk size is impossible"));
        }
        let stored = names::unhex_all(&description.secret).ok_or_else(|| foreign("its secret is no hex"))?;
        let vouched = match (&settings.key, description.encrypted) {
            (None, false) => stored,
            (Some(key), true) => seal::open(key, &stored).map_err(|error| match error.is_damaged() {
                true => Error::config(format!("`key`: the repository is not encrypted with the key `{key}`")),
                false => error,
            })?,
            (None, true) => {
                return Err(Error::config(
                    "`key`: the repository is encrypted; name the key that it is encrypted with",
                ));
            }
            (Some(_), false) => {
                return Err(Error::config(
                    "`key`: the repository is not encrypted, which cannot be changed; make another one",
                ));
            }
        };
        let secret = *vouched.first_chunk().ok_or_else(|| foreign("its secret is too short"))?;
        if vouched != description.vouched(&secret) {
            return Err(foreign("somebody changed its format or chunk size"));
        }
        if settings.chunk_size.is_some_and(|size| size != description.chunk_size) {
            let size = description.chunk_size >> 10;
            return Err(Error::config(format!(
                "`chunk_size`: the repository was made with chunks of {size} KiB, which cannot be changed; write `{size} KiB` or \
                 leave the setting out"
            )));
        }
        Ok(Some(Self {
            storage,
            sealing: Sealing(settings.key.clone()),
            settings,
            clock,
            chunk_size: description.chunk_size,
            names: Names::new(secret),
            tables: RefCell::default(),
        }))
    }

    /// Opens the repository in `storage`, and makes it when nothing is there. `secret` is random.
    pub fn make(
        storage: &'a dyn Storage,
        settings: Settings,
        clock: &'a dyn Fn() -> Timestamp,
        secret: [u8; 32],
    ) -> Result<Self, Error> {
        if let Some(repository) = Self::open(storage, settings.clone(), clock)? {
            return Ok(repository);
        }
        let chunk_size = settings.chunk_size.unwrap_or(DEFAULT_CHUNK_SIZE);
        let mut description = Description {
            what: WHAT.to_owned(),
            format: FORMAT,
            chunk_size,
            encrypted: settings.key.is_some(),
            secret: String::new(),
        };
        let vouched = description.vouched(&secret);
        description.secret = names::hex(&match &settings.key {
            Some(key) => seal::seal(key, &vouched)?,
            None => vouched,
        });
        let json = serde_json::to_vec_pretty(&description).unwrap_or_default();
        // Another host may be faster; then that one's is opened. Where what exists is made again, the slower one's secret would be
        // put in the place of the one by which the faster one named its objects.
        if storage.create(REPOSITORY, &json)? && storage.create(REPOSITORY, &json)? {
            storage.delete(REPOSITORY)?;
            storage.sync()?;
            return Err(Error::with_code(
                ErrorCode::Unsupported,
                format!(
                    "no repository was made: the place makes `{REPOSITORY}` again where it exists, so of two hosts that begin at \
                     once one would lose what it wrote; a bucket's store has to honour `If-None-Match: *`: take a newer version of it, \
                     or another"
                ),
            ));
        }
        storage.sync()?;
        Self::open(storage, settings, clock)?
            .ok_or_else(|| Error::unavailable("the repository that was just made is gone", RETRY_AFTER))
    }

    /// Size of its chunks in bytes.
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Wraps `content` and makes it the object `name`.
    pub(crate) fn put(&self, kind: Kind, name: &str, content: &[u8]) -> Result<(), Error> {
        put_bytes(self.storage, name, &self.sealing.wrap(kind, name, content)?)
    }

    /// The content of the object `name`, `None` when it does not exist.
    pub(crate) fn get(&self, kind: Kind, name: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.sealing.read(self.storage, name, 0, kind, name)?.map(|(content, _)| content))
    }

    /// The table of a pack as one of its objects has it.
    pub(crate) fn read_pack(&self, id: &PackId, object: &str) -> Result<Option<Pack>, Error> {
        let subject = id.name();
        let Some((content, data)) = self.sealing.read(self.storage, object, 0, Kind::Table, &subject)? else {
            return Ok(None);
        };
        let table = Table::decode(&content).map_err(|problem| damaged(object, problem))?;
        let digest = table_digest(&content);
        let known = if object == subject { table.is_original(id, &digest) } else { id.shrunk_name(&digest) == object };
        if !known || table.entries.len() != usize::from(id.entries()) {
            return Err(Error::damaged(format!("{object} is damaged: it is another pack than its name says")));
        }
        Ok(Some(Pack::new(object.to_owned(), data, table)))
    }

    /// A pack as it was made; `None` when it is not there any more.
    pub(crate) fn original(&self, id: &PackId) -> Result<Option<Rc<Pack>>, Error> {
        let kept = self.tables.borrow_mut().get(id).filter(|pack| pack.object == id.name());
        if kept.is_some() {
            return Ok(kept);
        }
        let Some(pack) = self.read_pack(id, &id.name())? else { return Ok(None) };
        Ok(Some(self.tables.borrow_mut().keep(*id, pack)))
    }

    /// A pack, or what is left of it.
    pub(crate) fn pack(&self, id: &PackId) -> Result<Rc<Pack>, Error> {
        if let Some(pack) = self.tables.borrow_mut().get(id) {
            return Ok(pack);
        }
        if let Some(pack) = self.original(id)? {
            return Ok(pack);
        }
        // Several are there only where shrinking was interrupted, and then each has whatever a point needs, if it is whole.
        for object in self.storage.list(&id.name())? {
            match self.read_pack(id, &object.name) {
                Ok(Some(pack)) if pack.length() == object.length => {
                    return Ok(self.tables.borrow_mut().keep(*id, pack));
                }
                Ok(_) => {}
                Err(error) if error.is_damaged() => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::damaged(format!("{} is missing", id.name())))
    }

    /// Forgets a pack that was found gone, so that it is looked for anew.
    pub(crate) fn forget(&self, id: &PackId) {
        self.tables.borrow_mut().packs.remove(id);
    }

    /// Does `act` with a pack, once more if another host shrank it in between.
    pub(crate) fn with_pack<T>(
        &self,
        id: &PackId,
        mut act: impl FnMut(&Rc<Pack>) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        if let Some(done) = act(&self.pack(id)?)? {
            return Ok(done);
        }
        self.forget(id);
        act(&self.pack(id)?)?.ok_or_else(|| Error::damaged(format!("{} is missing", id.name())))
    }

    /// The pages at these places. Those that lie behind each other are read at once.
    pub(crate) fn pages(&self, places: &[Place]) -> Result<Vec<Page>, Error> {
        /// What is read of a pack at once.
        const MOST: u64 = 1 << 20;
        let mut pages = Vec::with_capacity(places.len());
        while let Some(first) = places.get(pages.len()) {
            let rest = &places[pages.len()..];
            let read = self.with_pack(&first.pack, |pack| {
                let mut wanted = Vec::new();
                let begin = pack.offset(first.entry);
                let mut end = begin;
                for place in rest {
                    let entry = pack.table.entries.get(usize::from(place.entry));
                    let Some(entry) = entry.filter(|_| place.pack == first.pack && pack.offset(place.entry) == end)
                    else {
                        break;
                    };
                    end += u64::from(entry.stored);
                    if !wanted.is_empty() && end - begin > MOST {
                        break;
                    }
                    wanted.push(*entry);
                }
                let length = wanted.iter().map(|entry| u64::from(entry.stored)).sum();
                let Some(bytes) = get(self.storage, &pack.object, begin, length)? else { return Ok(None) };
                let mut reader = Reader::new(&bytes);
                let mut read = Vec::with_capacity(wanted.len());
                for (entry, place) in wanted.iter().zip(rest) {
                    let stored =
                        reader.take(entry.stored as usize).map_err(|problem| damaged(&pack.object, problem))?;
                    read.push(self.page(stored, entry.form, &entry.digest, place)?);
                }
                Ok(Some(read))
            })?;
            if read.is_empty() {
                return Err(Error::damaged(format!(
                    "{} is damaged: it has no page {}",
                    first.pack.name(),
                    first.entry
                )));
            }
            pages.extend(read);
        }
        Ok(pages)
    }

    fn page(&self, stored: &[u8], form: Form, digest: &Digest, place: &Place) -> Result<Page, Error> {
        let name = || format!("page {} of {}", place.entry, place.pack.name());
        let plain = match (form, &self.settings.key) {
            (Form::Page, None) => stored.to_vec(),
            (Form::SealedPage, Some(key)) => seal::open(key, stored)?,
            _ => return Err(Error::damaged(format!("{} is no page", name()))),
        };
        if blake3::hash(&plain) != *digest {
            return Err(Error::damaged(format!("{} is damaged: its check sum is wrong", name())));
        }
        decode_page(&plain, place.pack).map_err(|problem| damaged(&name(), problem))
    }

    /// Calls `visit` with every page of a disk in `numbers`, ascending; those without data are left out.
    pub(crate) fn each_page(
        &self,
        root: &Root,
        numbers: std::ops::Range<usize>,
        mut visit: impl FnMut(usize, Page) -> Result<(), Error>,
    ) -> Result<(), Error> {
        /// Pages that are held at one time: 8 MiB at most.
        const AT_ONCE: usize = 64;
        let there: Vec<(usize, Place)> =
            numbers.filter_map(|number| Some((number, (*root.pages.get(number)?)?))).collect();
        for group in there.chunks(AT_ONCE) {
            let places: Vec<Place> = group.iter().map(|(_, place)| *place).collect();
            for ((number, _), page) in group.iter().zip(self.pages(&places)?) {
                visit(*number, page)?;
            }
        }
        Ok(())
    }

    /// Objects of drafts, by draft.
    pub(crate) fn drafts(&self) -> Result<std::collections::BTreeMap<Tag, Vec<Object>>, Error> {
        let mut drafts = std::collections::BTreeMap::<Tag, Vec<Object>>::new();
        for object in self.storage.list(names::DRAFTS)? {
            let tag = object.name.strip_prefix(names::DRAFTS).and_then(|rest| rest.split_once('/'));
            if let Some(tag) = tag.and_then(|(tag, _)| Tag::parse(tag)) {
                drafts.entry(tag).or_default().push(object);
            }
        }
        Ok(drafts)
    }

    /// Packs that nobody may refer to anew: [`names::CONDEMNED`], [`names::SENTENCED`] or [`names::UNSOUND`], by batch.
    pub(crate) fn batches(&self, prefix: &str) -> Result<Vec<Batch>, Error> {
        let mut batches = Vec::new();
        for object in self.storage.list(prefix)? {
            // One that another host removes meanwhile is no more. One that cannot be read was being written when the power
            // failed, before anything followed from it.
            match self.get(Kind::Batch, &object.name) {
                Ok(Some(content)) => {
                    let batch = Batch::decode(object.name.clone(), &content);
                    batches.push(batch.map_err(|problem| damaged(&object.name, problem))?);
                }
                Ok(None) => {}
                Err(error) if error.is_damaged() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(batches)
    }
}

/// The digest that a table's pack is named by.
pub(crate) fn table_digest(table: &[u8]) -> Digest {
    *blake3::hash(table).as_bytes()
}

/// Whether chunks may have this size.
pub(crate) fn is_chunk_size(size: u32) -> bool {
    size.is_power_of_two() && (64 << 10..=2 << 20).contains(&size)
}

impl Tables {
    fn get(&mut self, id: &PackId) -> Option<Rc<Pack>> {
        self.uses += 1;
        let (used, pack) = self.packs.get_mut(id)?;
        *used = self.uses;
        Some(Rc::clone(pack))
    }

    fn keep(&mut self, id: PackId, pack: Pack) -> Rc<Pack> {
        if self.packs.len() >= KEPT_TABLES {
            let oldest = self.packs.iter().min_by_key(|(_, (used, _))| *used).map(|(id, _)| *id);
            oldest.map(|id| self.packs.remove(&id));
        }
        self.uses += 1;
        let pack = Rc::new(pack);
        self.packs.insert(id, (self.uses, Rc::clone(&pack)));
        pack
    }
}

/// Packs that were condemned, sentenced or found damaged together.
///
/// ```text
/// 0  8      when, in seconds since 1970
/// 8  varint number of packs; for each 20 bytes: its id
/// ```
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) name: String,
    pub(crate) at: Timestamp,
    pub(crate) packs: Vec<PackId>,
}

impl Batch {
    /// Packs of one batch: 80 KiB.
    pub(crate) const MOST: usize = 4096;

    pub(crate) fn encode(at: Timestamp, packs: &[PackId]) -> Vec<u8> {
        let mut out = Writer::default();
        out.raw(&at.to_le_bytes());
        out.varint(packs.len() as u64);
        packs.iter().for_each(|id| out.raw(id.as_bytes()));
        out.0
    }

    pub(crate) fn decode(name: String, content: &[u8]) -> Result<Self, crate::wire::Malformed> {
        let mut reader = Reader::new(content);
        let at = reader.u64()?.cast_signed();
        let count = reader.count(20, Self::MOST)?;
        let packs = (0..count).map(|_| reader.array().map(PackId::from_bytes)).collect::<Result<Vec<_>, _>>()?;
        reader.finish()?;
        Ok(Self { name, at, packs })
    }
}
