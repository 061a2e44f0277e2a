//! The probes: each tries one thing and says what it saw.

use super::scratch::Maker;
use super::streams::{self, Read, Written};
use super::{DoctorRequest, Found, PROBE, Scene};
use crate::allocation::Question;
use crate::engine::Engine;
use crate::error::chain;
use crate::export::NotBegun;
use crate::framing::Framing;
use crate::lane::bytes;
use crate::objects::wait_until_detached;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use uuid::Uuid;
use vmferry_disk::cbt::changed_extents;
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::nbd::{Pace, Reader};
use vmferry_disk::vhd::{BLOCK_SIZE, Parent, SECTOR_SIZE};
use vmferry_xapi::records::{Host, Sr, Vdi, VdiType};
use vmferry_xapi::{ApiError, Error, Operation, Ref, Session, params};

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

/// Size of the scratch disk: four blocks of a VHD.
const DISK: u64 = 8 * MIB;

/// A disk that comes back larger than this is not held in memory.
const LARGEST: u64 = 64 * MIB;

/// How far a host's clock may be from this machine's, in seconds: they tell whole ones, and NTP keeps them far closer.
const CLOCK_TOLERANCE: i64 = 30;

/// How long a change may take to be told.
const EVENT: Duration = Duration::from_secs(10);

/// What there is to work with.
pub(super) struct Bench<'a> {
    pub(super) engine: &'a Engine,
    pub(super) request: &'a DoctorRequest,
    pub(super) session: &'a Session,
    pub(super) scene: &'a Scene,
    pub(super) maker: &'a Maker,
}

/// The scratch disk and what it should hold.
pub(super) struct Disk {
    vdi: Ref<Vdi>,
    uuid: String,
    content: Vec<u8>,
}

/// Two snapshots of the scratch disk, with what they hold.
pub(super) struct Snapshots {
    before: Ref<Vdi>,
    old: Vec<u8>,
    after: Ref<Vdi>,
    new: Vec<u8>,
    /// What was written in between.
    written: Extents,
}

/// The hosts by version. Hosts of different versions are of different minds.
pub(super) fn version(hosts: &[(Ref<Host>, Host)]) -> Found {
    let versions: BTreeSet<String> = hosts.iter().map(|(_, host)| version_of(host)).collect();
    let told = |(_, host): &(Ref<Host>, Host)| {
        let disabled = if host.enabled { "" } else { " (disabled)" };
        format!("{}{disabled}", host.name_label)
    };
    let names = hosts.iter().map(told).collect::<Vec<_>>().join(", ");
    let seen = format!("{}; hosts: {names}", versions.iter().cloned().collect::<Vec<_>>().join(" beside "));
    if versions.len() > 1 { Found::broken(seen) } else { Found::ok(seen) }
}

fn version_of(host: &Host) -> String {
    let word = |key: &str| host.software_version.get(key).map_or("?", String::as_str);
    format!(
        "{} {} build {}, xapi {}",
        word("product_brand"),
        word("product_version"),
        word("build_number"),
        word("xapi_build")
    )
}

/// What clocks say, as host and seconds that it is ahead of this machine.
fn judge_clocks(ahead: &[(String, i64)]) -> Found {
    let told = |(host, ahead): &(String, i64)| match ahead {
        ahead if ahead.abs() <= 1 => format!("{host} agrees with this machine"),
        ahead if *ahead > 0 => format!("{host} is {ahead} s ahead"),
        ahead => format!("{host} is {} s behind", -ahead),
    };
    let seen = ahead.iter().map(told).collect::<Vec<_>>().join(", ");
    let wrong = ahead.iter().any(|(_, ahead)| ahead.abs() > CLOCK_TOLERANCE);
    if wrong { Found::broken(seen) } else { Found::ok(seen) }
}

/// How a write turned out.
enum Landed {
    /// The disk holds what it should.
    AsSent,
    /// The host refused the stream.
    Refused(Error),
    /// The disk holds something else, from this byte on.
    Otherwise { at: usize, found: Vec<u8> },
    /// The disk could not be read back.
    Unread(String),
}

impl Bench<'_> {
    pub(super) fn login(&self) -> Found {
        let master = self.session.master_address();
        let asked = self.engine.pools.address(&self.request.pool).unwrap_or_default();
        if asked == master {
            return Found::ok(format!("{master} is the master"));
        }
        Found::ok(format!("{asked} is a member of the pool, and names {master} as the master"))
    }

    pub(super) async fn clocks(&self) -> Result<Found, Error> {
        let mut ahead = Vec::new();
        for (reference, host) in &self.scene.hosts {
            let asked = Timestamp::now();
            let theirs: Timestamp = self.session.call("host.get_servertime", params![reference]).await?;
            let ours = asked.as_second().midpoint(Timestamp::now().as_second());
            ahead.push((host.name_label.clone(), theirs.as_second() - ours));
        }
        Ok(judge_clocks(&ahead))
    }

    pub(super) async fn encryption(&self) -> Result<Found, Error> {
        Ok(match self.session.encryption().await? {
            None => Found::missing("calls and disks travel by plain HTTP"),
            Some(tls) => Found::ok(format!(
                "{} with {}; the certificate {} is believed because {}",
                tls.version, tls.cipher, tls.certificate_sha256, tls.because
            )),
        })
    }

    pub(super) async fn wrong_path(&self) -> Result<Found, Error> {
        let status = self.session.status_of("/vmferry-doctor").await?;
        let seen = format!("a path that nobody serves is answered with HTTP {status}");
        Ok(if status >= 400 { Found::ok(seen) } else { Found::broken(seen) })
    }

    /// The SR, if disks may be made on it.
    pub(super) fn storage(&self) -> (Option<&(Ref<Sr>, Sr)>, Found) {
        let Some(both @ (reference, sr)) = &self.scene.sr else {
            return (None, Found::missing("the pool has no default SR, and none was named"));
        };
        let (seen_by, hosts) = (self.scene.seen_by(reference).len(), self.scene.hosts.len());
        if sr.content_type == "iso" {
            return (None, Found::broken(format!("SR {} ({}) is for images of discs", sr.name_label, sr.uuid)));
        }
        if seen_by == 0 {
            return (None, Found::broken(format!("SR {} ({}) is plugged at no host", sr.name_label, sr.uuid)));
        }
        let seen = format!(
            "SR {} ({}), driver {}: {} of {} free, seen by {seen_by} of {hosts} hosts",
            sr.name_label,
            sr.uuid,
            sr.kind,
            bytes(sr.free()),
            bytes(sr.physical_size)
        );
        (Some(both), Found::ok(seen))
    }

    pub(super) async fn make_disk(&self, sr: &Ref<Sr>) -> (Option<Disk>, Found) {
        let begun = Instant::now();
        match self.maker.make(self.session, sr, DISK).await {
            Err(error) => (None, error.into()),
            Ok((_, record)) if record.virtual_size > LARGEST => (
                None,
                Found::broken(format!("{} were asked for, {} were made", bytes(DISK), bytes(record.virtual_size))),
            ),
            Ok((vdi, record)) => {
                let size = record.virtual_size;
                let seen = format!("a disk of {} in {} ms", bytes(size), begun.elapsed().as_millis());
                (Some(Disk { vdi, uuid: record.uuid, content: vec![0; size as usize] }), Found::ok(seen))
            }
        }
    }

    /// Whether a change of the disk is told, in the order in which things happen.
    pub(super) async fn events(&self, disk: &Disk) -> Result<Found, Error> {
        let mut events = self.session.events([format!("vdi/{}", disk.vdi)]);
        let mine = |operation: Operation, batch: &[vmferry_xapi::Event]| {
            batch.iter().any(|event| event.reference == disk.vdi.as_str() && event.operation == operation)
        };
        if !mine(Operation::Add, &events.next(EVENT).await?) {
            return Ok(Found::broken("the first answer does not name the disk that was asked about"));
        }
        let changed = Instant::now();
        let () = self.session.call("VDI.set_name_description", params![&disk.vdi, "being looked at"]).await?;
        while changed.elapsed() < EVENT {
            if mine(Operation::Mod, &events.next(EVENT).await?) {
                return Ok(Found::ok(format!("a change was told after {} ms", changed.elapsed().as_millis())));
            }
        }
        Ok(Found::broken(format!("a change was not told within {} s", EVENT.as_secs())))
    }

    /// Writes a stream that should make `expected` of the disk, and reads the disk back. The disk is known to hold what
    /// was read, afterwards.
    async fn write(&self, disk: &mut Disk, stream: &Written, expected: Vec<u8>) -> Landed {
        if let Err(error) = streams::write(self.session, &disk.vdi, stream).await {
            return Landed::Refused(error);
        }
        let found = match streams::read(self.session, &disk.vdi, None).await {
            Ok(read) => read.image(),
            Err(why) => return Landed::Unread(why.into_message()),
        };
        disk.content.clone_from(&found);
        match streams::first_difference(&expected, &found) {
            None => Landed::AsSent,
            Some(at) => Landed::Otherwise { at, found },
        }
    }

    /// Two whole blocks, not the first ones of the disk.
    pub(super) async fn vhd_import(&self, disk: &mut Disk) -> Result<Found, Error> {
        let block = u64::from(BLOCK_SIZE);
        let mut expected = disk.content.clone();
        streams::put(&mut expected, block, &streams::pattern(1, block));
        streams::put(&mut expected, 3 * block, &streams::pattern(2, block));
        let stream = match streams::vhd(&expected, &[1, 3], None, None) {
            Ok(stream) => stream,
            Err(error) => return Ok(Found::broken(chain(&error))),
        };
        Ok(match self.write(disk, &stream, expected).await {
            Landed::AsSent => Found::ok("two blocks of 2 MiB were written, and read back as they were sent"),
            Landed::Refused(error) => error.into(),
            Landed::Otherwise { at, .. } => {
                Found::broken(format!("the disk differs from what was sent from byte {at} on"))
            }
            Landed::Unread(why) => Found::broken(format!("it was written, but could not be read back: {why}")),
        })
    }

    pub(super) async fn vhd_export(&self, disk: &Disk) -> Result<Found, Error> {
        let Read { head, report, .. } = match streams::read(self.session, &disk.vdi, None).await {
            Ok(read) => read,
            Err(why) => return Ok(Found::broken(why.into_message())),
        };
        let (blocks, partial) = (report.blocks, report.partial_blocks);
        let seen = format!("{} of stream, {blocks} blocks, both footers equal", bytes(report.stream_length));
        Ok(match partial {
            0 if head.virtual_size() == disk.content.len() as u64 => Found::ok(seen),
            0 => Found::broken(format!("{seen}; it is of a disk of {}", bytes(head.virtual_size()))),
            partial => {
                Found::broken(format!("{seen}; {partial} of them leave out sectors, which XAPI never did so far"))
            }
        })
    }

    /// A differencing stream of one block that names three of its sectors and carries something else in the others.
    pub(super) async fn sector_bitmaps(&self, disk: &mut Disk) -> Result<Found, Error> {
        let block = u64::from(BLOCK_SIZE);
        let sectors = [0, 100, 4095];
        let (mut sent, mut expected) = (disk.content.clone(), disk.content.clone());
        streams::put(&mut sent, block, &streams::pattern(3, block));
        for sector in sectors {
            let extent = Extent { offset: block + (sector * SECTOR_SIZE) as u64, length: SECTOR_SIZE as u64 };
            streams::put(&mut expected, extent.offset, streams::slice(&sent, extent));
        }
        let parent = Parent { unique_id: Uuid::new_v4(), timestamp: 0, path: "vmferry-doctor.vhd".to_owned() };
        let stream = match streams::vhd(&sent, &[1], Some(parent), Some(&streams::bitmap(&sectors))) {
            Ok(stream) => stream,
            Err(error) => return Ok(Found::broken(chain(&error))),
        };
        Ok(match self.write(disk, &stream, expected).await {
            Landed::AsSent => Found::ok("three sectors of a block were named, and only they changed"),
            Landed::Refused(error) => error.into(),
            Landed::Otherwise { found, .. } if found == sent => {
                Found::broken("three sectors of a block were named, and the host wrote the whole block")
            }
            Landed::Otherwise { at, .. } => {
                Found::broken(format!("the disk differs from what was sent from byte {at} on"))
            }
            Landed::Unread(why) => Found::broken(format!("it was written, but could not be read back: {why}")),
        })
    }

    /// Three ranges of 64 KiB; what comes of it is remembered as the first use of the framing is.
    pub(super) async fn chunked(&self, disk: &mut Disk) -> Result<Found, Error> {
        let mut expected = disk.content.clone();
        let extents = [0, 17, 100].map(|leaf| Extent { offset: leaf * 64 * KIB, length: 64 * KIB });
        for (seed, extent) in (4..).zip(extents) {
            streams::put(&mut expected, extent.offset, &streams::pattern(seed, extent.length));
        }
        let stream = streams::chunked(&expected, &extents);
        let landed = self.write(disk, &stream, expected).await;
        let good = matches!(landed, Landed::AsSent);
        if good || matches!(landed, Landed::Otherwise { .. }) {
            let runs = self.engine.runs.as_ref();
            // What is not remembered the first run tries for itself.
            if let Ok(framing) = Framing::of(self.session, runs, &self.request.tenant).await {
                framing.learn(runs, good, true).await;
            }
        }
        Ok(match landed {
            Landed::AsSent => Found::ok(
                "three ranges of 64 KiB were written, and read back as they were sent; runs need not try it first any more",
            ),
            Landed::Refused(error) => error.into(),
            Landed::Otherwise { at, .. } => Found::broken(format!(
                "the disk differs from what was sent from byte {at} on; runs will send VHD to hosts of this version"
            )),
            Landed::Unread(why) => Found::broken(format!("it was written, but could not be read back: {why}")),
        })
    }

    pub(super) async fn redirect(&self, sr: &Ref<Sr>, disk: &Disk) -> Result<Found, Error> {
        if self.scene.seen_by(sr).contains(&self.scene.master) {
            return Ok(Found::not_tried("the master sees the SR itself; name one with `--sr` that only a member sees"));
        }
        Ok(match streams::read(self.session, &disk.vdi, None).await {
            Ok(read) if read.address != self.session.master_address() => {
                Found::ok(format!("the master sent us on to {}", read.address))
            }
            Ok(read) => Found::broken(format!("{} served a disk that it does not see", read.address)),
            Err(why) => Found::broken(why.into_message()),
        })
    }

    pub(super) async fn qcow2_head(&self, disk: &Disk) -> Result<Found, Error> {
        wait_until_detached(self.session, &disk.vdi).await?;
        let (size, label) = (disk.content.len() as u64, "vmferry doctor: the head of a qcow2 export");
        let question = Question { session: self.session, vdi: &disk.vdi, base: None, size, patience: PROBE, label };
        let told = match question.ask().await {
            Ok(told) => told,
            Err(why) => return Ok(Found::missing(why)),
        };
        let leaves = (0..size.div_ceil(64 * KIB)).map(|leaf| Extent { offset: leaf * 64 * KIB, length: 64 * KIB });
        let zeroes = [0; 64 << 10];
        let has_data = |leaf: &Extent| !zeroes.starts_with(streams::slice(&disk.content, *leaf));
        let data: Extents = leaves.filter(has_data).collect();
        Ok(match data.without(&told.to_leaves(size)).is_empty() {
            true => Found::ok(format!(
                "{} of {} hold data, by the tables of the export",
                bytes(told.total_bytes()),
                bytes(size)
            )),
            false => Found::broken("the tables of the export leave out data that the disk has"),
        })
    }

    /// Switches changed-block tracking on.
    pub(super) async fn track_changes(&self, disk: &Disk) -> Result<Found, Error> {
        Ok(match self.session.enable_cbt(&disk.vdi).await {
            Ok(()) => Found::ok("changes are tracked"),
            Err(error) => match error.api() {
                Some(ApiError::LicenceRestriction { .. }) => Found::missing("the hosts' licence leaves it out"),
                Some(_) => Found::missing(format!("the storage refuses it: {}", chain(&error))),
                None => return Err(error),
            },
        })
    }

    /// A snapshot, a write, and a snapshot.
    pub(super) async fn snapshots(&self, disk: &mut Disk, takes_chunked: bool) -> Result<Snapshots, String> {
        let told = |error: Error| chain(&error);
        wait_until_detached(self.session, &disk.vdi).await.map_err(told)?;
        let old = disk.content.clone();
        let before = self.maker.snapshot(self.session, &disk.vdi, &disk.uuid).await.map_err(told)?;
        let (offset, mut new) = (2 * u64::from(BLOCK_SIZE) + 192 * KIB, old.clone());
        let extent = Extent { offset, length: 64 * KIB };
        streams::put(&mut new, offset, &streams::pattern(9, extent.length));
        let stream = match takes_chunked {
            true => streams::chunked(&new, &[extent]),
            false => streams::vhd(&new, &[2], None, None).map_err(|error| chain(&error))?,
        };
        streams::write(self.session, &disk.vdi, &stream).await.map_err(told)?;
        disk.content.clone_from(&new);
        wait_until_detached(self.session, &disk.vdi).await.map_err(told)?;
        let after = self.maker.snapshot(self.session, &disk.vdi, &disk.uuid).await.map_err(told)?;
        Ok(Snapshots { before, old, after, new, written: std::iter::once(extent).collect() })
    }

    /// What differs between the snapshots, and the parent that the stream names.
    pub(super) async fn base_export(&self, disk: &Disk, snapshots: &Snapshots) -> (Found, Found) {
        let Snapshots { before, old, after, new, .. } = snapshots;
        let untried = || Found::not_tried("there is no differential export");
        let read = match streams::read(self.session, after, Some(before)).await {
            Ok(read) => read,
            Err(NotBegun::NoDifferences(why)) => return (Found::missing(why), untried()),
            Err(NotBegun::Failed(why)) => return (Found::broken(why), untried()),
        };
        let found = match streams::first_difference(new, &read.onto(old.clone())) {
            None => Found::ok(format!(
                "{} blocks differ, and they make the later snapshot of the earlier one",
                read.report.blocks
            )),
            Some(at) => {
                Found::broken(format!("put onto the earlier snapshot it differs from the later one at byte {at}"))
            }
        };
        let parent = read.head.header().parent_id;
        let parent = Found::ok(match parent.to_string() == disk.uuid {
            true => format!("the stream names the live disk, {parent}"),
            false => format!("the stream names {parent}"),
        });
        (found, parent)
    }

    pub(super) async fn nbd(&self, snapshots: &Snapshots) -> Result<Found, Error> {
        use vmferry_xapi::NbdUnavailable::{NoNetwork, NoServer, NotOnNetwork, Unknown};
        let connections = match self.session.nbd_clients(&snapshots.after, 1).await {
            Ok(connections) => connections,
            Err(error @ (NoNetwork | NotOnNetwork { .. })) => return Ok(Found::missing(chain(&error))),
            Err(Unknown(error)) => return Err(error),
            Err(error @ NoServer(_)) => return Ok(Found::broken(chain(&error))),
        };
        let how = if connections.encrypted { "with TLS" } else { "without TLS: whoever is on the way reads the disks" };
        let whole = Extents::whole_disk(snapshots.new.len() as u64);
        let (mut image, mut buffer) = (vec![0; snapshots.new.len()], vec![0; 256 << 10]);
        let mut reader = match Reader::new(connections.clients, whole, Pace::default()) {
            Ok(reader) => reader,
            Err(error) => return Ok(Found::broken(chain(&error))),
        };
        loop {
            match reader.read(&mut buffer).await {
                Ok(Some(piece)) => streams::put(&mut image, piece.offset, piece.bytes),
                Ok(None) => break,
                Err(error) => return Ok(Found::broken(chain(&error))),
            }
        }
        for client in reader.into_clients() {
            // The disk was read; a farewell that fails closes the connection as well.
            let _ = client.disconnect().await;
        }
        Ok(match streams::first_difference(&snapshots.new, &image) {
            None => Found::ok(format!("the snapshot was read whole, {how}")),
            Some(at) => Found::broken(format!("what was read differs from the snapshot from byte {at} on")),
        })
    }

    pub(super) async fn changed_blocks(&self, snapshots: &Snapshots) -> Result<Found, Error> {
        wait_until_detached(self.session, &snapshots.after).await?;
        let bitmap = self.session.list_changed_blocks(&snapshots.before, &snapshots.after).await?;
        let changed = match changed_extents(&bitmap, snapshots.new.len() as u64) {
            Ok(changed) => changed,
            Err(error) => return Ok(Found::broken(chain(&error))),
        };
        Ok(match snapshots.written.without(&changed).is_empty() {
            true => Found::ok(format!("the bitmap tells the write: {} changed", bytes(changed.total_bytes()))),
            false => Found::broken("the bitmap does not tell a write that was made between the snapshots"),
        })
    }

    pub(super) async fn data_destroy(&self, snapshots: &Snapshots) -> Result<Found, Error> {
        let Snapshots { before, after, written, new, .. } = snapshots;
        wait_until_detached(self.session, before).await?;
        self.session.data_destroy(before).await?;
        let kind = self.session.get_record(before).await?.kind;
        if kind != VdiType::CbtMetadata {
            return Ok(Found::broken(format!("the snapshot is of type {kind} afterwards")));
        }
        let bitmap = self.session.list_changed_blocks(before, after).await?;
        let told = changed_extents(&bitmap, new.len() as u64).is_ok_and(|changed| written.without(&changed).is_empty());
        Ok(match told {
            true => Found::ok("the data went, and the changes since are still told"),
            false => Found::broken("the data went, and with it what changed since"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::DoctorVerdict;
    use super::*;

    #[test]
    fn clocks_are_told_host_by_host() {
        let found = judge_clocks(&[("one".to_owned(), 0), ("two".to_owned(), 90), ("three".to_owned(), -4)]);
        assert_eq!(found.seen, "one agrees with this machine, two is 90 s ahead, three is 4 s behind");
        assert_eq!(found.verdict, DoctorVerdict::Broken);
        assert_eq!(judge_clocks(&[("one".to_owned(), -4)]).verdict, DoctorVerdict::Ok);
    }
}
