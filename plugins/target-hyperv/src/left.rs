//! Whether a disk file is as it was left: nothing is added to one that somebody else wrote to, a hypervisor above all.
//!
//! A VHDX has another `DataWriteGuid` then. A VHD has nothing that changes when a guest writes, so it is given the time at which its point
//! was taken, and anybody's write gives it another. Ours do as well, while a draft is written into it. What says that they were ours is
//! the draft's file of updates, which is written to before each of them: as long as that is there, a write that came no later than ours can
//! was ours. Before it goes, the disk file gets its time back.

use crate::Keeper;
use crate::image::{Image, Space, written_by};
use crate::place::{DiskFile, Place, of_io};
use crate::state::{KeptImage, State, disk_of, started_of, updates_beside};
use vmferry_plugin_api::{Error, ErrorCode};
use vmferry_vhdx::{Storage, WriteIds};

/// Seconds that a write of ours may end after the updates were written to before it.
const OUR_DELAY: u64 = 120;

/// Whether nobody else has written to a disk file, as far as that is told without reading it as a whole.
pub(crate) fn is_as_left<P: Place>(
    place: &P,
    folder: &str,
    name: &str,
    kept: &KeptImage,
    file: &P::File,
    ids: WriteIds,
) -> Result<bool, Error> {
    let path = format!("{folder}/{name}");
    if ids.data != kept.data.0 || place.size(&started_of(&path))?.is_some() {
        return Ok(false);
    }
    if kept.has_its_time(&path, file)? {
        return Ok(true);
    }
    let modified = file.modified().map_err(|error| of_io(&path, error))?;
    let is_ours = |other: &str| other.ends_with(".updates") && disk_of(other) == disk_of(name);
    for (other, _) in place.list(folder)?.into_iter().filter(|(other, _)| is_ours(other)) {
        let path = format!("{folder}/{other}");
        match place.open(&path, false) {
            Ok(updates) if updates.modified().map_err(|error| of_io(&path, error))? + OUR_DELAY >= modified => {
                return Ok(true);
            }
            // One that went meanwhile says nothing.
            Err(error) if error.code != ErrorCode::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(false)
}

impl KeptImage {
    /// Whether a file has the time that it was given, if it was.
    pub(crate) fn has_its_time(&self, path: &str, file: &impl DiskFile) -> Result<bool, Error> {
        let Some(given) = self.modified else { return Ok(true) };
        Ok(file.modified().map_err(|error| of_io(path, error))? == given)
    }

    /// Makes what was written to a file survive a power failure, and gives it its time.
    pub(crate) fn leave(&self, path: &str, file: &impl DiskFile) -> Result<(), Error> {
        let left = match self.modified {
            None => file.sync(),
            // What is still on its way to a network file system would change the time again.
            Some(time) => file.sync().and_then(|()| file.set_modified(time)).and_then(|()| file.sync()),
        };
        left.map_err(|error| of_io(path, error))
    }
}

impl<P: Place> Keeper<P> {
    /// Makes a file of updates, and makes sure of it before a disk file that has a time is written to.
    pub(crate) fn begin_updates(&self, folder: &str, name: &str, kept: &KeptImage) -> Result<P::File, Error> {
        let path = format!("{folder}/{name}");
        let updates = self.place.create(&path)?;
        if kept.modified.is_some() {
            updates.sync().map_err(|error| of_io(&path, error))?;
            self.place.sync_folder(folder)?;
        }
        Ok(updates)
    }

    /// Removes a file of updates that belongs to no point.
    pub(crate) fn remove_updates(&self, folder: &str, state: Option<&State>, name: &str) -> Result<(), Error> {
        let images = state.into_iter().flat_map(|state| &state.images);
        for (image, kept) in images.filter(|(image, kept)| kept.modified.is_some() && disk_of(image) == disk_of(name)) {
            let path = format!("{folder}/{image}");
            // A file that somebody holds, or that is damaged, is left to what its time says of it.
            let Ok(file) = self.place.open(&path, true) else { continue };
            let Ok(ids) = written_by(&path, &file) else { continue };
            if is_as_left(&self.place, folder, image, kept, &file, ids)? {
                kept.leave(&path, &file)?;
            }
        }
        self.place.remove(&format!("{folder}/{name}"))
    }

    /// Cuts off what a disk file has behind its blocks.
    pub(crate) fn cut(
        &self,
        folder: &str,
        name: &str,
        kept: &KeptImage,
        image: &Image<P::File>,
        space: &Space,
    ) -> Result<(), Error> {
        if kept.modified.is_none() {
            return image.cut(space);
        }
        let updates = updates_beside(name);
        self.begin_updates(folder, &updates, kept)?;
        image.cut(space)?;
        kept.leave(image.path(), image.file())?;
        self.place.remove(&format!("{folder}/{updates}"))
    }
}

/// A disk file is not as it was left.
pub(crate) fn used(path: &str) -> Error {
    Error::with_code(ErrorCode::Other(USED.to_owned()), was_used(path))
}

/// The code of such an error.
pub(crate) const USED: &str = "used";

/// What is said of a disk file that a hypervisor wrote to.
pub(crate) fn was_used(path: &str) -> String {
    format!(
        "{path} was written by something else, as a hypervisor does that starts a VM on it; nothing is added to it, and it stays until \
         somebody removes it"
    )
}
