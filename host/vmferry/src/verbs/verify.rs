//! `vmferry verify`: are the replicas what was sent?

use super::points::unheard;
use super::{Workplace, engine_failure, print};
use crate::cli::Verify;
use crate::exit::Exit;
use crate::output::progress::Screen;
use crate::output::report::short;
use crate::output::table::{Align, Table};
use crate::output::units::Size;
use crate::problem::{Failure, Problem};
use vmferry_engine::{Verdict, VerifiedReplica, VerifyOptions, VerifyReport};

pub(super) async fn verify(at: &Workplace, arguments: &Verify, screen: &Screen) -> Result<Exit, Failure> {
    let job = at.job(&arguments.what.job).await?;
    let options = VerifyOptions { only: arguments.what.vm.clone(), deep: arguments.deep };
    let progress = screen.progress();
    let report = at.close(at.engine.verify(&job, &options, progress.as_ref()).await).await;
    let report = report.map_err(|error| engine_failure(&error, &job.name))?;
    for replica in &report.replicas {
        if let Some(problem) = problem(&job.name, replica) {
            screen.line(problem);
        }
    }
    report.problems.iter().for_each(|problem| screen.line(unheard(&job.name, problem)));
    print(at.form, &report, table)?;
    Ok(exit(&report))
}

fn exit(report: &VerifyReport) -> Exit {
    let good = |replica: &VerifiedReplica| matches!(replica.verdict, Verdict::Intact | Verdict::Untouched);
    match report.replicas.iter().filter(|replica| good(replica)).count() {
        all if all == report.replicas.len() && report.problems.is_empty() => Exit::Done,
        0 => Exit::Failed,
        _ => Exit::Partial,
    }
}

/// What an operator has to know and do about a replica.
fn problem(job: &str, replica: &VerifiedReplica) -> Option<Problem> {
    let place = match &replica.replica {
        Some(uuid) => format!("job {job}, replica {} ({uuid}), target {}", replica.name, replica.target),
        None => format!("job {job}, VM {} ({}), target {}", replica.name, replica.vm, replica.target),
    };
    let point = &replica.point;
    let (what, remedy) = match replica.verdict {
        Verdict::Intact | Verdict::Untouched => return None,
        Verdict::Damaged => {
            (format!("recovery point {point} is damaged"), "the next run mends it; until then, older points stand")
        }
        Verdict::Changed => (
            "somebody used the replica since its newest recovery point".to_owned(),
            "its points are as they were; the next run goes on beside it",
        ),
        Verdict::Unknown => {
            (format!("recovery point {point} could not be checked"), "see the reason of each disk, then verify again")
        }
    };
    let what = replica.error.as_ref().map_or(what.clone(), |why| format!("{what}: {why}"));
    Some(Problem::new(what).at(place).remedy(remedy))
}

fn table(report: &VerifyReport) -> String {
    let mut table = Table::new(&[
        ("replica", Align::Left),
        ("target", Align::Left),
        ("point", Align::Left),
        ("taken at", Align::Left),
        ("disk", Align::Left),
        ("verdict", Align::Left),
        ("different", Align::Right),
        ("first at byte", Align::Right),
        ("reason", Align::Left),
    ]);
    for replica in &report.replicas {
        let common = [
            replica.name.clone(),
            replica.target.clone(),
            short(&replica.point).to_owned(),
            replica.taken_at.to_string(),
        ];
        if replica.disks.is_empty() {
            let reason = replica.error.clone().unwrap_or_default();
            let rest = [String::new(), replica.verdict.to_string(), String::new(), String::new(), reason];
            table.row(common.iter().cloned().chain(rest));
        }
        for disk in &replica.disks {
            let rest = [
                short(&disk.disk).to_owned(),
                disk.verdict.to_string(),
                disk.different_bytes.map_or_else(|| "?".to_owned(), |bytes| Size(bytes).to_string()),
                disk.differences.first().map_or_else(String::new, |first| first.offset.to_string()),
                disk.reason.clone(),
            ];
            table.row(common.iter().cloned().chain(rest));
        }
    }
    if table.is_empty() { format!("job {}: no replicas\n", report.job) } else { table.to_string() }
}
