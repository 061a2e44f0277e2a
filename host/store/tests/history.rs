//! The history of runs: what comes back, what is counted, what is dropped.

use jiff::{SignedDuration, Timestamp};
use vmferry_model::plan::Kind;
use vmferry_model::plugin::ScheduleState;
use vmferry_model::report::{DiskReport, Outcome, RunReport, TargetReport, VmReport};
use vmferry_model::store::RunStore;
use vmferry_store::{RUNS_KEPT_PER_JOB, Store};

fn minute(n: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_mins(n)
}

/// Run `n` of job `erp`, begun in minute `n` and ended half a minute later.
fn run(n: i64, outcome: Outcome) -> RunReport {
    RunReport {
        job: "erp".to_owned(),
        run: format!("run-{n}"),
        started_at: minute(n),
        ended_at: minute(n) + SignedDuration::from_secs(30),
        outcome,
        error: None,
        warnings: vec!["a warning".to_owned()],
        vms: Vec::new(),
    }
}

/// The same run with one disk replicated to `dr`.
fn run_with_disk(n: i64, outcome: Outcome, kind: Kind, bytes_sent: u64) -> RunReport {
    let disk = DiskReport {
        disk: "disk-1".to_owned(),
        kind,
        reason: "because".to_owned(),
        full_reason: None,
        base: None,
        engine: "lockstep".to_owned(),
        source: "export".to_owned(),
        encoding: "vhd".to_owned(),
        notes: Vec::new(),
        bytes_read: bytes_sent,
        bytes_sent,
        changed_bytes: bytes_sent,
        digest: None,
        seconds: 0.25,
    };
    let target = TargetReport {
        target: "dr".to_owned(),
        sr: None,
        replica: None,
        recovery_point: None,
        outcome,
        error: None,
        pruned: Vec::new(),
        warnings: Vec::new(),
        disks: vec![disk],
    };
    let vm = VmReport {
        vm: "vm-1".to_owned(),
        name: "web".to_owned(),
        outcome,
        error: None,
        locked: false,
        warnings: Vec::new(),
        targets: vec![target],
    };
    RunReport { vms: vec![vm], ..run(n, outcome) }
}

#[tokio::test]
async fn a_report_comes_back_as_it_was_recorded_also_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let report = run_with_disk(1, Outcome::Succeeded, Kind::Delta, 4096);
    let store = Store::open(folder.path()).await.unwrap();
    store.record("default", &report).await.unwrap();
    drop(store);

    let reopened = Store::open(folder.path()).await.unwrap();
    assert_eq!(reopened.recent("default", "erp", 10).await.unwrap(), [report]);
}

#[tokio::test]
async fn recent_runs_come_newest_first_and_only_of_their_tenant_and_job() {
    let store = Store::in_memory().await.unwrap();
    for n in [2, 1, 3] {
        store.record("default", &run(n, Outcome::Succeeded)).await.unwrap();
    }
    store.record("other", &run(9, Outcome::Succeeded)).await.unwrap();
    store.record("default", &RunReport { job: "web".to_owned(), ..run(9, Outcome::Failed) }).await.unwrap();

    let recent = store.recent("default", "erp", 2).await.unwrap();
    assert_eq!(recent.iter().map(|report| report.run.as_str()).collect::<Vec<_>>(), ["run-3", "run-2"]);
}

#[tokio::test]
async fn a_job_never_seen_has_an_empty_past() {
    let store = Store::in_memory().await.unwrap();
    let expected = ScheduleState { job: "erp".to_owned(), ..ScheduleState::default() };
    assert_eq!(store.schedule_state("default", "erp").await.unwrap(), expected);
}

#[tokio::test]
async fn failures_are_counted_from_the_last_success() {
    let store = Store::in_memory().await.unwrap();
    let outcomes = [Outcome::Failed, Outcome::Succeeded, Outcome::Failed, Outcome::Partial];
    for (n, outcome) in (1..).zip(outcomes) {
        store.record("default", &run(n, outcome)).await.unwrap();
    }
    let expected = ScheduleState {
        job: "erp".to_owned(),
        last_started: Some(minute(4)),
        last_ended: Some(minute(4) + SignedDuration::from_secs(30)),
        last_outcome: Some(Outcome::Partial),
        last_success: Some(minute(2)),
        failures_since_success: 2,
    };
    assert_eq!(store.schedule_state("default", "erp").await.unwrap(), expected);
}

#[tokio::test]
async fn history_is_bounded_and_the_last_success_outlives_it() {
    let store = Store::in_memory().await.unwrap();
    store.record("default", &run_with_disk(0, Outcome::Succeeded, Kind::Delta, 7)).await.unwrap();
    store.record("default", &run_with_disk(1, Outcome::Partial, Kind::Delta, 8)).await.unwrap();
    let failures = i64::from(RUNS_KEPT_PER_JOB) + 5;
    for n in 2..2 + failures {
        store.record("default", &run(n, Outcome::Failed)).await.unwrap();
    }
    let kept = store.recent("default", "erp", u32::MAX).await.unwrap();
    assert_eq!(kept.len(), RUNS_KEPT_PER_JOB as usize + 1);
    assert_eq!(kept.last().unwrap().outcome, Outcome::Succeeded);

    let state = store.schedule_state("default", "erp").await.unwrap();
    assert_eq!(state.last_success, Some(minute(0)));
    assert_eq!(state.failures_since_success, RUNS_KEPT_PER_JOB);
    assert_eq!(store.delta_history("default", "erp", "dr", "disk-1", 9).await.unwrap(), [7]);
}

#[tokio::test]
async fn only_committed_deltas_make_the_estimate() {
    let store = Store::in_memory().await.unwrap();
    for report in [
        run_with_disk(1, Outcome::Succeeded, Kind::Full, 1_000_000),
        run_with_disk(2, Outcome::Succeeded, Kind::Delta, 200),
        run_with_disk(3, Outcome::Failed, Kind::Delta, 1),
        run_with_disk(4, Outcome::Succeeded, Kind::Delta, 400),
    ] {
        store.record("default", &report).await.unwrap();
    }
    assert_eq!(store.delta_history("default", "erp", "dr", "disk-1", 9).await.unwrap(), [400, 200]);
    assert_eq!(store.delta_history("default", "erp", "dr", "disk-1", 1).await.unwrap(), [400]);
    assert!(store.delta_history("default", "erp", "other", "disk-1", 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_same_run_is_not_recorded_twice() {
    let store = Store::in_memory().await.unwrap();
    store.record("default", &run(1, Outcome::Succeeded)).await.unwrap();
    let error = store.record("default", &run(1, Outcome::Succeeded)).await.unwrap_err().to_string();
    assert!(error.starts_with("state store (in memory): record a run: "), "{error}");
    assert_eq!(store.recent("default", "erp", 9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_was_found_out_is_remembered_until_something_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    assert_eq!(store.recall("hosts of 8.3 do it").await.unwrap(), None);
    for value in ["proven", "refuted"] {
        store.remember("hosts of 8.3 do it", value).await.unwrap();
        let later = Store::open(folder.path()).await.unwrap();
        assert_eq!(later.recall("hosts of 8.3 do it").await.unwrap().as_deref(), Some(value));
    }
    assert_eq!(store.recall("hosts of 8.2 do it").await.unwrap(), None);
}
