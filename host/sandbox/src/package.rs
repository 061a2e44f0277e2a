//! A plugin as it is handed over: manifest and component.

use crate::limits::MAX_COMPONENT;
use crate::manifest::{Manifest, ManifestError, is_id};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// SHA-256 of a component.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ComponentDigest([u8; 32]);

impl ComponentDigest {
    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Lower-case hex.
impl fmt::Display for ComponentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ComponentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A plugin that has been read and not yet looked into.
#[derive(Clone)]
pub struct Package {
    pub(crate) origin: String,
    pub(crate) name: String,
    pub(crate) manifest: Option<Manifest>,
    pub(crate) component: Cow<'static, [u8]>,
    pub(crate) digest: ComponentDigest,
}

impl fmt::Debug for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Package")
            .field("origin", &self.origin)
            .field("manifest", &self.manifest)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// A package that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A file that cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A manifest that cannot be used.
    #[error("{origin}: {source}")]
    Manifest {
        /// Where it is from.
        origin: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// A folder without a component.
    #[error("{}: holds no *.wasm; build the plugin with `cargo build --target wasm32-wasip2 --release`", .0.display())]
    NoComponent(PathBuf),
    /// A folder with several.
    #[error("{}: holds more than one *.wasm; name the one with `component = \"...\"` in its plugin.toml", .0.display())]
    SeveralComponents(PathBuf),
    /// A component that is larger than any can be.
    #[error("{origin}: the component is larger than {} MiB", MAX_COMPONENT >> 20)]
    TooLarge {
        /// Where it is from.
        origin: String,
    },
    /// A file whose name gives no id.
    #[error("{}: the file's name is the plugin's id, and must be lower-case letters, digits and hyphens", .0.display())]
    FileName(PathBuf),
}

impl Package {
    /// From a folder with a `plugin.toml` and a component.
    pub fn from_folder(folder: &Path) -> Result<Self, PackageError> {
        let path = folder.join("plugin.toml");
        let text =
            std::fs::read_to_string(&path).map_err(|source| PackageError::Unreadable { path: path.clone(), source })?;
        let origin = path.display().to_string();
        let manifest = Manifest::parse(&text).map_err(|source| PackageError::Manifest { origin, source })?;
        let file = match &manifest.component {
            Some(name) => folder.join(name),
            None => only_component(folder)?,
        };
        let component = read(&file)?;
        Ok(Self::assemble(file.display().to_string(), manifest.id.clone(), Some(manifest), component.into()))
    }

    /// From a component alone, or from a folder. Without a manifest the file's name is the plugin's id, its exports
    /// tell its kind, and it gets what the operator grants.
    pub fn from_path(path: &Path) -> Result<Self, PackageError> {
        if path.is_dir() {
            return Self::from_folder(path);
        }
        let component = read(path)?;
        let name = path.file_stem().and_then(|stem| stem.to_str()).map(|stem| stem.replace('_', "-"));
        let name = name.filter(|name| is_id(name)).ok_or_else(|| PackageError::FileName(path.to_owned()))?;
        Ok(Self::assemble(path.display().to_string(), name, None, component.into()))
    }

    /// From a manifest's text and a component in memory; `origin` tells errors where they are from.
    pub fn from_parts(
        origin: &str,
        manifest: &str,
        component: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Self, PackageError> {
        let manifest =
            Manifest::parse(manifest).map_err(|source| PackageError::Manifest { origin: origin.to_owned(), source })?;
        let component = component.into();
        if component.len() > MAX_COMPONENT {
            return Err(PackageError::TooLarge { origin: origin.to_owned() });
        }
        Ok(Self::assemble(origin.to_owned(), manifest.id.clone(), Some(manifest), component))
    }

    fn assemble(origin: String, name: String, manifest: Option<Manifest>, component: Cow<'static, [u8]>) -> Self {
        let digest = ComponentDigest::of(&component);
        Self { origin, name, manifest, component, digest }
    }

    /// What the plugin says about itself, if it came with a manifest.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// SHA-256 of the component.
    pub fn digest(&self) -> ComponentDigest {
        self.digest
    }
}

fn only_component(folder: &Path) -> Result<PathBuf, PackageError> {
    let unreadable = |source| PackageError::Unreadable { path: folder.to_owned(), source };
    let mut found = None;
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") && found.replace(path).is_some() {
            return Err(PackageError::SeveralComponents(folder.to_owned()));
        }
    }
    found.ok_or_else(|| PackageError::NoComponent(folder.to_owned()))
}

/// Reads a component, but never more than one can have: the path may be anything.
fn read(path: &Path) -> Result<Vec<u8>, PackageError> {
    let unreadable = |source| PackageError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_COMPONENT as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_COMPONENT {
        return Err(PackageError::TooLarge { origin: path.display().to_string() });
    }
    Ok(bytes)
}
