//! Days of scheduling in a moment: the clock jumps to whatever is waited for.

use super::*;
use std::sync::Mutex;
use tokio::sync::watch::Sender;
use vmferry_model::plan::JobPlan;
use vmferry_model::plugin::{Approval, Notifier, PluginError, PluginFailure, PluginId, ScheduleState, Verdict};
use vmferry_store::Store;

fn second(n: i64) -> Timestamp {
    Timestamp::from_second(n).expect("a time within jiff's range")
}

/// A clock that is moved by those who wait for it.
struct JumpingClock(Mutex<Timestamp>);

#[async_trait]
impl Clock for JumpingClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().expect("no test panics here")
    }

    async fn sleep_until(&self, at: Timestamp) {
        let mut now = self.0.lock().expect("no test panics here");
        *now = at.max(*now);
    }
}

/// Answers from a list, then says "never" and stops the daemon.
struct Scripted {
    answers: Mutex<Vec<Result<NextRun, PluginError>>>,
    asked_at: Mutex<Vec<i64>>,
    switch: Sender<bool>,
}

#[async_trait]
impl Scheduler for Scripted {
    async fn next_run(&self, _: &ScheduleState, now: Timestamp) -> Result<NextRun, PluginError> {
        self.asked_at.lock().expect("no test panics here").push(now.as_second());
        let mut answers = self.answers.lock().expect("no test panics here");
        if answers.is_empty() {
            self.switch.send_replace(true);
            return Ok(NextRun::Never("the script is over".to_owned()));
        }
        answers.remove(0)
    }

    async fn approve(&self, _: &JobPlan, _: Timestamp) -> Result<Approval, PluginError> {
        Ok(Approval::Approved)
    }
}

/// Runs take ten seconds and end in the history.
struct TenSeconds {
    clock: Arc<JumpingClock>,
    history: Store,
    started_at: Mutex<Vec<i64>>,
}

#[async_trait]
impl Work for TenSeconds {
    async fn run(&self) -> RunReport {
        let started_at = self.clock.now();
        self.started_at.lock().expect("no test panics here").push(started_at.as_second());
        let ended_at = started_at + SignedDuration::from_secs(10);
        self.clock.sleep_until(ended_at).await;
        let report = report(started_at, ended_at);
        self.history.record("default", &report).await.expect("the run is recorded");
        report
    }
}

fn report(started_at: Timestamp, ended_at: Timestamp) -> RunReport {
    RunReport {
        job: "erp".to_owned(),
        run: format!("run at {started_at}"),
        started_at,
        ended_at,
        outcome: Outcome::Succeeded,
        error: None,
        warnings: Vec::new(),
        vms: Vec::new(),
    }
}

#[derive(Default)]
struct Listener(Mutex<Vec<String>>);

#[async_trait]
impl Notifier for Listener {
    async fn handle(&self, event: &Event) -> Result<Verdict, PluginError> {
        self.0.lock().expect("no test panics here").push(format!("{} {}", event.kind, event.detail["error"]));
        Ok(Verdict::Proceed)
    }
}

struct Seen {
    asked_at: Vec<i64>,
    started_at: Vec<i64>,
    told: Vec<String>,
}

fn trap() -> Result<NextRun, PluginError> {
    let plugin = PluginId { name: "schedule-x".to_owned(), version: "1.0.0".to_owned() };
    Err(PluginError { plugin, call: "next-run".to_owned(), failure: PluginFailure::Trap("unreachable".to_owned()) })
}

/// Watches a job from second 0 on until the scheduler's answers are used up.
async fn watch_with(answers: Vec<Result<NextRun, PluginError>>) -> Seen {
    let (switch, stop) = Stop::switch();
    let clock = Arc::new(JumpingClock(Mutex::new(second(0))));
    let history = Store::in_memory().await.expect("a store in memory");
    let scheduler = Arc::new(Scripted { answers: Mutex::new(answers), asked_at: Mutex::default(), switch });
    let work = Arc::new(TenSeconds { clock: clock.clone(), history: history.clone(), started_at: Mutex::default() });
    let listener = Arc::new(Listener::default());
    let subscription = |on: &[&str]| Subscription {
        name: "notify-x".to_owned(),
        on: on.iter().map(|kind| (*kind).to_owned()).collect(),
        notifier: listener.clone(),
    };
    let job = Watched {
        tenant: "default".to_owned(),
        job: "erp".to_owned(),
        scheduler: scheduler.clone(),
        notifiers: vec![subscription(&["plugin-failed"]), subscription(&["succeeded"])],
        work: work.clone(),
        history: Arc::new(history),
    };
    watch(&job, &*clock, stop).await;
    let copy = |list: &Mutex<Vec<i64>>| list.lock().expect("no test panics here").clone();
    Seen {
        asked_at: copy(&scheduler.asked_at),
        started_at: copy(&work.started_at),
        told: listener.0.lock().expect("no test panics here").clone(),
    }
}

#[tokio::test]
async fn a_job_runs_when_its_scheduler_says_so() {
    let seen = watch_with(vec![Ok(NextRun::At(second(60))), Ok(NextRun::At(second(120)))]).await;
    assert_eq!(seen.started_at, [60, 120]);
    assert_eq!(seen.asked_at, [0, 70, 130]);
}

#[tokio::test]
async fn a_time_that_has_passed_means_at_once_but_not_without_a_pause() {
    let seen = watch_with(vec![Ok(NextRun::At(second(-5))), Ok(NextRun::At(second(5)))]).await;
    assert_eq!(seen.started_at, [0, 11]);
}

#[tokio::test]
async fn a_scheduler_that_fails_is_asked_again_ever_later_and_told_of_once() {
    let mut answers: Vec<_> = std::iter::repeat_with(trap).take(9).collect();
    answers.push(Ok(NextRun::At(second(5000))));
    answers.push(trap());
    let seen = watch_with(answers).await;
    assert_eq!(seen.asked_at, [0, 10, 30, 70, 150, 310, 630, 1230, 1830, 2430, 5010, 5020]);
    let told = r#"plugin-failed "plugin schedule-x 1.0.0: next-run: trapped: unreachable""#;
    assert_eq!(seen.told, [told, told], "once for each streak");
    assert_eq!(seen.started_at, [5000]);
}

#[tokio::test]
async fn a_scheduler_that_says_never_is_asked_again() {
    let never = Ok(NextRun::Never("holidays".to_owned()));
    let seen = watch_with(vec![never, Ok(NextRun::At(second(700)))]).await;
    assert_eq!(seen.asked_at[..2], [0, 600]);
    assert_eq!(seen.started_at, [700]);
}

/// Records a run by somebody else while the daemon waits.
struct Intruder {
    clock: Arc<JumpingClock>,
    history: Store,
    waits: Mutex<u32>,
}

#[async_trait]
impl Clock for Intruder {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn sleep_until(&self, at: Timestamp) {
        let is_first = {
            let mut waits = self.waits.lock().expect("no test panics here");
            *waits += 1;
            *waits == 1
        };
        if is_first {
            self.history.record("default", &report(second(30), second(40))).await.expect("the run is recorded");
        }
        self.clock.sleep_until(at).await;
    }
}

#[tokio::test]
async fn a_run_by_hand_makes_the_scheduler_be_asked_again() {
    let (switch, stop) = Stop::switch();
    let clock = Arc::new(JumpingClock(Mutex::new(second(0))));
    let history = Store::in_memory().await.expect("a store in memory");
    let answers = Mutex::new(vec![Ok(NextRun::At(second(60))), Ok(NextRun::At(second(90)))]);
    let scheduler = Arc::new(Scripted { answers, asked_at: Mutex::default(), switch });
    let work = Arc::new(TenSeconds { clock: clock.clone(), history: history.clone(), started_at: Mutex::default() });
    let job = Watched {
        tenant: "default".to_owned(),
        job: "erp".to_owned(),
        scheduler,
        notifiers: Vec::new(),
        work: work.clone(),
        history: Arc::new(history.clone()),
    };
    watch(&job, &Intruder { clock, history, waits: Mutex::default() }, stop).await;
    assert_eq!(*work.started_at.lock().expect("no test panics here"), [90]);
}

#[tokio::test]
async fn a_waiting_job_stops_at_once() {
    struct Endless;
    #[async_trait]
    impl Clock for Endless {
        fn now(&self) -> Timestamp {
            second(0)
        }
        async fn sleep_until(&self, _: Timestamp) {
            std::future::pending().await
        }
    }
    let (switch, stop) = Stop::switch();
    let (never, _) = Stop::switch();
    let history = Store::in_memory().await.expect("a store in memory");
    let clock = Arc::new(JumpingClock(Mutex::new(second(0))));
    let answers = Mutex::new(vec![Ok(NextRun::At(second(60)))]);
    let work = Arc::new(TenSeconds { clock, history: history.clone(), started_at: Mutex::default() });
    let job = Watched {
        tenant: "default".to_owned(),
        job: "erp".to_owned(),
        scheduler: Arc::new(Scripted { answers, asked_at: Mutex::default(), switch: never }),
        notifiers: Vec::new(),
        work: work.clone(),
        history: Arc::new(history),
    };
    let watching = tokio::spawn(async move { watch(&job, &Endless, stop).await });
    switch.send_replace(true);
    watching.await.expect("the watch ends");
    assert!(work.started_at.lock().expect("no test panics here").is_empty());
}
