//! The index as objects: one segment for each commit, merged now and then so that a writer reads few.

use crate::envelope::Kind;
use crate::index::{Hooks, MOST_OF_SEGMENT};
use crate::names::{INDEX, PackId, content_name};
use crate::repository::Repository;
use crate::storage::Object;
use crate::wire::Reader;
use vmferry_plugin_api::Error;

/// A segment at least as long is not merged with small ones: a third of the longest.
const LARGE: u64 = 1 << 20;
/// So many segments of one kind are merged.
const MANY: usize = 8;

impl Repository<'_> {
    /// One segment; `None` when it is gone or damaged. Then some chunks are stored twice.
    pub(crate) fn segment(&self, name: &str) -> Result<Option<Hooks>, Error> {
        match self.get(Kind::Index, name) {
            Ok(content) => Ok(content.and_then(|content| Hooks::decode(&mut Reader::new(&content)).ok())),
            Err(error) if error.is_damaged() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds a segment, and answers its name.
    pub(crate) fn add_to_index(&self, hooks: &Hooks) -> Result<String, Error> {
        let content = hooks.encode();
        let name = format!("{INDEX}{}", content_name(&content));
        self.put(Kind::Index, &name, &content)?;
        Ok(name)
    }

    /// Merges segments where there are many. Two hosts that do so at the same time only do too much.
    pub(crate) fn tidy_index(&self) -> Result<(), Error> {
        let all = self.storage.list(INDEX)?;
        let (large, small): (Vec<_>, Vec<_>) = all.into_iter().partition(|segment| segment.length >= LARGE);
        for segments in [small, large] {
            if segments.len() > MANY {
                self.merge_segments(&segments, |_| true)?;
            }
        }
        Ok(())
    }

    /// Puts one segment in the place of these, without packs that `keep` does not want.
    pub(crate) fn merge_segments(&self, segments: &[Object], keep: impl Fn(&PackId) -> bool) -> Result<(), Error> {
        let mut merged = Hooks::default();
        for segment in segments {
            if let Some(hooks) = self.segment(&segment.name)? {
                merged.merge(&hooks, MOST_OF_SEGMENT, &keep);
            }
        }
        merged.sort();
        let name = if merged.packs().is_empty() { None } else { Some(self.add_to_index(&merged)?) };
        for segment in segments.iter().filter(|segment| Some(&segment.name) != name.as_ref()) {
            self.storage.delete(&segment.name)?;
        }
        Ok(())
    }
}
