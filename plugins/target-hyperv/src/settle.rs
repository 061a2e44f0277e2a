//! What is done to disk files after the moment that it follows from. Each step may be interrupted anywhere and is done again from its
//! beginning by whoever comes next.

use crate::Keeper;
use crate::chain::{WINDOW, read_digests, write_digests};
use crate::image::{Image, written_by};
use crate::left::{is_as_left, was_used};
use crate::place::{DiskFile, Place, of_io};
use crate::state::{Begun, Id, KeptImage, State, digests_of};
use crate::turn::Turn;
use crate::write::Update;
use vmferry_plugin_api::{Error, ErrorCode, log};
use vmferry_vhdx::{Block, Storage};

impl<P: Place> Keeper<P> {
    /// What a folder holds, with nothing begun in it that a reader would notice.
    pub(crate) fn settled(&self, folder: &str) -> Result<Option<State>, Error> {
        let state = State::load(&self.place, folder)?;
        if state.as_ref().is_none_or(|state| state.begun.is_empty()) {
            return Ok(state);
        }
        let mut turn = self.turn(folder)?;
        let Some(mut state) = State::load(&self.place, folder)? else { return Ok(None) };
        self.settle(folder, &mut state, &mut turn)?;
        Ok(Some(state))
    }

    /// Ends what was begun. A merge that cannot be ended, for lack of room perhaps, waits for the next time: what it is about reads the
    /// same before, during and after it. Asked for with the turn of the VM.
    pub(crate) fn settle(&self, folder: &str, state: &mut State, turn: &mut Turn) -> Result<(), Error> {
        let mut waiting = 0;
        while let Some(begun) = state.begun.get(waiting).cloned() {
            match (&begun, self.end(folder, state, &begun, turn)) {
                (_, Ok(())) => state.begun.retain(|other| *other != begun),
                (Begun::Merge { .. }, Err(error)) => {
                    log::warn(&error.message);
                    waiting += 1;
                    continue;
                }
                (Begun::Apply { image, .. }, Err(error)) if is_lasting(&error) => {
                    // What is wrong with the file does not go away, and must not stand in the way of the next full copy.
                    for point in
                        state.points.iter_mut().filter(|point| point.disks.iter().any(|disk| disk.image == *image))
                    {
                        point.damaged.get_or_insert_with(|| error.message.clone());
                    }
                    state.begun.retain(|other| *other != begun);
                }
                (Begun::Apply { .. }, Err(error)) => return Err(error),
            }
            state.forget_unneeded();
            state.save(&self.place, folder)?;
            if let Begun::Apply { updates, .. } = &begun {
                self.place.remove(&format!("{folder}/{updates}"))?;
            }
        }
        Ok(())
    }

    fn end(&self, folder: &str, state: &mut State, begun: &Begun, turn: &mut Turn) -> Result<(), Error> {
        match begun {
            Begun::Apply { image, updates, .. } => self.apply(folder, state, begun, image, updates),
            Begun::Merge { parent, child } => {
                self.merge(folder, state, parent, child, turn)?;
                let above = state.images.remove(parent).and_then(|parent| parent.parent);
                if let Some(child) = state.images.get_mut(child) {
                    child.parent = above;
                }
                Ok(())
            }
        }
    }

    /// Has the BAT of a disk file say where updated blocks are.
    fn apply(&self, folder: &str, state: &State, begun: &Begun, name: &str, updates: &str) -> Result<(), Error> {
        let (Begun::Apply { file, before, modified, .. }, Some(kept)) = (begun, state.images.get(name)) else {
            return Ok(());
        };
        let path = format!("{folder}/{name}");
        let opened = self.place.open(&path, true)?;
        // Looked at before anything is written: a hypervisor may have the file open. Where the change has been made already, a replay by
        // somebody else may have given the file another `FileWriteGuid`.
        let ids = written_by(&path, &opened)?;
        if ids.data != kept.data.0 && (ids.data, ids.file) != (before.0, file.0) {
            return Err(Error::damaged(was_used(&path)));
        }
        let found = KeptImage { data: Id(ids.data), modified: *modified, ..kept.clone() };
        if !kept.has_its_time(&path, &opened)? && !is_as_left(&self.place, folder, name, &found, &opened, ids)? {
            return Err(Error::damaged(was_used(&path)));
        }
        let updates_path = format!("{folder}/{updates}");
        let updates = self.place.open(&updates_path, kept.modified.is_some())?;
        let mut length = updates.length().map_err(|error| of_io(&updates_path, error))?;
        if kept.modified.is_some() {
            // Says that what is written to the disk file now is written by us. It is no update: those are longer.
            length -= length % Update::SIZE as u64;
            let said = updates.write_at(length, &[0]).and_then(|()| updates.sync());
            said.map_err(|error| of_io(&updates_path, error))?;
        }
        let mut image = Image::recover(&path, opened)?;
        let digests_path = format!("{folder}/{}", digests_of(name));
        let digests = self.place.open(&digests_path, true)?;
        let mut changes: Vec<(u64, Block)> = Vec::new();
        for at in (0..length).step_by(WINDOW as usize * Update::SIZE) {
            let mut raw = vec![0; (length - at).min(WINDOW * Update::SIZE as u64) as usize];
            updates.read_at(at, &mut raw).map_err(|error| of_io(&updates_path, error))?;
            let window: Vec<Update> = raw.as_chunks().0.iter().map(Update::decode).collect();
            changes.extend(window.iter().map(|update| (update.block, update.place())));
            let window: Vec<_> = window.iter().map(|update| (update.block, update.digest)).collect();
            write_digests(&digests, &window).map_err(|error| of_io(&digests_path, error))?;
        }
        digests.sync().map_err(|error| of_io(&digests_path, error))?;
        image.commit(&changes, kept.data.0)?;
        kept.leave(&path, image.file())
    }

    /// Gives a disk file what its only child has, and the child's name.
    ///
    /// Until the name changes the child over the file reads as it always did: a block that the child has hides the file's. Afterwards the
    /// file by itself is what the child was, `DataWriteGuid` included, so that the child's own children fit it.
    fn merge(&self, folder: &str, state: &State, name: &str, child: &str, turn: &mut Turn) -> Result<(), Error> {
        let (path, child_path) = (format!("{folder}/{name}"), format!("{folder}/{child}"));
        let (Some(kept), Some(kept_child)) = (state.images.get(name), state.images.get(child)) else { return Ok(()) };
        if self.place.size(&path)?.is_none() {
            return Ok(());
        }
        let opened = self.place.open(&path, true)?;
        let found = written_by(&path, &opened)?.data;
        let merged = found == kept_child.data.0;
        if !merged && found != kept.data.0 {
            return Err(Error::damaged(was_used(&path)));
        }
        let mut image = Image::recover(&path, opened)?;
        if !merged {
            let from = Image::open(&child_path, self.place.open(&child_path, false)?)?;
            if from.ids().data != kept_child.data.0 {
                return Err(Error::damaged(was_used(&child_path)));
            }
            let changes = copy_blocks(&from, &image, turn)?;
            image.commit(&changes, kept_child.data.0)?;
        }
        self.merge_digests(folder, name, child)?;
        self.place.rename(&path, &child_path)?;
        self.place.sync_folder(folder)
    }

    /// The same for the tables of digests.
    fn merge_digests(&self, folder: &str, name: &str, child: &str) -> Result<(), Error> {
        let (path, child_path) = (format!("{folder}/{}", digests_of(name)), format!("{folder}/{}", digests_of(child)));
        if self.place.size(&path)?.is_none() {
            return Ok(());
        }
        let io = |error| of_io(&path, error);
        let (into, from) = (self.place.open(&path, true)?, self.place.open(&child_path, false)?);
        let image_path = format!("{folder}/{child}");
        let image = Image::open(&image_path, self.place.open(&image_path, false)?)?;
        for start in (0..image.blocks()).step_by(WINDOW as usize) {
            let blocks = image.places(start..start + WINDOW)?;
            let digests = read_digests(&from, start..start + WINDOW).map_err(io)?;
            let theirs = (start..).zip(blocks).zip(digests).filter(|((_, block), _)| *block != Block::Absent);
            let theirs: Vec<_> = theirs.map(|((block, _), digest)| (block, digest)).collect();
            write_digests(&into, &theirs).map_err(io)?;
        }
        into.sync().map_err(io)?;
        self.place.rename(&path, &child_path)
    }
}

/// Copies what `from` has to free room of `into`, synced; where it is then.
fn copy_blocks<F: DiskFile>(from: &Image<F>, into: &Image<F>, turn: &mut Turn) -> Result<Vec<(u64, Block)>, Error> {
    let mut space = into.space()?;
    let mut changes = Vec::new();
    for start in (0..from.blocks()).step_by(WINDOW as usize) {
        for (block, place) in (start..).zip(from.places(start..start + WINDOW)?) {
            let to = match place {
                Block::Absent => continue,
                Block::Zero => Block::Zero,
                Block::Partial(_) => return Err(Error::damaged(was_used(from.path()))),
                Block::Present(at) => {
                    turn.go_on()?;
                    let to = into.make_room(&mut space)?;
                    into.file().splice_at(to, &from.file().input(at)?, into.block_size().into())?;
                    Block::Present(to)
                }
            };
            changes.push((block, to));
        }
    }
    into.file().sync().map_err(|error| of_io(into.path(), error))?;
    Ok(changes)
}

/// Whether trying again would bring the same.
fn is_lasting(error: &Error) -> bool {
    error.is_damaged() || matches!(error.code, ErrorCode::NotFound)
}
