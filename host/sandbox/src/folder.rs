//! Folders that a target has, opened for one call.
//!
//! A granted path means what it says. Who owns a part of it, a plugin with the folder above or the server that it is mounted from,
//! could put a symbolic link there and so make the grant another; what is opened is therefore compared with what was granted,
//! after it was opened.

use rustix::fs::OFlags;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use vmferry_model::plugin::PluginFailure;
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::filesystem::FsPerms;

/// Two of them of which one would lie in the other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the folder `{inner}` is granted with `{outer}`, which it lies in; take it out of `grants.folders`, or grant folders that lie \
     side by side"
)]
pub(crate) struct Nested {
    outer: String,
    inner: String,
}

/// Checks that folders lie side by side: from the outer of two the inner one could be exchanged.
pub(crate) fn check(folders: &[String]) -> Result<(), Nested> {
    for (at, inner) in folders.iter().enumerate() {
        let around = |&(other, outer): &(usize, &String)| other != at && Path::new(inner).starts_with(outer);
        if let Some((_, outer)) = folders.iter().enumerate().find(around) {
            return Err(Nested { outer: outer.clone(), inner: inner.clone() });
        }
    }
    Ok(())
}

/// Opens a folder for a guest, under the path by which it was granted. Blocks for as long as its file system does.
pub(crate) fn open(wasi: &mut WasiCtxBuilder, granted: &str) -> Result<(), PluginFailure> {
    let failed = |problem: io::Error| PluginFailure::Host(format!("its folder {granted}: {problem}"));
    let folder =
        File::options().read(true).custom_flags(OFlags::DIRECTORY.bits() as i32).open(granted).map_err(failed)?;
    let itself = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let opened = std::fs::read_link(&itself).map_err(failed)?;
    // By components, so that a slash at the end is none of it.
    if !opened.components().eq(Path::new(granted).components()) {
        return Err(PluginFailure::Denied(format!(
            "its folder `{granted}` is really `{}`: a symbolic link leads there, or `..`; grant the folder itself, in `grants.folders` and \
             in the plugin's settings",
            opened.display()
        )));
    }
    // Through the open file, so that it is the very folder that was looked at.
    wasi.preopened_dir(&itself, granted, FsPerms::ReadWrite)
        .map_err(|problem| PluginFailure::Host(format!("its folder {granted}: {problem}")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_lie_side_by_side() {
        let check = |folders: &[&str]| check(&folders.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(check(&["/srv/b", "/srv/bb", "/srv/a/b"]), Ok(()));
        for (outer, inner) in
            [("/srv/b", "/srv/b/site"), ("/srv/b/", "/srv/b/site"), ("/srv/b", "/srv/b"), ("/", "/srv")]
        {
            for folders in [[outer, inner], [inner, outer]] {
                let nested = check(&folders).expect_err(inner).to_string();
                assert!(nested.contains(outer) && nested.contains(inner), "{nested}");
            }
        }
    }
}
