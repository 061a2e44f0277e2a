//! HTTP to the hosts that the operator granted. Natively a test gives the answers.

use crate::Error;

/// A request with its whole body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, ...
    pub method: String,
    /// The absolute URL.
    pub url: String,
    /// Header names and values. The host adds `Host` and `Content-Length`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// An answer with its whole body. Redirects are answers like any other: the host does not follow them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Sends a request and waits for the whole answer.
///
/// Fails with `denied` when the host was not granted, with `unavailable` when no answer came. Any answer is a
/// success here, also a 500: look at its status.
pub fn send(request: &Request) -> Result<Response, Error> {
    imp::send(request)
}

#[cfg(not(target_arch = "wasm32"))]
use double as imp;

/// Answers of a test.
#[cfg(not(target_arch = "wasm32"))]
pub mod double {
    use super::{Error, Request, Response};
    use std::cell::RefCell;
    use std::collections::VecDeque;

    thread_local! {
        static ANSWERS: RefCell<VecDeque<Result<Response, Error>>> = const { RefCell::new(VecDeque::new()) };
        static REQUESTS: RefCell<Vec<Request>> = const { RefCell::new(Vec::new()) };
    }

    /// Adds the answer to a request that is to come; answers are given in order.
    pub fn answer(answer: Result<Response, Error>) {
        ANSWERS.with_borrow_mut(|answers| answers.push_back(answer));
    }

    /// Takes the requests sent so far on this thread.
    pub fn take_requests() -> Vec<Request> {
        REQUESTS.take()
    }

    pub(super) fn send(request: &Request) -> Result<Response, Error> {
        REQUESTS.with_borrow_mut(|requests| requests.push(request.clone()));
        ANSWERS
            .with_borrow_mut(VecDeque::pop_front)
            .unwrap_or_else(|| Err(Error::unavailable("the test gave no answer to this request", 1)))
    }
}

#[cfg(target_arch = "wasm32")]
mod imp {
    use super::{Request, Response};
    use crate::bindings::http::wasi::http::outgoing_handler;
    use crate::bindings::http::wasi::http::types::{
        self as wasi, Fields, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest, Scheme,
    };
    use crate::bindings::http::wasi::io::streams::StreamError;
    use crate::{Error, ErrorCode};

    /// How long a host should wait before it sends an event again whose request went unanswered.
    const RETRY_AFTER_SECONDS: u64 = 30;

    /// The largest piece that `output-stream.blocking-write-and-flush` takes.
    const WRITE_SIZE: usize = 4096;

    /// Asked for per read; the host answers with what it has.
    const READ_SIZE: u64 = 64 * 1024;

    pub(super) fn send(request: &Request) -> Result<Response, Error> {
        let Url { scheme, authority, path } = split(&request.url)?;
        let mut headers: Vec<(String, Vec<u8>)> =
            request.headers.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect();
        headers.push(("content-length".to_owned(), request.body.len().to_string().into_bytes()));
        let headers = Fields::from_list(&headers)
            .map_err(|problem| Error::with_code(ErrorCode::Config, format!("a header is not allowed: {problem}")))?;

        let outgoing = OutgoingRequest::new(headers);
        let set = outgoing
            .set_method(&method(&request.method))
            .and_then(|()| outgoing.set_scheme(Some(&scheme)))
            .and_then(|()| outgoing.set_authority(Some(authority)))
            .and_then(|()| outgoing.set_path_with_query(Some(path)));
        if set.is_err() {
            return Err(Error::config(format!("`{}` is not a URL that can be asked", request.url)));
        }
        let body = outgoing.body().map_err(|()| broken("the request has no body"))?;

        // The handler first: the host reads the body while the plugin writes it.
        let answer = outgoing_handler::handle(outgoing, None).map_err(|code| failed(&request.url, &code))?;
        write_body(body, &request.body).map_err(|problem| broken(&problem))?;
        answer.subscribe().block();
        let answer = match answer.get() {
            Some(Ok(Ok(answer))) => answer,
            Some(Ok(Err(code))) => return Err(failed(&request.url, &code)),
            Some(Err(())) | None => return Err(broken("the host gave no answer")),
        };
        Ok(Response { status: answer.status(), body: read_body(&answer).map_err(|problem| broken(&problem))? })
    }

    struct Url<'a> {
        scheme: Scheme,
        authority: &'a str,
        path: &'a str,
    }

    fn split(url: &str) -> Result<Url<'_>, Error> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| Error::config(format!("`{url}` is not an absolute URL: https://host/path")))?;
        let scheme = match scheme {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            other => return Err(Error::config(format!("`{url}`: {other} is neither https nor http"))),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or_default();
        Ok(Url { scheme, authority, path: if path.is_empty() { "/" } else { path } })
    }

    fn method(name: &str) -> Method {
        match name {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "PATCH" => Method::Patch,
            other => Method::Other(other.to_owned()),
        }
    }

    fn write_body(body: OutgoingBody, bytes: &[u8]) -> Result<(), String> {
        let stream = body.write().map_err(|()| "the request's body is in use".to_owned())?;
        for piece in bytes.chunks(WRITE_SIZE) {
            match stream.blocking_write_and_flush(piece) {
                Ok(()) => {}
                // A server may answer before it has read everything; its answer says why.
                Err(StreamError::Closed) => break,
                Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
            }
        }
        drop(stream);
        OutgoingBody::finish(body, None).map_err(|code| code.to_string())
    }

    fn read_body(answer: &IncomingResponse) -> Result<Vec<u8>, String> {
        let body: IncomingBody = answer.consume().map_err(|()| "the answer was read already".to_owned())?;
        let stream = body.stream().map_err(|()| "the answer was read already".to_owned())?;
        let mut bytes = Vec::new();
        loop {
            match stream.blocking_read(READ_SIZE) {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(StreamError::Closed) => return Ok(bytes),
                Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
            }
        }
    }

    fn failed(url: &str, code: &wasi::ErrorCode) -> Error {
        match code {
            wasi::ErrorCode::HttpRequestDenied | wasi::ErrorCode::DestinationIpProhibited => {
                Error::with_code(ErrorCode::Denied, format!("{url}: the plugin was not granted this address"))
            }
            other => Error::unavailable(format!("{url}: {other}"), RETRY_AFTER_SECONDS),
        }
    }

    fn broken(problem: &str) -> Error {
        Error::unavailable(format!("the exchange broke off: {problem}"), RETRY_AFTER_SECONDS)
    }
}
