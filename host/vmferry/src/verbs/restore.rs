//! `vmferry restore`: a VM, or files, of a recovery point; a VM of an XVA.

use super::{Workplace, engine_failure, failure_at, print};
use crate::cli::{FileFormat, RestoreArgs};
use crate::compose::TENANT;
use crate::exit::Exit;
use crate::output::progress::Screen;
use crate::output::units::Size;
use crate::problem::{Failure, Problem};
use std::fmt::Write as _;
use vmferry_engine::{ImageFormat, RestoreReport, RestoreRequest, RestoreTo, RestoredDisk, XvaRequest};

pub(super) async fn restore(at: &Workplace, arguments: RestoreArgs, screen: &Screen) -> Result<Exit, Failure> {
    let (report, text): (_, fn(&RestoreReport) -> String) = match arguments.xva {
        Some(_) => (of_xva(at, arguments, screen).await?, text_of_xva),
        None => (of_point(at, arguments, screen).await?, text),
    };
    for warning in &report.warnings {
        screen.line(Problem::new(warning.as_str()).as_warning());
    }
    print(at.form, &report, text)?;
    Ok(Exit::Done)
}

async fn of_point(at: &Workplace, arguments: RestoreArgs, screen: &Screen) -> Result<RestoreReport, Failure> {
    let RestoreArgs { job, vm, point, target, .. } = &arguments;
    let (Some(name), Some(vm)) = (job, vm) else {
        return Err(Failure::usage(Problem::new("a recovery point is of a job and a VM")));
    };
    let (job, vm, point, target) = (at.job(name).await?, vm.clone(), point.clone(), target.clone());
    let request = RestoreRequest { vm, point, target, to: place(arguments, &job.select.pool)? };
    let report = at.close(at.engine.restore(&job, &request, screen.progress()).await).await;
    report.map_err(|error| engine_failure(&error, &job.name))
}

async fn of_xva(at: &Workplace, arguments: RestoreArgs, screen: &Screen) -> Result<RestoreReport, Failure> {
    let RestoreArgs { xva: Some(file), to_pool: Some(pool), sr, name, network, .. } = arguments else {
        return Err(Failure::usage(Problem::new("an XVA becomes a VM on a pool").remedy("name it with --to-pool")));
    };
    let tenant = TENANT.to_owned();
    let request = XvaRequest { file, tenant, pool, sr, networks: network.into_iter().collect(), name };
    let report = at.close(at.engine.restore_xva(&request, screen.progress()).await).await;
    report.map_err(|error| failure_at(&error, format!("pool {}", request.pool)))
}

/// Where to; `pool` is the job's own. The command line asks for one place.
fn place(arguments: RestoreArgs, pool: &str) -> Result<RestoreTo, Failure> {
    let RestoreArgs { to_pool, sr, name, network, onto, on_pool, to_files, to_file, format, .. } = arguments;
    let refused = |what: &str, remedy: &str| Err(Failure::usage(Problem::new(what).remedy(remedy)));
    Ok(match (to_pool, onto, to_files, to_file) {
        (Some(pool), ..) => RestoreTo::NewVm { pool, sr, networks: network.into_iter().collect(), name },
        (_, Some(vm), ..) => RestoreTo::Onto { pool: on_pool.unwrap_or_else(|| pool.to_owned()), vm },
        (_, _, Some(folder), _) => match format.unwrap_or(FileFormat::Raw) {
            FileFormat::Raw => RestoreTo::Files { folder, format: ImageFormat::Raw },
            FileFormat::Qcow2 => RestoreTo::Files { folder, format: ImageFormat::Qcow2 },
            FileFormat::Xva => {
                return refused("an XVA is one file, and not one for each disk", "name it with --to-file");
            }
        },
        (.., Some(file)) => match format.unwrap_or(FileFormat::Xva) {
            FileFormat::Xva => RestoreTo::Xva { file },
            FileFormat::Raw | FileFormat::Qcow2 => {
                return refused("raw and qcow2 are a file for each disk", "name a folder for them with --to-files");
            }
        },
        (None, None, None, None) => return refused("nowhere to restore to", "name a place, as `--help` lists them"),
    })
}

fn text(report: &RestoreReport) -> String {
    let RestoreReport { point, target, taken_at, restored, safety_snapshot, disks, .. } = report;
    let what = restored.as_ref().map_or_else(|| "files".to_owned(), |vm| format!("VM {vm}"));
    let mut text = format!("{what}: recovery point {point} of {taken_at}, from target {target}\n");
    text.extend(disks.iter().map(|disk| of_disk(disk, "its digest was not kept")));
    if let Some(snapshot) = safety_snapshot {
        let _ = writeln!(text, "  what it was before is snapshot {snapshot}");
    }
    text
}

fn text_of_xva(RestoreReport { target, restored, disks, .. }: &RestoreReport) -> String {
    let mut text = format!("VM {}: from {target}\n", restored.as_deref().unwrap_or_default());
    text.extend(disks.iter().map(|disk| of_disk(disk, "all checksums are right")));
    text
}

fn of_disk(disk: &RestoredDisk, unproven: &str) -> String {
    let proof = if disk.proven { "equal to its source by digest" } else { unproven };
    format!("  {} -> {}: {} written, {proof}\n", disk.name, disk.to, Size(disk.bytes_written))
}
