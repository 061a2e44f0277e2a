//! The same work seen by programs that this project did not write.
//!
//! The tests of this crate run other people's clients and servers. `tests/peers/install` fetches those in Python and JavaScript,
//! `.ci/run` the rest as well. Where a program is missing a test says that it was skipped, unless
//! `VMFERRY_REQUIRE_PEERS=1` asks for all of them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// Set to `1`, a missing program fails the test.
const REQUIRE: &str = "VMFERRY_REQUIRE_PEERS";

/// A program, or an input to one, that a test cannot do without.
#[derive(Clone, Debug)]
pub struct Peer {
    path: PathBuf,
}

impl Peer {
    /// A program found by the search path. `None` where it may be missing; the test is to return then.
    ///
    /// # Errors
    /// It is missing and required.
    pub fn system(name: &str) -> anyhow::Result<Option<Self>> {
        Self::found(on_path(name), name, "install it with the system's packages")
    }

    /// s3s-fs, an object store in a folder.
    ///
    /// # Errors
    /// It is missing and required.
    pub fn s3s_fs() -> anyhow::Result<Option<Self>> {
        Self::found(on_path("s3s-fs"), "s3s-fs", "install it as .ci/run does")
    }

    /// Python with the packages that `tests/peers/install` puts beside it.
    ///
    /// # Errors
    /// It is missing and required.
    pub fn python() -> anyhow::Result<Option<Self>> {
        let python = installed("venv/bin/python");
        Self::found(python.is_file().then_some(python), "python with XenAPI and moto", "run tests/peers/install")
    }

    /// Node, for scripts that use the packages in [`node_modules`].
    ///
    /// # Errors
    /// It or its packages are missing and required.
    pub fn node() -> anyhow::Result<Option<Self>> {
        if installed("node/node_modules/xen-api").is_dir() {
            return Self::system("node");
        }
        Self::found(None, "node with xen-api", "run tests/peers/install")
    }

    /// Node, for building [`example_target_js`].
    ///
    /// # Errors
    /// It or its packages are missing and required.
    pub fn componentize() -> anyhow::Result<Option<Self>> {
        if example_target_js("node_modules/@bytecodealliance/componentize-js").is_dir() {
            return Self::system("node");
        }
        Self::found(None, "node with componentize-js", "run tests/peers/install")
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn found(path: Option<PathBuf>, name: &str, remedy: &str) -> anyhow::Result<Option<Self>> {
        match path {
            Some(path) => Ok(Some(Self { path })),
            None if std::env::var_os(REQUIRE).is_some_and(|value| value == "1") => {
                bail!("{name} is missing and {REQUIRE}=1 asks for it: {remedy}")
            }
            None => {
                skipped(name, remedy);
                Ok(None)
            }
        }
    }

    /// Runs it to its end; its standard output.
    ///
    /// # Errors
    /// It cannot be started, or ends with another code than 0; with what it wrote.
    pub async fn run<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<String> {
        let name = self.path.display();
        let mut command = Command::new(&self.path);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.with_context(|| format!("start {name}"))?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            bail!("{name} ended with {}\n{out}\n{err}", output.status);
        }
        Ok(out.into_owned())
    }
}

#[allow(clippy::print_stderr, reason = "the person who runs the tests is told")]
fn skipped(name: &str, remedy: &str) {
    eprintln!("skipped: {name} is missing ({remedy})");
}

/// The folder to which Node packages were installed.
#[must_use]
pub fn node_modules() -> PathBuf {
    installed("node")
}

/// A file of the plugin that is written in JavaScript.
#[must_use]
pub fn example_target_js(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/example-target-js").join(name)
}

/// A script of this crate.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn installed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers").join(name)
}
