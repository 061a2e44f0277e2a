//! One XML-RPC call over HTTP: request, envelope, errors. No sessions.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;

use crate::api_error::ApiError;
use crate::decode::{self, DecodeError};
use crate::endpoint::{Address, Endpoint};
use crate::error::Error;
use crate::text::{excerpt, mask};
use crate::tls;
use crate::value::Value;
use crate::xmlrpc::{self, Response};

/// XAPI refuses larger calls.
const MAX_CALL: usize = 300 * 1024;

/// Largest answer that is read. The records of a pool with ten thousand disks take some 50 MB.
const MAX_ANSWER: usize = 256 << 20;

/// Whether XAPI takes a call with these parameters and so many bytes more: it refuses those of more than 300 KiB.
pub fn fits_in_a_call(params: &[Value], more: usize) -> bool {
    // What cannot be written at all has an error of its own when it is sent.
    xmlrpc::encode_call("", params).map_or(true, |call| call.len() + more <= MAX_CALL)
}

/// How long a connection may take to be made.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// When a silent connection is first asked whether its host is alive, then how often, then how many times in vain.
pub(crate) const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
pub(crate) const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
pub(crate) const KEEPALIVE_TIMES: u32 = 4;

/// How long the bytes of a call may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(120);

/// Idle connections are dropped before XAPI does so after ten seconds: a call that meets the closing end fails, and
/// most calls may not be repeated.
const POOL_IDLE: Duration = Duration::from_secs(8);

/// The HTTP side of a session.
#[derive(Debug)]
pub(crate) struct Rpc {
    http: reqwest::Client,
    timeout: Duration,
}

impl Rpc {
    pub(crate) fn new(endpoint: &Endpoint) -> Result<Self, Error> {
        let address = &endpoint.address;
        let unusable = |reason: String| Error::Tls { address: address.to_string(), reason };
        let config = if address.tls {
            (*endpoint.tls.config(address)?).clone()
        } else {
            tls::config_without_trust().map_err(unusable)?
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE_AFTER)
            .tcp_keepalive_interval(KEEPALIVE_EVERY)
            .tcp_keepalive_retries(KEEPALIVE_TIMES)
            .tcp_user_timeout(UNACKNOWLEDGED)
            .build()
            .map_err(|e| unusable(e.to_string()))?;
        Ok(Self { http, timeout: endpoint.rpc_timeout })
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Calls `method`; `secrets` never appear in an error.
    pub(crate) async fn call<'a>(
        &self,
        at: &Address,
        method: &str,
        params: impl IntoIterator<Item = &'a Value>,
        secrets: &[&str],
    ) -> Result<Value, Error> {
        let unsendable = |reason| Error::Unsendable { during: method.to_owned(), reason };
        let call = xmlrpc::encode_call(method, params).map_err(|e| unsendable(e.to_string()))?;
        if call.len() > MAX_CALL {
            return Err(unsendable(format!("it has {} bytes, and XAPI takes {MAX_CALL}", call.len())));
        }
        let (status, answer) = self.post(at, method, call).await?;
        if status != 200 {
            return Err(Error::Http {
                address: at.to_string(),
                during: method.to_owned(),
                status,
                excerpt: excerpt(&answer, secrets),
            });
        }
        let response = xmlrpc::decode_response(&answer).map_err(|mut malformed| {
            // A snippet could cut a secret in two and show a half, so an answer that repeats one is not shown at all.
            let text = String::from_utf8_lossy(&answer);
            if secrets.iter().any(|secret| text.contains(secret)) {
                malformed.snippet.clear();
                malformed.reason = "an answer that repeats what was sent".to_owned();
            }
            Error::malformed(method, malformed)
        })?;
        match response {
            Response::Value(envelope) => open_envelope(envelope, method, secrets),
            Response::Fault(fault) => {
                Err(Error::Fault { method: method.to_owned(), text: fault_text(&fault, secrets) })
            }
        }
    }

    async fn post(&self, at: &Address, method: &str, call: String) -> Result<(u16, Vec<u8>), Error> {
        let failed = |e: reqwest::Error| self.explain(at, method, e);
        let request = self.http.post(at.rpc_url()).header(CONTENT_TYPE, "text/xml").body(call).timeout(self.timeout);
        let mut response = request.send().await.map_err(failed)?;
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if answer.len() + chunk.len() > MAX_ANSWER {
                let reason = format!("the answer is larger than {MAX_ANSWER} bytes");
                return Err(Error::decode(method, DecodeError::new(reason)));
            }
            answer.extend_from_slice(&chunk);
        }
        Ok((response.status().as_u16(), answer))
    }

    fn explain(&self, at: &Address, method: &str, error: reqwest::Error) -> Error {
        if let Some(tls) = tls::tls_error(at, &error) {
            return tls;
        }
        if error.is_connect() {
            return Error::unsent(at.to_string(), method, innermost(&error.without_url()));
        }
        if error.is_timeout() {
            let seconds = self.timeout.as_secs();
            return Error::Timeout { address: at.to_string(), during: method.to_owned(), seconds };
        }
        Error::transport(at.to_string(), method, innermost(&error.without_url()))
    }
}

/// The text of the deepest cause, which is the one that says something: "Connection refused".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// `{Status, Value}` or `{Status, ErrorDescription}`; both come with HTTP 200.
fn open_envelope(envelope: Value, method: &str, secrets: &[&str]) -> Result<Value, Error> {
    let wrong = |reason: &str| Error::decode(method, DecodeError::new(reason));
    let Value::Struct(mut members) = envelope else { return Err(wrong("no status in it")) };
    match members.get("Status").and_then(Value::as_str) {
        Some("Success") => members.remove("Value").ok_or_else(|| wrong("success without a value")),
        Some("Failure") => {
            let description = members.get("ErrorDescription").ok_or_else(|| wrong("failure without a description"))?;
            let words: Vec<String> = decode::from_value(description).map_err(|e| Error::decode(method, e))?;
            let words: Vec<String> = words.iter().map(|word| mask(word, secrets)).collect();
            let (code, params) = words.split_first().ok_or_else(|| wrong("failure without a code"))?;
            Err(ApiError::from_wire(code, params).into())
        }
        _ => Err(wrong("no status in it")),
    }
}

fn fault_text(fault: &Value, secrets: &[&str]) -> String {
    let text = fault.as_struct().and_then(|members| members.get("faultString")).and_then(Value::as_str);
    mask(text.unwrap_or("no reason given"), secrets)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn envelope(members: &[(&str, Value)]) -> Value {
        Value::Struct(members.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect())
    }

    fn words(words: &[&str]) -> Value {
        Value::Array(words.iter().map(|w| Value::String((*w).to_owned())).collect())
    }

    #[test]
    fn an_envelope_holds_a_value_or_an_error() {
        let status = |s: &str| ("Status", Value::String(s.to_owned()));
        let value = open_envelope(envelope(&[status("Success"), ("Value", Value::Bool(true))]), "m", &[]);
        assert_eq!(value.expect("success"), Value::Bool(true));

        let failure = envelope(&[status("Failure"), ("ErrorDescription", words(&["HANDLE_INVALID", "VM", "s3cret"]))]);
        match open_envelope(failure, "m", &["s3cret"]) {
            Err(Error::Api(ApiError::HandleInvalid { class, handle })) => {
                assert_eq!((class.as_str(), handle.as_str()), ("VM", "…"))
            }
            other => panic!("{other:?}"),
        }

        for bad in [
            Value::Nil,
            Value::Struct(BTreeMap::new()),
            envelope(&[status("Success")]),
            envelope(&[status("Failure")]),
            envelope(&[status("Failure"), ("ErrorDescription", words(&[]))]),
            envelope(&[status("Perhaps"), ("Value", Value::Nil)]),
        ] {
            assert!(matches!(open_envelope(bad, "m", &[]), Err(Error::Decode { .. })));
        }
    }
}
