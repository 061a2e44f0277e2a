//! `vmferry points`: what could be restored.

use super::{Workplace, engine_failure, print};
use crate::cli::HeldPoint;
use crate::exit::Exit;
use crate::output::progress::Screen;
use crate::output::report::short;
use crate::output::table::{Align, Table};
use crate::problem::{Failure, Problem};
use serde::Serialize;
use vmferry_engine::{PointSummary, PointsReport, TargetProblem};

/// What `points list --json` prints.
#[derive(Serialize)]
struct Listing {
    jobs: Vec<JobPoints>,
}

#[derive(Serialize)]
struct JobPoints {
    job: String,
    #[serde(flatten)]
    points: PointsReport,
}

pub(super) async fn list(at: &Workplace, only: Option<&str>, screen: &Screen) -> Result<Exit, Failure> {
    let names = match only {
        Some(name) => vec![name.to_owned()],
        None => at.config.jobs.keys().cloned().collect(),
    };
    let listing = at.close(collect(at, names).await).await?;
    for JobPoints { job, points } in &listing.jobs {
        points.problems.iter().for_each(|problem| screen.line(unheard(job, problem)));
    }
    print(at.form, &listing, table)?;
    let all = listing.jobs.iter().all(|job| job.points.problems.is_empty());
    Ok(if all { Exit::Done } else { Exit::Partial })
}

/// What an operator has to know of a target that did not answer.
pub(super) fn unheard(job: &str, problem: &TargetProblem) -> Problem {
    Problem::new(format!("it did not answer: {}", problem.error))
        .at(format!("job {job}, target {}", problem.target))
        .remedy("what the other targets hold is told; ask again when it is back")
}

async fn collect(at: &Workplace, names: Vec<String>) -> Result<Listing, Failure> {
    let mut jobs = Vec::new();
    for name in names {
        let job = at.job(&name).await?;
        let points = at.engine.points(&job, None).await.map_err(|error| engine_failure(&error, &name))?;
        jobs.push(JobPoints { job: name, points });
    }
    Ok(Listing { jobs })
}

pub(super) async fn hold(at: &Workplace, what: &HeldPoint, held: bool) -> Result<Exit, Failure> {
    let job = at.job(&what.job).await?;
    let targets = at.close(at.engine.hold_point(&job, &what.point, what.target.as_deref(), held).await).await;
    let targets = targets.map_err(|error| engine_failure(&error, &job.name))?;
    let done = serde_json::json!({ "point": what.point, "held": held, "targets": targets });
    print(at.form, &done, |_| {
        let word = if held { "held" } else { "left to retention" };
        format!("recovery point {} is {word} on {}\n", what.point, targets.join(", "))
    })?;
    Ok(Exit::Done)
}

fn table(listing: &Listing) -> String {
    let mut table = Table::new(&[
        ("job", Align::Left),
        ("VM", Align::Left),
        ("replica", Align::Left),
        ("target", Align::Left),
        ("state", Align::Left),
        ("point", Align::Left),
        ("taken at", Align::Left),
        ("disks", Align::Right),
        ("by", Align::Left),
        ("", Align::Left),
    ]);
    for job in &listing.jobs {
        for replica in &job.points.replicas {
            for point in &replica.points {
                table.row([
                    job.job.clone(),
                    short(&replica.vm).to_owned(),
                    replica.name.clone(),
                    replica.target.clone(),
                    replica.state.to_string(),
                    point.id.clone(),
                    point.taken_at.to_string(),
                    point.disks.to_string(),
                    point.origin.clone(),
                    remarks(point),
                ]);
            }
        }
    }
    if table.is_empty() { "no recovery points\n".to_owned() } else { table.to_string() }
}

/// What else there is to know of a point.
fn remarks(point: &PointSummary) -> String {
    let memory = point.memory.then_some("memory");
    let fate = if point.damaged { Some("damaged") } else { point.held.then_some("held") };
    memory.into_iter().chain(fate).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use vmferry_engine::{ReplicaPoints, ReplicaState};

    #[test]
    fn a_listing_is_a_row_per_point() {
        let point = |n: i64, held| PointSummary {
            id: format!("{n}{n}{n}{n}{n}{n}{n}{n}-0000-4000-8000-000000000000"),
            taken_at: jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(n),
            source_snapshot: "snapshot".to_owned(),
            held,
            damaged: false,
            origin: "vmferry".to_owned(),
            disks: 2,
            memory: held,
        };
        let replica = ReplicaPoints {
            vm: "99999999-0000-4000-8000-000000000000".to_owned(),
            name: "web (replica)".to_owned(),
            target: "dr".to_owned(),
            replica: Some("88888888-0000-4000-8000-000000000000".to_owned()),
            state: ReplicaState::FailedOver,
            points: vec![point(2, false), point(1, true)],
        };
        let points = PointsReport { replicas: vec![replica], problems: Vec::new() };
        let listing = Listing { jobs: vec![JobPoints { job: "erp".to_owned(), points }] };
        expect![[r#"
            job  VM        replica        target  state        point                                 taken at              disks  by
            erp  99999999  web (replica)  dr      failed over  22222222-0000-4000-8000-000000000000  1970-01-01T02:00:00Z      2  vmferry
            erp  99999999  web (replica)  dr      failed over  11111111-0000-4000-8000-000000000000  1970-01-01T01:00:00Z      2  vmferry  memory, held
        "#]].assert_eq(&table(&listing));
        assert_eq!(table(&Listing { jobs: Vec::new() }), "no recovery points\n");
    }
}
