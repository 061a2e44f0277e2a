//! Between the generated types and the host's own: once, here, and nowhere else.

use crate::bindings::host::vmferry::plugin::types::{Error as GuestError, ErrorCode};
use crate::bindings::notifier::exports::vmferry::plugin::notify as wit_notify;
use crate::bindings::retention::exports::vmferry::plugin::retain as wit_retain;
use crate::bindings::scheduler::exports::vmferry::plugin::schedule as wit_schedule;
use crate::limits::MAX_TEXT;
use jiff::Timestamp;
use vmferry_model::event::{Event, Severity};
use vmferry_model::plan::{DiskPlan, ExpectedFrom, FullReason, JobPlan, Kind, TargetPlan, VmPlan};
use vmferry_model::plugin::{Approval, Judgement, NextRun, PluginFailure, PointView, ScheduleState, Verdict};
use vmferry_model::report::Outcome;

/// Whole seconds, rounded down: a guest is never shown a moment that has not come.
pub(crate) fn seconds(time: Timestamp) -> i64 {
    time.as_nanosecond().div_euclid(1_000_000_000) as i64
}

fn timestamp(seconds: i64, what: &str) -> Result<Timestamp, PluginFailure> {
    Timestamp::from_second(seconds).map_err(|_| nonsense(format!("{what} is {seconds}, which is no moment")))
}

fn nonsense(what: String) -> PluginFailure {
    PluginFailure::Nonsense(what)
}

fn unknown(what: &str, word: &str) -> PluginFailure {
    nonsense(format!("{what} `{}`, a word this host does not know", text(word)))
}

/// A plugin's text as it may stand in a report or a log: bounded, on one line, and shown in the order it is written.
pub(crate) fn text(text: &str) -> String {
    let end = if text.len() <= MAX_TEXT { text.len() } else { text.floor_char_boundary(MAX_TEXT) };
    let mut clean: String = text[..end]
        .chars()
        .filter(|c| !turns_text_around(*c))
        .map(|c| if c.is_control() || c == '\u{2028}' || c == '\u{2029}' { ' ' } else { c })
        .collect();
    if end < text.len() {
        clean.push('…');
    }
    clean
}

/// Unicode's bidirectional controls: with them a text can read differently from what it says.
fn turns_text_around(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(crate) fn refusal(error: &GuestError) -> PluginFailure {
    let code = match &error.code {
        ErrorCode::Config => "config".to_owned(),
        ErrorCode::Unavailable => "unavailable".to_owned(),
        ErrorCode::Denied => "denied".to_owned(),
        ErrorCode::NotFound => "not-found".to_owned(),
        ErrorCode::Limit => "limit".to_owned(),
        ErrorCode::Unsupported => "unsupported".to_owned(),
        ErrorCode::Other(code) => text(code),
    };
    PluginFailure::Refused { code, message: text(&error.message) }
}

pub(crate) fn schedule_state(state: &ScheduleState) -> wit_schedule::State {
    wit_schedule::State {
        job: state.job.clone(),
        last_started: state.last_started.map(seconds),
        last_ended: state.last_ended.map(seconds),
        last_outcome: state.last_outcome.map(|outcome| match outcome {
            Outcome::Succeeded => wit_schedule::Outcome::Succeeded,
            Outcome::Partial => wit_schedule::Outcome::Partial,
            Outcome::Failed => wit_schedule::Outcome::Failed,
            Outcome::Skipped => wit_schedule::Outcome::Skipped,
            Outcome::Refused => wit_schedule::Outcome::Refused,
        }),
        last_success: state.last_success.map(seconds),
        failures_since_success: state.failures_since_success,
        extensions: Vec::new(),
    }
}

pub(crate) fn next_run(due: wit_schedule::Due) -> Result<NextRun, PluginFailure> {
    match due {
        wit_schedule::Due::At(at) => Ok(NextRun::At(timestamp(at, "the next run")?)),
        wit_schedule::Due::Never(reason) => Ok(NextRun::Never(text(&reason))),
        wit_schedule::Due::Other(word) => Err(unknown("the next run is due", &word)),
    }
}

pub(crate) fn plan(plan: &JobPlan) -> wit_schedule::Plan {
    wit_schedule::Plan { job: plan.job.clone(), vms: plan.vms.iter().map(vm_plan).collect(), extensions: Vec::new() }
}

fn vm_plan(plan: &VmPlan) -> wit_schedule::VmPlan {
    wit_schedule::VmPlan {
        vm: plan.vm.clone(),
        name: plan.name.clone(),
        error: plan.error.clone(),
        targets: plan.targets.iter().map(target_plan).collect(),
        extensions: Vec::new(),
    }
}

fn target_plan(plan: &TargetPlan) -> wit_schedule::TargetPlan {
    wit_schedule::TargetPlan {
        target: plan.target.clone(),
        replica: plan.replica.clone(),
        obstacles: plan.obstacles.clone(),
        disks: plan.disks.iter().map(disk_plan).collect(),
        extensions: Vec::new(),
    }
}

fn disk_plan(plan: &DiskPlan) -> wit_schedule::DiskPlan {
    wit_schedule::DiskPlan {
        disk: plan.disk.clone(),
        kind: match plan.kind {
            Kind::Full => wit_schedule::TransferKind::Full,
            Kind::Delta => wit_schedule::TransferKind::Delta,
            Kind::Resync => wit_schedule::TransferKind::Resync,
        },
        base: plan.base.clone(),
        reason: plan.reason.clone(),
        full_reason: plan.full_reason.map(|reason| match reason {
            FullReason::FirstRun => wit_schedule::FullReason::FirstRun,
            FullReason::NewDisk => wit_schedule::FullReason::NewDisk,
            FullReason::BaseGoneOnSource => wit_schedule::FullReason::BaseGoneOnSource,
            FullReason::BaseGoneOnTarget => wit_schedule::FullReason::BaseGoneOnTarget,
            FullReason::DiskShrunk => wit_schedule::FullReason::DiskShrunk,
            FullReason::ReplicaDamaged => wit_schedule::FullReason::ReplicaDamaged,
            FullReason::NoDifferences => wit_schedule::FullReason::NoDifferences,
            FullReason::Requested => wit_schedule::FullReason::Requested,
            // Named as in JSON; the contract's next version may have cases for them.
            FullReason::BasePurged => wit_schedule::FullReason::Other("base-purged".to_owned()),
            FullReason::SrChanged => wit_schedule::FullReason::Other("sr-changed".to_owned()),
            FullReason::XoVmPerRun => wit_schedule::FullReason::Other("xo-vm-per-run".to_owned()),
            FullReason::XoUnfinished => wit_schedule::FullReason::Other("xo-unfinished".to_owned()),
            FullReason::XoLegacy => wit_schedule::FullReason::Other("xo-legacy".to_owned()),
        }),
        expected_bytes: plan.expected_bytes,
        expected_from: match plan.expected_from {
            ExpectedFrom::History => wit_schedule::ExpectedFrom::History,
            ExpectedFrom::PhysicalUtilisation => wit_schedule::ExpectedFrom::PhysicalUtilisation,
            ExpectedFrom::Full => wit_schedule::ExpectedFrom::Full,
        },
        extensions: Vec::new(),
    }
}

pub(crate) fn approval(approval: wit_schedule::Approval, now: Timestamp) -> Result<Approval, PluginFailure> {
    match approval {
        wit_schedule::Approval::Approved => Ok(Approval::Approved),
        wit_schedule::Approval::Deferred(deferral) => {
            let until = timestamp(deferral.until, "the deferral's end")?;
            if deferral.until <= seconds(now) {
                return Err(nonsense(format!("defers the plan until {until}, which has passed")));
            }
            Ok(Approval::Deferred { until, reason: text(&deferral.reason) })
        }
        wit_schedule::Approval::Refused(reason) => Ok(Approval::Refused { reason: text(&reason) }),
        wit_schedule::Approval::Other(word) => Err(unknown("its word on the plan is", &word)),
    }
}

pub(crate) fn points(points: &[PointView]) -> Vec<wit_retain::Point> {
    points
        .iter()
        .map(|point| wit_retain::Point {
            id: point.id.clone(),
            taken_at: seconds(point.taken_at),
            held: point.held,
            extensions: Vec::new(),
        })
        .collect()
}

pub(crate) fn judgements(
    judgements: Vec<wit_retain::Judgement>,
    points: usize,
) -> Result<Vec<Judgement>, PluginFailure> {
    if judgements.len() != points {
        return Err(nonsense(format!("{} judgements for {points} recovery points", judgements.len())));
    }
    judgements
        .into_iter()
        .map(|judgement| match judgement {
            wit_retain::Judgement::Keep(rule) => Ok(Judgement { keep: true, rule: text(&rule) }),
            wit_retain::Judgement::Drop(rule) => Ok(Judgement { keep: false, rule: text(&rule) }),
            wit_retain::Judgement::Other(word) => Err(unknown("its word on a point is", &word)),
        })
        .collect()
}

pub(crate) fn event(event: &Event) -> wit_notify::Event {
    wit_notify::Event {
        kind: event.kind.clone(),
        time: seconds(event.time),
        severity: match event.severity {
            Severity::Info => wit_notify::Severity::Info,
            Severity::Warning => wit_notify::Severity::Warning,
            Severity::Error => wit_notify::Severity::Error,
        },
        job: event.job.clone(),
        vm: event.vm.clone(),
        run: event.run.clone(),
        detail: event.detail.to_string(),
        extensions: Vec::new(),
    }
}

pub(crate) fn verdict(verdict: wit_notify::Verdict) -> Result<Verdict, PluginFailure> {
    match verdict {
        wit_notify::Verdict::Proceed => Ok(Verdict::Proceed),
        wit_notify::Verdict::Skip(reason) => Ok(Verdict::Skip(text(&reason))),
        wit_notify::Verdict::Fail(error) => Ok(Verdict::Fail(text(&error))),
        wit_notify::Verdict::Other(word) => Err(unknown("its verdict is", &word)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_round_down_on_both_sides_of_1970() {
        let at = |text: &str| seconds(text.parse().expect("a moment"));
        assert_eq!(at("1970-01-01T00:00:01.999Z"), 1);
        assert_eq!(at("1969-12-31T23:59:59.5Z"), -1);
    }

    #[test]
    fn a_plugins_text_is_bounded_and_stays_on_its_line() {
        assert_eq!(text("a\nb\u{1b}[31mc"), "a b [31mc");
        assert_eq!(text("\u{202e}ylno\u{2069} \u{200f}\u{61c}read\u{2066}"), "ylno read");
        let long = text(&"ä".repeat(MAX_TEXT));
        assert!(long.len() <= MAX_TEXT + '…'.len_utf8() && long.ends_with('…'));
    }

    #[test]
    fn words_and_moments_that_mean_nothing_are_nonsense() {
        let nonsense = |result: Result<NextRun, PluginFailure>| match result {
            Err(PluginFailure::Nonsense(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(nonsense(next_run(wit_schedule::Due::At(i64::MAX))).contains("no moment"));
        assert!(nonsense(next_run(wit_schedule::Due::Other("soon".to_owned()))).contains("`soon`"));
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a moment");
        let deferral = wit_schedule::Deferral { until: seconds(now), reason: String::new() };
        assert!(approval(wit_schedule::Approval::Deferred(deferral), now).is_err());
    }
}
