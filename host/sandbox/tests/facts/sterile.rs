//! What a policy can learn about where it runs: nothing.

use crate::house::{load, now, with};
use vmferry_model::plugin::{NextRun, ScheduleState, Scheduler};
use vmferry_sandbox::Instance;

async fn look_around(scheduler: &dyn Scheduler, job: &str, now: jiff::Timestamp) -> String {
    let state = ScheduleState { job: job.to_owned(), ..Default::default() };
    match scheduler.next_run(&state, now).await {
        Ok(NextRun::Never(report)) => report,
        other => panic!("{other:?}"),
    }
}

fn field<'a>(report: &'a str, name: &str) -> &'a str {
    let start = report.find(name).unwrap_or_else(|| panic!("{name} in {report}")) + name.len() + 1;
    report[start..].split(' ').next().unwrap_or_default()
}

#[tokio::test]
async fn a_policy_sees_no_environment_and_its_clock_stands_at_now() {
    let scheduler = load("looks_around", "scheduler", "").await.scheduler(Instance::default()).await.expect("set up");
    let report = look_around(&*scheduler, "erp", now()).await;
    assert_eq!(field(&report, "clock"), now().as_second().to_string());
    for nothing in ["environment", "arguments", "files", "elapsed"] {
        assert_eq!(field(&report, nothing), "0", "{report}");
    }
}

#[tokio::test]
async fn random_numbers_follow_from_the_input() {
    let plugin = load("looks_around", "scheduler", "").await;
    let scheduler = plugin.scheduler(Instance::default()).await.expect("set up");
    let again = plugin.scheduler(Instance::default()).await.expect("set up");
    let other_settings = plugin.scheduler(with(serde_json::json!({ "a": "b" }))).await.expect("set up");
    let later = now() + jiff::SignedDuration::from_secs(1);

    let first = look_around(&*scheduler, "erp", now()).await;
    assert_eq!(first, look_around(&*scheduler, "erp", now()).await);
    assert_eq!(first, look_around(&*again, "erp", now()).await);
    let random = |report: &str| field(report, "random").to_owned();
    assert_ne!(random(&first), random(&look_around(&*scheduler, "crm", now()).await));
    assert_ne!(random(&first), random(&look_around(&*scheduler, "erp", later).await));
    assert_ne!(random(&first), random(&look_around(&*other_settings, "erp", now()).await));
}

#[tokio::test]
async fn a_policy_that_wants_to_wait_does_not() {
    let scheduler = load("sleeps", "scheduler", "").await.scheduler(Instance::default()).await.expect("set up");
    let due = scheduler.next_run(&Default::default(), now()).await.expect("an answer, a day early");
    assert_eq!(due, NextRun::At(jiff::Timestamp::from_second(now().as_second()).expect("a moment")));
}

#[tokio::test]
async fn nothing_passes_from_one_call_to_the_next() {
    let scheduler = load("remembers", "scheduler", "").await.scheduler(Instance::default()).await.expect("set up");
    for _ in 0..3 {
        let due = scheduler.next_run(&Default::default(), now()).await.expect("an answer");
        assert_eq!(due, NextRun::Never("call 1".to_owned()));
    }
}
