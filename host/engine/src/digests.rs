//! The digest tables of what was replicated: one per content, and one per disk that was found damaged.
//!
//! ```text
//! <content key>.leaves          what every copy of this content should be
//! <target disk>.read.leaves     what was read from a copy that is not
//! ```
//!
//! They are a cache. Losing them costs digests of the next deltas and the chance to compare, never a chain.

use crate::plan::replica_size;
use crate::transfer::blocking;
use crate::view::{PointDisk, TargetView};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use vmferry_disk::digest::{Table, remove_abandoned_drafts};
use vmferry_model::target::StoredPoint;

/// The size that a disk's table is for. Digests are those of the replica, which is rounded up: the rest is zeroes.
pub(crate) fn table_size(virtual_size: u64) -> u64 {
    replica_size(virtual_size)
}

/// The tables of one tenant, in a folder of their own: what tenants may write into the keys of their objects names files here.
#[derive(Clone, Debug)]
pub(crate) struct Digests {
    folder: PathBuf,
}

impl Digests {
    /// Opens the folder of `tenant` and clears away what processes that died left in it.
    pub(crate) fn open(root: &Path, tenant: &str) -> Self {
        let folder = root.join(Uuid::new_v5(&Uuid::NAMESPACE_URL, tenant.as_bytes()).to_string());
        let swept = std::fs::create_dir_all(&folder).and_then(|()| remove_abandoned_drafts(&folder));
        if let Err(error) = swept {
            tracing::warn!(folder = %folder.display(), %error, "digest tables cannot be kept here");
        }
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

    /// The table that says what this copy really holds: for a damaged one what was read from it, else its content's; only if
    /// it is the one that the disk's keys name. Reads the whole table.
    pub(crate) async fn of_copy(&self, held: &PointDisk) -> Option<PathBuf> {
        let (path, wanted) = match &held.damaged {
            Some(root) => (self.as_read(held.uuid()), root.clone()),
            None => (self.of_content(&held.content_key), held.digest.clone()?),
        };
        with_root(path, wanted).await
    }

    /// The table of a content, if it has this root. Reads the whole table.
    pub(crate) async fn of_content_with(&self, content_key: &str, root: &str) -> Option<PathBuf> {
        with_root(self.of_content(content_key), root.to_owned()).await
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

    /// The names of the tables that there are.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
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

async fn with_root(path: PathBuf, wanted: String) -> Option<PathBuf> {
    blocking(move || {
        let root = Table::open(&path).and_then(|table| table.root()).ok()?;
        (wanted == root.to_string()).then_some(path)
    })
    .await
}

/// The names of the tables that belong to what a target holds.
pub(crate) fn tables_of(target: &TargetView) -> impl Iterator<Item = String> {
    let disks = target.points().flat_map(|point| &point.disks);
    disks.flat_map(|held| {
        let read = held.damaged.as_ref().map(|_| read_table(held.uuid()));
        [Some(content_table(&held.content_key)), read].into_iter().flatten()
    })
}

/// The same for the points of a store.
pub(crate) fn tables_of_store(points: &[StoredPoint]) -> impl Iterator<Item = String> {
    points.iter().flat_map(|point| &point.disks).map(|held| content_table(&held.content))
}

pub(crate) fn content_table(content_key: &str) -> String {
    format!("{}.leaves", file_name(content_key))
}

fn read_table(target_disk: &str) -> String {
    format!("{}.read.leaves", file_name(target_disk))
}

/// A uuid as it is. What else a store or a pool gives for one is no part of a path.
fn file_name(key: &str) -> String {
    let is_uuid = key.len() == 36 && Uuid::parse_str(key).is_ok();
    if is_uuid { key.to_owned() } else { Uuid::new_v5(&Uuid::NAMESPACE_URL, key.as_bytes()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_names_a_file_elsewhere() {
        let uuid = "11111111-2222-4333-8444-555555555555";
        assert_eq!(content_table(uuid), format!("{uuid}.leaves"));
        for key in ["../other/x", "/etc/passwd", "", "a/b", "x\0y"] {
            let name = content_table(key);
            assert_eq!(name.len(), uuid.len() + ".leaves".len(), "{key}");
            assert!(!name.contains('/') && name != content_table("else"), "{key}");
        }
    }
}
