//! What belongs to no point: files of drafts, of points that are gone, and the ends of files into which a draft was written.

use crate::image::Image;
use crate::left::is_as_left;
use crate::place::{DiskFile, NEW, Place, of_io};
use crate::state::{self, State};
use crate::{Keeper, REGISTER_NAME};
use std::time::SystemTime;
use vmferry_plugin_api::target::{Draft, Garbage};
use vmferry_plugin_api::{Error, ErrorCode};
use vmferry_vhdx::Storage;

impl<P: Place> Keeper<P> {
    /// Forgets a draft.
    pub fn abort(&self, draft: &Draft) -> Result<(), Error> {
        let [_, folder] = state::folders(&draft.job, &draft.vm);
        let _turn = self.turn(&folder)?;
        let state = State::load(&self.place, &folder)?;
        if state.as_ref().is_some_and(|state| state.point(&draft.id).is_some()) {
            return Ok(());
        }
        let needed = state.as_ref().map(State::files).unwrap_or_default();
        let mark = state::mark_of(&draft.id);
        for (name, _) in self.place.list(&folder)?.into_iter().filter(|(name, _)| name.contains(&mark)) {
            if !needed.contains(&name) {
                self.remove(&folder, state.as_ref(), &name)?;
            }
        }
        if let Some(state) = state {
            self.trim(&folder, &state, true)?;
        }
        Ok(())
    }

    /// Cuts off what disk files have at their ends that no block is in; in how many bytes of which. A draft that is being written may be
    /// what is there: then nothing is.
    fn trim(&self, folder: &str, state: &State, apply: bool) -> Result<Vec<(String, u64)>, Error> {
        let mut found = Vec::new();
        let names = self.place.list(folder)?;
        if names.iter().any(|(name, _)| name.ends_with(".updates")) || !state.begun.is_empty() {
            return Ok(found);
        }
        for (name, kept) in &state.images {
            let path = format!("{folder}/{name}");
            // A file that is damaged is `verify`'s, and is left as it is.
            let Ok(image) = Image::open(&path, self.place.open(&path, apply)?) else { continue };
            let Ok(space) = image.space() else { continue };
            let (length, end) = (image.file().length().map_err(|error| of_io(&path, error))?, space.closed_length());
            if length > end && is_as_left(&self.place, folder, name, kept, image.file(), image.ids())? {
                if apply {
                    self.cut(folder, name, kept, &image, &space)?;
                }
                found.push((name.clone(), length - end));
            }
        }
        Ok(found)
    }

    /// Finds what belongs to no point, and removes it if asked to.
    pub fn collect(&self, drafts: &[String], apply: bool) -> Result<Vec<Garbage>, Error> {
        let named: Vec<String> = drafts.iter().map(|draft| state::mark_of(draft)).collect();
        let mut garbage = Vec::new();
        for folder in self.folders(None)? {
            let _turn = self.turn(&folder)?;
            let state = State::load(&self.place, &folder)?;
            let needed = state.as_ref().map(State::files).unwrap_or_default();
            let files = self.place.list(&folder)?.into_iter().filter(|(_, is_folder)| !is_folder).map(|(name, _)| name);
            let spare: Vec<String> = files.filter(|name| !needed.contains(name) && is_ours(name)).collect();
            let fresh = self.fresh(&folder, &spare)?;
            let is_draft = |name: &str| named.iter().chain(&fresh).any(|mark| name.contains(mark));
            let is_written_to = spare.iter().any(|name| is_draft(name));
            for name in spare {
                if !is_draft(&name) {
                    let path = format!("{folder}/{name}");
                    let bytes = self.place.size(&path)?.unwrap_or(0);
                    if apply {
                        self.remove(&folder, state.as_ref(), &name)?;
                    }
                    let why = "it is left of a run that was broken off, or of a point that was deleted".to_owned();
                    garbage.push(Garbage { what: format!("{}/{path}", self.name), why, bytes });
                }
            }
            if let Some(state) = state.filter(|_| !is_written_to) {
                for (name, bytes) in self.trim(&folder, &state, apply)? {
                    let why = "the end of the file is left of a run that was broken off".to_owned();
                    garbage.push(Garbage { what: format!("{}/{folder}/{name}", self.name), why, bytes });
                }
            }
        }
        Ok(garbage)
    }

    /// What the names of those of these files have in common that were written to a short while ago, or belong to such.
    fn fresh(&self, folder: &str, names: &[String]) -> Result<Vec<String>, Error> {
        if self.grace == 0 {
            return Ok(Vec::new());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut fresh = Vec::new();
        for name in names {
            let path = format!("{folder}/{name}");
            let modified = match self.place.open(&path, false) {
                Ok(file) => file.modified().map_err(|error| of_io(&path, error))?,
                Err(error) if error.code == ErrorCode::NotFound => continue,
                Err(error) => return Err(error),
            };
            if now.saturating_sub(modified) < self.grace {
                let mark = name.find('~').and_then(|at| name[at..].find('.').map(|end| &name[at..=at + end]));
                fresh.push(mark.unwrap_or(name).to_owned());
            }
        }
        Ok(fresh)
    }

    /// Removes a file that no point needs.
    fn remove(&self, folder: &str, state: Option<&State>, name: &str) -> Result<(), Error> {
        if name.ends_with(".updates") {
            self.remove_updates(folder, state, name)
        } else {
            self.place.remove(&format!("{folder}/{name}"))
        }
    }
}

/// Whether we made a file of this name, whatever it is of. What an operator put there is not ours.
fn is_ours(name: &str) -> bool {
    let whole = name.strip_suffix(NEW).unwrap_or(name);
    let kinds = [".vhdx", ".vhd", ".started", ".digests", ".updates", ".json"];
    let of_points = whole.contains('~') && kinds.iter().any(|kind| whole.ends_with(kind));
    state::is_name(name) && (of_points || whole != name && [state::FILE, REGISTER_NAME].contains(&whole))
}
