//! A target: recovery points as disk files that Hyper-V boots.
//!
//! ```text
//! <folder>/job-<job>/vm-<vm>/   points.json          what is here: see `state`
//!                               <disk>~<point>.vhdx  a disk, dynamic or differencing, blocks of 1 MiB; .vhd: dynamic, of 2 MiB
//!                               <disk>~<point>.digests, .updates
//!                               vm~<point>.json      the VM
//!                               register.ps1         makes the VM of a point
//! ```
//!
//! | `points` | A delta becomes | An older point costs | Deleting it costs |
//! | --- | --- | --- | --- |
//! | `differencing` | a file over the one before | what changed | what changed after it, copied once |
//! | `copies` | a whole file, by copying the one before | the disk | nothing |
//! | `newest` | a change of the one file, in place | there is none: only the newest point is kept | |
//!
//! With `newest` a point that an operator holds stays, and the delta after it becomes a copy. So does, whatever the setting, one that
//! comes with another size of the disk, or in another format.

mod chain;
mod image;
mod left;
mod leftovers;
mod place;
mod settle;
mod state;
mod turn;
mod write;

pub use image::Format;
pub use place::{DiskFile, Place};

use chain::{Chain, Content, Digest, WINDOW, length_of};
use image::{Image, written_by};
use left::{USED, is_as_left, was_used};
use place::of_io;
use serde::Deserialize;
use state::{Begun, KeptDisk, KeptPoint, State};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use vmferry_plugin_api::files::Folder;
use vmferry_plugin_api::target::*;
use vmferry_vhdx::{Guid, Storage};
use write::{Made, Receipt, Update, taken_at};

/// Makes a VM of a point. It is the same for all: what a point says it reads as data.
const REGISTER: &str = include_str!("register.ps1");
const REGISTER_NAME: &str = "register.ps1";
/// A differencing VHD remembers path and time of its parent, as VHDX does not.
const NO_DIFFERENCING_VHD: &str =
    "`format`: differencing disks are made of VHDX only; with `vhd` set `points` to `copies` or to `newest`";

/// The plugin.
struct HyperV;

/// `with = { folder = "/mnt/hyperv" }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    folder: String,
    #[serde(default)]
    points: Points,
    #[serde(default)]
    format: Format,
}

/// How several points of a disk are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Points {
    /// Each as a file over the one before.
    #[default]
    Differencing,
    /// Each as a file of its own.
    Copies,
    /// None but the newest, in one file.
    Newest,
}

/// Keeps points in a place.
#[derive(Debug)]
pub struct Keeper<P> {
    /// Where.
    pub place: P,
    /// What it is called, for locks.
    pub name: String,
    /// How several are kept.
    pub points: Points,
    /// What new files are.
    pub format: Format,
    /// For how many seconds what belongs to no point is left to whoever wrote it.
    pub grace: u64,
}

/// The program does not hear of runs of other jobs, of other programs, or that began a moment ago. A run that lives writes more often.
const GRACE: u64 = 24 * 60 * 60;

impl Target for HyperV {
    type Config = Config;

    fn describe() -> Description {
        description!("Keeps recovery points as disk files that Hyper-V boots.")
    }

    fn check(config: &Config) -> Result<(), Error> {
        if !config.folder.starts_with('/') {
            return Err(Error::config("`folder`: expected an absolute path"));
        }
        if (config.format, config.points) == (Format::Vhd, Points::Differencing) {
            return Err(Error::config(NO_DIFFERENCING_VHD));
        }
        Ok(())
    }

    fn data_shape(config: Config) -> Result<Shape, Error> {
        Ok(config.points.shape(config.format))
    }

    fn points(config: Config, vm: Option<&str>) -> Result<Vec<Point>, Error> {
        Keeper::granted(config)?.points(vm)
    }

    fn metadata(config: Config, point: &str) -> Result<String, Error> {
        Keeper::granted(config)?.metadata(point)
    }

    fn layout(config: Config, point: &str, disk: &str, since: Option<&str>) -> Result<Vec<Extent>, Error> {
        Keeper::granted(config)?.layout(point, disk, since)
    }

    fn write(config: Config, draft: Draft, delta: &dyn Delta) -> Result<Vec<u8>, Error> {
        Keeper::granted(config)?.write_disk(&draft, delta)
    }

    fn commit(config: Config, draft: Draft, receipts: Vec<DiskReceipt>) -> Result<Point, Error> {
        Keeper::granted(config)?.commit(&draft, &receipts)
    }

    fn abort(config: Config, draft: Draft) -> Result<(), Error> {
        Keeper::granted(config)?.abort(&draft)
    }

    fn read(config: Config, point: &str, disk: &str, extents: Vec<Extent>, restore: &dyn Restore) -> Result<(), Error> {
        Keeper::granted(config)?.read(point, disk, &extents, restore)
    }

    fn verify(config: Config, point: &str, check: &dyn Restore) -> Result<Vec<Damage>, Error> {
        Keeper::granted(config)?.verify(point, check)
    }

    fn hold(config: Config, point: &str, held: bool) -> Result<(), Error> {
        Keeper::granted(config)?.hold(point, held)
    }

    fn delete(config: Config, point: &str) -> Result<(), Error> {
        Keeper::granted(config)?.delete(point)
    }

    fn collect(config: Config, drafts: Vec<String>, apply: bool) -> Result<Vec<Garbage>, Error> {
        Keeper::granted(config)?.collect(&drafts, apply)
    }
}

vmferry_plugin_api::export_target!(HyperV);

impl Points {
    fn shape(self, format: Format) -> Shape {
        Shape { chunk_size: format.block_size(), only_newest: self != Self::Copies, extensions: Vec::new() }
    }
}

impl Keeper<Folder> {
    fn granted(config: Config) -> Result<Self, Error> {
        Ok(Self {
            place: Folder::open(&config.folder)?,
            name: config.folder,
            points: config.points,
            format: config.format,
            grace: GRACE,
        })
    }
}

/// A GUID that follows from these words, so that what is done again after a crash is done the same.
fn guid(words: &[&str]) -> Guid {
    let mut hasher = blake3::Hasher::new();
    for word in words {
        hasher.update(&(word.len() as u64).to_le_bytes()).update(word.as_bytes());
    }
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    Guid::from_random(bytes)
}

impl<P: Place> Keeper<P> {
    fn make_folders(&self, job: &str, vm: &str) -> Result<String, Error> {
        let [job, vm] = state::folders(job, vm);
        if self.place.size(&vm)?.is_none() {
            self.place.create_folder(&job)?;
            self.place.sync_folder("")?;
            self.place.create_folder(&vm)?;
            self.place.sync_folder(&job)?;
        }
        Ok(vm)
    }

    /// Folders of VMs: of one, or of all.
    fn folders(&self, vm: Option<&str>) -> Result<Vec<String>, Error> {
        let vm = vm.map(|vm| format!("vm-{}", state::plain(vm)));
        let mut folders = Vec::new();
        for (job, _) in self.place.list("")?.into_iter().filter(|(name, folder)| *folder && name.starts_with("job-")) {
            let all = self.place.list(&job)?.into_iter().filter(|(name, folder)| *folder && name.starts_with("vm-"));
            let ours = all.filter(|(name, _)| vm.as_ref().is_none_or(|vm| vm == name));
            folders.extend(ours.map(|(name, _)| format!("{job}/{name}")));
        }
        Ok(folders)
    }

    /// The folder that has a point.
    fn folder_of(&self, point: &str) -> Result<Option<String>, Error> {
        let metadata = state::metadata_of(point);
        for folder in self.folders(None)? {
            if self.place.size(&format!("{folder}/{metadata}"))?.is_some()
                && State::load(&self.place, &folder)?.is_some_and(|state| state.point(point).is_some())
            {
                return Ok(Some(folder));
            }
        }
        Ok(None)
    }

    /// The same, for a point that has to be there.
    fn known(&self, point: &str) -> Result<(String, State), Error> {
        let none = || Error::not_found(format!("the point {point} is not in {}", self.name));
        let folder = self.folder_of(point)?.ok_or_else(none)?;
        let state = self.settled(&folder)?.ok_or_else(none)?;
        Ok((folder, state))
    }

    /// Committed points.
    pub fn points(&self, vm: Option<&str>) -> Result<Vec<Point>, Error> {
        let mut points = Vec::new();
        for folder in self.folders(vm)? {
            let Some(state) = State::load(&self.place, &folder)? else { continue };
            if vm.is_some_and(|vm| vm != state.vm) {
                continue;
            }
            let wrong = self.wrong_images(&folder, &state)?;
            for point in &state.points {
                let images = point.images().flat_map(|image| state.chain(image));
                let found: Vec<&Wrong> = images.filter_map(|image| wrong.get(image)).collect();
                let kept = point.to_point(&state);
                points.push(Point {
                    damaged: kept.damaged.or(found.first().map(|wrong| wrong.why.clone())),
                    // A VM may live on it: no rule takes its disk away.
                    held: kept.held || found.iter().any(|wrong| wrong.used),
                    ..kept
                });
            }
        }
        points.sort_by_key(|point| point.taken_at);
        Ok(points)
    }

    /// Disk files that are gone or were written by somebody else, as their headers say. Those that are being changed are left out.
    fn wrong_images(&self, folder: &str, state: &State) -> Result<BTreeMap<String, Wrong>, Error> {
        let busy: BTreeSet<&str> = state.begun.iter().flat_map(Begun::files).collect();
        let mut wrong = BTreeMap::new();
        for (name, kept) in state.images.iter().filter(|(name, _)| !busy.contains(name.as_str())) {
            let path = format!("{folder}/{name}");
            let problem = match self.place.size(&path)? {
                None => Some(Wrong { why: format!("{path} is gone"), used: false }),
                Some(_) => {
                    let file = self.place.open(&path, false)?;
                    let is_as_left = |ids| is_as_left(&self.place, folder, name, kept, &file, ids);
                    match written_by(&path, &file).and_then(is_as_left) {
                        Ok(as_left) => (!as_left).then(|| Wrong { why: was_used(&path), used: true }),
                        Err(error) if error.is_damaged() => Some(Wrong { why: error.message, used: false }),
                        Err(error) => return Err(error),
                    }
                }
            };
            wrong.extend(problem.map(|problem| (name.clone(), problem)));
        }
        Ok(wrong)
    }

    /// What a draft said of its VM.
    pub fn metadata(&self, point: &str) -> Result<String, Error> {
        let (folder, _) = self.known(point)?;
        let path = format!("{folder}/{}", state::metadata_of(point));
        let bytes = self.place.read(&path)?.unwrap_or_default();
        String::from_utf8(bytes).map_err(|_| Error::damaged(format!("{path} is not UTF-8")))
    }

    /// A disk of a point, open.
    fn open(&self, folder: &str, state: &State, point: &str, disk: &str) -> Result<Chain<P::File>, Error> {
        let kept = state.point(point).and_then(|kept| kept.disk(disk));
        let none = || Error::not_found(format!("the point {point} has no disk {disk}"));
        Chain::open(&self.place, folder, state, &kept.ok_or_else(none)?.image)
    }

    /// The ranges that may hold something else than zeroes, or than another point.
    pub fn layout(&self, point: &str, disk: &str, since: Option<&str>) -> Result<Vec<Extent>, Error> {
        let (folder, state) = self.known(point)?;
        let chain = self.open(&folder, &state, point, disk)?;
        let other = match since {
            None => None,
            Some(since) => {
                let (folder, state) = self.known(since)?;
                Some(self.open(&folder, &state, since, disk)?)
            }
        };
        if other.as_ref().is_some_and(|other| other.block_size() != chain.block_size()) {
            // Digests of blocks of different sizes cannot be compared.
            return Ok(vec![Extent { offset: 0, length: chain.size() }]);
        }
        let mut extents: Vec<Extent> = Vec::new();
        for start in (0..chain.blocks()).step_by(WINDOW as usize) {
            let contents = chain.contents(start..start + WINDOW)?;
            let mut others = other.as_ref().map_or(Ok(Vec::new()), |other| other.contents(start..start + WINDOW))?;
            others.resize(contents.len(), Content::Zero);
            for (block, (content, other)) in (start..).zip(contents.into_iter().zip(others)) {
                if !is_same(content, other) {
                    let size = chain.block_size();
                    let (offset, length) = (block * u64::from(size), length_of(block, size, chain.size()));
                    match extents.last_mut().filter(|last| last.offset + last.length == offset) {
                        Some(last) => last.length += length,
                        None => extents.push(Extent { offset, length }),
                    }
                }
            }
        }
        Ok(extents)
    }

    /// Stores one disk's data.
    pub fn write_disk(&self, draft: &Draft, delta: &dyn Delta) -> Result<Vec<u8>, Error> {
        let receipt = self.write(draft, delta)?;
        serde_json::to_vec(&receipt).map_err(|error| Error::damaged(format!("a receipt cannot be written: {error}")))
    }

    /// Makes the draft a point.
    pub fn commit(&self, draft: &Draft, receipts: &[DiskReceipt]) -> Result<Point, Error> {
        let folder = self.make_folders(&draft.job, &draft.vm)?;
        let mut turn = self.turn(&folder)?;
        let mut state = State::load(&self.place, &folder)?.unwrap_or_else(|| State::new(&draft.job, &draft.vm));
        self.settle(&folder, &mut state, &mut turn)?;
        if let Some(point) = state.point(&draft.id) {
            return Ok(point.to_point(&state));
        }
        let mut next = state.clone();
        let mut point = KeptPoint {
            id: draft.id.clone(),
            name: draft.name.clone(),
            taken_at: draft.taken_at,
            held: false,
            damaged: None,
            disks: Vec::new(),
        };
        for receipt in receipts {
            point.disks.push(self.accept(&folder, draft, receipt, &mut next)?);
        }
        let id = point.id.clone();
        next.points.push(point);
        next.forget_unneeded();
        let register = format!("{folder}/{REGISTER_NAME}");
        if self.place.read(&register)?.as_deref() != Some(REGISTER.as_bytes()) {
            self.place.replace(&register, REGISTER.as_bytes())?;
        }
        // Which syncs the names of the new disk files as well: they are in the same folder.
        self.place.replace(&format!("{folder}/{}", state::metadata_of(&id)), draft.metadata.as_bytes())?;
        next.save(&self.place, &folder)?;

        let before = state.files();
        self.settle(&folder, &mut next, &mut turn)?;
        self.remove_unneeded(&folder, &before, &next)?;
        match next.point(&id) {
            Some(point) => Ok(point.to_point(&next)),
            None => Err(Error::damaged(format!("the point {id} was lost as it was committed"))),
        }
    }

    /// Takes what was written of a disk into the state to be.
    fn accept(&self, folder: &str, draft: &Draft, of: &DiskReceipt, next: &mut State) -> Result<KeptDisk, Error> {
        let refused =
            |why: String| Error::damaged(format!("the disk {} of {} cannot be committed: {why}", of.disk, draft.id));
        let receipt: Receipt =
            serde_json::from_slice(&of.receipt).map_err(|_| refused("its receipt is none".to_owned()))?;
        let kept = KeptDisk {
            disk: of.disk.clone(),
            content: receipt.content,
            size: receipt.size,
            stored: receipt.stored,
            digest: of.digest.clone(),
            image: receipt.image.clone(),
        };
        match receipt.made {
            Made::New(image) => {
                let format = Format::of(&receipt.image);
                if receipt.image != state::image_of(&of.disk, &draft.id, format) {
                    return Err(refused(format!("{} is not its file", receipt.image)));
                }
                if self.place.size(&format!("{folder}/{}", receipt.image))?.is_none() {
                    return Err(refused(format!("{} is gone", receipt.image)));
                }
                if let Some(parent) = image.parent.as_ref().filter(|parent| !next.images.contains_key(*parent)) {
                    return Err(refused(format!("its base {parent} was deleted meanwhile; run again")));
                }
                next.images.insert(receipt.image, image);
            }
            Made::InPlace { updates, file, before, data } => {
                let path = format!("{folder}/{}", receipt.image);
                let same = |image: &&mut state::KeptImage| image.data == before;
                let Some(image) = next.images.get_mut(&receipt.image).filter(same) else {
                    return Err(refused(format!("{path} was changed meanwhile; run again")));
                };
                let found = Image::open(&path, self.place.open(&path, false)?)?;
                let ids = found.ids();
                let as_left = is_as_left(&self.place, folder, &receipt.image, image, found.file(), ids)?
                    && image.has_its_time(&path, found.file())?;
                if (ids.file, ids.data) != (file.0, before.0) || !as_left {
                    return Err(refused(was_used(&path)));
                }
                let modified = image.modified;
                image.data = data;
                image.modified = modified.map(|_| taken_at(draft));
                let name = state::updates_of(&of.disk, &draft.id);
                if self.digest_of(&format!("{folder}/{name}"))? != updates {
                    return Err(refused(format!("{name} is not what was written")));
                }
                if next.points.iter().any(|point| point.held && point.images().any(|shown| shown == receipt.image)) {
                    return Err(refused("the point before it is held since it was written; run again".to_owned()));
                }
                next.points.retain(|point| point.images().all(|shown| shown != receipt.image));
                next.begun.push(Begun::Apply { image: receipt.image, updates: name, file, before, modified });
            }
        }
        Ok(kept)
    }

    /// BLAKE3 of a file of updates, in hex.
    fn digest_of(&self, path: &str) -> Result<String, Error> {
        let file = self.place.open(path, false)?;
        let io = |error| of_io(path, error);
        let length = file.length().map_err(io)?;
        let mut hasher = blake3::Hasher::new();
        let step = WINDOW * Update::SIZE as u64;
        for at in (0..length).step_by(step as usize) {
            let mut raw = vec![0; step.min(length - at) as usize];
            file.read_at(at, &mut raw).map_err(io)?;
            hasher.update(&raw);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Removes files that a state needed and another does not.
    fn remove_unneeded(&self, folder: &str, before: &BTreeSet<String>, state: &State) -> Result<(), Error> {
        for name in before.difference(&state.files()) {
            self.place.remove(&format!("{folder}/{name}"))?;
        }
        Ok(())
    }

    /// Reads ranges of a disk back.
    pub fn read(&self, point: &str, disk: &str, extents: &[Extent], restore: &dyn Restore) -> Result<(), Error> {
        let (folder, state) = self.known(point)?;
        let chain = self.open(&folder, &state, point, disk)?;
        for extent in extents {
            let end = extent.offset.saturating_add(extent.length);
            if end > chain.size() {
                let message = format!("{} bytes at {} are not on the disk {disk}", extent.length, extent.offset);
                return Err(Error::not_found(message));
            }
            chain.each_block(extent.offset..end, |range, from, at, digest| {
                put(&chain, restore, range, from, at, digest)
            })?;
        }
        Ok(())
    }

    /// Checks that everything of a point is there and unchanged.
    pub fn verify(&self, point: &str, check: &dyn Restore) -> Result<Vec<Damage>, Error> {
        let (folder, state) = self.known(point)?;
        let mut damages = Vec::new();
        for kept in state.point(point).map(|kept| kept.disks.as_slice()).unwrap_or_default() {
            let damage = |extent, message| Damage { disk: Some(kept.disk.clone()), extent, message };
            let chain = match Chain::open(&self.place, &folder, &state, &kept.image) {
                Ok(chain) => chain,
                Err(error) if is_finding(&error) => {
                    damages.push(damage(None, error.message));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let faults = chain.faults()?;
            let sound = faults.is_empty();
            damages.extend(faults.into_iter().map(|fault| damage(None, fault)));
            // Where blocks are not what the table says, reading them says nothing more.
            if sound {
                chain.each_block(0..chain.size(), |range, from, at, digest| {
                    match put(&chain, check, range.clone(), from, at, digest) {
                        Err(error) if error.is_damaged() => {
                            let extent = Extent { offset: range.start, length: range.end - range.start };
                            damages.push(damage(Some(extent), error.message));
                            Ok(())
                        }
                        put => put,
                    }
                })?;
            }
        }
        self.change_point(&folder, point, |kept| kept.damaged = damages.first().map(|damage| damage.message.clone()))?;
        Ok(damages)
    }

    /// Keeps an operator's word with a point.
    pub fn hold(&self, point: &str, held: bool) -> Result<(), Error> {
        let (folder, _) = self.known(point)?;
        self.change_point(&folder, point, |kept| kept.held = held)
    }

    fn change_point(&self, folder: &str, point: &str, change: impl FnOnce(&mut KeptPoint)) -> Result<(), Error> {
        let _turn = self.turn(folder)?;
        let Some(mut state) = State::load(&self.place, folder)? else { return Ok(()) };
        let Some(kept) = state.points.iter_mut().find(|kept| kept.id == point) else { return Ok(()) };
        let before = kept.clone();
        change(kept);
        if *kept == before { Ok(()) } else { state.save(&self.place, folder) }
    }

    /// Removes a point.
    pub fn delete(&self, point: &str) -> Result<(), Error> {
        let Some(folder) = self.folder_of(point)? else { return Ok(()) };
        let mut turn = self.turn(&folder)?;
        let Some(mut state) = State::load(&self.place, &folder)? else { return Ok(()) };
        self.settle(&folder, &mut state, &mut turn)?;
        let before = state.files();
        state.points.retain(|kept| kept.id != point);
        state.forget_unneeded();
        state.save(&self.place, &folder)?;
        self.settle(&folder, &mut state, &mut turn)?;
        self.remove_unneeded(&folder, &before, &state)
    }
}

/// What is wrong with a disk file.
struct Wrong {
    why: String,
    /// Whether something else wrote to it.
    used: bool,
}

/// Whether two blocks hold the same for sure.
fn is_same(a: Content, b: Content) -> bool {
    match (a, b) {
        (Content::Zero, Content::Zero) => true,
        (Content::Data { digest: Some(a), .. }, Content::Data { digest: Some(b), .. }) => a == b,
        _ => false,
    }
}

/// Whether an error is what `verify` looks for.
fn is_finding(error: &Error) -> bool {
    let used = matches!(&error.code, ErrorCode::Other(code) if code == USED);
    error.is_damaged() || used || error.code == ErrorCode::NotFound
}

fn put<F: DiskFile>(
    chain: &Chain<F>,
    restore: &dyn Restore,
    range: Range<u64>,
    layer: usize,
    at: u64,
    digest: Option<Digest>,
) -> Result<(), Error> {
    let input = chain.layers[layer].input(at)?;
    let digest = digest.as_ref().map(Digest::as_slice);
    restore.put_from(range.start, &Encoding::Identity, digest, &input, range.end - range.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(config: &str) -> Result<(), String> {
        HyperV::check(&serde_json::from_str(config).expect("settings")).map_err(|refused| refused.message)
    }

    #[test]
    fn differencing_disks_are_made_of_vhdx_only() {
        let refused = Err(NO_DIFFERENCING_VHD.to_owned());
        assert_eq!(check(r#"{ "folder": "/x", "format": "vhd" }"#), refused);
        assert_eq!(check(r#"{ "folder": "/x", "format": "vhd", "points": "differencing" }"#), refused);
        for fine in
            [r#""points": "copies", "format": "vhd""#, r#""points": "newest", "format": "vhd""#, r#""format": "vhdx""#]
        {
            assert_eq!(check(&format!(r#"{{ "folder": "/x", {fine} }}"#)), Ok(()));
        }
    }
}
