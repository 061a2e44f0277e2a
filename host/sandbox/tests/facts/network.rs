//! Requests that leave the sandbox, and those that do not. The servers are on loopback, so that each test can see what
//! really arrived.

use crate::address_book::{Server, http};
use crate::house::{event, failure, load, with};
use vmferry_model::plugin::{PluginError, PluginFailure, Verdict};
use vmferry_sandbox::{Credential, Grants, HostServices, Instance};

const ANY: &str = "[grants]\nhttp = ['https://*:*', 'http://*:*']";

fn granted(patterns: &[&str]) -> Grants {
    Grants { http: patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect(), ..Grants::default() }
}

async fn call(manifest: &str, grants: Grants, config: serde_json::Value) -> Result<Verdict, PluginError> {
    let plugin = load("calls_http", "notifier", manifest).await;
    plugin.notifier(Instance { grants, ..with(config) }).await.expect("set up").handle(&event()).await
}

fn denied(result: Result<Verdict, PluginError>) -> String {
    match failure(result) {
        PluginFailure::Denied(text) => text,
        other => panic!("{other}"),
    }
}

fn refused(result: Result<Verdict, PluginError>) -> String {
    match failure(result) {
        PluginFailure::Refused { message, .. } => message,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_granted_request_arrives_and_its_answer_comes_back() {
    let server = Server::answering(http("200 OK", "well")).await;
    let address = format!("http://127.0.0.1:{}", server.port);
    let config = serde_json::json!({ "url": format!("{address}/hook?x=1"), "size": 5_000 });
    assert_eq!(call(ANY, granted(&[&address]), config).await, Ok(Verdict::Skip("200 well".to_owned())));
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{}", requests[0]);
    assert!(requests[0].to_lowercase().contains("x-guest: here"), "{}", requests[0]);
    assert!(requests[0].ends_with(&"x".repeat(5_000)));
}

#[tokio::test]
async fn without_a_grant_nothing_leaves_and_the_line_to_add_is_named() {
    let server = Server::answering(http("200 OK", "")).await;
    let address = format!("http://127.0.0.1:{}", server.port);
    let config = serde_json::json!({ "url": format!("{address}/hook") });
    let text = denied(call(ANY, Grants::default(), config.clone()).await);
    assert!(text.contains(&format!("[plugin.misbehaving-guests]`: grants.http = [\"{address}\"]")), "{text}");
    let text = denied(call("", granted(&[&address]), config).await);
    assert!(text.contains("plugin.toml does not request"), "{text}");
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn a_name_that_leads_to_an_inside_address_needs_a_grant_of_its_own() {
    let server = Server::answering(http("200 OK", "")).await;
    let address = format!("http://localhost:{}", server.port);
    let config = serde_json::json!({ "url": address });
    let text = denied(call(ANY, granted(&[&address]), config.clone()).await);
    assert!(text.contains("has a loopback address") && text.contains("grants.private_addresses = true"), "{text}");
    assert_eq!(server.requests().len(), 0);
    let grants = Grants { private_addresses: true, ..granted(&[&address]) };
    assert_eq!(call(ANY, grants, config).await, Ok(Verdict::Skip("200 ".to_owned())));
}

#[tokio::test]
async fn a_wildcard_does_not_reach_inside_addresses_in_any_spelling() {
    let server = Server::answering(http("200 OK", "")).await;
    let any = granted(&["http://*:*"]);
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let config = serde_json::json!({ "url": format!("http://{host}:{}/", server.port) });
        denied(call(ANY, any.clone(), config).await);
    }
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let inside = Server::answering(http("200 OK", "secret")).await;
    let answer =
        format!("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{}/\r\nContent-Length: 0\r\n\r\n", inside.port);
    let server = Server::answering(answer).await;
    let address = format!("http://127.0.0.1:{}", server.port);
    let grants = granted(&[&address]);
    assert_eq!(call(ANY, grants, serde_json::json!({ "url": address })).await, Ok(Verdict::Skip("302 ".to_owned())));
    assert_eq!(inside.requests().len(), 0);
}

#[tokio::test]
async fn bodies_are_limited_both_ways() {
    let server = Server::answering(http("200 OK", &"y".repeat((1 << 20) + 1))).await;
    let address = format!("http://127.0.0.1:{}", server.port);
    let grants = granted(&[&address]);
    let large = serde_json::json!({ "url": address, "size": (1 << 20) + 1 });
    let small = serde_json::json!({ "url": address });
    refused(call(ANY, grants.clone(), large).await);
    assert_eq!(server.requests().len(), 0, "too large a request does not leave");
    let message = refused(call(ANY, grants, small).await);
    assert!(message.to_lowercase().contains("body"), "{message}");
}

#[tokio::test]
async fn a_requests_method_authority_and_path_are_limited() {
    let plugin = load("asks_at_length", "notifier", "").await;
    let ask = async |method: usize, authority: usize, path: usize| {
        let config = serde_json::json!({ "method": method, "authority": authority, "path": path });
        plugin.notifier(with(config)).await.expect("set up").handle(&event()).await
    };
    let report = |text: &str| Ok(Verdict::Skip(text.to_owned()));
    assert_eq!(ask(64, 1 << 10, 16 << 10).await, report("method true, authority true, path true"));
    assert_eq!(ask(65, (1 << 10) + 1, (16 << 10) + 1).await, report("method false, authority false, path false"));
}

#[tokio::test]
async fn headers_of_an_answer_are_limited_by_their_sum() {
    let lines: String = (0..20).map(|at| format!("X-{at}: {}\r\n", "z".repeat(1_000))).collect();
    let server = Server::answering(format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n")).await;
    let address = format!("http://127.0.0.1:{}", server.port);
    let message = refused(call(ANY, granted(&[&address]), serde_json::json!({ "url": address })).await);
    assert!(message.to_lowercase().contains("header"), "{message}");
}

#[tokio::test]
async fn an_answer_that_is_kept_is_a_connection_that_is_used() {
    let server = Server::answering(http("200 OK", "well")).await;
    let authority = format!("127.0.0.1:{}", server.port);
    let grants = granted(&[&format!("http://{authority}")]);
    let plugin = load("hoards_answers", "notifier", ANY).await;
    let hoard = async |keep: bool| {
        let config = serde_json::json!({ "authority": authority, "keep": keep });
        let notifier = plugin.notifier(Instance { grants: grants.clone(), ..with(config) }).await.expect("set up");
        match notifier.handle(&event()).await {
            Ok(Verdict::Skip(report)) => report,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(hoard(false).await, "10 answers");
    let report = hoard(true).await;
    assert!(report.starts_with("4 answers, then ") && report.to_lowercase().contains("limit"), "{report}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_from_a_denial() {
    let config = serde_json::json!({ "url": "http://127.0.0.1:1/" });
    let failure = failure(call(ANY, granted(&["http://127.0.0.1:1"]), config).await);
    assert!(matches!(&failure, PluginFailure::Refused { code, .. } if code == "unavailable"), "{failure}");
}

#[tokio::test]
async fn a_credential_is_added_for_its_server_and_for_no_other() {
    let server = Server::answering(http("200 OK", "well")).await;
    let other = Server::answering(http("200 OK", "well")).await;
    let at = |server: &Server| format!("http://127.0.0.1:{}", server.port);
    let pattern = at(&server).parse().expect("a pattern");
    let credential = Credential::bearer(pattern, "t0ken").expect("a credential");
    let host = HostServices { credentials: vec![credential], ..HostServices::default() };
    let plugin = load("calls_http", "notifier", ANY).await;
    let grants = granted(&[&at(&server), &at(&other)]);
    let ask = async |config: serde_json::Value| {
        let instance = Instance { grants: grants.clone(), host: host.clone(), ..with(config) };
        plugin.notifier(instance).await.expect("set up").handle(&event()).await
    };
    let well = Ok(Verdict::Skip("200 well".to_owned()));
    assert_eq!(ask(serde_json::json!({ "url": at(&server) })).await, well);
    assert_eq!(ask(serde_json::json!({ "url": at(&other) })).await, well);
    assert!(server.requests()[0].to_lowercase().contains("\r\nauthorization: bearer t0ken\r\n"));
    assert!(!other.requests()[0].to_lowercase().contains("authorization"));

    let text = denied(ask(serde_json::json!({ "url": at(&server), "authorization": "mine" })).await);
    assert!(text.contains("for which the host has a credential") && !text.contains("t0ken"), "{text}");
    assert_eq!(server.requests().len(), 1, "it did not leave");
    assert_eq!(ask(serde_json::json!({ "url": at(&other), "authorization": "mine" })).await, well);
}
