//! Steps 7 and 8 of a run: which reads feed which targets, and what is known of the bytes afterwards.

use crate::error::RunError;
use crate::job::Integrity;
use crate::lease::Lease;
use crate::progress::DiskLabel;
use crate::run::Work;
use crate::snapshot::{Taken, TakenDisk};
use crate::transfer::{self, Destination, Moved, SourceFailed, Stream, StreamFacts};
use crate::view::SourceVm;
use futures_util::stream;
use futures_util::{FutureExt, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use vmferry_disk::digest::{DraftTable, Root, Table};
use vmferry_model::plan::Transfer;
use vmferry_model::report::DiskReport;

impl Work<'_> {
    /// Steps 7 and 8: all disks, each read once per base, the leases renewed meanwhile.
    pub(crate) async fn transfer(&mut self, lease: &Lease, source: &SourceVm, taken: &Taken) -> Result<(), RunError> {
        let mut streams = Vec::new();
        for (index, disk) in taken.disks.iter().enumerate() {
            for (base, lanes) in self.by_base(index) {
                streams.push((index, self.stream(source, disk, index, base.as_deref(), &lanes).await?, base));
            }
        }
        let run = self.run;
        let moving: Vec<_> = streams
            .into_iter()
            .map(|(index, stream, base)| {
                async move {
                    let lanes: Vec<usize> = stream.destinations.iter().map(|to| to.lane).collect();
                    (index, base, lanes, transfer::carry(run, stream).await)
                }
                .boxed()
            })
            .collect();
        let moving = stream::iter(moving).buffer_unordered(run.job.tuning.disks_in_parallel.max(1));
        let mut reports: BTreeMap<(usize, usize), DiskReport> = BTreeMap::new();
        let mut roots: BTreeMap<usize, Root> = BTreeMap::new();
        let moved: Vec<_> = tokio::select! {
            moved = moving.collect() => moved,
            lost = lease.lost() => return Err(lost),
        };
        for (index, base, lanes, result) in moved {
            match result {
                Ok(Moved { facts, lanes: results }) => {
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
                Err(SourceFailed(message)) => {
                    for lane in lanes {
                        let disk = taken.disks[index].of.record.uuid.clone();
                        self.lanes[lane].fail(RunError::Transfer { disk, message: message.clone() });
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

    async fn stream<'s>(
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
            table: self.table(disk, base, lanes).await?,
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
    async fn table(
        &self,
        disk: &TakenDisk,
        base: Option<&str>,
        lanes: &[usize],
    ) -> Result<Option<DraftTable>, RunError> {
        if self.run.job.integrity != Integrity::Digest {
            return Ok(None);
        }
        let path = self.table_path(&disk.uuid);
        let size = disk.of.record.virtual_size;
        let Some(base) = base else { return Ok(Some(Table::create(path, size).map_err(RunError::Digests)?)) };
        let known: Option<Root> = lanes.iter().find_map(|&lane| {
            let mut held = self.lanes[lane].view.points().flat_map(|point| &point.disks);
            held.find(|held| held.content_key == base)?.digest.as_ref()?.parse().ok()
        });
        let Some(known) = known else { return Ok(None) };
        let base_path = self.table_path(base);
        blocking(move || match Table::open(&base_path).and_then(|table| table.root()) {
            Ok(root) if root == known => {
                Table::derive_from(&base_path, path, size).map(Some).map_err(RunError::Digests)
            }
            _ => Ok(None),
        })
        .await
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
        facts: &StreamFacts,
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
            engine: facts.engine.to_string(),
            bytes_read: facts.bytes_read,
            bytes_sent,
            changed_bytes: facts.changed_bytes,
            digest: facts.digest.map(|root| root.to_string()),
            seconds: facts.elapsed.as_secs_f64(),
        }
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

/// Runs work that reads or writes a whole digest table (256 MiB for a disk of 1 TiB) beside the streams.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
