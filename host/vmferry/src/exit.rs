//! How the program ends: one number per kind of end, documented for scripts.

use std::process::ExitCode;
use vmferry_model::report::{Outcome, RunReport};

/// The exit codes. One that is not listed means failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// Nothing was done; what existed before is as it was.
    Failed = 1,
    /// The command line or the configuration is wrong; nothing was tried.
    Usage = 2,
    /// Some VMs or targets succeeded, others did not.
    Partial = 3,
    /// A policy refused, or there was nothing to do.
    Refused = 4,
    /// Another run holds the VMs.
    Locked = 5,
}

impl Exit {
    /// The code of a finished run.
    pub fn of(report: &RunReport) -> Self {
        match report.outcome {
            Outcome::Succeeded => Self::Done,
            Outcome::Partial => Self::Partial,
            Outcome::Failed => Self::Failed,
            Outcome::Refused => Self::Refused,
            Outcome::Skipped if report.vms.iter().any(|vm| vm.locked) => Self::Locked,
            Outcome::Skipped => Self::Refused,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use vmferry_model::report::VmReport;

    fn report(outcome: Outcome, locked: bool) -> RunReport {
        let vm = VmReport {
            vm: "vm-1".to_owned(),
            name: "web".to_owned(),
            outcome,
            error: None,
            locked,
            warnings: Vec::new(),
            targets: Vec::new(),
        };
        RunReport {
            job: "erp".to_owned(),
            run: "run-1".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            ended_at: Timestamp::UNIX_EPOCH,
            outcome,
            error: None,
            warnings: Vec::new(),
            vms: vec![vm],
        }
    }

    #[test]
    fn every_end_of_a_run_has_its_code() {
        for (outcome, locked, code) in [
            (Outcome::Succeeded, false, 0),
            (Outcome::Failed, false, 1),
            (Outcome::Failed, true, 1),
            (Outcome::Partial, false, 3),
            (Outcome::Partial, true, 3),
            (Outcome::Refused, false, 4),
            (Outcome::Skipped, false, 4),
            (Outcome::Skipped, true, 5),
        ] {
            assert_eq!(Exit::of(&report(outcome, locked)) as u8, code, "{outcome} locked: {locked}");
        }
    }
}
