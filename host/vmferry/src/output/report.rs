//! Reports, plans and recovery points as tables.

use super::table::{Align, Table};
use super::units::{Seconds, Size};
use crate::problem::Problem;
use vmferry_model::plan::{ExpectedFrom, JobPlan};
use vmferry_model::report::{RunReport, TargetReport, VmReport};

/// The first eight characters of a uuid: enough to tell objects of one screen apart.
pub fn short(uuid: &str) -> &str {
    uuid.get(..8).unwrap_or(uuid)
}

/// A finished run: a row per disk, then how it ended.
pub fn run(report: &RunReport) -> String {
    let mut table = Table::new(&[
        ("VM", Align::Left),
        ("target", Align::Left),
        ("disk", Align::Left),
        ("kind", Align::Left),
        ("changed", Align::Right),
        ("sent", Align::Right),
        ("time", Align::Right),
        ("outcome", Align::Left),
        ("reason", Align::Left),
    ]);
    for (vm, target) in targets(report) {
        for disk in &target.disks {
            table.row([
                vm.name.clone(),
                target.target.clone(),
                short(&disk.disk).to_owned(),
                disk.kind.to_string(),
                Size(disk.changed_bytes).to_string(),
                Size(disk.bytes_sent).to_string(),
                Seconds(disk.seconds).to_string(),
                target.outcome.to_string(),
                disk.reason.clone(),
            ]);
        }
    }
    let table = if table.is_empty() { String::new() } else { table.to_string() };
    format!("{table}{}\n", summary(report))
}

/// How a run ended, in one line.
pub fn summary(report: &RunReport) -> String {
    let took = Seconds(report.ended_at.duration_since(report.started_at).as_secs_f64());
    let points = targets(report).filter(|(_, target)| target.recovery_point.is_some()).count();
    let pruned: usize = targets(report).map(|(_, target)| target.pruned.len()).sum();
    let sent: u64 = targets(report).flat_map(|(_, target)| &target.disks).map(|disk| disk.bytes_sent).sum();
    format!(
        "job {}: {} in {took}, {} sent, new recovery points: {points}, pruned: {pruned}",
        report.job,
        report.outcome,
        Size(sent)
    )
}

/// What went wrong in a run, and what is worth knowing.
pub fn problems(report: &RunReport) -> (Vec<Problem>, Vec<Problem>) {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let mut note = |place: String, error: Option<&String>, warned: &[String]| {
        errors.extend(error.map(|error| Problem::new(error).at(&place)));
        warnings.extend(warned.iter().map(|warning| Problem::new(warning).at(&place)));
    };
    let job = format!("job {}", report.job);
    note(job.clone(), report.error.as_ref(), &report.warnings);
    for vm in &report.vms {
        let place = format!("{job}, {}", vm_label(&vm.name, &vm.vm));
        note(place.clone(), vm.error.as_ref(), &vm.warnings);
        for target in &vm.targets {
            note(format!("{place}, target {}", target.target), target.error.as_ref(), &target.warnings);
        }
    }
    (errors, warnings)
}

/// A VM that was not found has a uuid and no name.
fn vm_label(name: &str, uuid: &str) -> String {
    if name.is_empty() { format!("VM {uuid}") } else { format!("VM {name} ({uuid})") }
}

fn targets(report: &RunReport) -> impl Iterator<Item = (&VmReport, &TargetReport)> {
    report.vms.iter().flat_map(|vm| vm.targets.iter().map(move |target| (vm, target)))
}

/// What a run would do: a row per disk.
pub fn plan(plan: &JobPlan) -> String {
    let mut table = Table::new(&[
        ("VM", Align::Left),
        ("target", Align::Left),
        ("disk", Align::Left),
        ("kind", Align::Left),
        ("expected", Align::Right),
        ("known from", Align::Left),
        ("reason", Align::Left),
    ]);
    for vm in &plan.vms {
        for target in &vm.targets {
            for disk in &target.disks {
                table.row([
                    vm.name.clone(),
                    target.target.clone(),
                    short(&disk.disk).to_owned(),
                    disk.kind.to_string(),
                    Size(disk.expected_bytes).to_string(),
                    known_from(disk.expected_from).to_owned(),
                    disk.reason.clone(),
                ]);
            }
        }
    }
    if table.is_empty() { format!("job {}: nothing to send\n", plan.job) } else { table.to_string() }
}

/// What would stop the run.
pub fn plan_problems(plan: &JobPlan) -> Vec<Problem> {
    let mut problems = Vec::new();
    for vm in &plan.vms {
        let place = format!("job {}, {}", plan.job, vm_label(&vm.name, &vm.vm));
        problems.extend(vm.error.as_ref().map(|error| Problem::new(error).at(&place)));
        for target in &vm.targets {
            let place = format!("{place}, target {}", target.target);
            problems.extend(target.obstacles.iter().map(|obstacle| Problem::new(obstacle).at(&place)));
        }
    }
    problems
}

/// What will matter later.
pub fn plan_warnings(plan: &JobPlan) -> Vec<Problem> {
    let targets = plan.vms.iter().flat_map(|vm| vm.targets.iter().map(move |target| (vm, target)));
    targets
        .flat_map(|(vm, target)| {
            let place = format!("job {}, {}, target {}", plan.job, vm_label(&vm.name, &vm.vm), target.target);
            target.warnings.iter().map(move |warning| Problem::new(warning).at(&place))
        })
        .collect()
}

fn known_from(from: ExpectedFrom) -> &'static str {
    match from {
        ExpectedFrom::History => "earlier deltas",
        ExpectedFrom::PhysicalUtilisation => "space in use",
        ExpectedFrom::Full => "disk size",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use jiff::{SignedDuration, Timestamp};
    use vmferry_model::plan::{DiskPlan, Kind, TargetPlan, VmPlan};
    use vmferry_model::report::{DiskReport, Outcome};

    const VM: &str = "11111111-0000-4000-8000-000000000001";
    const DISK: &str = "22222222-0000-4000-8000-000000000002";

    fn disk(kind: Kind, reason: &str, changed: u64) -> DiskReport {
        DiskReport {
            disk: DISK.to_owned(),
            kind,
            reason: reason.to_owned(),
            full_reason: None,
            base: None,
            engine: "lockstep".to_owned(),
            source: "export".to_owned(),
            encoding: "vhd".to_owned(),
            notes: Vec::new(),
            bytes_read: changed + 4096,
            bytes_sent: changed + 4096,
            changed_bytes: changed,
            digest: None,
            seconds: 0.75,
        }
    }

    fn target(name: &str, outcome: Outcome, disks: Vec<DiskReport>) -> TargetReport {
        TargetReport {
            target: name.to_owned(),
            sr: None,
            replica: None,
            recovery_point: (outcome == Outcome::Succeeded).then(|| "point".to_owned()),
            outcome,
            error: (outcome == Outcome::Failed).then(|| "SR full; free some space".to_owned()),
            pruned: Vec::new(),
            warnings: Vec::new(),
            disks,
        }
    }

    fn report(outcome: Outcome, targets: Vec<TargetReport>) -> RunReport {
        let vm = VmReport {
            vm: VM.to_owned(),
            name: "web".to_owned(),
            outcome,
            error: None,
            locked: false,
            warnings: vec!["a tag was lost".to_owned()],
            targets,
        };
        RunReport {
            job: "erp".to_owned(),
            run: "run-1".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            ended_at: Timestamp::UNIX_EPOCH + SignedDuration::from_millis(2500),
            outcome,
            error: None,
            warnings: Vec::new(),
            vms: vec![vm],
        }
    }

    #[test]
    fn a_run_is_a_row_per_disk_and_its_summary() {
        let report = report(
            Outcome::Partial,
            vec![
                target("dr", Outcome::Succeeded, vec![disk(Kind::Delta, "shared base", 2 << 20)]),
                target("cloud", Outcome::Failed, vec![disk(Kind::Full, "first run", 64 << 20)]),
            ],
        );
        expect![[r#"
            VM   target  disk      kind    changed      sent    time  outcome    reason
            web  dr      22222222  delta  2.00 MiB  2.00 MiB  750 ms  succeeded  shared base
            web  cloud   22222222  full   64.0 MiB  64.0 MiB  750 ms  failed     first run
            job erp: partial in 2.5 s, 66.0 MiB sent, new recovery points: 1, pruned: 0
        "#]]
        .assert_eq(&run(&report));
        let (errors, warnings) = problems(&report);
        let lines: Vec<_> = errors.iter().chain(&warnings).map(ToString::to_string).collect();
        expect![[r#"
            error: SR full; free some space
              where: job erp, VM web (11111111-0000-4000-8000-000000000001), target cloud
            error: a tag was lost
              where: job erp, VM web (11111111-0000-4000-8000-000000000001)"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_run_that_sent_nothing_is_its_summary() {
        expect![[r#"
            job erp: skipped in 2.5 s, 0 B sent, new recovery points: 0, pruned: 0
        "#]]
        .assert_eq(&run(&report(Outcome::Skipped, Vec::new())));
    }

    #[test]
    fn a_plan_is_a_row_per_disk_and_its_obstacles() {
        let disk = DiskPlan {
            disk: DISK.to_owned(),
            kind: Kind::Full,
            base: None,
            reason: "first run".to_owned(),
            full_reason: None,
            expected_bytes: 1 << 30,
            expected_from: ExpectedFrom::PhysicalUtilisation,
        };
        let target = TargetPlan {
            target: "dr".to_owned(),
            sr: None,
            replica: None,
            obstacles: vec!["the SR is full; free some space".to_owned()],
            warnings: Vec::new(),
            disks: vec![disk],
        };
        let vm = VmPlan { vm: VM.to_owned(), name: "web".to_owned(), error: None, targets: vec![target] };
        let job = JobPlan { job: "erp".to_owned(), vms: vec![vm] };
        expect![[r#"
            VM   target  disk      kind  expected  known from    reason
            web  dr      22222222  full  1.00 GiB  space in use  first run
        "#]]
        .assert_eq(&plan(&job));
        let lines: Vec<_> = plan_problems(&job).iter().map(ToString::to_string).collect();
        expect![[r#"
            error: the SR is full; free some space
              where: job erp, VM web (11111111-0000-4000-8000-000000000001), target dr"#]]
        .assert_eq(&lines.join("\n"));
    }
}
