//! A notifier: events as JSON, posted to a URL.
//!
//! ```json
//! {"kind": "failed", "time": "2026-11-21T07:30:00Z", "severity": "error", "job": "erp", "vm": null, "run": "…", "detail": {…}}
//! ```
//!
//! A receiver can check where a message is from: with `sign_key`, the header `X-Vmferry-Signature` carries the HMAC-SHA-256
//! of the body, by a key that the host keeps. `X-Vmferry-Event` carries the kind, so that a receiver can sort before it parses.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmferry_plugin_api::http::{self, Request};
use vmferry_plugin_api::notifier::*;
use vmferry_plugin_api::{calendar, sign};

/// The plugin.
struct Webhook;

/// `with = { url = "https://ops.example.org/hook" }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Where to post to.
    url: String,
    /// Headers to add. Not for secrets.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Name of the key that signs the body.
    sign_key: Option<String>,
}

/// What is posted.
#[derive(Serialize)]
struct Message<'a> {
    kind: &'a str,
    time: String,
    severity: &'a str,
    job: Option<&'a str>,
    vm: Option<&'a str>,
    run: Option<&'a str>,
    detail: serde_json::Value,
}

/// When the host may try again after a server that could not take a message, in seconds.
const RETRY_AFTER: u64 = 2;

impl Notifier for Webhook {
    type Config = Config;

    fn describe() -> Description {
        description!("Posts events as JSON to a URL.")
    }

    fn check(config: &Config) -> Result<(), Error> {
        if !config.url.starts_with("https://") && !config.url.starts_with("http://") {
            return Err(Error::config(format!(
                "`url`: `{}` is not a URL to post to: https://ops.example.org/hook",
                config.url
            )));
        }
        let bad = |text: &&String| text.bytes().any(|b| b.is_ascii_control());
        if let Some(name) =
            config.headers.iter().find_map(|(name, value)| [name, value].iter().any(bad).then_some(name))
        {
            return Err(Error::config(format!("`headers`: `{name}` holds a control character")));
        }
        Ok(())
    }

    fn handle(config: Config, event: Event) -> Result<Verdict, Error> {
        let body = body(&event)?;
        let mut headers = vec![
            ("Content-Type".to_owned(), "application/json".to_owned()),
            ("User-Agent".to_owned(), concat!("vmferry-notify-webhook/", env!("CARGO_PKG_VERSION")).to_owned()),
            ("X-Vmferry-Event".to_owned(), event.kind),
        ];
        if let Some(key) = &config.sign_key {
            let signature = sign::hmac_sha256(key, &body)?;
            headers.push(("X-Vmferry-Signature".to_owned(), format!("sha256={}", hex(&signature))));
        }
        headers.extend(config.headers);
        let answer = http::send(&Request { method: "POST".to_owned(), url: config.url, headers, body })?;
        match answer.status {
            200..300 => Ok(Verdict::Proceed),
            // Busy, or broken for the moment.
            408 | 425 | 429 | 500.. => Err(Error::unavailable(refusal(answer.status, &answer.body), RETRY_AFTER)),
            _ => Err(Error::with_code(ErrorCode::Other("rejected".to_owned()), refusal(answer.status, &answer.body))),
        }
    }
}

fn body(event: &Event) -> Result<Vec<u8>, Error> {
    let broken = |problem: serde_json::Error| {
        Error::with_code(ErrorCode::Other("event".to_owned()), format!("the event's detail: {problem}"))
    };
    let message = Message {
        kind: &event.kind,
        time: calendar::rfc3339(event.time),
        severity: match &event.severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Other(name) => name,
        },
        job: event.job.as_deref(),
        vm: event.vm.as_deref(),
        run: event.run.as_deref(),
        detail: serde_json::from_str(&event.detail).map_err(broken)?,
    };
    serde_json::to_vec(&message).map_err(broken)
}

/// What the server said, shortened: it may be a whole page.
fn refusal(status: u16, body: &[u8]) -> String {
    const SHOWN: usize = 200;
    let said: String = String::from_utf8_lossy(body).chars().take(SHOWN).collect();
    format!("the server answered {status}: {}", said.trim())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

vmferry_plugin_api::export_notifier!(Webhook);

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_plugin_api::http::Response;

    const URL: &str = "https://ops.example.org/hook";

    fn event() -> Event {
        Event {
            kind: "failed".to_owned(),
            time: 1_795_246_200,
            severity: Severity::Error,
            job: Some("erp".to_owned()),
            vm: None,
            run: Some("r1".to_owned()),
            detail: r#"{"outcome":"failed"}"#.to_owned(),
            extensions: Vec::new(),
        }
    }

    fn config(json: &str) -> Config {
        let config = vmferry_plugin_api::parse_config(json).expect("settings");
        Webhook::check(&config).expect("right settings");
        config
    }

    fn answered(status: u16) -> Result<Verdict, Error> {
        http::double::answer(Ok(Response { status, body: b"because".to_vec() }));
        Webhook::handle(config(&format!("{{\"url\":\"{URL}\"}}")), event())
    }

    #[test]
    fn an_event_is_posted_as_json() {
        assert_eq!(answered(204), Ok(Verdict::Proceed));
        let requests = http::double::take_requests();
        assert_eq!((requests[0].method.as_str(), requests[0].url.as_str()), ("POST", URL));
        assert_eq!(
            String::from_utf8_lossy(&requests[0].body),
            r#"{"kind":"failed","time":"2026-11-21T07:30:00Z","severity":"error","job":"erp","vm":null,"run":"r1","detail":{"outcome":"failed"}}"#
        );
    }

    #[test]
    fn a_busy_server_is_asked_again_and_a_refusing_one_is_not() {
        assert_eq!(answered(503).expect_err("busy").retry_after, Some(RETRY_AFTER));
        assert_eq!(answered(429).expect_err("busy").retry_after, Some(RETRY_AFTER));
        let refused = answered(404).expect_err("refused");
        assert_eq!(refused.retry_after, None);
        assert_eq!(refused.message, "the server answered 404: because");
    }

    #[test]
    fn a_signature_goes_along_when_a_key_is_named() {
        sign::double::set_signature("hooks", &[0x0a, 0xff]);
        http::double::answer(Ok(Response { status: 200, body: Vec::new() }));
        let config = config(&format!(r#"{{"url":"{URL}","sign_key":"hooks","headers":{{"X-Team":"storage"}}}}"#));
        Webhook::handle(config, event()).expect("posted");
        let headers = http::double::take_requests().remove(0).headers;
        assert!(headers.contains(&("X-Vmferry-Signature".to_owned(), "sha256=0aff".to_owned())));
        assert!(headers.contains(&("X-Team".to_owned(), "storage".to_owned())));
    }

    #[test]
    fn a_key_that_was_not_granted_stops_the_message() {
        let config = config(&format!(r#"{{"url":"{URL}","sign_key":"none"}}"#));
        assert_eq!(Webhook::handle(config, event()).expect_err("no key").code, ErrorCode::Denied);
        assert_eq!(http::double::take_requests(), []);
    }

    #[test]
    fn wrong_settings_name_the_key() {
        let wrong = vmferry_plugin_api::parse_config::<Config>(r#"{"url": "ops"}"#).expect("well-formed");
        assert!(Webhook::check(&wrong).expect_err("no URL").message.contains("`url`: `ops`"));
        let missing = vmferry_plugin_api::parse_config::<Config>("{}").expect_err("no url");
        assert_eq!(missing.message, "missing field `url`");
    }
}
