//! `vmferry doctor`: what do the hosts of a pool really do?

use super::{Workplace, failure_at, print};
use crate::cli::Doctor;
use crate::compose::TENANT;
use crate::exit::Exit;
use crate::problem::Failure;
use crate::signals;
use std::fmt::Write as _;
use vmferry_engine::{DoctorLine, DoctorReport, DoctorRequest, DoctorVerdict};
use vmferry_model::report::Outcome;

pub(super) async fn doctor(at: &Workplace, arguments: &Doctor) -> Result<Exit, Failure> {
    let request = DoctorRequest { pool: arguments.pool.clone(), tenant: TENANT.to_owned(), sr: arguments.sr.clone() };
    let report = at.close(at.engine.doctor(&request, signals::end()).await).await;
    let report = report.map_err(|error| failure_at(&error, format!("pool {}", request.pool)))?;
    print(at.form, &report, text)?;
    Ok(exit(report.outcome))
}

fn exit(outcome: Outcome) -> Exit {
    match outcome {
        Outcome::Succeeded => Exit::Done,
        Outcome::Partial => Exit::Partial,
        Outcome::Failed | Outcome::Skipped | Outcome::Refused => Exit::Failed,
    }
}

fn text(report: &DoctorReport) -> String {
    let sr = report.sr.as_deref().unwrap_or("none");
    let mut text = format!("pool {}, scratch disks on SR {sr}\n", report.pool);
    for line in &report.lines {
        line_text(&mut text, line);
    }
    text.push_str(match report.outcome {
        Outcome::Succeeded => "everything works\n",
        Outcome::Partial => "runs work; what is missing or broken costs time, bytes or safety\n",
        Outcome::Failed | Outcome::Skipped | Outcome::Refused => "something does not work that runs need\n",
    });
    text
}

fn line_text(text: &mut String, line: &DoctorLine) {
    let verdict = match line.verdict {
        DoctorVerdict::Ok => "ok",
        DoctorVerdict::Missing => "missing",
        DoctorVerdict::Broken => "broken",
        DoctorVerdict::NotTried => "not tried",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{verdict:<9}  {:<19}  {}", line.probe.title(), line.seen);
    let mut more = |heading: &str, words: &str| {
        let _ = writeln!(text, "{:<32}{heading}: {words}", "");
    };
    if line.verdict != DoctorVerdict::NotTried {
        more("means", line.means);
    }
    if let Some(remedy) = line.remedy {
        more("remedy", remedy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use vmferry_engine::DoctorProbe;

    fn line(probe: DoctorProbe, verdict: DoctorVerdict, seen: &str, remedy: Option<&'static str>) -> DoctorLine {
        DoctorLine { probe, verdict, needed: false, seen: seen.to_owned(), means: "what it means", remedy }
    }

    #[test]
    fn each_probe_is_a_line_with_what_it_means_and_what_to_do() {
        let report = DoctorReport {
            pool: "dr".to_owned(),
            sr: Some("Local storage (u), the pool's default".to_owned()),
            outcome: Outcome::Partial,
            lines: vec![
                line(DoctorProbe::Login, DoctorVerdict::Ok, "xen1 is the master", None),
                line(DoctorProbe::Nbd, DoctorVerdict::Missing, "no network", Some("give one the purpose")),
                line(DoctorProbe::Redirect, DoctorVerdict::NotTried, "the master sees it", None),
            ],
        };
        expect![[r#"
            pool dr, scratch disks on SR Local storage (u), the pool's default
            ok         login                xen1 is the master
                                            means: what it means
            missing    NBD                  no network
                                            means: what it means
                                            remedy: give one the purpose
            not tried  redirect             the master sees it
            runs work; what is missing or broken costs time, bytes or safety
        "#]]
        .assert_eq(&text(&report));
    }

    #[test]
    fn every_end_has_its_code() {
        let codes = [Outcome::Succeeded, Outcome::Partial, Outcome::Failed].map(exit);
        assert_eq!(codes, [Exit::Done, Exit::Partial, Exit::Failed]);
    }
}
