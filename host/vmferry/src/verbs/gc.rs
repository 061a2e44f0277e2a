//! `vmferry gc`: what did runs leave behind, and what of it is garbage?

use super::{Workplace, engine_failure, print};
use crate::cli::Gc;
use crate::exit::Exit;
use crate::output::say;
use crate::output::table::{Align, Table};
use crate::problem::{Failure, Problem};
use vmferry_engine::{Fate, Finding, GcAct, GcOptions, GcProblem, GcReport};

pub(super) async fn gc(at: &Workplace, arguments: &Gc) -> Result<Exit, Failure> {
    let job = at.job(&arguments.what.job).await?;
    let options = GcOptions { only: arguments.what.vm.clone(), apply: arguments.apply };
    let report = at.close(at.engine.gc(&job, &options).await).await;
    let report = report.map_err(|error| engine_failure(&error, &job.name))?;
    for problem in &report.problems {
        say(told(&report.job, problem));
    }
    print(at.form, &report, text)?;
    Ok(exit(&report))
}

/// Looking is done when both sides answered; a lease that somebody holds is one of the things it tells.
fn exit(report: &GcReport) -> Exit {
    let done = report.count(Fate::Done) > 0 || !report.apply;
    match report.problems.is_empty() && report.count(Fate::Left) == 0 {
        true => Exit::Done,
        false if done => Exit::Partial,
        false if report.problems.iter().any(|problem| problem.locked) => Exit::Locked,
        false => Exit::Failed,
    }
}

fn told(job: &str, problem: &GcProblem) -> Problem {
    let vm = problem.vm.as_ref().map(|vm| format!(", VM {vm}")).unwrap_or_default();
    let target = problem.target.as_ref().map(|target| format!(", target {target}")).unwrap_or_default();
    let remedy = "what could not be known or done is left as it is; call it again when that is over";
    Problem::new(&problem.error).at(format!("job {job}{vm}{target}")).remedy(remedy)
}

fn text(report: &GcReport) -> String {
    if report.findings.is_empty() {
        return format!("job {}: nothing is left over\n", report.job);
    }
    let mut table = Table::new(&[
        ("", Align::Left),
        ("pool", Align::Left),
        ("class", Align::Left),
        ("uuid", Align::Left),
        ("name", Align::Left),
        ("what", Align::Left),
        ("why", Align::Left),
    ]);
    for finding in &report.findings {
        table.row([
            verdict(finding).to_owned(),
            finding.pool.clone(),
            finding.class.clone(),
            finding.uuid.clone(),
            finding.name.clone(),
            finding.kind.explain().to_owned(),
            finding.why.clone(),
        ]);
    }
    format!("{table}{}\n", summary(report))
}

fn verdict(finding: &Finding) -> &'static str {
    match (finding.act, finding.fate) {
        (GcAct::Keep, _) => "keep",
        (GcAct::Remove, Fate::Found) => "remove",
        (GcAct::Remove, Fate::Done) => "removed",
        (GcAct::PutRight, Fate::Found) => "put right",
        (GcAct::PutRight, Fate::Done) => "is right",
        (_, Fate::Left) => "left",
    }
}

fn summary(report: &GcReport) -> String {
    let kept = report.findings.iter().filter(|finding| finding.act == GcAct::Keep).count();
    let to_do = report.findings.len() - kept;
    match report.apply {
        true => format!(
            "job {}: {} put right, {} left, {kept} kept",
            report.job,
            report.count(Fate::Done),
            report.count(Fate::Left)
        ),
        false if to_do == 0 => format!("job {}: nothing to put right, {kept} kept", report.job),
        false => format!("job {}: {to_do} to put right with --apply, {kept} kept", report.job),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use vmferry_engine::FindingKind;

    fn finding(kind: FindingKind, act: GcAct, fate: Fate) -> Finding {
        Finding {
            pool: "dr".to_owned(),
            class: "VDI".to_owned(),
            uuid: "22222222-0000-4000-8000-000000000002".to_owned(),
            name: "[Importing] system".to_owned(),
            vm: None,
            kind,
            why: "no VM uses it".to_owned(),
            act,
            fate,
        }
    }

    fn report(apply: bool, findings: Vec<Finding>, locked: Option<bool>) -> GcReport {
        let problem = |locked| GcProblem { vm: None, target: None, error: "no".to_owned(), locked };
        GcReport { job: "erp".to_owned(), apply, findings, problems: locked.map(problem).into_iter().collect() }
    }

    #[test]
    fn findings_are_a_row_each_and_a_summary() {
        let garbage = finding(FindingKind::UnfinishedDisk, GcAct::Remove, Fate::Found);
        let copy = finding(FindingKind::Copy, GcAct::Keep, Fate::Found);
        expect![[r#"
                    pool  class  uuid                                  name                what                       why
            remove  dr    VDI    22222222-0000-4000-8000-000000000002  [Importing] system  disk of an unfinished run  no VM uses it
            keep    dr    VDI    22222222-0000-4000-8000-000000000002  [Importing] system  copy                       no VM uses it
            job erp: 1 to put right with --apply, 1 kept
        "#]]
        .assert_eq(&text(&report(false, vec![garbage, copy], None)));
        assert_eq!(text(&report(false, Vec::new(), None)), "job erp: nothing is left over\n");
    }

    #[test]
    fn every_end_has_its_code() {
        let of = |fate| vec![finding(FindingKind::UnfinishedDisk, GcAct::Remove, fate)];
        for (apply, findings, locked, code) in [
            (false, of(Fate::Found), None, Exit::Done),
            (false, of(Fate::Found), Some(false), Exit::Partial),
            (true, of(Fate::Done), None, Exit::Done),
            (true, of(Fate::Done), Some(true), Exit::Partial),
            (true, of(Fate::Left), Some(false), Exit::Failed),
            (true, Vec::new(), Some(true), Exit::Locked),
        ] {
            assert_eq!(exit(&report(apply, findings, locked)), code, "apply: {apply}, locked: {locked:?}");
        }
    }
}
