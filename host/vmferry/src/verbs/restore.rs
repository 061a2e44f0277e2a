//! `vmferry restore`: a VM, or files, of a recovery point.

use super::{Workplace, engine_failure, print};
use crate::cli::{FileFormat, RestoreArgs};
use crate::exit::Exit;
use crate::output::progress::Screen;
use crate::output::units::Size;
use crate::problem::{Failure, Problem};
use std::fmt::Write as _;
use vmferry_engine::{ImageFormat, RestoreReport, RestoreRequest, RestoreTo};

pub(super) async fn restore(at: &Workplace, arguments: RestoreArgs, screen: &Screen) -> Result<Exit, Failure> {
    let job = at.job(&arguments.job).await?;
    let RestoreArgs { vm, point, target, to_pool, sr, name, network, onto, on_pool, to_files, format, .. } = arguments;
    let to = match (to_pool, onto, to_files) {
        (Some(pool), ..) => RestoreTo::NewVm { pool, sr, networks: network.into_iter().collect(), name },
        (None, Some(vm), _) => RestoreTo::Onto { pool: on_pool.unwrap_or_else(|| job.select.pool.clone()), vm },
        (None, None, Some(folder)) => RestoreTo::Files { folder, format: image_format(format) },
        // The command line asks for one of the three.
        (None, None, None) => return Err(Failure::usage(Problem::new("nowhere to restore to"))),
    };
    let request = RestoreRequest { vm, point, target, to };
    let report = at.close(at.engine.restore(&job, &request, screen.progress()).await).await;
    let report = report.map_err(|error| engine_failure(&error, &job.name))?;
    for warning in &report.warnings {
        screen.line(Problem::new(warning.as_str()).as_warning());
    }
    print(at.form, &report, text)?;
    Ok(Exit::Done)
}

fn image_format(format: FileFormat) -> ImageFormat {
    match format {
        FileFormat::Raw => ImageFormat::Raw,
        FileFormat::Qcow2 => ImageFormat::Qcow2,
    }
}

fn text(report: &RestoreReport) -> String {
    let RestoreReport { point, target, taken_at, restored, safety_snapshot, disks, .. } = report;
    let what = restored.as_ref().map_or_else(|| "files".to_owned(), |vm| format!("VM {vm}"));
    let mut text = format!("{what}: recovery point {point} of {taken_at}, from target {target}\n");
    for disk in disks {
        let proof = if disk.proven { "equal to its source by digest" } else { "its digest was not kept" };
        let _ = writeln!(text, "  {} -> {}: {} written, {proof}", disk.name, disk.to, Size(disk.bytes_written));
    }
    if let Some(snapshot) = safety_snapshot {
        let _ = writeln!(text, "  what it was before is snapshot {snapshot}");
    }
    text
}
