//! The plugins that come with the program, as an operator meets them.

use crate::address_book::{Server, http};
use crate::house::{bundled, event, points, with};
use vmferry_model::plan::{DiskPlan, ExpectedFrom, FullReason, JobPlan, Kind, TargetPlan, VmPlan};
use vmferry_model::plugin::{Approval, NextRun, ScheduleState, Verdict};
use vmferry_sandbox::{Grants, Instance};

#[tokio::test]
async fn every_bundled_plugin_loads_and_is_who_its_manifest_says() {
    assert!(vmferry_bundle::all().len() >= 5);
    for plugin in vmferry_bundle::all() {
        let loaded = bundled(plugin.id).await;
        assert_eq!(loaded.id().name, plugin.id);
        assert!(loaded.manifest().is_some_and(|manifest| manifest.config.is_some()), "{}", plugin.id);
    }
}

#[tokio::test]
async fn the_interval_scheduler_decides() {
    let plugin = bundled("schedule-interval").await;
    let scheduler = plugin.scheduler(with(serde_json::json!({ "every": "15m" }))).await.expect("set up");
    let started: jiff::Timestamp = "2026-11-21T07:00:00Z".parse().expect("a moment");
    let now = started + jiff::SignedDuration::from_mins(5);
    let state = ScheduleState { last_started: Some(started), ..Default::default() };
    let due = scheduler.next_run(&state, now).await.expect("an answer");
    assert_eq!(due, NextRun::At(started + jiff::SignedDuration::from_mins(15)));
    let Err(error) = plugin.scheduler(with(serde_json::json!({ "evry": "15m" }))).await else { panic!("set up") };
    assert!(error.to_string().contains("unknown field `evry`, expected `every`"), "{error}");
}

#[tokio::test]
async fn the_count_rule_judges() {
    let plugin = bundled("retain-count").await;
    let retention = plugin.retention(with(serde_json::json!({ "keep": 2 }))).await.expect("set up");
    let judgements = retention.select(&points(4), crate::house::now()).await.expect("judgements");
    assert_eq!(judgements.iter().map(|judgement| judgement.keep).collect::<Vec<_>>(), [false, false, true, true]);
    assert_eq!(judgements[3].rule, "newest 2");
}

#[tokio::test]
async fn the_webhook_posts_signed_json() {
    let server = Server::answering(http("204 No Content", "")).await;
    let address = format!("http://127.0.0.1:{}", server.port);
    let grants =
        Grants { http: vec![address.parse().expect("a pattern")], sign: vec!["hooks".to_owned()], ..Grants::default() };
    let host = vmferry_sandbox::HostServices {
        sign_keys: [("hooks".to_owned(), b"key".to_vec())].into(),
        ..Default::default()
    };
    let settings = serde_json::json!({ "url": format!("{address}/hook"), "sign_key": "hooks" });
    let plugin = bundled("notify-webhook").await;
    let notifier = plugin.notifier(Instance { grants, host, ..with(settings) }).await.expect("set up");
    assert_eq!(notifier.handle(&event()).await, Ok(Verdict::Proceed));
    let requests = server.requests();
    let (head, body) = requests[0].split_once("\r\n\r\n").expect("head and body");
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["kind"], "failed");
    assert_eq!(body["time"], "2026-11-21T07:30:00Z");
    assert_eq!(body["detail"]["outcome"], "failed");
    assert!(head.to_lowercase().contains("x-vmferry-signature: sha256="), "{head}");
}

#[tokio::test]
async fn a_plan_reaches_its_judge_whole() {
    let plugin = crate::house::load("refuses_full_copies", "scheduler", "").await;
    let scheduler = plugin.scheduler(Instance::default()).await.expect("set up");
    let plan = |kind, full_reason| JobPlan {
        job: "erp".to_owned(),
        vms: vec![VmPlan {
            vm: "vm".to_owned(),
            name: "name".to_owned(),
            error: None,
            targets: vec![TargetPlan {
                target: "dr".to_owned(),
                sr: None,
                replica: None,
                obstacles: Vec::new(),
                warnings: Vec::new(),
                disks: vec![DiskPlan {
                    disk: "disk 7".to_owned(),
                    kind,
                    base: None,
                    reason: String::new(),
                    full_reason,
                    expected_bytes: 1,
                    expected_from: ExpectedFrom::Full,
                }],
            }],
        }],
    };
    let now = crate::house::now();
    let approval = scheduler.approve(&plan(Kind::Delta, None), now).await.expect("an answer");
    assert_eq!(approval, Approval::Approved);
    let refused =
        scheduler.approve(&plan(Kind::Full, Some(FullReason::BaseGoneOnSource)), now).await.expect("an answer");
    assert!(
        matches!(&refused, Approval::Refused { reason } if reason.contains("disk 7") && reason.contains("BaseGoneOnSource"))
    );
}
