//! Which targets share a read of a disk, and which part of it each gets.
//!
//! Targets that start from different contents lack different parts of a disk. The one that lacks most leads: who has nothing, else who
//! has the oldest base. The disk is read for it as if it were alone, and what the others lack is found out by changed-block lists or
//! the heads of exports, which cost what a socket holds at most:
//!
//! | The leader is read | Read together with it | The others get |
//! | --- | --- | --- |
//! | whole, by export or NBD | nothing more: what does not come is zero | what they lack, with zeroes |
//! | as a delta by NBD | what the others lack | what they lack |
//! | as a delta by export | nothing more | what they lack, if the export holds it, as that from an older base does |
//! | whole, compared with its base | nothing more | reads of their own: what equals one content may differ from another |
//!
//! Who starts from a copy that is compared with is read for alone (`moving`).

use crate::progress::DiskLabel;
use crate::run::Run;
use crate::snapshot::TakenDisk;
use crate::source::{self, Chunked, Opening, Own, Source};
use crate::transfer::{Destination, From, SourceFailed};
use vmferry_disk::digest::{DraftTable, LEAF_SIZE};
use vmferry_disk::extent::Extents;
use vmferry_xapi::Session;

/// What the targets that start from the same content want of a disk.
pub(crate) struct Want {
    pub(crate) from: From,
    pub(crate) destinations: Vec<Destination>,
    /// The digest table to fill, when digests can be known.
    pub(crate) table: Option<DraftTable>,
    /// Whether all destinations take the `chunked` framing.
    pub(crate) chunked: Chunked,
    /// The least that is read in one piece, in bytes.
    pub(crate) grain: u64,
    /// Names of the targets.
    pub(crate) targets: Vec<String>,
    /// Why a better way was not taken.
    pub(crate) notes: Vec<String>,
}

impl Want {
    /// What one place wants, with no target beside it.
    pub(crate) fn of_one(
        from: From,
        destination: Destination,
        table: DraftTable,
        chunked: Chunked,
        label: &DiskLabel,
    ) -> Self {
        let (destinations, targets) = (vec![destination], label.targets.clone());
        Self { from, destinations, table: Some(table), chunked, grain: LEAF_SIZE, targets, notes: Vec::new() }
    }
}

/// What one read gives to who wants some of it.
pub(crate) struct Share {
    pub(crate) want: Want,
    /// Its part; `None` for the stream as it comes.
    pub(crate) own: Option<Own>,
}

/// A read that was begun.
pub(crate) struct Begun {
    pub(crate) source: Result<Source, SourceFailed>,
    /// Who gets something of it. The first one is who leads.
    pub(crate) shares: Vec<Share>,
    /// Who has to be read for again.
    pub(crate) apart: Vec<Want>,
}

/// A disk that is to be read.
pub(crate) struct Reading<'a> {
    pub(crate) run: &'a Run<'a>,
    pub(crate) source: &'a Session,
    pub(crate) disk: &'a TakenDisk,
    /// What the pool shows as the name of an export's task.
    pub(crate) label: &'a str,
}

impl Reading<'_> {
    /// Begins to read for the one who leads and for all others who can be read for at the same time.
    pub(crate) async fn begin(&self, lead: Want, others: Vec<Want>) -> Begun {
        let (mut needy, mut apart) = (Vec::new(), Vec::new());
        let mut also = Extents::new();
        for mut want in others {
            let mut notes = Vec::new();
            let opening = self.opening(&want, &also);
            match opening.needed(&mut notes).await {
                Ok(needed) => {
                    let framing = opening.framing(&mut notes);
                    let own = Own::new(opening.size(), needed.widened(want.grain, opening.size()), framing);
                    if let Ok(own) = own {
                        also = also.union(&own.extents());
                    }
                    needy.push((want, notes, needed, framing));
                }
                Err(why) => {
                    want.notes.push(alone(&why));
                    apart.push(want);
                }
            }
        }
        let mut source = source::open(&self.opening(&lead, &also)).await;
        let own = source.as_mut().ok().and_then(|source| source.own.take());
        let mut shares = vec![Share { want: lead, own }];
        for (mut want, notes, needed, framing) in needy {
            match source.as_ref().map(|source| source.part(&needed, want.grain, framing)) {
                Ok(Ok(own)) => {
                    want.notes.extend(notes);
                    shares.push(Share { want, own: Some(own) });
                }
                Ok(Err(why)) => {
                    want.notes.push(alone(&why));
                    apart.push(want);
                }
                // Who leads and cannot be read for costs the others nothing.
                Err(_) => apart.push(want),
            }
        }
        Begun { source, shares, apart }
    }

    fn opening<'o>(&'o self, want: &'o Want, also: &'o Extents) -> Opening<'o> {
        Opening {
            run: self.run,
            source: self.source,
            disk: self.disk,
            from: &want.from,
            chunked: want.chunked,
            grain: want.grain,
            also,
            label: self.label,
        }
    }
}

/// The note on who is read for alone.
pub(crate) fn alone(why: &str) -> String {
    format!("it was not read together with what other targets lack: {why}")
}
