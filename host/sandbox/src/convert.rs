//! Between the generated types and the host's own: once, here, and nowhere else.

use crate::bindings::host::vmferry::plugin::types::{Error as GuestError, ErrorCode};
use crate::bindings::notifier::exports::vmferry::plugin::notify as wit_notify;
use crate::bindings::retention::exports::vmferry::plugin::retain as wit_retain;
use crate::bindings::scheduler::exports::vmferry::plugin::schedule as wit_schedule;
use crate::bindings::target::exports::vmferry::plugin::replicate as wit_replicate;
use crate::bindings::target::vmferry::plugin::delta as wit_delta;
use crate::limits::MAX_TEXT;
use jiff::Timestamp;
use vmferry_model::event::{Event, Severity};
use vmferry_model::plan::{DiskPlan, ExpectedFrom, FullReason, JobPlan, Kind, TargetPlan, VmPlan};
use vmferry_model::plugin::{Approval, Judgement, NextRun, PluginFailure, PointView, ScheduleState, Verdict};
use vmferry_model::report::Outcome;
use vmferry_model::target::{
    Damage, DeltaInfo, DiskReceipt, Draft, Shape, StoredDisk, StoredExtent, StoredGarbage, StoredPoint, VmMetadata,
};

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

/// An identity that a plugin tells back: it names things, so it has to be one that can be shown and compared.
fn identity(what: &str, id: String) -> Result<String, PluginFailure> {
    /// A uuid has 36; this leaves room for others' identities.
    const MAX_IDENTITY: usize = 256;
    let plain = |c: char| !c.is_control() && !turns_text_around(c);
    match (1..=MAX_IDENTITY).contains(&id.len()) && id.chars().all(plain) {
        true => Ok(id),
        false => Err(nonsense(format!("{what} is `{}`, which identifies nothing", text(&id)))),
    }
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

pub(crate) fn shape(shape: &wit_replicate::Shape) -> Result<Shape, PluginFailure> {
    let wit_replicate::Shape { chunk_size, only_newest, .. } = *shape;
    if !chunk_size.is_power_of_two() || !(64 << 10..=2 << 20).contains(&chunk_size) {
        return Err(nonsense(format!("chunks of {chunk_size} bytes; a power of two from 64 KiB to 2 MiB is possible")));
    }
    Ok(Shape { chunk_size, only_newest })
}

pub(crate) fn draft(draft: &Draft) -> wit_replicate::Draft {
    wit_replicate::Draft {
        id: draft.id.clone(),
        job: draft.job.clone(),
        vm: draft.vm.clone(),
        name: draft.name.clone(),
        taken_at: seconds(draft.taken_at),
        base: draft.base.clone(),
        // The model's types have no maps with keys that JSON could refuse.
        metadata: serde_json::to_string(&draft.metadata).unwrap_or_default(),
        extensions: Vec::new(),
    }
}

pub(crate) fn delta(delta: DeltaInfo) -> wit_delta::Info {
    wit_delta::Info {
        disk: delta.disk,
        content: delta.content,
        size: delta.size,
        kind: delta.base.map_or(wit_delta::Kind::Full, wit_delta::Kind::Delta),
        expected_bytes: delta.expected_bytes,
        extensions: Vec::new(),
    }
}

/// The receipt of a disk whose data was taken as a whole, or not.
pub(crate) fn receipt(receipt: Vec<u8>, whole: bool) -> Result<Vec<u8>, PluginFailure> {
    const MAX_RECEIPT: usize = 64 << 10;
    if !whole {
        return Err(nonsense("it answered before it had taken all of the disk's data".to_owned()));
    }
    if receipt.len() > MAX_RECEIPT {
        return Err(nonsense(format!("a receipt of {} bytes, at most {MAX_RECEIPT} are possible", receipt.len())));
    }
    Ok(receipt)
}

pub(crate) fn receipts(receipts: &[DiskReceipt]) -> Vec<wit_replicate::DiskReceipt> {
    receipts
        .iter()
        .map(|of| wit_replicate::DiskReceipt {
            disk: of.disk.clone(),
            receipt: of.receipt.clone(),
            digest: of.digest.clone(),
        })
        .collect()
}

pub(crate) fn stored_point(point: wit_replicate::Point) -> Result<StoredPoint, PluginFailure> {
    Ok(StoredPoint {
        id: identity("a point's identity", point.id)?,
        job: identity("a point's job", point.job)?,
        vm: identity("a point's VM", point.vm)?,
        name: text(&point.name),
        taken_at: timestamp(point.taken_at, "a point's moment")?,
        disks: point.disks.into_iter().map(stored_disk).collect::<Result<_, _>>()?,
        held: point.held,
        damaged: point.damaged.as_deref().map(text),
    })
}

/// What `commit` answers has to be the point that it was asked for.
pub(crate) fn committed(point: wit_replicate::Point, id: &str) -> Result<StoredPoint, PluginFailure> {
    match stored_point(point)? {
        point if point.id == id => Ok(point),
        point => Err(nonsense(format!("it committed `{}` when it was asked for `{id}`", point.id))),
    }
}

fn stored_disk(disk: wit_replicate::PointDisk) -> Result<StoredDisk, PluginFailure> {
    Ok(StoredDisk {
        disk: identity("a disk's identity", disk.disk)?,
        content: identity("a disk's content", disk.content)?,
        size: disk.size,
        stored: disk.stored,
        digest: disk.digest.map(|digest| identity("a disk's digest", digest)).transpose()?,
    })
}

pub(crate) fn metadata(json: &str) -> Result<VmMetadata, PluginFailure> {
    /// What the model's types say.
    const FORMAT: u32 = 1;
    let metadata: VmMetadata = serde_json::from_str(json)
        .map_err(|problem| nonsense(format!("what it kept of a VM is damaged: {}", text(&problem.to_string()))))?;
    match metadata.format {
        FORMAT => Ok(metadata),
        newer => Err(nonsense(format!(
            "what it kept of a VM has format {newer}, this vmferry knows {FORMAT}; use a newer one"
        ))),
    }
}

pub(crate) fn extents(extents: &[StoredExtent]) -> Vec<wit_replicate::Extent> {
    extents.iter().map(|extent| wit_replicate::Extent { offset: extent.offset, length: extent.length }).collect()
}

/// Ranges that ascend, are apart from each other, and hold something.
pub(crate) fn layout(layout: &[wit_replicate::Extent]) -> Result<Vec<StoredExtent>, PluginFailure> {
    let mut end = 0;
    let mut extents = Vec::with_capacity(layout.len());
    for (at, extent) in layout.iter().enumerate() {
        let found = stored_extent(*extent)?;
        if at > 0 && found.offset < end {
            return Err(nonsense(format!(
                "a disk's range at {} begins before the one in front of it ends",
                found.offset
            )));
        }
        end = found.offset + found.length;
        extents.push(found);
    }
    Ok(extents)
}

/// The largest disk there is, well above what any pool has.
const MAX_DISK: u64 = 1 << 52;

fn stored_extent(extent: wit_replicate::Extent) -> Result<StoredExtent, PluginFailure> {
    let wit_replicate::Extent { offset, length } = extent;
    match offset.checked_add(length) {
        Some(end) if length > 0 && end <= MAX_DISK => Ok(StoredExtent { offset, length }),
        _ => Err(nonsense(format!("{length} bytes at {offset} are no range of a disk"))),
    }
}

pub(crate) fn damage(damage: wit_replicate::Damage) -> Result<Damage, PluginFailure> {
    Ok(Damage {
        disk: damage.disk.map(|disk| identity("a damaged disk's identity", disk)).transpose()?,
        extent: damage.extent.map(stored_extent).transpose()?,
        message: text(&damage.message),
    })
}

pub(crate) fn garbage(garbage: wit_replicate::Garbage) -> StoredGarbage {
    StoredGarbage { what: text(&garbage.what), why: text(&garbage.why), bytes: garbage.bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_disk_ascend_and_are_within_one() {
        let ranges = |all: &[(u64, u64)]| {
            let extents: Vec<_> =
                all.iter().map(|&(offset, length)| wit_replicate::Extent { offset, length }).collect();
            layout(&extents).map(|extents| extents.len())
        };
        assert_eq!(ranges(&[(0, 4), (4, 4), (100, 1)]), Ok(3));
        for wrong in [&[(4, 4), (0, 4)][..], &[(0, 5), (4, 4)], &[(0, 0)], &[(u64::MAX, 2)], &[(1 << 60, 1)]] {
            assert!(matches!(ranges(wrong), Err(PluginFailure::Nonsense(_))), "{wrong:?}");
        }
    }

    #[test]
    fn an_identity_can_be_shown_and_a_receipt_is_of_a_whole() {
        for wrong in ["", "a\nb", "\u{202e}a", &"a".repeat(257)] {
            assert!(identity("it", wrong.to_owned()).is_err(), "{wrong:?}");
        }
        assert!(identity("it", "a1b2".to_owned()).is_ok());
        assert!(receipt(Vec::new(), false).is_err() && receipt(vec![0; 65_537], true).is_err());
        assert!(receipt(vec![0; 65_536], true).is_ok());
    }

    #[test]
    fn chunks_are_powers_of_two_within_bounds() {
        let of = |chunk_size| shape(&wit_replicate::Shape { chunk_size, only_newest: false, extensions: Vec::new() });
        assert!(of(65_536).is_ok() && of(2 << 20).is_ok());
        for wrong in [0, 32_768, 65_537, 4 << 20] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

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
