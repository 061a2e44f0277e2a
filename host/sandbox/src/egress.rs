//! Requests that leave the sandbox.
//!
//! Each passes, in this order: the servers that were granted, by name; the addresses that the name resolves to; the
//! number of requests under way; the size of its body. Then it goes to an address that was looked at, and the answer
//! comes back whole or not at all. Redirects are answers: following one would be a request that nobody granted.
//!
//! What a guest makes the host hold is bounded, too. A request counts as under way until the guest has let go of the
//! answer's body, and what it wrote of a request that it has not sent waits in small pieces.

use crate::address::{is_nobody, not_public};
use crate::grants::Addresses;
use crate::limits::{
    HTTP_BODY, HTTP_CONNECT, HTTP_CONNECTIONS, HTTP_HEADERS, HTTP_PIECE, HTTP_SMALL_PIECE, HTTP_SWIFT_BODIES,
};
use crate::state::{Lent, Refusals};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

type IoDone = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Answer = Result<(http::Response<WasiBody>, IoDone), Error>;

/// The way out, for one call.
pub(crate) struct Egress {
    lent: Arc<Lent>,
    refusals: Refusals,
    connections: Arc<Semaphore>,
    /// Request bodies that the guest has begun, sent or not.
    bodies: usize,
}

impl Egress {
    pub(crate) fn new(lent: Arc<Lent>, refusals: Refusals) -> Self {
        Self { lent, refusals, connections: Arc::new(Semaphore::new(HTTP_CONNECTIONS)), bodies: 0 }
    }
}

impl WasiHttpHooks for Egress {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: IoDone,
    ) -> Box<dyn Future<Output = Answer> + Send> {
        let (lent, refusals) = (self.lent.clone(), self.refusals.clone());
        let permit = self.connections.clone().try_acquire_owned();
        Box::new(async move {
            let permit = permit.map_err(|_| Error::ConnectionLimitReached)?;
            let url = Url::parse(&request.uri().to_string()).map_err(|_| Error::HttpRequestUriInvalid)?;
            let addresses = lent.rights.http(&url).map_err(|refusal| {
                refusals.note(refusal);
                Error::HttpRequestDenied
            })?;
            let addresses = permitted(&lent, &refusals, &url, addresses).await?;
            let response = send(&url, &addresses, request, options.unwrap_or_default(), permit).await?;
            Ok((response, Box::new(async { Ok(()) }) as IoDone))
        })
    }

    /// Asked once per request body that a guest begins, and so the place to count them.
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        self.bodies += 1;
        if self.bodies <= HTTP_SWIFT_BODIES { HTTP_PIECE } else { HTTP_SMALL_PIECE }
    }
}

/// The addresses of a server that a request may go to.
async fn permitted(lent: &Lent, refusals: &Refusals, url: &Url, allowed: Addresses) -> Result<Vec<SocketAddr>, Error> {
    let port = url.port_or_known_default().ok_or(Error::HttpRequestUriInvalid)?;
    let resolved: Vec<SocketAddr> = match url.host().ok_or(Error::HttpRequestUriInvalid)? {
        url::Host::Ipv4(address) => vec![SocketAddr::new(IpAddr::V4(address), port)],
        url::Host::Ipv6(address) => vec![SocketAddr::new(IpAddr::V6(address), port)],
        url::Host::Domain(name) => lent
            .lookups
            .addresses(name, port)
            .await
            .map_err(|problem| Error::DnsError { rcode: Some(problem.to_string()), info_code: None })?,
    };
    if resolved.is_empty() {
        return Err(Error::DestinationNotFound);
    }
    let reachable: Vec<SocketAddr> =
        resolved.iter().copied().filter(|address| verdict(address.ip(), allowed).is_none()).collect();
    if reachable.is_empty() {
        if let Some(kind) = resolved.first().and_then(|address| verdict(address.ip(), allowed)) {
            refusals.note(lent.rights.address_refusal(url, kind));
        }
        return Err(Error::DestinationIpProhibited);
    }
    Ok(reachable)
}

fn verdict(address: IpAddr, allowed: Addresses) -> Option<&'static str> {
    match allowed {
        Addresses::Any if is_nobody(address) => not_public(address),
        Addresses::Any => None,
        Addresses::Public => not_public(address),
    }
}

/// Sends a request and takes in its answer, whose body keeps the permit for as long as the guest keeps the body.
async fn send(
    url: &Url,
    addresses: &[SocketAddr],
    request: http::Request<WasiBody>,
    options: RequestOptions,
    permit: OwnedSemaphorePermit,
) -> Result<http::Response<WasiBody>, Error> {
    let (head, body) = request.into_parts();
    if size_of_headers(&head.headers) > HTTP_HEADERS {
        return Err(Error::HttpRequestHeaderSectionSize(Some(HTTP_HEADERS as u32)));
    }
    // The whole body first: it is small, its length is known then, and a refused one never leaves.
    let body = Limited::new(body, HTTP_BODY)
        .collect()
        .await
        .map_err(|_| Error::HttpRequestBodySize(Some(HTTP_BODY as u64)))?
        .to_bytes();

    let mut headers = head.headers;
    // Set again from the URL and from the body as it is.
    headers.remove(http::header::HOST);
    headers.remove(http::header::CONTENT_LENGTH);
    let connect = options.connect_timeout.map_or(HTTP_CONNECT, |wanted| wanted.min(HTTP_CONNECT));
    let mut client = client_builder()?.connect_timeout(connect);
    if let Some(host) = url.domain() {
        client = client.resolve_to_addrs(host, addresses);
    }
    let client = client.build().map_err(|problem| internal(&problem))?;
    let mut answer =
        client.request(head.method, url.clone()).headers(headers).body(body).send().await.map_err(|p| failed(&p))?;

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

/// The size of headers as they are written: two bytes between a name and its value, two at the end of the line.
fn size_of_headers(headers: &http::HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// A client for one request: it knows one server's addresses and forgets them.
fn client_builder() -> Result<reqwest::ClientBuilder, Error> {
    static TLS: OnceLock<Result<rustls::ClientConfig, String>> = OnceLock::new();
    let tls = TLS.get_or_init(tls_config).clone().map_err(|problem| Error::InternalError(Some(problem)))?;
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .http1_only()
        .pool_max_idle_per_host(0))
}

fn tls_config() -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for problem in &found.errors {
        tracing::warn!(%problem, "a system certificate cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|problem| problem.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn failed(problem: &reqwest::Error) -> Error {
    if problem.is_timeout() {
        return Error::ConnectionTimeout;
    }
    let mut causes = std::iter::successors(std::error::Error::source(problem), |cause| cause.source());
    if causes.any(|cause| cause.is::<rustls::Error>()) {
        return Error::TlsCertificateError;
    }
    if problem.is_connect() { Error::ConnectionRefused } else { internal(problem) }
}

fn internal(problem: &reqwest::Error) -> Error {
    // The URL may carry what only the plugin should know; the guest knows it anyway.
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(problem);
    while let Some(error) = cause {
        text.push_str(if text.is_empty() { "" } else { ": " });
        text.push_str(&error.to_string());
        cause = error.source();
    }
    Error::InternalError(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grants::{Grants, Rights};
    use crate::lent::HostServices;
    use crate::limits::{Budget, MAX_HOST_OBJECTS};
    use crate::lookup::Lookups;
    use crate::manifest::Kind;

    fn egress() -> Egress {
        let lent = Lent {
            tenant: String::new(),
            plugin: "hook".to_owned(),
            rights: Rights::new("hook", None, Grants::default()),
            store_quota: 0,
            services: HostServices::default(),
            lookups: Lookups::default(),
        };
        Egress::new(Arc::new(lent), Refusals::default())
    }

    #[test]
    fn request_bodies_that_are_never_sent_hold_little_however_many_there_are() {
        let held_by = |bodies: u64| {
            let mut egress = egress();
            (0..bodies)
                // wasmtime-wasi-http keeps one piece more than it is asked to.
                .map(|_| egress.p2_outgoing_body_chunk_size() * (egress.p2_outgoing_body_buffer_chunks() + 1))
                .sum::<usize>()
        };
        assert_eq!(held_by(1), 128 << 10, "one body is not held up");
        assert!(held_by(Budget::default_for(Kind::Notifier).host_objects) <= 4 << 20);
        assert!(held_by(MAX_HOST_OBJECTS) <= 40 << 20);
    }
}
