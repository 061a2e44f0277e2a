//! Every limit, and the guest that runs into it.

use crate::house::{event, failure, hurried, load, now, points};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vmferry_model::plugin::{NextRun, PluginFailure, Verdict};
use vmferry_sandbox::{Instance, Limits};

fn limited(limits: Limits) -> Instance {
    Instance { limits, ..Instance::default() }
}

fn exceeded(what: &str, limit: &str, setting: &str) -> PluginFailure {
    PluginFailure::Limit { what: what.to_owned(), limit: limit.to_owned(), setting: setting.to_owned() }
}

#[tokio::test]
async fn a_trap_names_the_plugin_the_call_and_the_guests_last_words() {
    let scheduler = load("traps", "scheduler", "").await.scheduler(Instance::default()).await.expect("set up");
    let state = vmferry_model::plugin::ScheduleState { job: "erp".to_owned(), ..Default::default() };
    let error = scheduler.next_run(&state, now()).await.expect_err("a trap");
    assert_eq!((error.plugin.name.as_str(), error.call.as_str()), ("misbehaving-guests", "next-run"));
    let PluginFailure::Trap(words) = error.failure else { panic!("{error}") };
    assert!(words.contains("no idea when to run erp"), "{words}");
    assert!(words.contains("unreachable"), "{words}");
}

#[tokio::test]
async fn a_trap_ends_nothing_but_its_call() {
    let plugin = load("traps", "scheduler", "").await;
    let scheduler = plugin.scheduler(Instance::default()).await.expect("set up");
    failure(scheduler.next_run(&Default::default(), now()).await);
    let plan = vmferry_model::plan::JobPlan { job: "erp".to_owned(), vms: Vec::new() };
    scheduler.approve(&plan, now()).await.expect("the other call works");
}

#[tokio::test]
async fn a_spinning_policy_is_ended_at_its_deadline() {
    let scheduler = load("spins", "scheduler", "").await.scheduler(hurried()).await.expect("set up");
    let begun = Instant::now();
    let failure = failure(scheduler.next_run(&Default::default(), now()).await);
    assert_eq!(failure, PluginFailure::Timeout(Duration::from_millis(200)));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(150) && took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_spinning_guest_lets_others_run_even_on_one_thread() {
    static TURNS: AtomicU32 = AtomicU32::new(0);
    let scheduler = load("spins", "scheduler", "").await.scheduler(hurried()).await.expect("set up");
    let others = tokio::spawn(async {
        for turn in 0..u32::MAX {
            TURNS.store(turn, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    failure(scheduler.next_run(&Default::default(), now()).await);
    others.abort();
    let turns = TURNS.load(Ordering::Relaxed);
    assert!(turns > 5, "others had {turns} turns");
}

#[tokio::test]
async fn cpu_time_is_limited_by_itself_where_a_call_may_wait_longer() {
    let limits = Limits { cpu: Some(Duration::from_millis(100)), ..Limits::default() };
    let notifier = load("spins_as_notifier", "notifier", "").await.notifier(limited(limits)).await.expect("set up");
    assert_eq!(failure(notifier.handle(&event()).await), exceeded("CPU time", "0.1 s", "cpu"));
}

#[tokio::test]
async fn a_guest_asleep_in_a_host_call_is_ended_at_its_deadline() {
    let notifier = load("sleeps_as_notifier", "notifier", "").await.notifier(hurried()).await.expect("set up");
    let begun = Instant::now();
    assert_eq!(failure(notifier.handle(&event()).await), PluginFailure::Timeout(Duration::from_millis(200)));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn memory_is_limited_and_the_setting_named() {
    let retention = load("eats_memory", "retention", "").await.retention(Instance::default()).await.expect("set up");
    assert_eq!(failure(retention.select(&points(1), now()).await), exceeded("memory", "64 MiB", "memory"));
    let limits = Limits { memory: Some(8 << 20), ..Limits::default() };
    let retention = load("eats_memory", "retention", "").await.retention(limited(limits)).await.expect("set up");
    assert_eq!(failure(retention.select(&points(1), now()).await), exceeded("memory", "8 MiB", "memory"));
}

#[tokio::test]
async fn host_objects_are_limited() {
    let notifier = load("leaks_handles", "notifier", "").await.notifier(Instance::default()).await.expect("set up");
    assert_eq!(failure(notifier.handle(&event()).await), exceeded("host object", "256", "host_objects"));
}

#[tokio::test]
async fn a_flood_of_log_lines_is_dropped_and_the_call_goes_on() {
    let scheduler = load("floods_the_log", "scheduler", "").await.scheduler(Instance::default()).await.expect("set up");
    let (lines, _guard) = crate::address_book::record_log_lines();
    let due = scheduler.next_run(&Default::default(), now()).await.expect("an answer");
    assert!(matches!(due, NextRun::At(_)));
    let lines = lines.lock().expect("unpoisoned");
    let flood: Vec<_> = lines.iter().filter(|line| line.contains("flood")).collect();
    assert!((100..=1_000).contains(&flood.len()), "{} lines of ten thousand", flood.len());
    let bytes: usize = flood.iter().map(|line| line.len()).sum();
    assert!(bytes < 256 << 10, "{bytes} bytes");
    assert!(flood.iter().all(|line| !line.contains('\n')), "a guest cannot forge lines");
    assert!(flood.iter().any(|line| line.contains("flooded output 0")), "standard output goes to the log");
}

#[tokio::test]
async fn a_wrong_number_of_judgements_is_nonsense() {
    let retention =
        load("answers_nonsense", "retention", "").await.retention(Instance::default()).await.expect("set up");
    assert_eq!(
        failure(retention.select(&points(3), now()).await),
        PluginFailure::Nonsense("2 judgements for 3 recovery points".to_owned())
    );
}

#[tokio::test]
async fn long_texts_are_cut_and_stay_on_their_line() {
    let retention =
        load("answers_at_length", "retention", "").await.retention(Instance::default()).await.expect("set up");
    let judgements = retention.select(&points(2), now()).await.expect("judgements");
    assert!(judgements.iter().all(|judgement| judgement.rule.len() < 5_000 && !judgement.rule.contains('\n')));
}

#[tokio::test]
async fn a_flood_of_text_for_the_host_is_refused_before_it_is_copied() {
    let retention =
        load("answers_at_length", "retention", "").await.retention(Instance::default()).await.expect("set up");
    // 200 texts of 80 kB fit into the guest's memory and are more than the host takes in.
    let failure = failure(retention.select(&points(200), now()).await);
    assert!(matches!(&failure, PluginFailure::Trap(words) if words.contains("too much data")), "{failure}");
}

#[tokio::test]
async fn a_deferral_into_the_past_is_nonsense() {
    let scheduler =
        load("defers_to_the_past", "scheduler", "").await.scheduler(Instance::default()).await.expect("set up");
    let plan = vmferry_model::plan::JobPlan { job: "erp".to_owned(), vms: Vec::new() };
    let failure = failure(scheduler.approve(&plan, now()).await);
    assert!(matches!(&failure, PluginFailure::Nonsense(text) if text.contains("has passed")), "{failure}");
}

#[tokio::test]
async fn a_notifier_that_always_wants_another_try_gets_three() {
    let store = std::sync::Arc::new(crate::house::Memory::default());
    let host = vmferry_sandbox::HostServices { key_value: Some(store.clone()), ..Default::default() };
    let plugin = load("retries_forever", "notifier", "[grants]\nstore = true").await;
    let notifier = plugin.notifier(Instance { host, ..Instance::default() }).await.expect("set up");
    let begun = Instant::now();
    let failure = failure(notifier.handle(&event()).await);
    assert!(matches!(failure, PluginFailure::Refused { .. }), "{failure}");
    let values = store.0.lock().expect("unpoisoned");
    assert_eq!(values.values().map(Vec::len).collect::<Vec<_>>(), [3]);
    assert!(begun.elapsed() >= Duration::from_secs(2), "not in a storm");
}

#[tokio::test]
async fn all_attempts_of_a_notifier_have_one_deadline() {
    let store = std::sync::Arc::new(crate::house::Memory::default());
    let host = vmferry_sandbox::HostServices { key_value: Some(store.clone()), ..Default::default() };
    let plugin = load("retries_forever", "notifier", "[grants]\nstore = true").await;
    // The shortest wait before another attempt is a second, which is more than twice the time of a call.
    let notifier = plugin.notifier(Instance { host, ..hurried() }).await.expect("set up");
    let failure = failure(notifier.handle(&event()).await);
    assert!(matches!(failure, PluginFailure::Refused { .. }), "{failure}");
    let values = store.0.lock().expect("unpoisoned");
    assert_eq!(values.values().map(Vec::len).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_call_does_not_wait_for_its_turn_forever() {
    let notifier = load("sleeps_as_notifier", "notifier", "").await.notifier(hurried()).await.expect("set up");
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let notifier = notifier.clone();
            tokio::spawn(async move { failure(notifier.handle(&event()).await) })
        })
        .collect();
    let (mut timeouts, mut busy) = (0, 0);
    for call in calls {
        match call.await.expect("no panic") {
            PluginFailure::Timeout(_) => timeouts += 1,
            PluginFailure::Host(text) if text.starts_with("busy: 4 calls of this plugin") => busy += 1,
            other => panic!("{other}"),
        }
    }
    // Four turns from the start; a few calls may get one in the moment in which the others give up.
    assert!(timeouts >= 4 && busy >= 8, "{timeouts} calls ran and {busy} gave up");
}

#[tokio::test]
async fn one_call_uses_its_store_so_often_and_no_more() {
    let store = std::sync::Arc::new(crate::house::Memory::default());
    let host = vmferry_sandbox::HostServices { key_value: Some(store), ..Default::default() };
    let plugin = load("hammers_the_store", "notifier", "[grants]\nstore = true").await;
    let notifier = plugin.notifier(Instance { host, ..Instance::default() }).await.expect("set up");
    for _ in 0..2 {
        let report = "100 times, then: one call may use the store 100 times".to_owned();
        assert_eq!(notifier.handle(&event()).await, Ok(Verdict::Skip(report)));
    }
}

#[tokio::test]
async fn five_breakdowns_rest_that_use_of_the_plugin_and_no_other() {
    let plugin = load("traps", "scheduler", "").await;
    let broken = plugin.scheduler(Instance::default()).await.expect("set up");
    let other = plugin.scheduler(Instance::default()).await.expect("set up");
    for _ in 0..5 {
        let failure = failure(broken.next_run(&Default::default(), now()).await);
        assert!(matches!(failure, PluginFailure::Trap(_)), "{failure}");
    }
    let resting = failure(broken.next_run(&Default::default(), now()).await);
    assert!(matches!(&resting, PluginFailure::Denied(text) if text.contains("five times")), "{resting}");
    let failure = failure(other.next_run(&Default::default(), now()).await);
    assert!(matches!(failure, PluginFailure::Trap(_)), "{failure}");
}

#[tokio::test]
async fn more_calls_than_turns_wait_and_all_are_answered() {
    let scheduler = load("remembers", "scheduler", "").await.scheduler(Instance::default()).await.expect("set up");
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let scheduler = scheduler.clone();
            tokio::spawn(async move { scheduler.next_run(&Default::default(), now()).await })
        })
        .collect();
    for call in calls {
        let due = call.await.expect("no panic").expect("an answer");
        assert_eq!(due, NextRun::Never("call 1".to_owned()));
    }
}

#[tokio::test]
async fn a_verdict_passes_through() {
    let notifier = load("keeps_and_signs", "notifier", "").await.notifier(Instance::default()).await.expect("set up");
    assert_eq!(notifier.handle(&event()).await, Ok(Verdict::Skip(String::new())));
}
