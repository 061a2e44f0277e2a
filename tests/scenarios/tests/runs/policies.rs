//! What plugins decide, and what happens when they cannot.

use async_trait::async_trait;
use jiff::Timestamp;
use std::sync::{Arc, Mutex};
use vmferry_engine::Subscription;
use vmferry_model::event::Event;
use vmferry_model::plan::{JobPlan, Kind};
use vmferry_model::plugin::{
    Approval, Judgement, NextRun, Notifier, PluginError, PluginFailure, PluginId, PointView, Retention, ScheduleState,
    Scheduler, Verdict,
};
use vmferry_model::report::Outcome;
use vmferry_scenarios::{Keep, World, only_target, point_of};

/// Answers whatever it is told to.
struct Answer(Result<Vec<Judgement>, PluginFailure>);

#[async_trait]
impl Retention for Answer {
    async fn select(&self, _: &[PointView], _: Timestamp) -> Result<Vec<Judgement>, PluginError> {
        self.0.clone().map_err(failure)
    }
}

fn failure(failure: PluginFailure) -> PluginError {
    let plugin = PluginId { name: "bad".to_owned(), version: "1.2.3".to_owned() };
    PluginError { plugin, call: "select".to_owned(), failure }
}

#[tokio::test]
async fn retention_drops_what_the_rule_drops_and_the_disks_with_it() {
    let mut world = World::new().await;
    world.policies.retention = Some(Arc::new(Keep(2)));
    let mut points = Vec::new();
    for _ in 0..4 {
        let report = world.run().await;
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
        points.push((point_of(&report), only_target(&report).pruned.clone()));
    }
    assert_eq!(points[2].1, [points[0].0.clone()]);
    assert_eq!(points[3].1, [points[1].0.clone()]);
    world.assert_tidy(2);
    assert_eq!(world.digest_tables(), 2 * 2, "one digest table per disk and recovery point");
}

#[tokio::test]
async fn the_newest_point_stays_whatever_the_rule_says() {
    let mut world = World::new().await;
    world.policies.retention = Some(Arc::new(Keep(0)));
    world.run().await;
    let second = world.run().await;
    assert_eq!(only_target(&second).pruned.len(), 1);
    assert_eq!(world.target_content(&point_of(&second)), world.source_content());
    let third = world.run().await;
    assert!(only_target(&third).disks.iter().all(|disk| disk.kind == Kind::Delta), "{third:#?}");
}

#[tokio::test]
async fn a_retention_plugin_that_fails_prunes_nothing_and_is_named() {
    let drop_all = vec![Judgement { keep: false, rule: "all".to_owned() }];
    for answer in [
        Err(PluginFailure::Trap("unreachable".to_owned())),
        Err(PluginFailure::Timeout(std::time::Duration::from_secs(2))),
        Ok(drop_all),
    ] {
        let mut world = World::new().await;
        world.run().await;
        world.policies.retention = Some(Arc::new(Answer(answer.clone())));
        let report = world.run().await;
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
        assert!(only_target(&report).pruned.is_empty());
        let warnings = &only_target(&report).warnings;
        assert!(warnings.iter().any(|text| text.contains("nothing was pruned")), "{answer:?}: {warnings:?}");
        world.assert_tidy(2);
    }
}

/// Approves as it is told to, and remembers what it was asked.
struct Gate {
    answer: Result<Approval, PluginFailure>,
    asked: Mutex<Vec<JobPlan>>,
}

#[async_trait]
impl Scheduler for Gate {
    async fn next_run(&self, _: &ScheduleState, now: Timestamp) -> Result<NextRun, PluginError> {
        Ok(NextRun::At(now))
    }

    async fn approve(&self, plan: &JobPlan, _: Timestamp) -> Result<Approval, PluginError> {
        self.asked.lock().unwrap().push(plan.clone());
        self.answer.clone().map_err(failure)
    }
}

#[tokio::test]
async fn a_scheduler_may_refuse_a_plan_before_anything_is_made() {
    let refused = Approval::Refused { reason: "never full".to_owned() };
    for (answer, outcome) in
        [(Ok(refused), Outcome::Refused), (Err(PluginFailure::Trap("unreachable".to_owned())), Outcome::Failed)]
    {
        let mut world = World::new().await;
        let gate = Arc::new(Gate { answer, asked: Mutex::default() });
        world.policies.scheduler = Some(gate.clone());
        world.source.clear_calls();
        let report = world.run().await;
        assert_eq!(report.outcome, outcome, "{report:#?}");
        assert!(!world.source.calls().iter().any(|call| call.contains("VM.snapshot")));
        let asked = gate.asked.lock().unwrap();
        assert_eq!(asked.len(), 1);
        let disks = &asked[0].vms[0].targets[0].disks;
        assert!(disks.iter().all(|disk| disk.kind == Kind::Full && disk.expected_bytes > 0), "{disks:#?}");
    }
}

/// Remembers what it was told, and fails if it is told to.
struct Ear {
    heard: Mutex<Vec<Event>>,
    fails: bool,
}

#[async_trait]
impl Notifier for Ear {
    async fn handle(&self, event: &Event) -> Result<Verdict, PluginError> {
        self.heard.lock().unwrap().push(event.clone());
        if self.fails { Err(failure(PluginFailure::Trap("unreachable".to_owned()))) } else { Ok(Verdict::Proceed) }
    }
}

#[tokio::test]
async fn notifiers_hear_what_they_asked_for_and_their_failure_stops_nothing() {
    let mut world = World::new().await;
    let (all, few) = (
        Arc::new(Ear { heard: Mutex::default(), fails: true }),
        Arc::new(Ear { heard: Mutex::default(), fails: false }),
    );
    world.policies.notifiers = vec![
        Subscription { name: "all".to_owned(), on: Vec::new(), notifier: all.clone() },
        Subscription { name: "few".to_owned(), on: vec!["succeeded".to_owned()], notifier: few.clone() },
    ];
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert!(report.warnings.iter().any(|text| text.contains("plugin bad 1.2.3")), "{report:#?}");
    let kinds = |ear: &Ear| ear.heard.lock().unwrap().iter().map(|event| event.kind.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&all), ["started", "succeeded"]);
    assert_eq!(kinds(&few), ["succeeded"]);
    let detail = few.heard.lock().unwrap()[0].detail.clone();
    assert_eq!(detail["vms"][0]["vm"], world.vm.as_str());
}
