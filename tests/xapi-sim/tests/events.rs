//! `event.from`, which everything that waits is built on.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use common::{Client, vm_with_disks};
use serde_json::{Value as Json, json};
use xapi_sim::{Sim, SimConfig};

async fn setup() -> (Sim, Client) {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let client = Client::login(&sim).await;
    (sim, client)
}

async fn from(client: &Client, classes: &[&str], token: &str, timeout: f64) -> (Vec<Json>, String, Json) {
    let answer = client.call("event.from", json!([classes, token, timeout])).await.unwrap();
    let token = answer["token"].as_str().unwrap().to_owned();
    (answer["events"].as_array().unwrap().clone(), token, answer["valid_ref_counts"].clone())
}

#[tokio::test]
async fn an_empty_token_tells_of_everything_as_new() {
    let (sim, client) = setup().await;
    vm_with_disks(&sim, &[1]);
    let (events, token, counts) = from(&client, &["*"], "", 1.0).await;
    assert!(events.iter().all(|event| event["operation"] == "add" && event["snapshot"].is_object()));
    let vms = events.iter().filter(|event| event["class"] == "vm").count();
    assert_eq!((vms, counts["vm"].as_u64()), (2, Some(2)), "the VM and the control domain");
    assert!(events.iter().all(|event| event["class"].as_str().unwrap().chars().all(|letter| !letter.is_uppercase())));
    assert!(events.iter().all(|event| event["class"] != "session"));
    assert_eq!((token.len(), token.as_bytes()[20]), (41, b','));
    sim.stop().await;
}

#[tokio::test]
async fn changes_come_once_and_in_the_order_add_mod_del() {
    let (sim, client) = setup().await;
    let (old, _) = vm_with_disks(&sim, &[]);
    let (gone, _) = vm_with_disks(&sim, &[]);
    let (old, gone) = (client.by_uuid("VM", &old).await, client.by_uuid("VM", &gone).await);
    let (_, token, _) = from(&client, &["vm"], "", 1.0).await;
    client.call("VM.destroy", json!([gone])).await.unwrap();
    for name in ["a", "b"] {
        client.call("VM.set_name_label", json!([old, name])).await.unwrap();
    }
    let (new, _) = vm_with_disks(&sim, &[]);
    let (short_lived, _) = vm_with_disks(&sim, &[]);
    let short_lived = client.by_uuid("VM", &short_lived).await;
    client.call("VM.destroy", json!([short_lived])).await.unwrap();

    let (events, token, _) = from(&client, &["VM"], &token, 1.0).await;
    let seen: Vec<(&str, &str)> =
        events.iter().map(|event| (event["operation"].as_str().unwrap(), event["ref"].as_str().unwrap())).collect();
    let new = client.by_uuid("VM", &new).await;
    assert_eq!(seen, [("add", new.as_str()), ("mod", &old), ("del", &gone)]);
    assert_eq!(events[1]["snapshot"]["name_label"], "b", "the newest record");
    assert!(events[2].get("snapshot").is_none());

    let (events, _, _) = from(&client, &["vm"], &token, 0.0).await;
    assert!(events.is_empty(), "nothing twice");
    sim.stop().await;
}

#[tokio::test]
async fn a_waiter_is_woken_by_its_object_and_by_no_other() {
    let (sim, client) = setup().await;
    let (one, two) = (client.task().await, client.task().await);
    let classes = format!("task/{one}");
    let (_, token, _) = from(&client, &[classes.as_str()], "", 1.0).await;
    let other = Client::login(&sim).await;
    let classes = [classes.as_str()];
    let wait = from(&client, &classes, &token, 30.0);
    let change = async {
        other.call("task.set_progress", json!([two, 0.5])).await.unwrap();
        other.call("task.set_progress", json!([one, 0.5])).await.unwrap();
    };
    let ((events, _, _), ()) = tokio::join!(wait, change);
    let seen: Vec<&str> = events.iter().map(|event| event["ref"].as_str().unwrap()).collect();
    assert_eq!(seen, [one]);
    sim.stop().await;
}

#[tokio::test]
async fn time_runs_out_with_an_empty_list_and_a_token() {
    let (sim, client) = setup().await;
    let (_, token, _) = from(&client, &["sr"], "", 1.0).await;
    let (events, next, _) = from(&client, &["sr"], &token, 0.05).await;
    assert!(events.is_empty() && next.len() == 41);
    sim.stop().await;
}

#[tokio::test]
async fn a_session_that_ends_ends_the_wait() {
    let (sim, client) = setup().await;
    let (_, token, _) = from(&client, &["sr"], "", 1.0).await;
    let other = Client::login(&sim).await;
    let wait = client.call("event.from", json!([["sr"], token, 30.0]));
    let (waited, _) = tokio::join!(wait, other.bare("session.logout", json!([client.session])));
    assert_eq!(waited.unwrap_err()[0], "SESSION_INVALID");
    sim.stop().await;
}

#[tokio::test]
async fn an_injected_event_comes_back_and_nonsense_is_refused() {
    let (sim, client) = setup().await;
    let pool = client.call("pool.get_all", json!([])).await.unwrap()[0].as_str().unwrap().to_owned();
    let token = client.text("event.inject", json!(["pool", pool])).await;
    let (events, _, _) = from(&client, &["pool"], &token, 1.0).await;
    assert_eq!((events.len(), events[0]["operation"].as_str()), (1, Some("mod")));
    let error = client.call("event.from", json!([["vm"], "soon", 1.0])).await.unwrap_err();
    assert_eq!(error, ["EVENT_FROM_TOKEN_PARSE_FAILURE", "soon"]);
    let error = client.call("event.from", json!([["a/b/c"], "", 1.0])).await.unwrap_err();
    assert_eq!(error, ["EVENT_SUBSCRIPTION_PARSE_FAILURE", "a/b/c"]);
    sim.stop().await;
}
