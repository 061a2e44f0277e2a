//! What keeping a disk costs: the repository in a folder beside restic and borg, on the same image, one after the other; and in a
//! bucket, by the component, beside a plain upload (`s3`).
//!
//! The repository runs natively here, with the host's own encodings and digests: what is measured is its format and its logic, not
//! the sandbox around it. All three compress with Zstandard at level 3; restic cannot leave encryption out, the other two do. Each step
//! is a process of its own; restic's and borg's caches live in the scratch folder as well.

mod disk;
mod image;
mod s3;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    act: Act,
}

#[derive(Subcommand)]
enum Act {
    /// Measures everything.
    Run {
        /// Size of the image, of which two fifths are zero.
        #[arg(long, default_value_t = 1024)]
        mib: u64,
        /// Where images and repositories go.
        #[arg(long, default_value = "/tmp")]
        scratch: PathBuf,
        /// Chunk sizes of the repository in KiB.
        #[arg(long, value_delimiter = ',', default_value = "64,256,1024")]
        chunks: Vec<u64>,
    },
    /// Measures the component for buckets beside a plain upload.
    S3 {
        /// Size of the images.
        #[arg(long, default_value_t = 512)]
        mib: u64,
        /// Pairs that are measured.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
        rounds: u64,
        /// Where images and the bucket go: six times their size.
        #[arg(long, default_value = "/tmp")]
        scratch: PathBuf,
        /// Chunk sizes in KiB.
        #[arg(long, value_delimiter = ',', default_value = "64,1024", value_parser = clap::value_parser!(u64).range(64..=2048))]
        chunks: Vec<u64>,
    },
    /// One step of the repository, which `run` measures.
    Write {
        folder: PathBuf,
        image: PathBuf,
        id: String,
        chunk_kib: u64,
        base: Option<String>,
        base_image: Option<PathBuf>,
    },
    /// Another.
    Read { folder: PathBuf, image: PathBuf, id: String, chunk_kib: u64 },
}

/// What a step took.
struct Cost {
    wall: f64,
    cpu: f64,
}

/// CPU time of this process, or of its children that have ended, in seconds.
fn cpu(of: UsageWho) -> anyhow::Result<f64> {
    let usage = getrusage(of)?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}

/// Runs a command, and measures it with everything that it starts.
fn measure(command: &mut Command) -> anyhow::Result<Cost> {
    let before = cpu(UsageWho::RUSAGE_CHILDREN)?;
    let started = Instant::now();
    let output = command.output().with_context(|| format!("{command:?} does not start"))?;
    let wall = started.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Cost { wall, cpu: cpu(UsageWho::RUSAGE_CHILDREN)? - before })
}

/// Bytes that a folder takes.
fn size(folder: &Path) -> anyhow::Result<u64> {
    let output = Command::new("du").args(["-sb", "--apparent-size"]).arg(folder).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().next().context("a size")?.parse()?)
}

/// Who keeps images.
enum Keeper {
    Repository { chunk_kib: u64 },
    Restic,
    Borg,
}

impl Keeper {
    fn name(&self) -> String {
        match self {
            Self::Repository { chunk_kib } => format!("repository, {chunk_kib} KiB"),
            Self::Restic => "restic".to_owned(),
            Self::Borg => "borg".to_owned(),
        }
    }

    fn command(&self, folder: &Path, scratch: &Path) -> anyhow::Result<Command> {
        let mut command = match self {
            Self::Repository { .. } => Command::new(std::env::current_exe()?),
            Self::Restic => Command::new("restic"),
            Self::Borg => Command::new("borg"),
        };
        command
            .env("RESTIC_PASSWORD", "secret")
            .env("RESTIC_REPOSITORY", folder)
            .env("RESTIC_CACHE_DIR", scratch.join("restic-cache"));
        command.env("BORG_REPO", folder).env("BORG_BASE_DIR", scratch.join("borg-base"));
        command.env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes").env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes");
        Ok(command)
    }

    fn make(&self, folder: &Path, scratch: &Path) -> anyhow::Result<()> {
        std::fs::create_dir(folder)?;
        let mut command = self.command(folder, scratch)?;
        match self {
            Self::Repository { .. } => return Ok(()),
            Self::Restic => command.args(["init", "--repository-version", "2"]),
            Self::Borg => command.args(["init", "--encryption", "none"]),
        };
        measure(&mut command).map(drop)
    }

    /// Keeps an image; with a base, the repository is told what changed since, as the host tells it.
    fn keep(
        &self,
        folder: &Path,
        scratch: &Path,
        id: &str,
        image: &Path,
        base: Option<(&str, &Path)>,
    ) -> anyhow::Result<Cost> {
        let mut command = self.command(folder, scratch)?;
        match self {
            Self::Repository { chunk_kib } => {
                command.arg("write").arg(folder).arg(image).arg(id).arg(chunk_kib.to_string());
                if let Some((base, image)) = base {
                    command.arg(base).arg(image);
                }
                &mut command
            }
            Self::Restic => command.args(["backup", "--force", "--compression", "auto"]).arg(image),
            Self::Borg => command
                .args(["create", "--compression", "zstd,3", "--files-cache", "disabled"])
                .arg(format!("::{id}"))
                .arg(image),
        };
        measure(&mut command)
    }

    fn restore(&self, folder: &Path, scratch: &Path, id: &str, image: &Path) -> anyhow::Result<Cost> {
        let out = scratch.join("restored");
        std::fs::create_dir(&out)?;
        let mut command = self.command(folder, scratch)?;
        match self {
            Self::Repository { chunk_kib } => {
                command.arg("read").arg(folder).arg(out.join("disk")).arg(id).arg(chunk_kib.to_string())
            }
            Self::Restic => command.args(["restore", "latest", "--target"]).arg(&out).arg("--include").arg(image),
            Self::Borg => command.current_dir(&out).args(["extract", "--sparse"]).arg(format!("::{id}")),
        };
        let cost = measure(&mut command)?;
        let restored = match self {
            Self::Repository { .. } => out.join("disk"),
            _ => out.join(image.strip_prefix("/")?),
        };
        let same = Command::new("cmp").arg(&restored).arg(image).status()?;
        ensure!(same.success(), "{} restored something else", self.name());
        std::fs::remove_dir_all(&out)?;
        Ok(cost)
    }
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().act {
        Act::Run { mib, scratch, chunks } => run(mib, &scratch, &chunks),
        Act::S3 { mib, rounds, scratch, chunks } => {
            tokio::runtime::Runtime::new()?.block_on(s3::run(mib, rounds, &scratch, &chunks))
        }
        Act::Write { folder, image, id, chunk_kib, base, base_image } => {
            let base = base.as_deref().zip(base_image.as_deref());
            disk::write(&folder, &image, &id, chunk_kib, base)
        }
        Act::Read { folder, image, id, chunk_kib } => disk::read(&folder, &image, &id, chunk_kib),
    }
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn run(mib: u64, scratch: &Path, chunks: &[u64]) -> anyhow::Result<()> {
    const CLONES: usize = 10;
    let scratch = tempfile::tempdir_in(scratch)?;
    let scratch = scratch.path();
    let first = scratch.join("first.img");
    let changed = scratch.join("changed.img");
    image::make(&first, mib)?;
    image::change(&first, &changed, 50)?;
    let clones = (0..CLONES).map(|number| {
        let clone = scratch.join(format!("clone-{number}.img"));
        image::change(&first, &clone, 500 + number as u64)?;
        Ok(clone)
    });
    let clones = clones.collect::<anyhow::Result<Vec<_>>>()?;

    println!(
        "{mib} MiB, two fifths of it zero; changed: one chunk of 64 KiB in 50; clones: one in 500 or so, full copies\n"
    );
    println!("| | first copy | changed | the same again | ten clones | restored | size: first | changed | clones |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let keepers = chunks.iter().map(|chunk_kib| Keeper::Repository { chunk_kib: *chunk_kib });
    for keeper in keepers.chain([Keeper::Restic, Keeper::Borg]) {
        let folder = scratch.join("kept");
        keeper.make(&folder, scratch)?;
        let one = keeper.keep(&folder, scratch, "one", &first, None)?;
        let size_one = size(&folder)?;
        let two = keeper.keep(&folder, scratch, "two", &changed, Some(("one", &first)))?;
        let size_two = size(&folder)?;
        let again = keeper.keep(&folder, scratch, "again", &first, None)?;
        let restored = keeper.restore(&folder, scratch, "again", &first)?;
        let size_again = size(&folder)?;
        let mut ten = Cost { wall: 0.0, cpu: 0.0 };
        for (number, clone) in clones.iter().enumerate() {
            let Cost { wall, cpu } = keeper.keep(&folder, scratch, &format!("clone-{number}"), clone, None)?;
            ten = Cost { wall: ten.wall + wall, cpu: ten.cpu + cpu };
        }
        let size_clones = size(&folder)?;
        let told = |cost: &Cost| format!("{:.2} s, CPU {:.2} s", cost.wall, cost.cpu);
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | +{} | +{} |",
            keeper.name(),
            told(&one),
            told(&two),
            told(&again),
            told(&ten),
            told(&restored),
            mib(size_one),
            mib(size_two - size_one),
            mib(size_clones - size_again)
        );
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}
