//! Builds components for `wasm32-wasip2` from a build script, by a cargo inside the cargo that runs it.
//!
//! That is how one `cargo run` on a fresh machine gives a program with its plugins in it. The inner cargo has a target
//! folder of its own, because the outer one keeps the lock of its; what the outer one was told about compilers' flags
//! and wrappers is for the host's code and not passed on.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What components are built for.
pub const TARGET: &str = "wasm32-wasip2";

/// Small before fast: plugins decide in microseconds either way, and every byte is compiled, kept and reset. Names stay,
/// so that a trap can say where it happened.
const PROFILE: &[&str] = &[
    "profile.guest.inherits='release'",
    "profile.guest.opt-level='s'",
    "profile.guest.lto=true",
    "profile.guest.codegen-units=1",
    "profile.guest.panic='abort'",
    "profile.guest.debug=false",
    "profile.guest.split-debuginfo='off'",
    "profile.guest.strip='debuginfo'",
    // A quarter of the default stack: enough for a JSON parser at its deepest, and less memory to set up and reset.
    "target.wasm32-wasip2.rustflags=['-Clink-arg=-zstack-size=262144']",
];

/// Variables of the outer cargo that mean its own compilation: flags, wrappers such as clippy's and coverage's, folders.
const NOT_PASSED_ON: &[&str] = &[
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS",
    "CLIPPY_ARGS",
    "LLVM_PROFILE_FILE",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
];

/// What to build.
#[derive(Clone, Copy, Debug)]
pub enum Components<'a> {
    /// The libraries of these packages.
    Packages(&'a [&'a str]),
    /// Examples of one package.
    Examples {
        /// The package.
        package: &'a str,
        /// The examples' names.
        names: &'a [&'a str],
    },
}

/// A component that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The package's or the example's name.
    pub name: String,
    /// The component.
    pub component: PathBuf,
}

/// What a build gave.
#[derive(Clone, Debug)]
pub struct Output {
    /// In the order they were asked for.
    pub components: Vec<Built>,
    /// Files whose change makes another build necessary.
    pub sources: Vec<PathBuf>,
}

/// A build that failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Not run by cargo.
    #[error("{0} is not set: this function is for build scripts")]
    NoBuildScript(&'static str),
    /// The toolchain lacks the target.
    #[error("the Rust toolchain cannot build plugins yet; run `rustup target add wasm32-wasip2`")]
    NoTarget,
    /// A program that does not start.
    #[error("{program} does not start: {source}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The inner cargo failed.
    #[error("building plugins for wasm32-wasip2 failed:\n{0}")]
    Failed(String),
    /// A file that should be there.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Builds components of the workspace at `workspace`.
pub fn build(workspace: &Path, components: Components<'_>) -> Result<Output, BuildError> {
    target_is_installed()?;
    let target_folder = target_folder()?;
    let mut cargo = Command::new(variable("CARGO")?);
    cargo.current_dir(workspace).args(["build", "--locked", "--profile=guest", "--target", TARGET, "--target-dir"]);
    cargo.arg(&target_folder);
    for line in PROFILE {
        cargo.args(["--config", line]);
    }
    match components {
        Components::Packages(names) => names.iter().for_each(|name| {
            cargo.args(["--package", name]);
        }),
        Components::Examples { package, names } => {
            cargo.args(["--package", package]);
            names.iter().for_each(|name| {
                cargo.args(["--example", name]);
            });
        }
    }
    for name in NOT_PASSED_ON {
        cargo.env_remove(name);
    }
    run(&mut cargo).map_err(|failed| match failed {
        Run::Start(source) => BuildError::Start { program: "cargo".to_owned(), source },
        Run::Failed(output) => BuildError::Failed(output),
    })?;

    let artifacts = target_folder.join(TARGET).join("guest");
    let mut sources = vec![workspace.join("Cargo.toml"), workspace.join("Cargo.lock")];
    let mut built = Vec::new();
    let (folder, names) = match components {
        Components::Packages(names) => (artifacts, names),
        Components::Examples { names, .. } => (artifacts.join("examples"), names),
    };
    for name in names {
        let component = folder.join(format!("{}.wasm", name.replace('-', "_")));
        sources.extend(read_sources(&component.with_extension("d"))?);
        built.push(Built { name: (*name).to_owned(), component });
    }
    sources.sort();
    sources.dedup();
    Ok(Output { components: built, sources })
}

fn variable(name: &'static str) -> Result<OsString, BuildError> {
    std::env::var_os(name).ok_or(BuildError::NoBuildScript(name))
}

/// `target/guests` of the outer build, found by the mark that cargo puts into its target folder; where there is none, a
/// folder of the build script's own.
fn target_folder() -> Result<PathBuf, BuildError> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let target = out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    Ok(target.unwrap_or(&out).join("guests"))
}

fn target_is_installed() -> Result<(), BuildError> {
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    let folder = run(&mut rustc).map_err(|failed| match failed {
        Run::Start(source) => BuildError::Start { program: "rustc".to_owned(), source },
        Run::Failed(_) => BuildError::NoTarget,
    })?;
    if Path::new(folder.trim()).is_dir() { Ok(()) } else { Err(BuildError::NoTarget) }
}

enum Run {
    Start(std::io::Error),
    Failed(String),
}

fn run(command: &mut Command) -> Result<String, Run> {
    let output = command.output().map_err(Run::Start)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(Run::Failed(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

/// The files that cargo says an artifact was made from: `artifact: source source`, spaces in names escaped.
fn read_sources(path: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let text = std::fs::read_to_string(path).map_err(|source| BuildError::File { path: path.to_owned(), source })?;
    Ok(parse_sources(&text))
}

fn parse_sources(text: &str) -> Vec<PathBuf> {
    let list = text.lines().find_map(|line| line.split_once(": ")).map_or("", |(_, list)| list);
    let mut sources = vec![String::new()];
    let mut escaped = false;
    for letter in list.chars() {
        match (letter, escaped) {
            ('\\', false) => {
                escaped = true;
                continue;
            }
            (' ', false) => sources.push(String::new()),
            (letter, _) => {
                if let Some(last) = sources.last_mut() {
                    last.push(letter);
                }
            }
        }
        escaped = false;
    }
    sources.retain(|source| !source.is_empty());
    sources.into_iter().map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_from_cargos_list() {
        let found = parse_sources("/t/a.wasm: /w/src/lib.rs /w/my\\ plugin/b.rs\n");
        assert_eq!(found, [PathBuf::from("/w/src/lib.rs"), PathBuf::from("/w/my plugin/b.rs")]);
        assert_eq!(parse_sources("/t/a.wasm:\n"), Vec::<PathBuf>::new());
    }
}
