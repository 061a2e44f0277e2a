//! HTTP to the hosts that the operator granted. Natively a test gives the answers.
//!
//! [`send`] has whole bodies; [`exchange`] streams, and what streams need not pass through the plugin.

use crate::Error;
use crate::stream::{Input, Output};

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

/// A request whose body is written while it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// `GET`, `POST`, ...
    pub method: String,
    /// The absolute URL.
    pub url: String,
    /// Header names and values. The host adds `Host`, `Content-Length`, and what the operator has it prove who is asking with.
    pub headers: Vec<(String, String)>,
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and values. Those that are no text are left out.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Input,
}

impl Reply {
    /// The first value of a header, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|(found, value)| (found == name).then_some(value.as_str()))
    }

    /// The body as far as `most` bytes go. A plugin's memory is small.
    pub fn read(&self, most: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < most {
            let piece = self.body.read(most - bytes.len() as u64)?;
            if piece.is_empty() {
                break;
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

/// Sends a request and waits for the whole answer.
///
/// Fails with `denied` when the host was not granted, with `unavailable` when no answer came. Any answer is a
/// success here, also a 500: look at its status.
pub fn send(request: &Request) -> Result<Response, Error> {
    let Request { method, url, headers, body } = request;
    let head = Head { method: method.clone(), url: url.clone(), headers: headers.clone() };
    let reply = exchange(&head, body.len() as u64, &|output| output.write_all(body))?;
    Ok(Response { status: reply.status, body: reply.read(u64::MAX)? })
}

/// Sends a request whose body of `length` bytes `write` writes, and waits until the answer begins.
///
/// What is spliced into the body and out of the answer does not pass through the plugin. Fails as [`send`] does, and as `write`
/// does.
pub fn exchange(head: &Head, length: u64, write: &dyn Fn(&Output) -> Result<(), Error>) -> Result<Reply, Error> {
    imp::exchange(head, length, write)
}

#[cfg(not(target_arch = "wasm32"))]
use double as imp;

/// Answers of a test.
#[cfg(not(target_arch = "wasm32"))]
pub mod double {
    use super::{Error, Head, Input, Output, Reply, Request, Response};
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::io::Cursor;
    use std::rc::Rc;

    type Server = Rc<dyn Fn(&Request) -> Result<Reply, Error>>;

    thread_local! {
        static ANSWERS: RefCell<VecDeque<Result<Response, Error>>> = const { RefCell::new(VecDeque::new()) };
        static REQUESTS: RefCell<Vec<Request>> = const { RefCell::new(Vec::new()) };
        static SERVER: RefCell<Option<Server>> = const { RefCell::new(None) };
    }

    /// Adds the answer to a request that is to come; answers are given in order.
    pub fn answer(answer: Result<Response, Error>) {
        ANSWERS.with_borrow_mut(|answers| answers.push_back(answer));
    }

    /// Takes the requests sent so far on this thread.
    pub fn take_requests() -> Vec<Request> {
        REQUESTS.take()
    }

    /// Has all requests of this thread answered by `server`, instead of by answers that were added. They are not kept.
    pub fn serve(server: impl Fn(&Request) -> Result<Reply, Error> + 'static) {
        SERVER.set(Some(Rc::new(server)));
    }

    pub(super) fn exchange(
        head: &Head,
        length: u64,
        write: &dyn Fn(&Output) -> Result<(), Error>,
    ) -> Result<Reply, Error> {
        let bytes = Rc::default();
        write(&Output::collecting(Rc::clone(&bytes), &head.url))?;
        let body = bytes.take();
        if body.len() as u64 != length {
            return Err(Error::unavailable(format!("{}: {} bytes came of {length}", head.url, body.len()), 1));
        }
        let Head { method, url, headers } = head.clone();
        let request = Request { method, url, headers, body };
        if let Some(server) = SERVER.with_borrow(Clone::clone) {
            return server(&request);
        }
        let answer = ANSWERS.with_borrow_mut(VecDeque::pop_front);
        REQUESTS.with_borrow_mut(|requests| requests.push(request));
        let none = || Err(Error::unavailable("the test gave no answer to this request", 1));
        let Response { status, body } = answer.unwrap_or_else(none)?;
        Ok(Reply { status, headers: Vec::new(), body: Input::double(Cursor::new(body), &head.url) })
    }
}

#[cfg(target_arch = "wasm32")]
mod imp {
    use super::{Head, Input, Output, Reply};
    use crate::bindings::http::wasi::http::outgoing_handler;
    use crate::bindings::http::wasi::http::types::{
        self as wasi, Fields, IncomingBody, Method, OutgoingBody, OutgoingRequest, Scheme,
    };
    use crate::{Error, ErrorCode};

    /// How long a host should wait before it sends an event again whose request went unanswered.
    const RETRY_AFTER_SECONDS: u64 = 30;

    pub(super) fn exchange(
        head: &Head,
        length: u64,
        write: &dyn Fn(&Output) -> Result<(), Error>,
    ) -> Result<Reply, Error> {
        let url = &head.url;
        let Url { scheme, authority, path } = split(url)?;
        let mut headers: Vec<(String, Vec<u8>)> =
            head.headers.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect();
        if length > 0 {
            headers.push(("content-length".to_owned(), length.to_string().into_bytes()));
        }
        let headers = Fields::from_list(&headers)
            .map_err(|problem| Error::with_code(ErrorCode::Config, format!("a header is not allowed: {problem}")))?;

        let outgoing = OutgoingRequest::new(headers);
        let set = outgoing
            .set_method(&method(&head.method))
            .and_then(|()| outgoing.set_scheme(Some(&scheme)))
            .and_then(|()| outgoing.set_authority(Some(authority)))
            .and_then(|()| outgoing.set_path_with_query(Some(path)));
        if set.is_err() {
            return Err(Error::config(format!("`{url}` is not a URL that can be asked")));
        }
        let body = match length {
            0 => None,
            _ => Some(outgoing.body().map_err(|()| broken("the request has no body"))?),
        };

        // The handler first: the host reads the body while the plugin writes it.
        let answer = outgoing_handler::handle(outgoing, None).map_err(|code| failed(url, &code))?;
        let written = body.map_or(Ok(()), |body| write_body(body, url, write));
        answer.subscribe().block();
        let answer = match (answer.get(), written) {
            // A server may answer before it has read everything; its answer says why.
            (Some(Ok(Ok(answer))), Err(_)) if answer.status() >= 400 => answer,
            (Some(Ok(Ok(answer))), Ok(())) => answer,
            // A body that was not written to its end is no request, and what ended it is the reason.
            (Some(Ok(Ok(_)) | Ok(Err(wasi::ErrorCode::HttpProtocolError))), Err(reason)) => return Err(reason),
            (Some(Ok(Err(code))), _) => return Err(failed(url, &code)),
            (Some(Err(())) | None, _) => return Err(broken("the host gave no answer")),
        };
        let status = answer.status();
        let headers = answer.headers().entries();
        let headers = headers.into_iter().filter_map(|(name, value)| Some((name, String::from_utf8(value).ok()?)));
        let body: IncomingBody = answer.consume().map_err(|()| broken("the answer was read already"))?;
        let stream = body.stream().map_err(|()| broken("the answer was read already"))?;
        Ok(Reply { status, headers: headers.collect(), body: Input::of_answer(stream, body, url) })
    }

    fn write_body(body: OutgoingBody, url: &str, write: &dyn Fn(&Output) -> Result<(), Error>) -> Result<(), Error> {
        let stream = body.write().map_err(|()| broken("the request's body is in use"))?;
        let output = Output::of_host(stream, url);
        write(&output)?;
        drop(output);
        OutgoingBody::finish(body, None).map_err(|code| broken(&code.to_string()))
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
