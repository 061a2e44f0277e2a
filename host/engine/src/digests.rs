//! The digest tables of what was replicated: one per content, and one per disk that was found damaged.
//!
//! ```text
//! <content key>.leaves          what every copy of this content should be
//! <target disk>.read.leaves     what was read from a copy that is not
//! ```
//!
//! They are a cache. Losing them costs digests of the next deltas and the chance to compare, never a chain.

use crate::transfer::blocking;
use crate::view::{PointDisk, TargetView};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use vmferry_disk::digest::Table;

/// The tables in one folder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Digests<'a> {
    folder: &'a Path,
}

impl<'a> Digests<'a> {
    pub(crate) fn new(folder: &'a Path) -> Self {
        Self { folder }
    }

    /// Where the table of a content is, or goes.
    pub(crate) fn of_content(&self, content_key: &str) -> PathBuf {
        self.folder.join(content_table(content_key))
    }

    /// Where the table of what was read from a damaged disk is, or goes.
    pub(crate) fn as_read(&self, target_disk: &str) -> PathBuf {
        self.folder.join(read_table(target_disk))
    }

    /// The table that says what this copy really holds: for a damaged one what was read from it, else its content's, if
    /// that is the one which the recovery point names. Reads the whole table.
    pub(crate) async fn of_copy(&self, held: &PointDisk) -> Option<PathBuf> {
        let (path, wanted) = if held.damaged {
            (self.as_read(held.uuid()), None)
        } else {
            (self.of_content(&held.content_key), Some(held.digest.clone()?))
        };
        blocking(move || {
            let root = Table::open(&path).and_then(|table| table.root()).ok()?;
            wanted.is_none_or(|wanted| wanted == root.to_string()).then_some(path)
        })
        .await
    }

    /// The disks of a target, by uuid, that could be compared with.
    pub(crate) async fn comparable(&self, target: &TargetView) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for held in target.points().flat_map(|point| &point.disks) {
            if self.of_copy(held).await.is_some() {
                found.insert(held.uuid().to_owned());
            }
        }
        found
    }

    /// Removes tables that were in use and are not any more.
    pub(crate) fn drop_unused(&self, before: &BTreeSet<String>, now: &BTreeSet<String>) {
        for name in before.difference(now) {
            let path = self.folder.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "digest table could not be removed");
                }
                _ => {}
            }
        }
    }
}

/// The names of the tables that belong to what a target holds.
pub(crate) fn tables_of(target: &TargetView) -> impl Iterator<Item = String> {
    let disks = target.points().flat_map(|point| &point.disks);
    disks.flat_map(|held| {
        let read = held.damaged.then(|| read_table(held.uuid()));
        [Some(content_table(&held.content_key)), read].into_iter().flatten()
    })
}

fn content_table(content_key: &str) -> String {
    format!("{content_key}.leaves")
}

fn read_table(target_disk: &str) -> String {
    format!("{target_disk}.read.leaves")
}
