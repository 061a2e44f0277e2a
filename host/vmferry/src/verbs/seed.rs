//! `vmferry seed`: begin with a copy that somebody brought.

use super::{Workplace, engine_failure, print};
use crate::cli::SeedAdopt;
use crate::exit::Exit;
use crate::output::progress::Screen;
use crate::output::units::Size;
use crate::problem::Failure;
use std::fmt::Write as _;
use vmferry_engine::{SeedReport, SeedRequest};

pub(super) async fn adopt(at: &Workplace, arguments: &SeedAdopt, screen: &Screen) -> Result<Exit, Failure> {
    let job = at.job(&arguments.job)?;
    let request = SeedRequest {
        snapshot: arguments.snapshot.clone(),
        copy: arguments.copy.clone(),
        target: arguments.target.clone(),
    };
    let progress = screen.progress();
    let report = at.close(at.engine.adopt_seed(&job, &request, progress.as_ref()).await).await;
    let report = report.map_err(|error| engine_failure(&error, &job.name))?;
    print(at.form, &report, text)?;
    Ok(Exit::Done)
}

fn text(report: &SeedReport) -> String {
    let SeedReport { vm, target, replica, point, taken_at, disks } = report;
    let mut text = format!(
        "VM {replica} is the replica of VM {vm} on target {target}, with recovery point {point} of {taken_at}\n"
    );
    for disk in disks {
        let what = match disk.different_bytes {
            0 => "equal".to_owned(),
            bytes => format!("{} differ, the next run sends them", Size(bytes)),
        };
        let _ = writeln!(text, "  disk {} (copy {}): {what}", disk.disk, disk.copy);
    }
    text
}
