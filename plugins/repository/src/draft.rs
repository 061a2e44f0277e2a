//! Points in the making: what stands for a draft while it is written, and how it becomes a point or nothing.
//!
//! # Why no chunk that a point needs is ever removed
//!
//! Hosts share a repository without locks, and a writer refers to chunks that others stored (to *packs*, for short). So a pack that no
//! point needs is removed in steps, and a draft becomes a point in steps:
//!
//! | Collector | Writer |
//! | --- | --- |
//! | 1. *condemns* a pack that neither drafts nor points need | a. begins, and reads what is condemned or sentenced: does not refer to it |
//! | 2. waits for the grace time, so that writers who began before are done | b. stores the draft's disks, with all references |
//! | 3. *sentences* the pack | c. looks for sentences on packs that it refers to: gives up if there is one |
//! | 4. marks again what drafts and points need: drafts first, then points | d. looks whether the packs are there: gives up if not |
//! | 5. writes what is left of the pack as a new object, removes the old one | e. makes the point, then looks whether the draft is still there |
//! | 6. takes the sentence back once the old object is gone | f. removes the draft |
//!
//! If the sentence (3) came before the writer's look (c), the writer gives up, or the pack is gone and (d) sees that. If it came after, the
//! draft was there before the sentence, and so before the mark (4): the mark counts it, or the point that it has become by then, since
//! drafts are listed before points and a draft goes (f) after its point came (e). No clock decides, only the order of these acts; the grace
//! time makes giving up rare and nothing else. A sentence is never taken back while the pack stands, because another collector may be
//! at (4) or (5) because of it; what is left of a shrunk pack is never referred to anew, for the same reason.
//!
//! Pages that a delta shares with its base need no look: the base is there after (b), so everything it needs was counted until then.
//!
//! Only packs of committed points are in the index. So nobody refers to a pack of a draft that never was a point, and `abort` removes
//! those at once; that objects of the draft are there, and no point, says that it was none. `collect` does the same with a draft that
//! nobody worked on for the grace time, and whose host may only be slow. Who *closes* a draft so
//!
//! 1. puts `closing`,
//! 2. deletes what is called `open-…`,
//! 3. gives up if there is a point,
//! 4. deletes the packs,
//! 5. deletes the disks and whatever is called `open-…`, until nothing is left,
//! 6. deletes `closing`.
//!
//! A writer puts an `open-…` of its own before its first pack, and after its disk looks whether that is still there, and no `closing`. If a
//! pack of its was deleted at (4), it was there before (5) and is gone, or (6) did not happen yet. To renew it, it puts the next one and then
//! looks whether the one before is still there. `commit` looks once more, after it made the point, whether the disks are there and no `closing`:
//! either (3) saw the point, or (1) came before, and then `closing` is there or the disks are gone. In that case it takes the point back
//! before it answers.
//!
//! A point that is found may be in a cache alone, because who made it died before it was synced. So whoever finds it syncs it before the
//! draft goes (f), without which no other attempt could make it anew.

use crate::envelope::{Kind, damaged};
use crate::index::Hooks;
use crate::map::Root;
use crate::names::{PackId, SENTENCED, Tag, UNSOUND, unhex};
use crate::points::{Body, Head, HeadDisk};
use crate::repository::{RETRY_AFTER, Repository};
use crate::storage::{Object, put_bytes};
use crate::wire::{Malformed, Reader, Writer};
use std::collections::BTreeSet;
use vmferry_plugin_api::target::{DiskReceipt, Draft, Point};
use vmferry_plugin_api::{Error, ErrorCode, Timestamp};

/// One disk of a draft, complete.
///
/// ```text
/// text   the disk's identity
/// text   its content's
/// 1      1 if it adds to a point, else 0; if so 10 bytes: that point's tag
/// varint bytes that were stored for it
/// varint number of others' packs that it refers to; for each 20 bytes: its id
///        root
///        hooks of its own packs, see `index`
/// ```
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DraftDisk {
    pub(crate) disk: String,
    pub(crate) content: String,
    pub(crate) base: Option<Tag>,
    pub(crate) stored: u64,
    pub(crate) used: BTreeSet<PackId>,
    pub(crate) root: Root,
    pub(crate) hooks: Hooks,
}

impl DraftDisk {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(self.disk.as_bytes());
        out.bytes(self.content.as_bytes());
        match &self.base {
            None => out.raw(&[0]),
            Some(tag) => {
                out.raw(&[1]);
                out.raw(tag.as_bytes());
            }
        }
        out.varint(self.stored);
        out.varint(self.used.len() as u64);
        self.used.iter().for_each(|id| out.raw(id.as_bytes()));
        self.root.encode(&mut out);
        out.raw(&self.hooks.encode());
        out.0
    }

    pub(crate) fn decode(content: &[u8], chunk_size: u32) -> Result<Self, Malformed> {
        let mut reader = Reader::new(content);
        let (disk, content) = (reader.text()?, reader.text()?);
        let base = match reader.u8()? {
            0 => None,
            1 => Some(Tag::from_bytes(reader.array()?)),
            _ => return Err(reader.malformed("neither a base nor none")),
        };
        let stored = reader.varint()?;
        let count = reader.count(20, usize::MAX)?;
        let used = (0..count).map(|_| reader.array().map(PackId::from_bytes)).collect::<Result<_, _>>()?;
        let root = Root::decode(&mut reader, chunk_size)?;
        let hooks = Hooks::decode(&mut reader)?;
        reader.finish()?;
        Ok(Self { disk, content, base, stored, used, root, hooks })
    }
}

/// The receipt of a disk: the name of its object.
pub(crate) fn receipt(object: &str) -> Vec<u8> {
    object.as_bytes().to_vec()
}

/// The object that a receipt names.
fn object_of(receipt: &DiskReceipt, draft: &Draft, tag: Tag) -> Result<String, Error> {
    let named = |receipt| {
        let name = std::str::from_utf8(receipt).ok()?;
        let (disk, content) = name.strip_prefix(&tag.draft())?.split_once('-')?;
        (unhex::<8>(disk).is_some() && unhex::<8>(content).is_some()).then(|| name.to_owned())
    };
    named(&receipt.receipt).ok_or_else(|| {
        let message = format!("the receipt of disk {} is none of draft {}", receipt.disk, draft.id);
        Error::with_code(ErrorCode::Unsupported, message)
    })
}

/// Begins the names of objects that say that somebody works on a draft. The disk follows in hex, and since when in seconds since 1970.
const OPEN: &str = "open-";
/// The object that says that a draft is being removed.
const CLOSING: &str = "closing";

/// Somebody's work on one disk of a draft.
pub(crate) struct Work {
    tag: Tag,
    disk: String,
    id: String,
    object: String,
    since: Timestamp,
}

/// When somebody last began or renewed work on the draft whose objects these are; `None` when nobody does any more.
pub(crate) fn worked_on(objects: &[Object]) -> Option<Timestamp> {
    if is_closing(objects) {
        return None;
    }
    let since = |object: &Object| object.name.rsplit_once('/')?.1.strip_prefix(OPEN)?.split_once('-')?.1.parse().ok();
    objects.iter().filter_map(since).max()
}

/// Whether the draft whose objects these are is being removed.
pub(crate) fn is_closing(objects: &[Object]) -> bool {
    objects.iter().any(|object| is_part(object, CLOSING))
}

/// Whether an object of a draft is called `part`, or begins so.
fn is_part(object: &Object, part: &str) -> bool {
    object.name.rsplit_once('/').is_some_and(|(_, name)| name.starts_with(part))
}

impl Repository<'_> {
    /// Says that somebody works on a disk of the draft.
    pub(crate) fn begin_work(&self, draft: &Draft, disk: &str) -> Result<Work, Error> {
        let tag = self.names.draft(&draft.id);
        let since = self.now();
        let disk = self.names.disk(disk);
        let object = format!("{}{OPEN}{disk}-{since}", tag.draft());
        put_bytes(self.storage, &object, draft.id.as_bytes())?;
        self.storage.sync()?;
        let work = Work { tag, disk, id: draft.id.clone(), object, since };
        self.check_work(&work)?;
        Ok(work)
    }

    /// Says so again, when it is long ago.
    pub(crate) fn renew_work(&self, work: &mut Work) -> Result<(), Error> {
        let now = self.now();
        if now.abs_diff(work.since) <= self.settings.grace / 8 {
            return Ok(());
        }
        let next = format!("{}{OPEN}{}-{now}", work.tag.draft(), work.disk);
        put_bytes(self.storage, &next, work.id.as_bytes())?;
        self.storage.sync()?;
        self.check_work(work)?;
        self.storage.delete(&work.object)?;
        (work.object, work.since) = (next, now);
        Ok(())
    }

    /// Whether nobody removed the draft meanwhile.
    pub(crate) fn check_work(&self, work: &Work) -> Result<(), Error> {
        let objects = self.storage.list(&work.tag.draft())?;
        let is_open = objects.iter().any(|object| object.name == work.object);
        if is_open && worked_on(&objects).is_some() { Ok(()) } else { Err(too_late(&work.id)) }
    }

    /// One disk of a draft; `None` when the object is not there.
    pub(crate) fn draft_disk(&self, object: &str) -> Result<Option<DraftDisk>, Error> {
        let Some(content) = self.get(Kind::Draft, object)? else { return Ok(None) };
        DraftDisk::decode(&content, self.chunk_size).map(Some).map_err(|problem| damaged(object, problem))
    }

    /// Makes the draft a point, which then survives a power failure. The same arguments again give the same point.
    pub fn commit(&self, draft: &Draft, receipts: &[DiskReceipt]) -> Result<Point, Error> {
        let tag = self.names.draft(&draft.id);
        let name = self.names.point(&draft.vm, tag);
        if let Some((name, point)) = self.made(tag)? {
            self.settle(tag, &name)?;
            return Ok(point);
        }
        let objects = receipts.iter().map(|receipt| object_of(receipt, draft, tag)).collect::<Result<Vec<_>, _>>()?;
        let disks = self.received(draft, &objects, receipts)?;
        self.check_references(draft, &disks)?;

        let head_disk = |(disk, receipt): (&DraftDisk, &DiskReceipt)| HeadDisk {
            disk: disk.disk.clone(),
            content: disk.content.clone(),
            size: disk.root.size,
            stored: disk.stored,
            digest: receipt.digest.clone(),
        };
        let head = Head::of(draft, disks.iter().zip(receipts).map(head_disk).collect());
        let roots = disks.into_iter().map(|disk| disk.root).collect();
        let body = Body { metadata: draft.metadata.clone(), roots };
        let object = self.encode_point(&name, &head, &body)?;
        if !self.storage.create(&name, &object)? {
            return Err(Error::unavailable(
                format!("another host commits the draft {} at the same time", draft.id),
                RETRY_AFTER,
            ));
        }
        if let Err(error) = self.storage.sync() {
            // A cache that failed to write it down may take it for written from now on, so it is not to be found again.
            let _ = self.storage.delete(&name);
            return Err(error);
        }
        let there = self.storage.list(&tag.draft())?;
        if is_closing(&there) || !objects.iter().all(|name| there.iter().any(|object| object.name == *name)) {
            self.storage.delete(&name)?;
            self.storage.sync()?;
            return Err(too_late(&draft.id));
        }
        self.settle(tag, &name)?;
        self.tidy_index()?;
        let deleted = || Error::not_found(format!("the recovery point {} was deleted at once", draft.id));
        self.made(tag)?.map(|(_, point)| point).ok_or_else(deleted)
    }

    /// The point that a draft has become, by its name. One that cannot be read while the draft's objects are there was being made
    /// when the power failed, and is removed.
    fn made(&self, tag: Tag) -> Result<Option<(String, Point)>, Error> {
        let Some((name, found)) = self.find(tag)? else { return Ok(None) };
        let point = match self.read_point(&name) {
            Ok(point) => point,
            Err(error) if error.is_damaged() && !self.storage.list(&tag.draft())?.is_empty() => {
                self.storage.delete(&name)?;
                self.storage.sync()?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let told = if point.is_none() { None } else { self.told(&name, &found)? };
        Ok(told.map(|point| (name, point)))
    }

    /// The disks that the receipts are for.
    fn received(&self, draft: &Draft, objects: &[String], receipts: &[DiskReceipt]) -> Result<Vec<DraftDisk>, Error> {
        let mut disks = Vec::<DraftDisk>::new();
        for (object, receipt) in objects.iter().zip(receipts) {
            let disk = self.draft_disk(object)?.ok_or_else(|| too_late(&draft.id))?;
            if disk.disk != receipt.disk || disks.iter().any(|other| other.disk == disk.disk) {
                let message = format!("the receipt of disk {} is another's or was given twice", receipt.disk);
                return Err(Error::with_code(ErrorCode::Unsupported, message));
            }
            disks.push(disk);
        }
        Ok(disks)
    }

    /// Whether everything that the disks refer to is there and stays: see the head of this file.
    fn check_references(&self, draft: &Draft, disks: &[DraftDisk]) -> Result<(), Error> {
        let again = |what: &str| {
            Error::unavailable(format!("{what} while draft {} was written; run the job again", draft.id), RETRY_AFTER)
        };
        for base in disks.iter().filter_map(|disk| disk.base).collect::<BTreeSet<_>>() {
            if self.find(base)?.is_none() {
                return Err(again("the recovery point that the data adds to was deleted"));
            }
        }
        let used: BTreeSet<PackId> = disks.iter().flat_map(|disk| disk.used.iter().copied()).collect();
        if used.is_empty() {
            return Ok(());
        }
        if self.batches(UNSOUND)?.iter().flat_map(|batch| &batch.packs).any(|id| used.contains(id)) {
            return Err(again("a verification found damage in what the data refers to"));
        }
        let removed = || again("another host removed garbage that the data had become part of");
        if self.batches(SENTENCED)?.iter().flat_map(|batch| &batch.packs).any(|id| used.contains(id)) {
            return Err(removed());
        }
        for tag in used.iter().map(PackId::tag).collect::<BTreeSet<_>>() {
            let there: BTreeSet<String> =
                self.storage.list(&tag.packs())?.into_iter().map(|object| object.name).collect();
            if used.iter().any(|id| id.tag() == tag && !there.contains(&id.name())) {
                return Err(removed());
            }
        }
        Ok(())
    }

    /// Removes what stood for a draft that is this point now, and lets others refer to its chunks.
    fn settle(&self, tag: Tag, point: &str) -> Result<(), Error> {
        self.storage.adopt(point)?;
        self.storage.sync()?;
        for object in self.storage.list(&tag.draft())? {
            let disk = match is_part(&object, OPEN) || is_part(&object, CLOSING) {
                true => Ok(None),
                false => self.draft_disk(&object.name),
            };
            match disk {
                Ok(Some(disk)) if !disk.hooks.packs().is_empty() => drop(self.add_to_index(&disk.hooks)?),
                Err(error) if !error.is_damaged() => return Err(error),
                // Another host did this, or it never was complete.
                _ => {}
            }
            self.storage.delete(&object.name)?;
        }
        Ok(())
    }

    /// Removes what stands for a draft, without another look at it.
    pub(crate) fn remove_draft_objects(&self, tag: Tag) -> Result<(), Error> {
        for object in self.storage.list(&tag.draft())? {
            self.storage.delete(&object.name)?;
        }
        Ok(())
    }

    /// Forgets a draft and what was stored for it alone. One that is a point stays.
    pub fn abort(&self, draft: &str) -> Result<(), Error> {
        self.close(self.names.draft(draft))
    }

    /// Removes a draft, as the head of this file says.
    pub(crate) fn close(&self, tag: Tag) -> Result<(), Error> {
        let objects = self.storage.list(&tag.draft())?;
        if objects.is_empty() {
            return Ok(());
        }
        let closing = format!("{}{CLOSING}", tag.draft());
        put_bytes(self.storage, &closing, &[])?;
        self.storage.sync()?;
        for object in objects.iter().filter(|object| is_part(object, OPEN)) {
            self.storage.delete(&object.name)?;
        }
        if let Some((point, _)) = self.made(tag)? {
            return self.settle(tag, &point);
        }
        for pack in self.storage.list(&tag.packs())? {
            self.storage.delete(&pack.name)?;
        }
        // While objects of the draft are there, another attempt does the rest. So the packs have to be gone for good first.
        self.storage.sync()?;
        let mut before = Vec::new();
        loop {
            let mut left = self.storage.list(&tag.draft())?;
            left.retain(|object| object.name != closing);
            if left.is_empty() {
                break;
            }
            if left == before {
                // They must not be deleted yet. Another collection tries again.
                return Ok(());
            }
            for object in &left {
                self.storage.delete(&object.name)?;
            }
            before = left;
        }
        self.storage.sync()?;
        self.storage.delete(&closing)?;
        self.storage.sync()
    }
}

fn too_late(draft: &str) -> Error {
    Error::unavailable(
        format!(
            "what was written for draft {draft} is not in the repository any more: it was aborted, or nobody had worked on it for the \
             grace time; run the job again"
        ),
        RETRY_AFTER,
    )
}
