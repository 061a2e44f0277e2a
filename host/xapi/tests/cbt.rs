//! Facts about the calls for changed-block tracking.

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use support::{Host, PATIENCE, TASK, failure, value};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{ApiError, Error, Ref, Retry};

fn snapshot(n: u8) -> Ref<Vdi> {
    Ref::new(format!("OpaqueRef:5a500000-0000-0000-0000-00000000000{n}"))
}

#[tokio::test]
async fn tracking_is_switched_by_tasks() {
    let host = Host::start().await;
    let session = host.login().await;
    for call in ["enable_cbt", "disable_cbt", "data_destroy"] {
        host.on(&format!("Async.VDI.{call}"), |_| value(TASK));
    }
    host.task.succeed("");
    session.enable_cbt(&snapshot(1)).await.expect("enabled");
    session.data_destroy(&snapshot(1)).await.expect("destroyed");
    session.disable_cbt(&snapshot(1)).await.expect("disabled");
    assert_eq!(host.count("task.destroy"), 3);
    let calls = host.requests().into_iter().filter(|r| r.name.starts_with("Async.VDI."));
    assert!(calls.into_iter().all(|call| call.body.contains(snapshot(1).as_str())));

    host.task.fail(&["VDI_IN_USE", snapshot(1).as_str(), "data_destroy"]);
    let error = session.data_destroy(&snapshot(1)).await.expect_err("a drive uses it");
    assert!(matches!(error.api(), Some(ApiError::VdiInUse { .. })), "{error}");
    assert_eq!(error.retry(), Retry::Later);
}

#[tokio::test]
async fn the_bitmap_of_the_largest_vhd_comes_as_bytes() {
    let host = Host::start().await;
    let session = host.login().await;
    // 2040 GiB at 64 KiB a bit.
    let bitmap: Vec<u8> = (0..2040 * 2048_u32).map(|n| (n % 251) as u8).collect();
    let text = STANDARD.encode(&bitmap);
    host.on("VDI.list_changed_blocks", move |request| {
        let (from, to) = (request.body.find(snapshot(1).as_str()), request.body.find(snapshot(2).as_str()));
        assert!(from.is_some() && from < to, "the older one first");
        value(&text)
    });
    let (from, to) = (snapshot(1), snapshot(2));
    let changed = session.list_changed_blocks(&from, &to);
    let changed = tokio::time::timeout(PATIENCE, changed).await.expect("bounded").expect("known");
    assert!(changed == bitmap);

    host.on("VDI.list_changed_blocks", |_| value("\n gAE= \n"));
    assert_eq!(session.list_changed_blocks(&snapshot(1), &snapshot(2)).await.expect("known"), [0x80, 1]);
    host.on("VDI.list_changed_blocks", |_| value(""));
    assert_eq!(session.list_changed_blocks(&snapshot(1), &snapshot(2)).await.expect("known"), []);
}

#[tokio::test]
async fn changes_that_are_not_known_are_told_from_other_errors() {
    let host = Host::start().await;
    let session = host.login().await;
    host.on("VDI.list_changed_blocks", |_| {
        failure(["SR_BACKEND_FAILURE_460", "", "Source and target VDI are unrelated", ""])
    });
    let error = session.list_changed_blocks(&snapshot(1), &snapshot(2)).await.expect_err("unrelated");
    assert!(matches!(error.api(), Some(ApiError::ChangesUnknown { text }) if text.contains("unrelated")), "{error}");
    assert_eq!(error.retry(), Retry::Never);

    host.on("VDI.list_changed_blocks", |_| value("no base64, is it?"));
    let error = session.list_changed_blocks(&snapshot(1), &snapshot(2)).await.expect_err("nonsense");
    assert!(matches!(error, Error::Decode { .. }), "{error}");
}
