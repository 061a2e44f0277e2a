//! Requests of notifiers: the body is held until it is whole, and so is the answer's.

use super::{Passed, client_builder, failed, internal, permitted, size_of_headers};
use crate::limits::{HTTP_BODY, HTTP_CONNECT, HTTP_HEADERS};
use crate::state::{Lent, Refusals};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use wasmtime_wasi_http::{Error, WasiBody};

/// Sends a request and takes in its answer, whose body keeps the permit for as long as the guest keeps the body.
pub(super) async fn send(lent: &Lent, refusals: &Refusals, request: Passed) -> Result<http::Response<WasiBody>, Error> {
    let Passed { url, allowed, method, headers, body, length: _, options, permit } = request;
    let addresses = permitted(lent, &url, allowed).await.map_err(|why| why.told(lent, refusals, &url))?;
    // The whole body first: it is small, its length is known then, and a refused one never leaves.
    let body = Limited::new(body, HTTP_BODY)
        .collect()
        .await
        .map_err(|_| Error::HttpRequestBodySize(Some(HTTP_BODY as u64)))?
        .to_bytes();

    let connect = options.connect_timeout.map_or(HTTP_CONNECT, |wanted| wanted.min(HTTP_CONNECT));
    // For one request: it knows one server's addresses and forgets them.
    let mut client = client_builder()?.pool_max_idle_per_host(0).connect_timeout(connect);
    if let Some(host) = url.domain() {
        client = client.resolve_to_addrs(host, &addresses);
    }
    let client = client.build().map_err(|problem| internal(&problem))?;
    let request = client.request(method, url).headers(headers).body(body);
    let mut answer = request.send().await.map_err(|problem| failed(&problem))?;

    if size_of_headers(answer.headers()) > HTTP_HEADERS {
        return Err(Error::HttpResponseHeaderSectionSize(Some(HTTP_HEADERS as u32)));
    }
    let mut received = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|problem| failed(&problem))? {
        if received.len() + piece.len() > HTTP_BODY {
            return Err(Error::HttpResponseBodySize(Some(HTTP_BODY as u64)));
        }
        received.extend_from_slice(&piece);
    }
    // Boxed, or it would keep the room into which it might have grown.
    let received = Full::new(Bytes::from(received.into_boxed_slice()));
    let received = received.map_err(move |never| {
        // Never called; it is how the body owns the permit.
        let _held = &permit;
        match never {}
    });
    let mut response = http::Response::new(received.boxed_unsync());
    *response.status_mut() = answer.status();
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    // The body is whole now, whatever its framing was.
    response.headers_mut().remove(http::header::TRANSFER_ENCODING);
    Ok(response)
}
