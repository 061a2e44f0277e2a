//! Compiled components on disk, so that a start costs microseconds per plugin instead of a compilation.
//!
//! What lies here is native code that will run in this process. So the folder has to belong to the user that runs it
//! and be closed to everybody else; files come from this module only, never from a package; and their names hold
//! everything that makes compiled code fit: the component's digest and the engine's compatibility.

use crate::package::ComponentDigest;
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Files that are kept; beyond that the oldest go. Two engines and some versions of some plugins.
const MOST_FILES: usize = 128;

/// The digest in front of the code.
const DIGEST: usize = blake3::OUT_LEN;

/// A folder that cannot be trusted with native code.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Not there and not to be made, or not readable.
    #[error("the compile cache {}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others could put code there.
    #[error(
        "the compile cache {} holds native code and must be a folder of its own user with mode 0700: it belongs to user \
         {owner} and has mode {mode:04o}", path.display()
    )]
    Open {
        /// The folder.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
}

/// The folder, checked.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Makes the folder if need be, and refuses one that others could write to.
    pub(crate) fn open(folder: &Path) -> Result<Self, CacheError> {
        let io = |source| CacheError::Io { path: folder.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
        let found = std::fs::symlink_metadata(folder).map_err(io)?;
        let (owner, mode) = (found.uid(), found.mode() & 0o7777);
        if !found.is_dir() || owner != rustix::process::geteuid().as_raw() || mode & 0o077 != 0 {
            return Err(CacheError::Open { path: folder.to_owned(), owner, mode });
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// The compiled component, if it was kept. Anything wrong with the file means that it was not.
    pub(crate) fn get(&self, engine: &Engine, digest: &ComponentDigest) -> Option<Component> {
        let path = self.path(engine, digest);
        let mut stored = Vec::new();
        std::fs::File::open(&path).ok()?.read_to_end(&mut stored).ok()?;
        let (expected, code) = stored.split_at_checked(DIGEST)?;
        if blake3::hash(code).as_bytes() != expected {
            tracing::warn!(path = %path.display(), "a compiled plugin is damaged; it is compiled again");
            return None;
        }
        match deserialize(engine, code) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "a compiled plugin does not fit; it is compiled again");
                None
            }
        }
    }

    /// Keeps a compiled component. Failing to is a slower next start and nothing more.
    pub(crate) fn put(&self, engine: &Engine, digest: &ComponentDigest, component: &Component) {
        let path = self.path(engine, digest);
        let kept = component.serialize().map_err(std::io::Error::other).and_then(|code| self.write(&path, &code));
        if let Err(error) = kept {
            tracing::warn!(path = %path.display(), %error, "a compiled plugin cannot be kept");
        }
        self.shrink();
    }

    fn path(&self, engine: &Engine, digest: &ComponentDigest) -> PathBuf {
        let mut compatibility = Stable(blake3::Hasher::new());
        engine.precompile_compatibility_hash().hash(&mut compatibility);
        let compatibility = compatibility.0.finalize().to_hex();
        self.folder.join(format!("{digest}-{}.cwasm", &compatibility[..16]))
    }

    /// Writes beside and renames, so that nobody ever reads half a file.
    fn write(&self, path: &Path, code: &[u8]) -> std::io::Result<()> {
        let draft = self.folder.join(format!("{}.tmp", draft_name()));
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        let written = file
            .write_all(blake3::hash(code).as_bytes())
            .and_then(|()| file.write_all(code))
            .and_then(|()| std::fs::rename(&draft, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&draft); // best effort: the error that is told is the first one
        }
        written
    }

    fn shrink(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        let mut files: Vec<_> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
            })
            .collect();
        files.sort();
        for (_, path) in files.iter().rev().skip(MOST_FILES) {
            let _ = std::fs::remove_file(path); // somebody else may have removed it
        }
    }
}

/// A name that no other writer uses at the same time.
fn draft_name() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A hasher that gives the same answer in the next process, which the standard library's does not promise.
struct Stable(blake3::Hasher);

impl Hasher for Stable {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let mut first = [0; 8];
        self.0.finalize_xof().fill(&mut first);
        u64::from_le_bytes(first)
    }
}

/// Turns kept code into a component.
#[allow(
    unsafe_code,
    reason = "wasmtime runs the code as it finds it. It was written by `Cache::write` from `Component::serialize` into a \
              folder that only this user can write to, whose digest was just compared, and that a package never reaches"
)]
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: see the reason above; wasmtime itself checks that version, target and settings fit.
    unsafe { Component::deserialize(engine, code) }
}
