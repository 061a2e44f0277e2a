//! Steps 7 and 8 of a run: which reads feed which targets, and what is known of the bytes afterwards.

use crate::error::{RunError, chain};
use crate::job::Integrity;
use crate::lease::Lease;
use crate::progress::DiskLabel;
use crate::run::Work;
use crate::snapshot::{Taken, TakenDisk};
use crate::transfer::{self, Destination, Moved, Stream};
use crate::view::SourceVm;
use futures_util::StreamExt;
use futures_util::future::select_all;
use futures_util::stream;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use vmferry_disk::digest::{DraftTable, Root, Table};
use vmferry_model::plan::Transfer;
use vmferry_model::report::DiskReport;

impl Work<'_> {
    /// Steps 7 and 8: all disks, each read once per base, the leases renewed meanwhile.
    pub(crate) async fn transfer(&mut self, lease: &Lease, source: &SourceVm, taken: &Taken) -> Result<(), RunError> {
        let mut streams = Vec::new();
        for (index, disk) in taken.disks.iter().enumerate() {
            for (base, lanes) in self.by_base(index) {
                streams.push((index, self.stream(source, disk, index, base.as_deref(), &lanes)?, base));
            }
        }
        let run = self.run;
        let moving = stream::iter(streams)
            .map(|(index, stream, base)| async move {
                let lanes: Vec<usize> = stream.destinations.iter().map(|to| to.lane).collect();
                (index, base, lanes, transfer::carry(run, stream).await)
            })
            .buffer_unordered(run.job.tuning.disks_in_parallel.max(1));
        let mut reports: BTreeMap<(usize, usize), DiskReport> = BTreeMap::new();
        let mut roots: BTreeMap<usize, Root> = BTreeMap::new();
        let moved: Vec<_> = tokio::select! {
            moved = moving.collect() => moved,
            lost = self.any_lease_lost(lease) => return Err(lost),
        };
        for (index, base, lanes, result) in moved {
            match result {
                Ok(moved) => {
                    let (facts, results) = split(moved);
                    // Streams from different bases end in the same content, or one of them is wrong.
                    if let Some(root) = facts.digest
                        && *roots.entry(index).or_insert(root) != root
                    {
                        let disk = &taken.disks[index].of.record.uuid;
                        for lane in lanes {
                            self.lanes[lane].fail(RunError::Transfer {
                                disk: disk.clone(),
                                message: "its digest differs from that of the same disk sent from another base; the next run rolls back and sends it again".to_owned(),
                            });
                        }
                        continue;
                    }
                    for (lane, result) in results {
                        match result {
                            Ok(bytes) => {
                                let report = self.disk_report(lane, index, taken, base.as_deref(), &facts, bytes);
                                reports.insert((lane, index), report);
                            }
                            Err(error) => self.lanes[lane].fail(error),
                        }
                    }
                }
                Err(error) => {
                    let text = chain(&error);
                    for lane in lanes {
                        let disk = taken.disks[index].of.record.uuid.clone();
                        self.lanes[lane].fail(RunError::Transfer { disk, message: text.clone() });
                    }
                }
            }
        }
        for ((lane, _), report) in reports {
            self.lanes[lane].disks.push(report);
        }
        self.no_lane_left()
    }

    /// The live lanes by the base of this disk: those of one group share one read.
    fn by_base(&self, disk: usize) -> BTreeMap<Option<String>, Vec<usize>> {
        let mut groups: BTreeMap<Option<String>, Vec<usize>> = BTreeMap::new();
        for (index, lane) in self.lanes.iter().enumerate().filter(|(_, lane)| lane.is_live()) {
            groups.entry(lane.transfers[disk].base().map(str::to_owned)).or_default().push(index);
        }
        groups
    }

    fn stream<'s>(
        &'s self,
        source: &SourceVm,
        disk: &'s TakenDisk,
        index: usize,
        base: Option<&str>,
        lanes: &[usize],
    ) -> Result<Stream<'s>, RunError> {
        let base_vdi = match base {
            None => None,
            Some(uuid) => {
                Some(source.bases.get(uuid).map(|base| base.vdi.clone()).ok_or_else(|| RunError::Inconsistent {
                    what: "base snapshot disk",
                    object: uuid.to_owned(),
                    why: "it vanished during the run; the next run plans without it".to_owned(),
                })?)
            }
        };
        let destinations = lanes
            .iter()
            .map(|&lane| Destination {
                lane,
                session: self.lanes[lane].session.clone(),
                vdi: self.lanes[lane].landed[index].clone(),
            })
            .collect();
        Ok(Stream {
            source: self.session,
            disk,
            base: base_vdi,
            destinations,
            table: self.table(disk, base, lanes)?,
            label: DiskLabel {
                vm: self.name.clone(),
                disk: disk.of.record.name_label.clone(),
                disk_uuid: disk.of.record.uuid.clone(),
                targets: lanes.iter().map(|&lane| self.lanes[lane].target.name.clone()).collect(),
            },
        })
    }

    /// The digest table of what will be sent: a new one for a full copy; for a delta the base's, if it is there and is
    /// the one that the recovery point names. Without it the delta commits with no digest.
    fn table(&self, disk: &TakenDisk, base: Option<&str>, lanes: &[usize]) -> Result<Option<DraftTable>, RunError> {
        if self.run.job.integrity != Integrity::Digest {
            return Ok(None);
        }
        let path = self.table_path(&disk.uuid);
        let size = disk.of.record.virtual_size;
        let Some(base) = base else { return Ok(Some(Table::create(path, size).map_err(RunError::Digests)?)) };
        let known = lanes.iter().find_map(|&lane| {
            let view = &self.lanes[lane].view;
            view.points().flat_map(|point| &point.disks).find(|held| held.content_key == base)?.digest.clone()
        });
        let base_path = self.table_path(base);
        let trusted = match (known.and_then(|text| text.parse::<Root>().ok()), Table::open(&base_path)) {
            (Some(known), Ok(table)) => table.root().is_ok_and(|root| root == known),
            _ => false,
        };
        if !trusted {
            return Ok(None);
        }
        Ok(Some(Table::derive_from(&base_path, path, size).map_err(RunError::Digests)?))
    }

    fn table_path(&self, content_key: &str) -> PathBuf {
        self.run.digest_dir.join(format!("{content_key}.leaves"))
    }

    fn disk_report(
        &self,
        lane: usize,
        index: usize,
        taken: &Taken,
        base: Option<&str>,
        moved: &Facts,
        bytes_sent: u64,
    ) -> DiskReport {
        let transfer = &self.lanes[lane].transfers[index];
        DiskReport {
            disk: taken.disks[index].of.record.uuid.clone(),
            kind: transfer.kind(),
            reason: transfer.reason(),
            full_reason: match transfer {
                Transfer::Full { reason } => Some(*reason),
                Transfer::Delta { .. } => None,
            },
            base: base.map(str::to_owned),
            engine: moved.engine.clone(),
            bytes_read: moved.bytes_read,
            bytes_sent,
            changed_bytes: moved.changed_bytes,
            digest: moved.digest.map(|root| root.to_string()),
            seconds: moved.elapsed.as_secs_f64(),
        }
    }

    /// Ends when the lease of the source or of a replica that is being written to is somebody else's.
    async fn any_lease_lost(&self, source: &Lease) -> RunError {
        let replicas = self.lanes.iter().filter_map(|lane| lane.lease.as_ref());
        let all = std::iter::once(source).chain(replicas).map(|lease| Box::pin(lease.lost()));
        select_all(all).await.0
    }

    /// The content keys that the targets hold.
    pub(crate) fn content_keys(&self) -> BTreeSet<String> {
        let disks = self.lanes.iter().flat_map(|lane| lane.view.points()).flat_map(|point| &point.disks);
        disks.map(|disk| disk.content_key.clone()).collect()
    }

    /// Removes the digest tables of contents that were held and are not any more.
    pub(crate) fn drop_unused_tables(&self, held: &BTreeSet<String>) {
        for gone in held.difference(&self.content_keys()) {
            let path = self.table_path(gone);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "digest table could not be removed");
                }
                _ => {}
            }
        }
    }
}

/// What all targets of a stream share in their reports.
struct Facts {
    engine: String,
    bytes_read: u64,
    changed_bytes: u64,
    digest: Option<Root>,
    elapsed: Duration,
}

fn split(moved: Moved) -> (Facts, Vec<(usize, Result<u64, RunError>)>) {
    let Moved { engine, bytes_read, changed_bytes, digest, elapsed, lanes } = moved;
    (Facts { engine, bytes_read, changed_bytes, digest, elapsed }, lanes)
}
