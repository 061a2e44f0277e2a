//! Steps 7 and 8 of a run: which reads feed which targets, and what is known of the bytes afterwards.

use crate::allocation::MAX_VHD_DISK;
use crate::digests::table_size;
use crate::error::{RunError, chain};
use crate::framing::{self, FirstUse};
use crate::job::Integrity;
use crate::lane::{Lane, LaneId};
use crate::lease::Lease;
use crate::plan::{self, replica_size};
use crate::progress::DiskLabel;
use crate::run::Work;
use crate::shares::{self, Want};
use crate::snapshot::{Taken, TakenDisk};
use crate::source::Chunked;
use crate::transfer::{self, Destination, From, Moved, Place, Sent, SourceFailed, Stream, StreamFacts, blocking};
use crate::tried;
use crate::view::SourceVm;
use futures_util::stream;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use vmferry_disk::digest::{LEAF_SIZE, Table};
use vmferry_model::plan::{Base, Transfer};
use vmferry_model::report::DiskReport;
use vmferry_model::target::DeltaInfo;

impl Work<'_> {
    /// Steps 7 and 8: all disks, each read once where that can be, the leases renewed meanwhile.
    pub(crate) async fn transfer(&mut self, lease: &Lease, source: &SourceVm, taken: &Taken) -> Result<(), RunError> {
        let (mut streams, mut unready, mut unsent) = (Vec::new(), Vec::new(), Vec::new());
        for (index, disk) in taken.disks.iter().enumerate() {
            let mut together = Vec::new();
            let starts = self.by_start(source, index);
            let several = starts.len() > 1;
            for (start, lanes) in starts {
                match self.want(source, disk, index, &start, &lanes).await {
                    Ok((mut want, refused)) => {
                        unsent.extend(refused.into_iter().map(|(lane, why)| (lane, disk, why)));
                        match start {
                            _ if want.destinations.is_empty() => {}
                            // What a copy is compared with has nothing to do with what others lack.
                            Start::Copy(_) => {
                                want.notes.extend(several.then(|| shares::alone("its old copy is compared with")));
                                streams.push((index, self.stream(disk, vec![want])));
                            }
                            Start::Nothing | Start::Base { .. } => together.push(want),
                        }
                    }
                    Err(error) => unready.push((lanes, disk, chain(&error))),
                }
            }
            match if together.len() > 1 { tried::is_read_apart(self.run, &disk.of).await } else { None } {
                Some(why) => streams.extend(together.into_iter().map(|mut want| {
                    want.notes.push(why.clone());
                    (index, self.stream(disk, vec![want]))
                })),
                None if together.is_empty() => {}
                None => streams.push((index, self.stream(disk, together))),
            }
        }
        let run = self.run;
        let moving: Vec<_> = streams
            .into_iter()
            .map(|(index, stream)| async move { (index, transfer::carry(run, stream).await) }.boxed())
            .collect();
        let moving = stream::iter(moving).buffer_unordered(run.job.tuning.disks_in_parallel.max(1));
        let moved: Vec<_> = tokio::select! {
            moved = moving.collect() => moved,
            lost = lease.lost() => return Err(lost),
        };
        for (lanes, disk, message) in unready {
            self.fail_all(&lanes, disk, &message);
        }
        for (lane, disk, why) in unsent {
            self.fail_all(&[lane], disk, &beyond_vhd(disk, why));
        }
        let moved = moved
            .into_iter()
            .flat_map(|(index, carried)| carried.into_iter().map(move |(lanes, result)| (index, lanes, result)));
        self.settle(taken, moved.collect()).await;
        self.no_lane_left()
    }

    /// Books what became of the streams, each told by its disk and the lanes that it fed.
    async fn settle(&mut self, taken: &Taken, moved: Vec<(usize, Vec<LaneId>, Result<Moved, SourceFailed>)>) {
        let mut reports: BTreeMap<(LaneId, usize), DiskReport> = BTreeMap::new();
        let mut roots: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for (index, _, result) in &moved {
            let root = result.as_ref().ok().and_then(|moved| moved.facts.digest);
            roots.entry(*index).or_default().extend(root.map(|root| root.to_string()));
        }
        for (index, lanes, result) in moved {
            let Moved { facts, lanes: results } = match result {
                Ok(moved) => moved,
                Err(SourceFailed(message)) => {
                    self.fail_all(&lanes, &taken.disks[index], &message);
                    continue;
                }
            };
            // Streams from different starts end in the same content, or one of them is wrong, and nobody knows which.
            if roots.get(&index).is_some_and(|roots| roots.len() > 1) {
                let message = "streams of it from different bases end in different contents; nothing was committed, \
                               and the next run sends it again";
                self.fail_all(&lanes, &taken.disks[index], message);
                continue;
            }
            for (lane, result) in results {
                if facts.compared_with_base {
                    let planned = &mut self.transfers(lane)[index];
                    *planned = plan::without_differences(planned.clone(), |_| true);
                }
                match result {
                    Ok(sent) => {
                        let transfer = self.transfers(lane)[index].clone();
                        reports.insert((lane, index), disk_report(&transfer, &taken.disks[index], &facts, &sent));
                        match lane {
                            LaneId::Pool(number) => self.prove(taken, index, number, &facts).await,
                            LaneId::Store(number) => {
                                self.stores[number].receipts.insert(index, sent.receipt.unwrap_or_default());
                            }
                        }
                    }
                    Err(error) => self.fail(lane, error),
                }
            }
        }
        for ((lane, _), report) in reports {
            match lane {
                LaneId::Pool(number) => self.lanes[number].disks.push(report),
                LaneId::Store(number) => self.stores[number].disks.push(report),
            }
        }
    }

    fn fail_all(&mut self, lanes: &[LaneId], disk: &TakenDisk, message: &str) {
        for lane in lanes {
            let disk = disk.of.record.uuid.clone();
            self.fail(*lane, RunError::Transfer { disk, message: message.to_owned() });
        }
    }

    /// Reads back what a target wrote, if its hosts never took this framing before.
    async fn prove(&mut self, taken: &Taken, index: usize, number: usize, facts: &StreamFacts) {
        let lane = &self.lanes[number];
        if facts.encoding != "chunked" || lane.framing.chunked != Chunked::Untried || !lane.is_live() {
            return;
        }
        let disk = &taken.disks[index];
        let landed_on = lane.transfers[index].lands_on().and_then(|copy| lane.view.point_disk(copy));
        let first_use = FirstUse {
            disk: &disk.of,
            landed: &lane.landed[index],
            landed_on: landed_on.map(|held| &held.attached.vdi),
            extents: facts.extents.as_ref(),
            written: facts.changed_bytes,
            table: &self.run.digests.of_content(&disk.uuid),
        };
        match framing::prove(self.run, lane, &self.name, &first_use).await {
            Ok(note) => self.lanes[number].warnings.extend(note),
            Err(error) => self.lanes[number].fail(error),
        }
    }

    /// The live lanes by where this disk's transfer starts: those of one group want the same. Who lacks most comes first.
    fn by_start(&self, source: &SourceVm, disk: usize) -> BTreeMap<Start, Vec<LaneId>> {
        let mut groups: BTreeMap<Start, Vec<LaneId>> = BTreeMap::new();
        let pools = self.lanes.iter().enumerate().filter(|(_, lane)| lane.is_live());
        let pools = pools.map(|(number, lane)| (LaneId::Pool(number), &lane.transfers));
        let stores = self.stores.iter().enumerate().filter(|(_, lane)| lane.is_live());
        let stores = stores.map(|(number, lane)| (LaneId::Store(number), &lane.transfers));
        for (lane, transfers) in pools.chain(stores) {
            let start = match &transfers[disk] {
                Transfer::Full { .. } => Start::Nothing,
                Transfer::Delta { base: Base { source_snapshot_disk: uuid, .. } } => {
                    Start::Base { taken_at: source.bases.get(uuid).map(|base| base.taken_at), uuid: uuid.clone() }
                }
                Transfer::Resync { copy, .. } => Start::Copy(copy.clone()),
            };
            groups.entry(start).or_default().push(lane);
        }
        groups
    }

    fn stream<'s>(&'s self, disk: &'s TakenDisk, wants: Vec<Want>) -> Stream<'s> {
        let label = DiskLabel {
            vm: self.name.clone(),
            disk: disk.of.record.name_label.clone(),
            disk_uuid: disk.of.record.uuid.clone(),
            targets: Vec::new(),
        };
        Stream { source: self.session, disk, wants, label }
    }

    /// What the targets that start from one place want of a disk; and of a disk that no VHD can hold, the lanes that cannot take it,
    /// and why.
    async fn want(
        &self,
        source: &SourceVm,
        disk: &TakenDisk,
        index: usize,
        start: &Start,
        lanes: &[LaneId],
    ) -> Result<(Want, Vec<(LaneId, &'static str)>), RunError> {
        let vanished = |what, object: &str| RunError::Inconsistent {
            what,
            object: object.to_owned(),
            why: "it vanished during the run; the next run plans without it".to_owned(),
        };
        let digests = &self.run.digests;
        let held = |copy: &str| lanes.iter().find_map(|&lane| self.pool(lane)?.view.point_disk(copy));
        let (from, known) = match start {
            Start::Nothing => (From::Nothing, None),
            Start::Base { uuid, .. } => {
                let base = source.bases.get(uuid).ok_or_else(|| vanished("base snapshot disk", uuid))?;
                let table = self.table_of_base(uuid, lanes).await;
                (From::Base { snapshot: base.vdi.clone(), table: table.clone() }, table)
            }
            Start::Copy(copy) => {
                let held = held(copy).ok_or_else(|| vanished("recovery point's disk", copy))?;
                let table = digests.of_copy(held).await.ok_or_else(|| vanished("digest table of disk", copy))?;
                (From::Copy(table.clone()), Some(table))
            }
        };
        let table = match (self.run.job.integrity, start, known) {
            (Integrity::Structure, ..) => None,
            (Integrity::Digest, Start::Nothing, _) => {
                let path = digests.of_content(&disk.uuid);
                Some(Table::create(path, table_size(disk.of.record.virtual_size)).map_err(RunError::Digests)?)
            }
            (Integrity::Digest, _, known) => match known {
                Some(known) => {
                    let (path, size) = (digests.of_content(&disk.uuid), table_size(disk.of.record.virtual_size));
                    match blocking(move || Table::derive_from(&known, path, size)).await {
                        Ok(table) => Some(table),
                        Err(error) => {
                            tracing::warn!(%error, disk = disk.of.record.uuid, "the disk is sent without digests");
                            None
                        }
                    }
                }
                None => None,
            },
        };
        let framing =
            |lane| self.pool(lane).map_or(Chunked::Proven, |lane| usable(lane.framing.chunked, table.is_some()));
        let framings = lanes.iter().map(|&lane| (lane, framing(lane)));
        let (lanes, chunked, refused) = share(framings, disk.of.record.virtual_size > MAX_VHD_DISK);
        let want = Want {
            from,
            chunked,
            grain: self.grain(&lanes),
            destinations: lanes.iter().filter_map(|&lane| self.destination(lane, disk, index)).collect(),
            table,
            targets: lanes.iter().map(|&lane| self.target_name(lane).to_owned()).collect(),
            notes: Vec::new(),
        };
        Ok((want, refused))
    }

    /// Where a target wants the stream of a disk.
    fn destination(&self, lane: LaneId, disk: &TakenDisk, index: usize) -> Option<Destination> {
        let (place, throttles) = match lane {
            LaneId::Pool(number) => {
                let lane = &self.lanes[number];
                let place = Place::Disk { session: lane.session.clone(), vdi: lane.landed[index].clone() };
                (place, lane.target.throttles.clone())
            }
            LaneId::Store(number) => {
                let lane = &self.stores[number];
                let info = DeltaInfo {
                    disk: disk.of.record.uuid.clone(),
                    content: disk.uuid.clone(),
                    size: replica_size(disk.of.record.virtual_size),
                    base: lane.transfers[index].lands_on().map(str::to_owned),
                    expected_bytes: lane.plans[index].expected_bytes,
                };
                let place = Place::Store { store: lane.target.store.clone(), draft: lane.draft.clone()?, info };
                (place, lane.target.throttles.clone())
            }
        };
        Some(Destination { lane, place, throttles })
    }

    /// The least that is read of a disk in one piece: the largest chunk among these stores.
    fn grain(&self, lanes: &[LaneId]) -> u64 {
        let chunk = |lane: &LaneId| match *lane {
            LaneId::Pool(_) => None,
            LaneId::Store(number) => Some(u64::from(self.stores[number].target.store.shape().chunk_size)),
        };
        lanes.iter().filter_map(chunk).max().unwrap_or(LEAF_SIZE)
    }

    fn pool(&self, lane: LaneId) -> Option<&Lane<'_>> {
        match lane {
            LaneId::Pool(number) => self.lanes.get(number),
            LaneId::Store(_) => None,
        }
    }

    fn target_name(&self, lane: LaneId) -> &str {
        match lane {
            LaneId::Pool(number) => &self.lanes[number].target.name,
            LaneId::Store(number) => &self.stores[number].target.name,
        }
    }

    /// The table of a base, if it is there and is the one that the recovery point names. Without it the delta commits
    /// with no digest.
    async fn table_of_base(&self, base: &str, lanes: &[LaneId]) -> Option<PathBuf> {
        let held = lanes.iter().find_map(|&lane| {
            let mut held = self.pool(lane)?.view.points().flat_map(|point| &point.disks);
            held.find(|held| held.content_key == base && held.digest.is_some() && held.damaged.is_none())
        });
        if let Some(held) = held {
            return self.run.digests.of_copy(held).await;
        }
        let root = lanes.iter().find_map(|&lane| {
            let LaneId::Store(number) = lane else { return None };
            let mut held = self.stores[number].points.iter().flat_map(|point| &point.disks);
            held.find(|held| held.content == base)?.digest.clone()
        })?;
        self.run.digests.of_content_with(base, &root).await
    }
}

/// What a target's report says of a disk that arrived.
pub(crate) fn disk_report(transfer: &Transfer, disk: &TakenDisk, facts: &StreamFacts, sent: &Sent) -> DiskReport {
    DiskReport {
        disk: disk.of.record.uuid.clone(),
        kind: transfer.kind(),
        reason: transfer.reason(),
        full_reason: transfer.full_reason(),
        base: transfer.base().map(str::to_owned),
        engine: sent.engine.to_string(),
        source: facts.source.to_owned(),
        encoding: facts.encoding.to_owned(),
        notes: facts.notes.clone(),
        bytes_read: facts.bytes_read,
        bytes_sent: sent.bytes,
        changed_bytes: facts.changed_bytes,
        digest: facts.digest.map(|root| root.to_string()),
        seconds: facts.elapsed.as_secs_f64(),
    }
}

/// Where a disk's transfer starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Start {
    Nothing,
    /// At this snapshot disk of the source. The oldest comes first: most of the disk has changed since.
    Base {
        taken_at: Option<Timestamp>,
        uuid: String,
    },
    /// At this snapshot disk of the target, whatever it holds.
    Copy(String),
}

/// What a target's framing comes to for one disk. Untried, what was written has to be read back, and for that its digests
/// have to be known.
fn usable(framing: Chunked, digests_known: bool) -> Chunked {
    match framing {
        Chunked::Untried if !digests_known => Chunked::Unusable(
            "no host of this version has shown that it takes it, and without digests it cannot be tried",
        ),
        framing => framing,
    }
}

/// The lanes that share a read, and the framing that suits them all. VHD is what everybody takes; of a disk beyond it, who
/// cannot take `chunked` is left out.
fn share(
    framings: impl Iterator<Item = (LaneId, Chunked)>,
    beyond_vhd: bool,
) -> (Vec<LaneId>, Chunked, Vec<(LaneId, &'static str)>) {
    let (mut lanes, mut worst, mut refused) = (Vec::new(), Chunked::Proven, Vec::new());
    for (lane, framing) in framings {
        match framing {
            Chunked::Unusable(why) if beyond_vhd => {
                refused.push((lane, why));
                continue;
            }
            Chunked::Proven => {}
            Chunked::Untried if matches!(worst, Chunked::Unusable(_)) => {}
            worse => worst = worse,
        }
        lanes.push(lane);
    }
    (lanes, worst, refused)
}

/// Why a disk cannot go to a target at all.
fn beyond_vhd(disk: &TakenDisk, why: &str) -> String {
    format!(
        "disk {} ({} bytes) is larger than the {MAX_VHD_DISK} bytes of a VHD, and the chunked framing is not used: {why}; \
         hosts of another version are tried anew if the job keeps digests, and the other targets go on without this one",
        disk.of.record.name_label, disk.of.record.virtual_size
    )
}

#[cfg(test)]
mod tests {
    use super::{Chunked, LaneId, share, usable};

    #[test]
    fn who_cannot_take_the_framing_costs_the_others_nothing_where_there_is_no_vhd() {
        use Chunked::{Proven, Untried, Unusable};
        let shared = |framings: &[Chunked], beyond| {
            let (lanes, framing, refused) = share(
                framings.iter().copied().enumerate().map(|(lane, framing)| (LaneId::Pool(lane), framing)),
                beyond,
            );
            let number = |lane: LaneId| match lane {
                LaneId::Pool(number) | LaneId::Store(number) => number,
            };
            let refused: Vec<_> = refused.into_iter().map(|(lane, why)| (number(lane), why)).collect();
            (lanes.into_iter().map(number).collect::<Vec<_>>(), framing, refused)
        };
        let refuted = Unusable("refuted");
        assert_eq!(shared(&[Proven, refuted, Untried], false), (vec![0, 1, 2], refuted, vec![]));
        assert_eq!(shared(&[Proven, refuted, Untried], true), (vec![0, 2], Untried, vec![(1, "refuted")]));
        assert_eq!(shared(&[Proven, Proven], true), (vec![0, 1], Proven, vec![]));
        assert_eq!(shared(&[refuted], true), (vec![], Proven, vec![(0, "refuted")]));
        assert!(matches!(usable(Untried, false), Unusable(_)));
        assert_eq!([usable(Untried, true), usable(Proven, false)], [Untried, Proven]);
    }
}
