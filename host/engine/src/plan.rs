//! Which disks travel whole and which as a delta, and where they land: pure functions from what exists.

use crate::allocation::MAX_VHD_DISK;
use crate::inventory::AttachedDisk;
use crate::view::{Condition, Point, PointDisk, Replica, SourceVm, TargetView, is_unused};
use crate::xen_orchestra;
use std::collections::BTreeSet;
use vmferry_model::plan::{Base, FullReason, Transfer};
use vmferry_xapi::Ref;
use vmferry_xapi::records::{PowerState, Vdi};

/// Storage repositories and exports round disks up to this, so a replica may be larger than its source by less than this.
pub(crate) const SR_GRANULARITY: u64 = 2 << 20;

/// The size of a disk's replica. It is asked for: a storage repository that does not round would make it too small for the
/// last block of an export.
pub(crate) fn replica_size(source: u64) -> u64 {
    source.next_multiple_of(SR_GRANULARITY)
}

/// How a disk travels to one target.
///
/// The base is the newest content that source and target both hold: recovery points are tried from the newest to the
/// oldest, each identified by the content key of its disk, never by a name or a date. Without a base, the newest copy of
/// the disk whose digests are at hand (`known`, by uuid) is compared with; so is a newest copy that was found damaged. `srs` are
/// the target's, by uuid.
pub(crate) fn transfer(
    source: &SourceVm,
    disk: &AttachedDisk,
    target: &TargetView,
    srs: &[String],
    known: &BTreeSet<String>,
) -> Transfer {
    // A replica is whole on one SR, so an older one on another is nothing to build on.
    let home = target.current().map_or("", Replica::sr);
    let copies: Vec<(usize, &PointDisk)> = target
        .points()
        .filter(|point| point.sr == home)
        .enumerate()
        .filter_map(|(age, point)| Some((age, point.disks.iter().find(|held| is_copy_of(source, disk, held, point))?)))
        .collect();
    let shrunk = |held: &PointDisk| held.attached.record.virtual_size > replica_size(disk.record.virtual_size);
    if copies.first().is_some_and(|(_, held)| shrunk(held)) {
        return Transfer::Full { reason: FullReason::DiskShrunk };
    }
    let usable = copies.iter().filter(|(_, held)| !shrunk(held));
    let comparable =
        usable.clone().find(|(_, held)| known.contains(held.uuid())).map(|(_, held)| held.uuid().to_owned());
    let newest_is_damaged = copies.first().is_some_and(|(_, held)| held.damaged.is_some());
    if let (true, Some(copy)) = (newest_is_damaged, &comparable) {
        return Transfer::Resync { copy: copy.clone(), reason: FullReason::ReplicaDamaged };
    }
    let is_base = |held: &PointDisk| {
        held.damaged.is_none() && source.bases.get(&held.content_key).is_some_and(|base| base.of == disk.vdi)
    };
    if let Some((age, held)) = usable.clone().find(|(_, held)| is_base(held)) {
        return Transfer::Delta {
            base: Base {
                source_snapshot_disk: held.content_key.clone(),
                target_snapshot_disk: held.uuid().to_owned(),
                newest: *age == 0,
            },
        };
    }
    let target_has_points = target.current().is_some();
    let reason = match (target_has_points, copies.is_empty(), source.keeps_snapshot_for(srs)) {
        _ if newest_is_damaged => FullReason::ReplicaDamaged,
        (true, true, _) => FullReason::NewDisk,
        (false, _, false) => xen_orchestra::reason(source, target, srs).unwrap_or(FullReason::FirstRun),
        (_, _, true) => FullReason::BaseGoneOnTarget,
        (true, false, false) if copies.iter().any(|(_, held)| source.purged.contains(&held.content_key)) => {
            FullReason::BasePurged
        }
        (true, false, false) => FullReason::BaseGoneOnSource,
    };
    match comparable {
        Some(copy) => Transfer::Resync { copy, reason },
        None => Transfer::Full { reason },
    }
}

/// The same where nobody tells what differs from a base: what it was to start from is compared with instead, if its digests
/// are at hand.
pub(crate) fn without_differences(planned: Transfer, is_known: impl Fn(&str) -> bool) -> Transfer {
    let reason = FullReason::NoDifferences;
    match planned {
        Transfer::Delta { base } if is_known(&base.target_snapshot_disk) => {
            Transfer::Resync { copy: base.target_snapshot_disk, reason }
        }
        Transfer::Delta { .. } => Transfer::Full { reason },
        other => other,
    }
}

/// The same for a VM of which the target holds nothing, where its source was replicated to an SR that no target names any more
/// (`moved`).
pub(crate) fn after_change_of_sr(planned: Transfer, moved: bool) -> Transfer {
    match planned {
        Transfer::Full { reason: FullReason::FirstRun } if moved => Transfer::Full { reason: FullReason::SrChanged },
        other => other,
    }
}

/// Whether a disk of a recovery point was copied from this source disk: by its base, else by what it says of
/// itself, else (Xen Orchestra's points say nothing) by its device number.
fn is_copy_of(source: &SourceVm, disk: &AttachedDisk, held: &PointDisk, point: &Point) -> bool {
    if let Some(base) = source.bases.get(&held.content_key) {
        return base.of == disk.vdi;
    }
    match &held.source_disk {
        Some(uuid) => *uuid == disk.record.uuid,
        None => {
            held.userdevice() == disk.vbd_record.userdevice
                && point.disks.iter().filter(|other| other.userdevice() == held.userdevice()).count() == 1
        }
    }
}

/// Where a disk's stream lands.
#[derive(Clone, Debug)]
pub(crate) enum Landing {
    /// On the live replica disk, which is proven to equal the base.
    InPlace(Ref<Vdi>),
    /// On a clone of a recovery point's disk.
    Clone(Box<PointDisk>),
    /// On a new disk.
    Fresh,
}

/// Where a transfer lands. `untouched` is the replica that goes on: proven to equal its newest recovery point, except for
/// the live disks of which the storage does not tell (`untold`).
pub(crate) fn landing(
    transfer: &Transfer,
    target: &TargetView,
    untouched: Option<&Replica>,
    untold: &BTreeSet<Ref<Vdi>>,
) -> Landing {
    let Some(held) = transfer.lands_on().and_then(|copy| target.point_disk(copy)) else { return Landing::Fresh };
    let live = untouched
        // A damaged disk is mended on a clone; of one beyond VHD the host may not be able to tell that it is untouched.
        .filter(|_| held.damaged.is_none() && held.attached.record.virtual_size <= MAX_VHD_DISK)
        .filter(|replica| replica.newest().disks.iter().any(|disk| disk.uuid() == held.uuid()))
        .and_then(|replica| replica.live_disk(held))
        .filter(|live| !untold.contains(&live.vdi));
    match live {
        Some(live) => Landing::InPlace(live.vdi.clone()),
        None => Landing::Clone(Box::new(held.clone())),
    }
}

/// Why a replica's live disks cannot be what its newest recovery point says, as far as records tell. What records
/// cannot tell (a write) is asked of the storage afterwards.
pub(crate) fn divergence(replica: &Replica) -> Option<String> {
    match replica.condition {
        Condition::Used => return Some("somebody reverted or unblocked it".to_owned()),
        Condition::FailedOver => return Some("it was failed over to".to_owned()),
        Condition::Foreign => return Some(format!("it {}", xen_orchestra::UNDER_WAY)),
        Condition::Tidy | Condition::HalfWritten | Condition::Untidy => {}
    }
    if replica.record.power_state != PowerState::Halted {
        return Some(format!("it is {:?}", replica.record.power_state).to_lowercase());
    }
    // Whether one of these was written the host may not be able to tell, so whether it could be counts as well.
    let beyond_vhd = replica.disks.iter().any(|disk| disk.record.virtual_size > MAX_VHD_DISK);
    if beyond_vhd && !is_unused(&replica.record) {
        return Some("its start is not blocked any more, and it may have been used".to_owned());
    }
    let point = replica.newest();
    let whole = point.disks.len() == replica.disks.len() && point.disks.iter().all(|d| replica.live_disk(d).is_some());
    (!whole).then(|| "its disks are not those of its newest recovery point".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{self, Keys};
    use crate::view::{BaseDisk, Origin, SourceSnapshot};
    use jiff::Timestamp;
    use std::collections::BTreeMap;
    use vmferry_xapi::records::{Vbd, Vm};

    const MIB: u64 = 1 << 20;
    const SR: &str = "sr";

    fn srs() -> Vec<String> {
        vec!["another".to_owned(), SR.to_owned()]
    }

    /// The source disk `disk`, on device 0.
    fn disk(size: u64) -> AttachedDisk {
        attached("disk", size, "0", Keys::new())
    }

    fn attached(uuid: &str, size: u64, userdevice: &str, other_config: Keys) -> AttachedDisk {
        AttachedDisk {
            vbd: Ref::new(format!("vbd of {uuid}")),
            vbd_record: Vbd { userdevice: userdevice.to_owned(), ..Vbd::default() },
            vdi: Ref::new(uuid),
            record: Vdi { uuid: uuid.to_owned(), virtual_size: size, other_config, ..Vdi::default() },
        }
    }

    /// A source with this disk and these snapshot disks of it; `exported`: a snapshot for the target is kept.
    fn source(disk: AttachedDisk, snapshot_disks: &[&str], exported: bool) -> SourceVm {
        let of = disk.vdi.clone();
        let bases = snapshot_disks
            .iter()
            .map(|uuid| {
                ((*uuid).to_owned(), BaseDisk { vdi: Ref::new(*uuid), of: of.clone(), taken_at: Timestamp::UNIX_EPOCH })
            })
            .collect::<BTreeMap<_, _>>();
        let kept = SourceSnapshot {
            reference: Ref::new("kept"),
            uuid: "kept".to_owned(),
            taken_at: Timestamp::UNIX_EPOCH,
            exported_to: vec![SR.to_owned()],
            offered_to: Vec::new(),
            seed: None,
        };
        SourceVm {
            reference: Ref::new("vm"),
            record: Vm::default(),
            disks: vec![disk],
            ignored: Vec::new(),
            snapshots: exported.then_some(kept).into_iter().collect(),
            newest_date: None,
            legacy_srs: BTreeSet::new(),
            untagged: Vec::new(),
            purged: BTreeSet::new(),
            pruning: crate::view::Pruning::default(),
            bases,
        }
    }

    /// A target whose recovery points, oldest first, hold a copy of (source disk, content, size) each.
    fn target(points: &[(&str, &str, u64)]) -> TargetView {
        let point = |(age, (of, content, size)): (usize, &(&str, &str, u64))| Point {
            reference: Ref::new(format!("point {age}")),
            uuid: format!("point {age}"),
            taken_at: Timestamp::from_second(1 + age as i64).unwrap(),
            made_at: Timestamp::UNIX_EPOCH,
            source_snapshot: String::new(),
            sr: SR.to_owned(),
            held: false,
            origin: Origin::Vmferry,
            disks: vec![PointDisk {
                attached: attached(&format!("copy {age}"), *size, "0", Keys::new()),
                content_key: (*content).to_owned(),
                source_disk: Some((*of).to_owned()),
                digest: None,
                damaged: None,
            }],
        };
        let mut points: Vec<Point> = points.iter().enumerate().map(point).collect();
        points.reverse();
        let replica = Replica {
            reference: Ref::new("replica"),
            record: Vm { power_state: PowerState::Halted, ..Vm::default() },
            disks: Vec::new(),
            points,
            condition: Condition::Tidy,
        };
        TargetView { replicas: if replica.points.is_empty() { vec![] } else { vec![replica] }, ..TargetView::default() }
    }

    fn delta(from: &str, copy: &str, newest: bool) -> Transfer {
        let base = Base { source_snapshot_disk: from.to_owned(), target_snapshot_disk: copy.to_owned(), newest };
        Transfer::Delta { base }
    }

    #[test]
    fn the_newest_content_that_both_sides_hold_is_the_base() {
        let full = |reason| Transfer::Full { reason };
        let check = |what: &str, snapshots: &[&str], exported, points: &[(&str, &str, u64)], expected: Transfer| {
            let disk = disk(64 * MIB);
            let source = source(disk.clone(), snapshots, exported);
            assert_eq!(transfer(&source, &disk, &target(points), &srs(), &BTreeSet::new()), expected, "{what}");
        };
        let size = 64 * MIB;
        let both = &[("disk", "a", size), ("disk", "b", size)][..];
        check("nothing anywhere", &[], false, &[], full(FullReason::FirstRun));
        check("both hold the newest", &["a", "b"], true, both, delta("b", "copy 1", true));
        check("the source lost the newest", &["a"], true, both, delta("a", "copy 0", false));
        check("the source lost all", &[], false, both, full(FullReason::BaseGoneOnSource));
        check("the target lost all", &["a", "b"], true, &[], full(FullReason::BaseGoneOnTarget));
        check("each keeps what the other lost", &["c"], true, both, full(FullReason::BaseGoneOnTarget));
        check("another disk was replicated", &[], true, &[("other", "a", size)], full(FullReason::NewDisk));
        check("the disk grew", &["a"], true, &[("disk", "a", 32 * MIB)], delta("a", "copy 0", true));
        check("the disk shrank", &["a"], true, &[("disk", "a", 96 * MIB)], full(FullReason::DiskShrunk));
        check("the target's SR rounded up", &["a"], true, &[("disk", "a", size)], delta("a", "copy 0", true));
    }

    #[test]
    fn without_a_base_the_newest_copy_whose_digests_are_known_is_compared_with() {
        let size = 64 * MIB;
        let points = &[("disk", "a", size), ("disk", "b", size)][..];
        let disk = disk(size);
        let known = |copies: &[&str]| copies.iter().map(|copy| (*copy).to_owned()).collect::<BTreeSet<_>>();
        let planned = |snapshots: &[&str], copies: &[&str]| {
            transfer(&source(disk.clone(), snapshots, false), &disk, &target(points), &srs(), &known(copies))
        };
        let resync = |copy: &str| Transfer::Resync { copy: copy.to_owned(), reason: FullReason::BaseGoneOnSource };
        assert_eq!(planned(&[], &["copy 0", "copy 1"]), resync("copy 1"));
        assert_eq!(planned(&[], &["copy 0"]), resync("copy 0"));
        assert_eq!(planned(&["a"], &["copy 1"]), delta("a", "copy 0", false), "a base is better");
        assert_eq!(planned(&[], &[]), Transfer::Full { reason: FullReason::BaseGoneOnSource });
    }

    #[test]
    fn without_differences_a_delta_becomes_a_comparison_or_a_full_copy_and_says_why() {
        let reason = FullReason::NoDifferences;
        let planned = delta("b", "copy 1", true);
        let compared = Transfer::Resync { copy: "copy 1".to_owned(), reason };
        assert_eq!(without_differences(planned.clone(), |copy| copy == "copy 1"), compared);
        assert_eq!(without_differences(planned, |_| false), Transfer::Full { reason });
        let first = Transfer::Full { reason: FullReason::FirstRun };
        assert_eq!(without_differences(first.clone(), |_| true), first);
    }

    #[test]
    fn a_damaged_copy_is_no_base_and_is_mended_where_its_digests_are_known() {
        let size = 64 * MIB;
        let disk = disk(size);
        let mut view = target(&[("disk", "a", size), ("disk", "b", size)]);
        view.replicas[0].points[0].disks[0].damaged = Some("root".to_owned());
        let source = source(disk.clone(), &["a", "b"], true);
        let planned = |known: &[&str]| {
            let known = known.iter().map(|copy| (*copy).to_owned()).collect();
            transfer(&source, &disk, &view, &srs(), &known)
        };
        let mended = Transfer::Resync { copy: "copy 1".to_owned(), reason: FullReason::ReplicaDamaged };
        assert_eq!(planned(&["copy 1"]), mended);
        assert_eq!(planned(&[]), delta("a", "copy 0", false));
        assert!(matches!(landing(&mended, &view, Some(&view.replicas[0]), &BTreeSet::new()), Landing::Clone(_)));
    }

    #[test]
    fn a_snapshot_of_another_disk_is_no_base() {
        let disk = disk(64 * MIB);
        let mut source = source(disk.clone(), &["a"], true);
        source.bases.insert(
            "a".to_owned(),
            BaseDisk { vdi: Ref::new("a"), of: Ref::new("another disk"), taken_at: Timestamp::UNIX_EPOCH },
        );
        let planned = transfer(&source, &disk, &target(&[("disk", "a", 64 * MIB)]), &srs(), &BTreeSet::new());
        assert_eq!(planned.kind(), vmferry_model::plan::Kind::Full);
    }

    #[test]
    fn a_delta_lands_in_place_only_on_the_disk_that_equals_its_base() {
        let size = 64 * MIB;
        let mut view = target(&[("disk", "a", size), ("disk", "b", size)]);
        let live = |content: &str| {
            Keys::from([(keys::CONTENT.to_owned(), content.to_owned()), (keys::SELF.to_owned(), "live".to_owned())])
        };
        view.replicas[0].disks = vec![attached("live", size, "0", live("b"))];
        let replica = view.replicas[0].clone();
        assert_eq!(divergence(&replica), None);
        let newest = delta("b", "copy 1", true);
        let older = delta("a", "copy 0", false);
        let full = Transfer::Full { reason: FullReason::Requested };

        let lands = |transfer, untouched| landing(transfer, &view, untouched, &BTreeSet::new());
        assert!(matches!(lands(&newest, Some(&replica)), Landing::InPlace(vdi) if vdi == Ref::new("live")));
        assert!(matches!(lands(&newest, None), Landing::Clone(held) if held.uuid() == "copy 1"));
        assert!(matches!(lands(&older, Some(&replica)), Landing::Clone(held) if held.uuid() == "copy 0"));
        assert!(matches!(lands(&full, Some(&replica)), Landing::Fresh));
        let untold = BTreeSet::from([Ref::new("live")]);
        let landed = landing(&newest, &view, Some(&replica), &untold);
        assert!(
            matches!(landed, Landing::Clone(held) if held.uuid() == "copy 1"),
            "nobody tells whether it was written"
        );

        let copied =
            Keys::from([(keys::SELF.to_owned(), "another".to_owned()), (keys::CONTENT.to_owned(), "b".to_owned())]);
        let swapped = Replica { disks: vec![attached("live", size, "0", copied)], ..replica.clone() };
        assert!(divergence(&swapped).is_some(), "a copy of the live disk is not the live disk");
        let running = Replica { record: Vm { power_state: PowerState::Running, ..Vm::default() }, ..replica };
        assert!(divergence(&running).is_some_and(|why| why.contains("running")));
    }
}
