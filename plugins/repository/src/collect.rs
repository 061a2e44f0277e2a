//! Finds what takes up room and belongs to no point, and removes it; why that is safe stands in `draft`.

use crate::draft::{is_closing, worked_on};
use crate::envelope::Kind;
use crate::marks::Marks;
use crate::names::{CONDEMNED, INDEX, POINTS, PackId, SENTENCED, TEMPORARY, Tag, UNSOUND, content_name};
use crate::points::tag_of;
use crate::repository::{Batch, Pack, Repository};
use crate::storage::{Object, Piece};
use crate::table::{Entry, Table};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use vmferry_plugin_api::target::Garbage;
use vmferry_plugin_api::{Error, Timestamp, log};

/// A pack is shrunk when at least one of so many of its bytes is needed by nobody: the rest has to be written anew for it.
const WASTE: u64 = 4;
/// Packs that are shrunk before the old objects are removed. Both take room meanwhile.
const AT_ONCE: usize = 16;
/// Seconds after which a collection leaves what it has not removed to the next one: a host gives it a minute.
const PATIENCE: u64 = 40;
/// Seconds for which a sentence stands before anything follows from it, unless the grace time is shorter: on a network file system a host
/// may list for a minute what was there before.
const SETTLE: u64 = 120;

/// A pack as it was found.
struct Stored {
    objects: Vec<Object>,
    /// Bytes that nobody needs.
    waste: u64,
    /// Bytes that somebody needs.
    live: u64,
}

impl Repository<'_> {
    /// Finds what belongs to no point nor to one of these drafts, and removes it if `apply` says so and the grace time has passed.
    pub fn collect(&self, drafts: &[String], apply: bool) -> Result<Vec<Garbage>, Error> {
        let until = self.now().saturating_add_unsigned(PATIENCE);
        let named: BTreeSet<Tag> = drafts.iter().map(|id| self.names.draft(id)).collect();
        let mut garbage = Vec::new();
        self.collect_leftovers(apply, &mut garbage)?;
        self.collect_drafts(&named, apply, &mut garbage)?;
        self.collect_packs(&named, apply, until, &mut garbage)?;
        Ok(garbage)
    }

    fn is_old(&self, at: Timestamp) -> bool {
        at.saturating_add_unsigned(self.settings.grace) <= self.now()
    }

    /// Marks of points that are gone, and objects that somebody began to make.
    fn collect_leftovers(&self, apply: bool, garbage: &mut Vec<Garbage>) -> Result<(), Error> {
        for (name, found) in self.found(POINTS)?.iter().filter(|(_, found)| !found.there) {
            for mark in Self::marks_of(name, found) {
                if apply {
                    self.storage.delete(&mark)?;
                }
                garbage.push(Garbage {
                    what: mark,
                    why: "The recovery point that it marks was deleted.".to_owned(),
                    bytes: 0,
                });
            }
        }
        for Object { name, length } in self.storage.list(TEMPORARY)? {
            let begun = name.strip_prefix(TEMPORARY).and_then(|rest| rest.split_once('-')?.0.parse().ok());
            if begun.is_some_and(|begun| self.is_old(begun)) {
                if apply {
                    self.storage.delete(&name)?;
                }
                garbage.push(Garbage {
                    what: name,
                    why: "A host began to write it and never finished.".to_owned(),
                    bytes: length,
                });
            }
        }
        Ok(())
    }

    /// Drafts that nobody works on any more.
    fn collect_drafts(&self, named: &BTreeSet<Tag>, apply: bool, garbage: &mut Vec<Garbage>) -> Result<(), Error> {
        for (tag, objects) in self.drafts()?.iter().filter(|(tag, _)| !named.contains(tag)) {
            let since = worked_on(objects);
            if since.is_some_and(|since| !self.is_old(since)) {
                continue;
            }
            let is_point = self.find(*tag)?.is_some();
            let packs = if is_point { Vec::new() } else { self.storage.list(&tag.packs())? };
            let why = match (is_point, since) {
                (true, _) => "It was left over when its recovery point was committed.".to_owned(),
                (false, Some(_)) => "It never became a recovery point, and nobody works on it any more.".to_owned(),
                (false, None) => "It never became a recovery point, and its removal was begun.".to_owned(),
            };
            garbage.push(Garbage {
                what: tag.draft().trim_end_matches('/').to_owned(),
                why,
                bytes: objects.iter().chain(&packs).map(|object| object.length).sum(),
            });
            if apply {
                self.close(*tag)?;
            }
        }
        Ok(())
    }

    fn collect_packs(
        &self,
        named: &BTreeSet<Tag>,
        apply: bool,
        until: Timestamp,
        garbage: &mut Vec<Garbage>,
    ) -> Result<(), Error> {
        // Packs first: one that is made later is none of this collection's.
        let mut packs = BTreeMap::<PackId, Vec<Object>>::new();
        for object in self.storage.list(crate::names::PACKS)? {
            if let Some(id) = PackId::parse(&object.name) {
                packs.entry(id).or_default().push(object);
            }
        }
        let working = self.drafts()?;
        packs.retain(|id, _| !named.contains(&id.tag()) && !working.contains_key(&id.tag()));
        let mut marks = Marks::default();
        let mut seen = BTreeSet::new();
        self.mark(&mut marks, &mut seen)?;

        let mut stored = BTreeMap::new();
        for (id, objects) in packs {
            stored.insert(id, self.weigh(&id, objects, &marks)?);
        }
        let mut condemned = HashMap::<PackId, Timestamp>::new();
        for batch in self.batches(CONDEMNED)? {
            for id in batch.packs {
                let at = condemned.entry(id).or_insert(batch.at);
                *at = batch.at.min(*at);
            }
        }
        let mut sentenced = HashMap::<PackId, Timestamp>::new();
        for batch in self.batches(SENTENCED)? {
            sentenced.extend(batch.packs.into_iter().map(|id| (id, batch.at)));
        }

        let wasteful: Vec<PackId> = stored.iter().filter(|(_, pack)| pack.is_wasteful()).map(|(id, _)| *id).collect();
        for id in &wasteful {
            garbage.push(self.explain(id, &stored[id], condemned.get(id).copied(), sentenced.contains_key(id)));
        }
        if !apply {
            return Ok(());
        }

        let now = self.now();
        let new: Vec<PackId> =
            wasteful.iter().filter(|id| !condemned.contains_key(id) && !sentenced.contains_key(id)).copied().collect();
        self.put_batches(CONDEMNED, now, &new)?;
        condemned.extend(new.into_iter().map(|id| (id, now)));

        let due: Vec<PackId> = wasteful
            .into_iter()
            .filter(|id| sentenced.contains_key(id) || condemned.get(id).is_some_and(|at| self.is_old(*at)))
            .collect();
        let new: Vec<PackId> = due.iter().filter(|id| !sentenced.contains_key(id)).copied().collect();
        self.put_batches(SENTENCED, now, &new)?;
        sentenced.extend(new.into_iter().map(|id| (id, now)));
        let settle = self.settings.grace.min(SETTLE);
        let settled = |id: &PackId| sentenced.get(id).is_some_and(|at| at.saturating_add_unsigned(settle) <= now);
        let due: Vec<PackId> = due.into_iter().filter(settled).collect();
        if !due.is_empty() {
            // Once more, now that no new reference is possible: drafts and points that came meanwhile. What was marked stays
            // marked, though its point may be gone by now: then the next collection finds it.
            self.mark(&mut marks, &mut seen)?;
            self.sweep(due.into_iter().filter_map(|id| Some((id, stored.get(&id)?))), &marks, until)?;
        }
        self.tidy_batches(&stored, &sentenced)?;
        self.repair_index(&marks)
    }

    /// Marks what drafts and points need that are not in `seen`. Drafts come first: one that becomes a point meanwhile is met as that.
    fn mark(&self, marks: &mut Marks, seen: &mut BTreeSet<String>) -> Result<(), Error> {
        // One that is being removed needs nothing: either its point is there, or none comes that stays.
        for object in self.drafts()?.into_values().filter(|objects| !is_closing(objects)).flatten() {
            if seen.contains(&object.name) {
                continue;
            }
            match self.draft_disk(&object.name) {
                Ok(Some(disk)) => self.mark_disk(&disk.root, marks)?,
                // It has become a point, or it is none of these objects, or it is not complete, and then nobody commits it.
                Ok(None) => continue,
                Err(error) if error.is_damaged() => {}
                Err(error) => return Err(error),
            }
            seen.insert(object.name);
        }
        for (name, found) in self.found(POINTS)? {
            if !found.there || seen.contains(&name) {
                continue;
            }
            let keep_all = |error: Error| match error.is_damaged() {
                true => Error {
                    message: format!(
                        "nothing was removed: what a recovery point needs cannot be told; {}",
                        error.message
                    ),
                    ..error
                },
                false => error,
            };
            match self.read_point(&name) {
                Ok(Some((_, body))) => {
                    for root in &body.roots {
                        self.mark_disk(root, marks).map_err(keep_all)?;
                    }
                }
                Ok(None) => continue,
                Err(error) if error.is_damaged() && self.is_unfinished(&name)? => continue,
                Err(error) => return Err(keep_all(error)),
            }
            seen.insert(name);
        }
        Ok(())
    }

    /// Whether a point that cannot be read was being made when the power failed: its draft is there, and `commit` makes it anew.
    fn is_unfinished(&self, name: &str) -> Result<bool, Error> {
        match tag_of(name) {
            Some(tag) => Ok(!self.storage.list(&tag.draft())?.is_empty()),
            None => Ok(false),
        }
    }

    /// How much of a pack somebody needs.
    fn weigh(&self, id: &PackId, objects: Vec<Object>, marks: &Marks) -> Result<Stored, Error> {
        let all = objects.iter().map(|object| object.length).sum::<u64>();
        let count = marks.count(id);
        if count == 0 {
            return Ok(Stored { objects, waste: all, live: 0 });
        }
        // Most packs are needed wholly; only the others' tables are worth reading.
        let few_are_dead = (usize::from(id.entries()) - count) as u64 * 2 * WASTE < u64::from(id.entries());
        if objects.len() == 1 && few_are_dead || !self.storage.takes_ranges() {
            return Ok(Stored { objects, waste: 0, live: all });
        }
        let live = match self.best(id, &objects, marks)? {
            Some(pack) => live_bytes(&pack, id, marks) + pack.offset(0),
            // Damaged: `verify` says so, and nothing is made of it here.
            None => all,
        };
        Ok(Stored { objects, waste: all.saturating_sub(live), live })
    }

    /// An object of a pack that is whole and has everything that is marked.
    fn best(&self, id: &PackId, objects: &[Object], marks: &Marks) -> Result<Option<Pack>, Error> {
        for object in objects {
            let pack = match self.read_pack(id, &object.name) {
                Ok(pack) => pack,
                Err(error) if error.is_damaged() => None,
                Err(error) => return Err(error),
            };
            let complete = |pack: &Pack| {
                let mut entries = pack.table.entries.iter().enumerate();
                pack.length() == object.length
                    && entries.all(|(number, entry)| *entry != Entry::GONE || !marks.has(id, number))
            };
            if let Some(pack) = pack.filter(complete) {
                return Ok(Some(pack));
            }
        }
        Ok(None)
    }

    fn explain(&self, id: &PackId, pack: &Stored, condemned: Option<Timestamp>, sentenced: bool) -> Garbage {
        let what = match pack.live {
            0 => "No recovery point needs it".to_owned(),
            live => format!("No recovery point needs more than {live} bytes of it"),
        };
        let when = match condemned {
            _ if sentenced => "it can be removed".to_owned(),
            Some(at) if self.is_old(at) => "it can be removed".to_owned(),
            Some(at) => {
                let left = at.saturating_add_unsigned(self.settings.grace).saturating_sub(self.now());
                format!(
                    "it can be removed in {} minutes, when all who might have begun to use it are done",
                    left / 60 + 1
                )
            }
            None => format!("it can be removed {} minutes after a collection that removes", self.settings.grace / 60),
        };
        Garbage { what: id.name(), why: format!("{what}; {when}."), bytes: pack.waste }
    }

    pub(crate) fn put_batches(&self, prefix: &str, at: Timestamp, packs: &[PackId]) -> Result<(), Error> {
        for packs in packs.chunks(Batch::MOST) {
            let content = Batch::encode(at, packs);
            self.put(Kind::Batch, &format!("{prefix}{}", content_name(&content)), &content)?;
        }
        if packs.is_empty() { Ok(()) } else { self.storage.sync() }
    }

    /// Removes of sentenced packs what is not marked.
    fn sweep<'p>(
        &self,
        packs: impl Iterator<Item = (PackId, &'p Stored)>,
        marks: &Marks,
        until: Timestamp,
    ) -> Result<(), Error> {
        let mut replaced = Vec::new();
        for (id, pack) in packs {
            if self.now() > until {
                break;
            }
            if marks.count(&id) == 0 {
                replaced.extend(pack.objects.iter().map(|object| object.name.clone()));
            } else if let Some(best) = self.best(&id, &pack.objects, marks)? {
                let kept = self.shrink(&id, &best, marks)?;
                // Only what was there before the new object: another collection that saw the new one removes it only for
                // one of its own.
                let objects = pack.objects.iter().map(|object| &object.name);
                replaced.extend(objects.filter(|name| **name != kept).cloned());
            }
            if replaced.len() >= AT_ONCE {
                self.remove(&mut replaced)?;
            }
        }
        self.remove(&mut replaced)
    }

    fn remove(&self, names: &mut Vec<String>) -> Result<(), Error> {
        self.storage.sync()?;
        for name in names.drain(..) {
            self.storage.delete(&name)?;
        }
        Ok(())
    }

    /// Makes an object of what is marked of a pack, and answers its name.
    fn shrink(&self, id: &PackId, pack: &Pack, marks: &Marks) -> Result<String, Error> {
        let mut entries = pack.table.entries.clone();
        let mut pieces = Vec::new();
        let mut number = 0;
        while number < entries.len() {
            let begin = number;
            while number < entries.len() && marks.has(id, number) {
                number += 1;
            }
            let length = entries[begin..number].iter().map(|entry| u64::from(entry.stored)).sum();
            if length > 0 {
                pieces.push(Piece::Range { name: &pack.object, offset: pack.offset(begin as u16), length });
            }
            if let Some(entry) = entries.get_mut(number) {
                *entry = Entry::GONE;
                number += 1;
            }
        }
        let content = Table { entries }.encode();
        let name = id.shrunk_name(&crate::repository::table_digest(&content));
        if name != pack.object {
            pieces.insert(0, Piece::Bytes(self.sealing.wrap(Kind::Table, &id.name(), &content)?.into()));
            self.storage.put(&name, &pieces)?;
        }
        Ok(name)
    }

    /// Removes batches that say nothing any more.
    fn tidy_batches(
        &self,
        stored: &BTreeMap<PackId, Stored>,
        sentenced: &HashMap<PackId, Timestamp>,
    ) -> Result<(), Error> {
        // What was removed is gone for good before nobody says any more that it must not be used.
        self.storage.sync()?;
        let there: BTreeSet<String> =
            self.storage.list(crate::names::PACKS)?.into_iter().map(|object| object.name).collect();
        let is_whole = |id: &PackId| there.contains(&id.name());
        // Also what is left of a pack may have to wait until it can be removed.
        let waits = |id: &PackId| match stored.get(id) {
            Some(pack) => pack.is_wasteful() && pack.objects.iter().any(|object| there.contains(&object.name)),
            None => is_whole(id),
        };
        for batch in self.batches(SENTENCED)? {
            if !batch.packs.iter().any(|id| is_whole(id) || waits(id)) {
                self.storage.delete(&batch.name)?;
            }
        }
        for batch in self.batches(CONDEMNED)? {
            if !batch.packs.iter().any(|id| waits(id) && !sentenced.contains_key(id)) {
                self.storage.delete(&batch.name)?;
            }
        }
        for batch in self.batches(UNSOUND)? {
            if !batch.packs.iter().any(is_whole) {
                self.storage.delete(&batch.name)?;
            }
        }
        self.storage.sync()
    }

    /// Has the index name the packs that are needed, and few others.
    fn repair_index(&self, marks: &Marks) -> Result<(), Error> {
        let there: BTreeSet<PackId> = self
            .storage
            .list(crate::names::PACKS)?
            .iter()
            .filter_map(|object| PackId::parse(&object.name).filter(|id| id.name() == object.name))
            .collect();
        let mut missing: BTreeSet<PackId> = marks.packs().filter(|id| there.contains(id)).copied().collect();
        // A draft's become known when it is a point.
        for tag in self.drafts()?.keys() {
            missing.retain(|id| id.tag() != *tag);
        }
        for segment in self.storage.list(INDEX)? {
            let Some(hooks) = self.segment(&segment.name)? else {
                self.storage.delete(&segment.name)?;
                continue;
            };
            let stale = hooks.packs().iter().filter(|id| !there.contains(id)).count();
            for id in hooks.packs() {
                missing.remove(id);
            }
            if stale * 2 > hooks.packs().len() {
                self.merge_segments(&[segment], |id| there.contains(id))?;
            }
        }
        let mut hooks = crate::index::Hooks::default();
        for id in &missing {
            match self.original(id) {
                Ok(Some(pack)) => {
                    let chunks = pack.table.entries.iter().filter(|entry| entry.is_chunk());
                    hooks.add(*id, chunks.map(|entry| &entry.digest), crate::index::MOST_OF_SEGMENT);
                }
                Ok(None) => {}
                Err(error) if error.is_damaged() => log::warn(&error.message),
                Err(error) => return Err(error),
            }
        }
        if !hooks.packs().is_empty() {
            hooks.sort();
            self.add_to_index(&hooks)?;
        }
        self.tidy_index()
    }
}

impl Stored {
    fn is_wasteful(&self) -> bool {
        self.waste > 0 && self.waste * WASTE >= self.waste + self.live
    }
}

/// Bytes of a pack's entries that are marked.
fn live_bytes(pack: &Pack, id: &PackId, marks: &Marks) -> u64 {
    let entries = pack.table.entries.iter().enumerate();
    entries.filter(|(number, _)| marks.has(id, *number)).map(|(_, entry)| u64::from(entry.stored)).sum()
}
