//! Requests of targets: bodies stream both ways, in the pieces in which they come, and the slower side sets the pace.
//!
//! No piece is copied: what a guest splices into a request's body is the same buffer that goes to the socket or into TLS,
//! and what comes from there goes as it is to the guest's stream. Connections are kept from one request of a call to the
//! next; the addresses of a name are looked at whenever one is made.
//!
//! A server that keeps silent while it is waited for ends its request, so that the guest can try again. A guest that
//! keeps silent does not: it may be waiting for its source, which is another's to watch.

use super::{Passed, Unreachable, client_builder, failed, internal, permitted, reachable, size_of_headers};
use crate::grants::Addresses;
use crate::limits::{HTTP_CONNECT, HTTP_CONNECTIONS, HTTP_HEADERS, HTTP_KEPT, HTTP_SERVERS, HTTP_SILENCE};
use crate::state::{Lent, Refusals};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Sleep};
use url::Url;
use wasmtime_wasi_http::{Error, WasiBody};

/// Told of every answer, and of every piece of a body that went to a server or came from one: its length in bytes.
pub(crate) type Moved = Arc<dyn Fn(u64) + Send + Sync>;

/// The streams of one call.
pub(crate) struct Streams {
    /// The most bytes of one body.
    limit: u64,
    moved: Moved,
    kept: Mutex<Kept>,
}

/// Connections that wait for another request.
#[derive(Default)]
struct Kept {
    /// Apart by where they may lead. A handful at most.
    clients: Vec<(Addresses, reqwest::Client)>,
    /// Servers that they know.
    servers: BTreeSet<String>,
}

impl Streams {
    /// Bodies of at most `limit` bytes.
    pub(crate) fn new(limit: u64, moved: Moved) -> Self {
        Self { limit, moved, kept: Mutex::default() }
    }

    /// Sends a request. Its answer's body keeps the permit for as long as the guest keeps the body.
    pub(super) async fn send(
        &self,
        lent: &Arc<Lent>,
        refusals: &Refusals,
        request: Passed,
    ) -> Result<http::Response<WasiBody>, Error> {
        let Passed { url, allowed, method, headers, body, length, options, permit } = request;
        if length.is_some_and(|length| length > self.limit) {
            return Err(Error::HttpRequestBodySize(Some(self.limit)));
        }
        if url.domain().is_none() {
            // An address that is spelled out is not looked up again.
            permitted(lent, &url, allowed).await.map_err(|why| why.told(lent, refusals, &url))?;
        }
        let silence = options.first_byte_timeout.unwrap_or(HTTP_SILENCE).min(HTTP_SILENCE);
        let (waiting, waited_for) = watch::channel(Some(Instant::now()));
        let mut request = self.client(lent, &url, allowed)?.request(method, url.clone()).headers(headers);
        // Held until there is an answer: the client lets go of a body once it has all bytes, which to a guest that flushes its
        // last piece would look like a server that takes no more.
        let body = Arc::new(Mutex::new(body));
        if !lock(&body).is_end_stream() {
            let (limit, moved) = (self.limit, self.moved.clone());
            let body = Outgoing { body: body.clone(), length, limit, sent: 0, waiting, moved };
            request = request.body(reqwest::Body::wrap(body));
        }
        let answer = tokio::select! {
            answer = request.send() => answer.map_err(|problem| self.told(&problem, lent, refusals, &url))?,
            () = falls_silent(waited_for, silence) => return Err(Error::HttpResponseTimeout),
        };
        drop(body);
        (self.moved)(0);
        if size_of_headers(answer.headers()) > HTTP_HEADERS {
            return Err(Error::HttpResponseHeaderSectionSize(Some(HTTP_HEADERS as u32)));
        }
        if answer.content_length().is_some_and(|length| length > self.limit) {
            return Err(Error::HttpResponseBodySize(Some(self.limit)));
        }
        let silence = options.between_bytes_timeout.unwrap_or(HTTP_SILENCE).min(HTTP_SILENCE);
        let (limit, moved) = (self.limit, self.moved.clone());
        Ok(http::Response::from(answer).map(|body| {
            Incoming { body, limit, received: 0, silence, patience: None, moved, _permit: permit }.boxed_unsync()
        }))
    }

    /// The client whose connections lead to where this server may be.
    fn client(&self, lent: &Arc<Lent>, url: &Url, allowed: Addresses) -> Result<reqwest::Client, Error> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.servers.insert(url.authority().to_owned());
        // Each server may leave connections behind, so a guest that goes from one to the next loses them.
        if kept.servers.len() > HTTP_SERVERS {
            *kept = Kept::default();
        }
        if let Some((_, client)) = kept.clients.iter().find(|(leads, _)| *leads == allowed) {
            return Ok(client.clone());
        }
        let client = client_builder()?
            .connect_timeout(HTTP_CONNECT)
            .pool_max_idle_per_host(HTTP_CONNECTIONS)
            .pool_idle_timeout(HTTP_KEPT)
            .dns_resolver(Looked { lent: lent.clone(), allowed })
            .build()
            .map_err(|problem| internal(&problem))?;
        kept.clients.push((allowed, client.clone()));
        Ok(client)
    }

    /// What went wrong, as the guest learns it.
    fn told(&self, problem: &reqwest::Error, lent: &Lent, refusals: &Refusals, url: &Url) -> Error {
        for cause in std::iter::successors(std::error::Error::source(problem), |cause| cause.source()) {
            if let Some(why) = cause.downcast_ref::<Unreachable>() {
                return why.told(lent, refusals, url);
            }
            match cause.downcast_ref::<Broken>() {
                Some(Broken::Size) => return Error::HttpRequestBodySize(Some(self.limit)),
                Some(Broken::GivenUp) => return Error::HttpProtocolError,
                None => {}
            }
        }
        failed(problem)
    }
}

/// Looks a name up whenever a connection is made, and tells only of addresses where it may lead.
struct Looked {
    lent: Arc<Lent>,
    allowed: Addresses,
}

impl Resolve for Looked {
    fn resolve(&self, name: Name) -> Resolving {
        let (lent, allowed) = (self.lent.clone(), self.allowed);
        Box::pin(async move {
            // The port is put in by who asks.
            let resolved = lent.lookups.addresses(name.as_str(), 0).await.map_err(Unreachable::Lookup)?;
            Ok(Box::new(reachable(resolved, allowed)?.into_iter()) as Addrs)
        })
    }
}

/// Returns when a server has been waited for that long. Between, it is the guest that is waited for.
async fn falls_silent(mut waiting: watch::Receiver<Option<Instant>>, silence: Duration) {
    loop {
        let since = *waiting.borrow_and_update();
        let patience = async {
            match since {
                Some(since) => tokio::time::sleep_until(since + silence).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = patience => return,
            changed = waiting.changed() => if changed.is_err() {
                // The body is sent, or nobody wants it any more.
                return tokio::time::sleep_until(since.unwrap_or_else(Instant::now) + silence).await;
            },
        }
    }
}

/// A request's body that is not sent to its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the body is larger than allowed, or than its content-length")]
    Size,
    #[error("the plugin gave the body up, or it ended before its content-length")]
    GivenUp,
}

fn lock(body: &Mutex<WasiBody>) -> MutexGuard<'_, WasiBody> {
    body.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request's body on its way from the guest to the server.
struct Outgoing {
    body: Arc<Mutex<WasiBody>>,
    /// How long the guest says it is.
    length: Option<u64>,
    limit: u64,
    sent: u64,
    /// Since when the server is waited for; nothing while it is the guest.
    waiting: watch::Sender<Option<Instant>>,
    moved: Moved,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut *lock(&this.body)).poll_frame(cx);
        this.waiting.send_replace(frame.is_ready().then(Instant::now));
        let frame = match ready!(frame) {
            None if this.length.is_some_and(|length| this.sent < length) => Err(Broken::GivenUp),
            None => return Poll::Ready(None),
            Some(Err(_)) => Err(Broken::GivenUp),
            Some(Ok(frame)) => {
                let piece = frame.data_ref().map_or(0, Bytes::len) as u64;
                this.sent += piece;
                if this.sent > this.length.unwrap_or(this.limit) {
                    Err(Broken::Size)
                } else {
                    (this.moved)(piece);
                    Ok(frame)
                }
            }
        };
        Poll::Ready(Some(frame))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, |length| SizeHint::with_exact(length - self.sent.min(length)))
    }
}

/// An answer's body on its way from the server to the guest.
struct Incoming {
    body: reqwest::Body,
    limit: u64,
    received: u64,
    silence: Duration,
    /// Runs while the guest waits for a piece.
    patience: Option<Pin<Box<Sleep>>>,
    moved: Moved,
    _permit: OwnedSemaphorePermit,
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            let patience = this.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.silence)));
            ready!(patience.as_mut().poll(cx));
            return Poll::Ready(Some(Err(Error::ConnectionReadTimeout)));
        };
        this.patience = None;
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(|problem| failed(&problem))?;
            let piece = frame.data_ref().map_or(0, Bytes::len) as u64;
            this.received += piece;
            if this.received > this.limit {
                return Err(Error::HttpResponseBodySize(Some(this.limit)));
            }
            (this.moved)(piece);
            Ok(frame)
        }))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
