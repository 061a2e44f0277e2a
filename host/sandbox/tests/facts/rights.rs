//! Store, signing keys, settings and limits: requested, granted, or refused with the line to add.

use crate::house::{Memory, event, failure, load, with};
use std::sync::Arc;
use vmferry_model::plugin::{PluginFailure, Verdict};
use vmferry_sandbox::{Grants, HostServices, Instance, Limits};

const REQUESTS: &str = "[grants]\nstore = true\nsign = ['*']";

fn denied(failure: &PluginFailure) -> &str {
    match failure {
        PluginFailure::Denied(text) => text,
        other => panic!("{other}"),
    }
}

fn services() -> HostServices {
    HostServices {
        key_value: Some(Arc::new(Memory::default())),
        sign_keys: [("hooks".to_owned(), b"key".to_vec())].into(),
        ..HostServices::default()
    }
}

#[tokio::test]
async fn a_granted_key_signs_and_its_value_stays_with_the_host() {
    let plugin = load("keeps_and_signs", "notifier", REQUESTS).await;
    let grants = Grants { sign: vec!["hooks".to_owned()], ..Grants::default() };
    let instance = Instance { grants, host: services(), ..with(serde_json::json!({ "sign": "hooks" })) };
    let notifier = plugin.notifier(instance).await.expect("set up");
    // HMAC-SHA-256 of `failed` with the key `key`, by an independent implementation.
    let expected = "6ad2bb77827c84202c64ec431b524fdb072af169388229cb20e63c0ecb6712a8";
    let Verdict::Skip(signature) = notifier.handle(&event()).await.expect("signed") else { panic!("no signature") };
    assert_eq!(signature, expected);
}

#[tokio::test]
async fn a_key_that_was_not_granted_is_refused_with_the_line_to_add() {
    let plugin = load("keeps_and_signs", "notifier", REQUESTS).await;
    let instance = Instance { host: services(), ..with(serde_json::json!({ "sign": "hooks" })) };
    let refused = failure(plugin.notifier(instance).await.expect("set up").handle(&event()).await);
    assert!(denied(&refused).contains("[plugin.misbehaving-guests]`: grants.sign = [\"hooks\"]"), "{refused}");
}

#[tokio::test]
async fn what_cannot_name_a_key_is_not_repeated_in_the_report() {
    let plugin = load("keeps_and_signs", "notifier", REQUESTS).await;
    let name = "x\"]\n[plugin.other]\ngrants.http = [\"https://*:*";
    let instance = Instance { host: services(), ..with(serde_json::json!({ "sign": name })) };
    let refused = failure(plugin.notifier(instance).await.expect("set up").handle(&event()).await);
    let text = denied(&refused);
    assert!(
        text.contains("a key by a name that no key has") && !text.contains("other") && !text.contains("https://"),
        "{text}"
    );
}

#[tokio::test]
async fn what_the_manifest_does_not_request_is_refused_though_granted() {
    let plugin = load("keeps_and_signs", "notifier", "").await;
    let grants = Grants { sign: vec!["hooks".to_owned()], store: true, ..Grants::default() };
    for settings in [serde_json::json!({ "sign": "hooks" }), serde_json::json!({ "keep": 1 })] {
        let instance = Instance { grants: grants.clone(), host: services(), ..with(settings) };
        let refused = failure(plugin.notifier(instance).await.expect("set up").handle(&event()).await);
        assert!(denied(&refused).contains("its plugin.toml does not request"), "{refused}");
    }
}

#[tokio::test]
async fn values_are_kept_up_to_the_quota_and_apart_for_each_tenant() {
    let plugin = load("keeps_and_signs", "notifier", REQUESTS).await;
    let memory = Arc::new(Memory::default());
    let host = HostServices { key_value: Some(memory.clone()), ..HostServices::default() };
    let limits = Limits { store: Some(1_000), ..Limits::default() };
    let keep = |tenant: &str, bytes: usize| {
        let (plugin, host, limits) = (plugin.clone(), host.clone(), limits.clone());
        let instance =
            Instance { tenant: tenant.to_owned(), limits, host, ..with(serde_json::json!({ "keep": bytes })) };
        async move { plugin.notifier(instance).await.expect("set up").handle(&event()).await }
    };
    assert_eq!(keep("acme", 500).await, Ok(Verdict::Skip("kept 500 ".to_owned())));
    assert_eq!(keep("umbrella", 7).await, Ok(Verdict::Skip("kept 7 ".to_owned())));
    let refused = failure(keep("acme", 2_000).await);
    assert!(
        matches!(&refused, PluginFailure::Refused { code, message } if code == "limit" && message.contains("1000"))
    );
    let values = memory.0.lock().expect("unpoisoned");
    let tenants: Vec<_> = values.iter().map(|((tenant, ..), value)| (tenant.as_str(), value.len())).collect();
    assert_eq!(tenants, [("acme", 500), ("umbrella", 7)]);
}

#[tokio::test]
async fn limits_that_the_manifest_needs_have_to_be_granted() {
    let plugin = load("remembers", "scheduler", "[limits]\nmemory = '100 MiB'").await;
    let Err(error) = plugin.scheduler(Instance::default()).await else { panic!("set up with too little") };
    assert!(denied(&error.failure).contains("raise `limits.memory`"), "{error}");
    let limits = Limits { memory: Some(128 << 20), ..Limits::default() };
    assert!(plugin.scheduler(Instance { limits, ..Instance::default() }).await.is_ok());
}

#[tokio::test]
async fn wrong_settings_are_refused_at_the_set_up_by_name() {
    let plugin = load("calls_http", "notifier", "").await;
    let Err(error) = plugin.notifier(with(serde_json::json!({ "url": 5 }))).await else { panic!("set up wrongly") };
    assert_eq!(error.call, "validate-config");
    assert_eq!(
        error.failure,
        PluginFailure::Refused {
            code: "config".to_owned(),
            message: "`url`: invalid type: integer `5`, expected a string".to_owned()
        }
    );
}

#[tokio::test]
async fn a_plugin_is_not_used_as_another_kind() {
    let plugin = load("remembers", "scheduler", "").await;
    let Err(error) = plugin.retention(Instance::default()).await else { panic!("used as another kind") };
    assert_eq!(denied(&error.failure), "it is a scheduler, and cannot be used as a retention");
}
