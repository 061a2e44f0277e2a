//! Recovery points as objects, and what is said of them.
//!
//! ```text
//! points/<vm>/<draft>   envelope "point head": JSON, see `Head`
//!                       envelope "point body": text: metadata · varint: number of disks · for each its root, as in the head
//! ….held                empty: an operator holds the point
//! ….damaged             envelope "damage": what the last verification found, as text
//! ```

use crate::envelope::{Kind, damaged};
use crate::map::Root;
use crate::names::{POINTS, Tag};
use crate::repository::Repository;
use crate::wire::{Reader, Writer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmferry_plugin_api::target::{Draft, Point, PointDisk};
use vmferry_plugin_api::{Error, Timestamp, log};

const HELD: &str = ".held";
const DAMAGED: &str = ".damaged";

/// What is told of a point without looking at where its data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) job: String,
    pub(crate) vm: String,
    pub(crate) name: String,
    pub(crate) taken_at: Timestamp,
    pub(crate) disks: Vec<HeadDisk>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeadDisk {
    pub(crate) disk: String,
    pub(crate) content: String,
    pub(crate) size: u64,
    pub(crate) stored: u64,
    pub(crate) digest: Option<String>,
}

/// What a point is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    pub(crate) metadata: String,
    /// In the order of the head's disks.
    pub(crate) roots: Vec<Root>,
}

/// The objects of one point.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Whether the point itself is there; else the others were left over by a deletion.
    pub(crate) there: bool,
    pub(crate) held: bool,
    pub(crate) damaged: bool,
}

impl Head {
    pub(crate) fn of(draft: &Draft, disks: Vec<HeadDisk>) -> Self {
        let Draft { id, job, vm, name, taken_at, .. } = draft.clone();
        Self { id, job, vm, name, taken_at, disks }
    }

    fn into_point(self, held: bool, damaged: Option<String>) -> Point {
        let disk = |HeadDisk { disk, content, size, stored, digest }| PointDisk {
            disk,
            content,
            size,
            stored,
            digest,
            extensions: Vec::new(),
        };
        Point {
            id: self.id,
            job: self.job,
            vm: self.vm,
            name: self.name,
            taken_at: self.taken_at,
            disks: self.disks.into_iter().map(disk).collect(),
            held,
            damaged,
            extensions: Vec::new(),
        }
    }
}

impl Body {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(self.metadata.as_bytes());
        out.varint(self.roots.len() as u64);
        self.roots.iter().for_each(|root| root.encode(&mut out));
        out.0
    }

    pub(crate) fn decode(content: &[u8], chunk_size: u32) -> Result<Self, crate::wire::Malformed> {
        let mut reader = Reader::new(content);
        let metadata = reader.text()?;
        let count = reader.count(3, usize::MAX)?;
        let roots = (0..count).map(|_| Root::decode(&mut reader, chunk_size)).collect::<Result<Vec<_>, _>>()?;
        reader.finish()?;
        Ok(Self { metadata, roots })
    }
}

impl Repository<'_> {
    /// Committed points of one VM, oldest first; of all VMs when none is named.
    ///
    /// A point that cannot be read is left out and logged: nobody could say which it is.
    pub fn points(&self, vm: Option<&str>) -> Result<Vec<Point>, Error> {
        let prefix = vm.map_or(POINTS.to_owned(), |vm| format!("{POINTS}{}/", self.names.vm(vm)));
        let mut points = Vec::new();
        for (name, found) in self.found(&prefix)?.iter().filter(|(_, found)| found.there) {
            match self.told(name, found) {
                Ok(point) => points.extend(point),
                Err(error) if error.is_damaged() => log::warn(&error.message),
                Err(error) => return Err(error),
            }
        }
        points.sort_by(|a, b| (a.taken_at, &a.id).cmp(&(b.taken_at, &b.id)));
        Ok(points)
    }

    /// What the draft of a point said of its VM.
    pub fn metadata(&self, point: &str) -> Result<String, Error> {
        Ok(self.committed(point)?.2.metadata)
    }

    /// Keeps an operator's word that a point must stay, or need not any more.
    pub fn hold(&self, point: &str, held: bool) -> Result<(), Error> {
        let (name, _, _) = self.committed(point)?;
        let flag = format!("{name}{HELD}");
        match held {
            true => crate::storage::put_bytes(self.storage, &flag, &[])?,
            false => self.storage.delete(&flag)?,
        }
        self.storage.sync()
    }

    /// Removes a point, held or not. Room that it took is given back by [`collect`](Self::collect).
    pub fn delete(&self, point: &str) -> Result<(), Error> {
        let tag = self.names.draft(point);
        let Some((name, _)) = self.find(tag)? else { return Ok(()) };
        self.delete_named(&name, tag)
    }

    pub(crate) fn delete_named(&self, name: &str, tag: Tag) -> Result<(), Error> {
        // What `commit` may have left goes first: while it is there, `abort` takes the packs for the draft's own.
        self.remove_draft_objects(tag)?;
        self.storage.sync()?;
        self.storage.delete(name)?;
        self.storage.sync()?;
        self.storage.delete(&format!("{name}{HELD}"))?;
        self.storage.delete(&format!("{name}{DAMAGED}"))?;
        self.storage.sync()
    }

    /// Remembers what a verification found.
    pub(crate) fn remember_damage(&self, name: &str, damage: Option<&str>) -> Result<(), Error> {
        let flag = format!("{name}{DAMAGED}");
        match damage {
            Some(damage) => self.put(Kind::Damage, &flag, damage.as_bytes())?,
            None => self.storage.delete(&flag)?,
        }
        self.storage.sync()
    }

    /// Objects of points whose names begin with `prefix`, by the point's name.
    pub(crate) fn found(&self, prefix: &str) -> Result<BTreeMap<String, Found>, Error> {
        let mut all = BTreeMap::<String, Found>::new();
        for object in self.storage.list(prefix)? {
            let name = object.name;
            if let Some(point) = name.strip_suffix(HELD) {
                all.entry(point.to_owned()).or_default().held = true;
            } else if let Some(point) = name.strip_suffix(DAMAGED) {
                all.entry(point.to_owned()).or_default().damaged = true;
            } else if tag_of(&name).is_some() {
                all.entry(name).or_default().there = true;
            }
        }
        Ok(all)
    }

    /// The names that a point's marks have.
    pub(crate) fn marks_of(name: &str, found: &Found) -> Vec<String> {
        let held = found.held.then(|| format!("{name}{HELD}"));
        held.into_iter().chain(found.damaged.then(|| format!("{name}{DAMAGED}"))).collect()
    }

    /// The name of a point and what is there of it.
    pub(crate) fn find(&self, tag: Tag) -> Result<Option<(String, Found)>, Error> {
        let all = self.found(POINTS)?;
        Ok(all.into_iter().find(|(name, found)| found.there && tag_of(name) == Some(tag)))
    }

    /// A point as `points` tells it, `None` when it was deleted meanwhile.
    pub(crate) fn told(&self, name: &str, found: &Found) -> Result<Option<Point>, Error> {
        let Some((head, _)) = self.head(name)? else { return Ok(None) };
        let damage = match found.damaged {
            true => match self.get(Kind::Damage, &format!("{name}{DAMAGED}")) {
                Ok(damage) => damage.map(|damage| String::from_utf8_lossy(&damage).into_owned()),
                Err(error) if error.is_damaged() => Some(error.message),
                Err(error) => return Err(error),
            },
            false => None,
        };
        Ok(Some(head.into_point(found.held, damage)))
    }

    fn head(&self, name: &str) -> Result<Option<(Head, u64)>, Error> {
        let Some((json, end)) = self.sealing.read(self.storage, name, 0, Kind::PointHead, name)? else {
            return Ok(None);
        };
        let head = serde_json::from_slice(&json)
            .map_err(|error| Error::damaged(format!("{name} is damaged: its head is no point: {error}")))?;
        Ok(Some((head, end)))
    }

    /// All of the point that is called `name`; `None` when it is not there any more.
    pub(crate) fn read_point(&self, name: &str) -> Result<Option<(Head, Body)>, Error> {
        let Some((head, end)) = self.head(name)? else { return Ok(None) };
        let Some((body, _)) = self.sealing.read(self.storage, name, end, Kind::PointBody, name)? else {
            return Ok(None);
        };
        let body = Body::decode(&body, self.chunk_size).map_err(|problem| damaged(name, problem))?;
        let sizes = || body.roots.iter().map(|root| root.size);
        if !head.disks.iter().map(|disk| disk.size).eq(sizes()) {
            return Err(Error::damaged(format!("{name} is damaged: its halves are not of one point")));
        }
        Ok(Some((head, body)))
    }

    /// A point that has to be there: its name and all of it.
    pub(crate) fn committed(&self, point: &str) -> Result<(String, Head, Body), Error> {
        let absent = || Error::not_found(format!("the repository has no recovery point {point}"));
        let (name, _) = self.find(self.names.draft(point))?.ok_or_else(absent)?;
        let (head, body) = self.read_point(&name)?.ok_or_else(absent)?;
        Ok((name, head, body))
    }

    /// The bytes of the object of a point that is called `name`.
    pub(crate) fn encode_point(&self, name: &str, head: &Head, body: &Body) -> Result<Vec<u8>, Error> {
        let json = serde_json::to_vec(head).map_err(|error| Error::config(format!("the point is no JSON: {error}")))?;
        let mut object = self.sealing.wrap(Kind::PointHead, name, &json)?;
        object.extend_from_slice(&self.sealing.wrap(Kind::PointBody, name, &body.encode())?);
        Ok(object)
    }
}

/// The tag of a point by its name.
pub(crate) fn tag_of(name: &str) -> Option<Tag> {
    Tag::parse(name.strip_prefix(POINTS)?.split_once('/')?.1)
}

impl Body {
    /// The root of one of the head's disks.
    pub(crate) fn root<'a>(&'a self, head: &Head, disk: &str) -> Result<&'a Root, Error> {
        let at = head.disks.iter().position(|one| one.disk == disk);
        at.and_then(|at| self.roots.get(at))
            .ok_or_else(|| Error::not_found(format!("the recovery point {} has no disk {disk}", head.id)))
    }
}
