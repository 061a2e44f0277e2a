//! What points should show.

use crate::folder::{Recorded, World};
use std::collections::BTreeMap;
use std::ops::Range;
use target_hyperv::{Format, Keeper, Place, Points};
use vmferry_plugin_api::Error;
use vmferry_plugin_api::delta::double;
use vmferry_plugin_api::target::*;
use vmferry_vhdx::{Block, Storage};

/// The folder of the VM.
pub(crate) const FOLDER: &str = "job-erp/vm-vm-1";
/// Sizes are said as for blocks of 1 MiB: a format whose blocks are larger has disks as much larger. See [`stretched`].
pub(crate) const MIB: u64 = 1 << 20;
/// The last block has one sector.
pub(crate) const SIZE: u64 = 4 * MIB + 512;

/// How points are kept.
pub(crate) type Setting = (Format, Points);
/// VHD is not made into differencing disks.
pub(crate) const ALL: [Setting; 5] = [
    (Format::Vhdx, Points::Differencing),
    (Format::Vhdx, Points::Copies),
    (Format::Vhdx, Points::Newest),
    (Format::Vhd, Points::Copies),
    (Format::Vhd, Points::Newest),
];
/// Those that keep several points.
pub(crate) const SEVERAL: [Setting; 3] =
    [(Format::Vhdx, Points::Differencing), (Format::Vhdx, Points::Copies), (Format::Vhd, Points::Copies)];
/// Those that keep one.
pub(crate) const NEWEST: [Setting; 2] = [(Format::Vhdx, Points::Newest), (Format::Vhd, Points::Newest)];

/// Blocks of a disk that are not zero, by what they are filled with.
pub(crate) type Content = BTreeMap<u64, u8>;
/// What a delta says of blocks: zero, or something else.
pub(crate) type Change = BTreeMap<u64, Option<u8>>;

/// What a draft says of its disks, with their sizes.
pub(crate) type Changes = Vec<(&'static str, u64, Change)>;

/// A point as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) disks: BTreeMap<String, (u64, Content)>,
}

/// A keeper, and what it should hold by point.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) points: BTreeMap<String, Expected>,
}

pub(crate) fn keeper(place: Recorded, (format, points): Setting) -> Keeper<Recorded> {
    Keeper { place, name: "/mnt/hyperv".to_owned(), points, format, grace: 0 }
}

/// What a disk has that would have `size` bytes with blocks of 1 MiB.
pub(crate) fn stretched(format: Format, size: u64) -> u64 {
    size / MIB * u64::from(format.block_size()) + size % MIB
}

pub(crate) fn draft(number: u32, base: Option<&str>) -> Draft {
    Draft {
        id: format!("point-{number}"),
        job: "erp".to_owned(),
        vm: "vm-1".to_owned(),
        name: "Wärme's \"VM\"; rm".to_owned(),
        taken_at: 1_700_000_000 + i64::from(number),
        base: base.map(str::to_owned),
        metadata: format!("{{\"format\": 1, \"number\": {number}}}"),
        extensions: Vec::new(),
    }
}

/// A block's bytes: something at both ends, so that nothing is mistaken for a part of itself.
fn bytes(fill: Option<u8>, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    if let Some(fill) = fill {
        bytes[..512].fill(fill);
        bytes[length as usize - 1] = fill;
    }
    bytes
}

/// Where a block is on a disk, and how long it is there.
fn range_of(format: Format, block: u64, size: u64) -> Range<usize> {
    let start = block * u64::from(format.block_size());
    start as usize..stretched(format, size).min(start + u64::from(format.block_size())) as usize
}

pub(crate) fn delta(format: Format, disk: &str, size: u64, base: Option<&str>, change: &Change) -> double::Delta {
    let info = Info {
        disk: disk.to_owned(),
        content: format!("content of {disk}"),
        size: stretched(format, size),
        kind: base.map_or(Kind::Full, |base| Kind::Delta(base.to_owned())),
        expected_bytes: 0,
        extensions: Vec::new(),
    };
    let chunks = change.iter().map(|(block, fill)| {
        let range = range_of(format, *block, size);
        (range.start as u64, bytes(*fill, range.len() as u64))
    });
    double::Delta::new(info, chunks.collect::<Vec<_>>())
}

/// The disk, byte by byte.
pub(crate) fn raw(format: Format, size: u64, content: &Content) -> Vec<u8> {
    let mut raw = vec![0; stretched(format, size) as usize];
    for (block, fill) in content {
        let range = range_of(format, *block, size);
        raw[range.clone()].copy_from_slice(&bytes(Some(*fill), range.len() as u64));
    }
    raw
}

impl Expected {
    /// This one with changes on it; a disk whose size changes is cut or longer.
    pub(crate) fn with(&self, changes: &[(&str, u64, Change)]) -> Self {
        let mut next = Self::default();
        for (disk, size, change) in changes {
            let mut content = self.disks.get(*disk).map(|(_, content)| content.clone()).unwrap_or_default();
            content.retain(|block, _| block * MIB < *size);
            for (block, fill) in change {
                match fill {
                    Some(fill) => content.insert(*block, *fill),
                    None => content.remove(block),
                };
            }
            next.disks.insert((*disk).to_owned(), (*size, content));
        }
        next
    }
}

/// Writes the disks of a draft.
pub(crate) fn write(
    keeper: &Keeper<Recorded>,
    draft: &Draft,
    changes: &[(&str, u64, Change)],
) -> Result<Vec<DiskReceipt>, Error> {
    let write = |(disk, size, change): &(&str, u64, Change)| {
        let receipt = keeper.write_disk(draft, &delta(keeper.format, disk, *size, draft.base.as_deref(), change))?;
        assert!(receipt.len() < 4096, "receipts are small");
        Ok(DiskReceipt { disk: (*disk).to_owned(), receipt, digest: Some("ab".repeat(32)) })
    };
    changes.iter().map(write).collect()
}

impl Model {
    /// Writes and commits a point on the keeper and in the model.
    pub(crate) fn commit(&mut self, keeper: &Keeper<Recorded>, draft: &Draft, changes: &[(&str, u64, Change)]) {
        let receipts = write(keeper, draft, changes).expect("written");
        let point = keeper.commit(draft, &receipts).expect("committed");
        assert_eq!((point.id.as_str(), point.disks.len()), (draft.id.as_str(), changes.len()));
        self.committed(draft, changes);
        // What `newest` changed in place is no point any more.
        let there: Vec<String> = ids(keeper);
        assert!(there.contains(&draft.id));
        self.points.retain(|id, _| there.contains(id));
    }

    pub(crate) fn committed(&mut self, draft: &Draft, changes: &[(&str, u64, Change)]) {
        let base = draft.base.as_ref().map(|base| self.points[base].clone()).unwrap_or_default();
        self.points.insert(draft.id.clone(), base.with(changes));
    }
}

/// Ids of the points that are there, oldest first.
pub(crate) fn ids(keeper: &Keeper<Recorded>) -> Vec<String> {
    keeper.points(Some("vm-1")).expect("points").into_iter().map(|point| point.id).collect()
}

/// All points that are there read as expected.
#[track_caller]
pub(crate) fn assert_reads(keeper: &Keeper<Recorded>, model: &Model) {
    for point in keeper.points(None).expect("points") {
        let expected = &model.points[&point.id];
        assert_eq!(point.damaged, None, "{}", point.id);
        assert_eq!(point.disks.len(), expected.disks.len());
        for (disk, (size, content)) in &expected.disks {
            let found = restored(keeper, &point.id, disk, *size);
            assert!(found == raw(keeper.format, *size, content), "{disk} of {}", point.id);
        }
    }
}

pub(crate) fn restored(keeper: &Keeper<Recorded>, point: &str, disk: &str, size: u64) -> Vec<u8> {
    let extents = keeper.layout(point, disk, None).expect("a layout");
    let restore = double::Restore::of_size(stretched(keeper.format, size) as usize);
    keeper.read(point, disk, &extents, &restore).expect("read");
    restore.disk()
}

/// Every disk of every point passes `verify`.
#[track_caller]
pub(crate) fn assert_sound(keeper: &Keeper<Recorded>) {
    for id in ids(keeper) {
        let damages = keeper.verify(&id, &double::Restore::default()).expect("verified");
        assert!(damages.is_empty(), "{id}: {damages:?}");
    }
}

/// A world with these commits in it.
pub(crate) fn world(setting: Setting, commits: &[(Draft, Changes)]) -> (World, Model) {
    let keeper = keeper(Recorded::default(), setting);
    let mut model = Model::default();
    for (draft, changes) in commits {
        model.commit(&keeper, draft, changes);
    }
    (keeper.place.world(), model)
}

pub(crate) fn change<const N: usize>(blocks: [(u64, Option<u8>); N]) -> Change {
    blocks.into()
}

/// Where a file has a block.
pub(crate) fn place_of(place: &Recorded, name: &str, block: u64) -> Option<u64> {
    let file = place.open(name, false).expect("a file");
    let blocks = if name.ends_with(".vhd") {
        vmferry_vhd::Image::open(file).expect("an image").blocks(block..block + 1).expect("blocks")
    } else {
        vmferry_vhdx::Image::open(file).expect("an image").blocks(block..block + 1).expect("blocks")
    };
    blocks.first().copied().and_then(Block::offset)
}

pub(crate) fn block_size(keeper: &Keeper<Recorded>) -> u64 {
    keeper.format.block_size().into()
}

/// The file of disk `a` that was made with this point.
pub(crate) fn image_of((format, _): Setting, point: &str) -> String {
    format!("{FOLDER}/a~{point}.{}", format!("{format:?}").to_lowercase())
}

/// What a hypervisor does: into a VHD it writes; of a VHDX, after it replayed its log, it says that it wrote.
pub(crate) fn start_a_vm_on(keeper: &Keeper<Recorded>, name: &str) {
    let file = keeper.place.open(name, true).expect("a file");
    if name.ends_with(".vhd") {
        let at = place_of(&keeper.place, name, 0).expect("a first block");
        file.write_at(at + 512, b"a guest's").expect("written");
    } else {
        vmferry_vhdx::recover(&file).expect("recovered");
        let ids = vmferry_vhdx::WriteIds { file: vmferry_vhdx::Guid::new(1), data: vmferry_vhdx::Guid::new(2) };
        vmferry_vhdx::Image::open(file).expect("an image").commit(&[], ids).expect("written");
    }
}
