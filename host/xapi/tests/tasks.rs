//! Facts about tasks.

mod support;

use support::{Host, PATIENCE, TASK, batch, failure, raw, value};
use vmferry_xapi::records::{Task, Vm};
use vmferry_xapi::{ApiError, Error, Ref, Session, params};

async fn snapshot(session: &Session) -> Result<Ref<Vm>, Error> {
    let call = session.call_async("VM.snapshot", params!["OpaqueRef:1", "name"]);
    tokio::time::timeout(PATIENCE, call).await.expect("bounded")
}

async fn host_with_snapshots() -> (Host, Session) {
    let host = Host::start().await;
    host.on("Async.VM.snapshot", |_| value(TASK));
    let session = host.login().await;
    (host, session)
}

#[tokio::test]
async fn a_task_is_awaited_by_events_and_destroyed() {
    let (host, session) = host_with_snapshots().await;
    let task = host.task.clone();
    let end = tokio::spawn({
        let host = host.clone();
        async move {
            host.asked_for("event.from").await;
            task.succeed("<value>OpaqueRef:snapshot</value>");
        }
    });
    assert_eq!(snapshot(&session).await.expect("success").as_str(), "OpaqueRef:snapshot");
    end.await.expect("no panic");
    assert_eq!(host.count("task.get_record"), 1, "events tell the end");
    assert_eq!(host.names().last().map(String::as_str), Some("task.destroy"));
}

#[tokio::test]
async fn a_task_is_polled_where_events_fail() {
    for error in ["EVENT_SUBSCRIPTION_PARSE_FAILURE", "EVENTS_LOST"] {
        let (host, session) = host_with_snapshots().await;
        let task = host.task.clone();
        host.on("event.from", move |_| {
            task.succeed("<value>OpaqueRef:snapshot</value>");
            failure([error])
        });
        assert_eq!(snapshot(&session).await.expect("success").as_str(), "OpaqueRef:snapshot");
        assert_eq!((host.count("event.from"), host.count("task.get_record")), (1, 2));
    }
}

#[tokio::test]
async fn a_task_that_found_its_queue_full_is_started_again() {
    let (host, session) = host_with_snapshots().await;
    let task = host.task.clone();
    host.task.fail(&["TOO_MANY_PENDING_TASKS"]);
    host.on("task.destroy", move |_| {
        task.succeed("<value>OpaqueRef:snapshot</value>");
        value("")
    });
    assert_eq!(snapshot(&session).await.expect("the second time").as_str(), "OpaqueRef:snapshot");
    assert_eq!((host.count("Async.VM.snapshot"), host.count("task.destroy")), (2, 2));
}

#[tokio::test]
async fn a_host_that_does_not_follow_single_tasks_is_not_asked_in_a_loop() {
    let (host, session) = host_with_snapshots().await;
    let task = host.task.clone();
    host.on("event.from", move |_| {
        task.succeed("<value>OpaqueRef:snapshot</value>");
        value(batch(&[]))
    });
    snapshot(&session).await.expect("success");
    assert_eq!(host.count("event.from"), 1);
}

#[tokio::test]
async fn a_failed_task_is_the_error_it_holds_and_destroyed() {
    let (host, session) = host_with_snapshots().await;
    host.task.fail(&["SR_BACKEND_FAILURE_109", "", "The snapshot chain is too long", ""]);
    match snapshot(&session).await {
        Err(Error::Api(ApiError::SnapshotChainTooLong { text })) => assert_eq!(text, "The snapshot chain is too long"),
        other => panic!("{other:?}"),
    }
    assert_eq!(host.count("task.destroy"), 1);
}

#[tokio::test]
async fn a_task_that_vanished_is_no_success() {
    let (host, session) = host_with_snapshots().await;
    host.on("task.get_record", |_| failure(["HANDLE_INVALID", "task", TASK]));
    let error = snapshot(&session).await.expect_err("nobody knows how it ended");
    assert!(matches!(&error, Error::TaskVanished { task } if task == TASK), "{error}");
}

#[tokio::test]
async fn a_task_that_vanishes_while_it_is_watched_is_no_success() {
    let (host, session) = host_with_snapshots().await;
    let gone = support::members(&[("class", "task"), ("operation", "del"), ("ref", TASK)]);
    host.on("event.from", move |_| value(batch(std::slice::from_ref(&gone))));
    host.on("task.get_record", |_| failure(["HANDLE_INVALID", "task", TASK]));
    host.once("task.get_record", |_| value(support::members(&[("uuid", "7a5c"), ("status", "pending")])));
    let error = snapshot(&session).await.expect_err("gone");
    assert!(matches!(error, Error::TaskVanished { .. }), "{error}");
}

#[tokio::test]
async fn a_call_that_fails_before_its_task_leaves_nothing_to_destroy() {
    let (host, session) = host_with_snapshots().await;
    host.on("Async.VM.snapshot", |_| failure(["OPERATION_BLOCKED", "OpaqueRef:1", "a replica"]));
    let error = snapshot(&session).await.expect_err("blocked");
    assert!(matches!(error.api(), Some(ApiError::OperationBlocked { .. })), "{error}");
    assert_eq!(host.count("task.destroy"), 0);
}

#[tokio::test]
async fn waiting_survives_a_lost_connection() {
    let (host, session) = host_with_snapshots().await;
    let task = host.task.clone();
    host.once("event.from", move |_| {
        task.succeed("");
        raw("")
    });
    let task = Ref::<Task>::new(TASK);
    let value = tokio::time::timeout(PATIENCE, session.wait_task(&task)).await.expect("bounded").expect("success");
    assert_eq!(value.as_str(), Some(""));
}

#[tokio::test]
async fn a_wait_that_is_given_up_still_removes_the_task() {
    let (host, session) = host_with_snapshots().await;
    let waiting = tokio::spawn(async move { snapshot(&session).await });
    host.asked_for("event.from").await;
    waiting.abort();
    host.asked_for("task.destroy").await;
}
