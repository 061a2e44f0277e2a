//! Requests that leave the sandbox.
//!
//! Each passes, in this order: the servers that were granted, by name; the addresses that the name resolves to; the
//! number of requests under way; the size of its body. What proves to the server who is asking is added last, by the host.
//! Then it goes to an address that was looked at. Redirects are answers: following one would be a request that nobody
//! granted.
//!
//! A notifier's bodies are small and held whole on both ways (`whole`); a target's are disk data and stream on both ways
//! (`streamed`).
//!
//! What a guest makes the host hold is bounded, too. A request counts as under way until the guest has let go of the
//! answer's body, and what it wrote of a request that it has not sent waits in small pieces.

mod credential;
mod sigv4;
mod streamed;
mod whole;

pub(crate) use credential::Unproven;
pub use credential::{AwsKey, Credential, CredentialError};
pub(crate) use streamed::Streams;

use crate::address::{is_nobody, not_public};
use crate::grants::Addresses;
use crate::limits::{
    HTTP_CONNECTIONS, HTTP_HEADERS, HTTP_PIECE, HTTP_SMALL_PIECE, HTTP_STREAMED_PIECE, HTTP_SWIFT_BODIES,
};
use crate::state::{Lent, Refusals};
use http_body::Body;
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
    /// Request bodies that the guest has begun and not sent.
    unsent: usize,
    way: Way,
}

/// How bodies travel.
enum Way {
    Whole,
    Streamed(Arc<Streams>),
}

impl Egress {
    /// Bodies are small, and held whole.
    pub(crate) fn whole(lent: Arc<Lent>, refusals: Refusals) -> Self {
        Self::new(lent, refusals, Way::Whole)
    }

    /// Bodies stream.
    pub(crate) fn streamed(lent: Arc<Lent>, refusals: Refusals, streams: Streams) -> Self {
        Self::new(lent, refusals, Way::Streamed(Arc::new(streams)))
    }

    fn new(lent: Arc<Lent>, refusals: Refusals, way: Way) -> Self {
        Self { lent, refusals, connections: Arc::new(Semaphore::new(HTTP_CONNECTIONS)), unsent: 0, way }
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
        let streams = match &self.way {
            Way::Whole => None,
            Way::Streamed(streams) => Some(streams.clone()),
        };
        if streams.is_some() && !request.body().is_end_stream() {
            self.unsent = self.unsent.saturating_sub(1);
        }
        Box::new(async move {
            let permit = permit.map_err(|_| Error::ConnectionLimitReached)?;
            let request = Passed::check(&lent, &refusals, request, options.unwrap_or_default(), permit)?;
            let response = match streams {
                None => whole::send(&lent, &refusals, request).await?,
                Some(streams) => streams.send(&lent, &refusals, request).await?,
            };
            Ok((response, Box::new(async { Ok(()) }) as IoDone))
        })
    }

    /// Asked once per request body that a guest begins, and so the place to count them.
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        self.unsent += 1;
        match &self.way {
            _ if self.unsent > HTTP_SWIFT_BODIES => HTTP_SMALL_PIECE,
            Way::Whole => HTTP_PIECE,
            Way::Streamed(_) => HTTP_STREAMED_PIECE,
        }
    }
}

/// A request that may leave.
struct Passed {
    url: Url,
    /// Where its server may be.
    allowed: Addresses,
    method: http::Method,
    /// With what proves who is asking, and without what is written again from the URL and from the body as it is.
    headers: http::HeaderMap,
    body: WasiBody,
    /// How long the guest says that its body will be.
    length: Option<u64>,
    options: RequestOptions,
    permit: OwnedSemaphorePermit,
}

impl Passed {
    fn check(
        lent: &Lent,
        refusals: &Refusals,
        request: http::Request<WasiBody>,
        options: RequestOptions,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, Error> {
        let denied = |refusal| {
            refusals.note(refusal);
            Error::HttpRequestDenied
        };
        let url = Url::parse(&request.uri().to_string()).map_err(|_| Error::HttpRequestUriInvalid)?;
        let allowed = lent.rights.http(&url).map_err(denied)?;
        let (http::request::Parts { method, mut headers, .. }, body) = request.into_parts();
        if size_of_headers(&headers) > HTTP_HEADERS {
            return Err(Error::HttpRequestHeaderSectionSize(Some(HTTP_HEADERS as u32)));
        }
        headers.remove(http::header::HOST);
        let length = headers.remove(http::header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        if let Some(credential) = lent.services.credentials.iter().find(|one| one.is_for(&url)) {
            let proven = credential.prove(&method, &url, &mut headers, jiff::Timestamp::now());
            proven.map_err(|why| denied(lent.rights.unproven(&url, why)))?;
        }
        Ok(Self { url, allowed, method, headers, body, length, options, permit })
    }
}

/// Why there is no address to go to.
#[derive(Debug, thiserror::Error)]
enum Unreachable {
    #[error("{0}")]
    Lookup(std::io::Error),
    #[error("the name has no address")]
    Nowhere,
    #[error("the name has {0} address")]
    Inside(&'static str),
}

impl Unreachable {
    /// As the guest learns it; an address that needs a grant of its own is noted for the report.
    fn told(&self, lent: &Lent, refusals: &Refusals, url: &Url) -> Error {
        match self {
            Self::Lookup(problem) => Error::DnsError { rcode: Some(problem.to_string()), info_code: None },
            Self::Nowhere => Error::DestinationNotFound,
            Self::Inside(kind) => {
                refusals.note(lent.rights.address_refusal(url, kind));
                Error::DestinationIpProhibited
            }
        }
    }
}

/// Those addresses of a server that a request may go to.
async fn permitted(lent: &Lent, url: &Url, allowed: Addresses) -> Result<Vec<SocketAddr>, Unreachable> {
    let port = url.port_or_known_default().ok_or(Unreachable::Nowhere)?;
    let resolved: Vec<SocketAddr> = match url.host().ok_or(Unreachable::Nowhere)? {
        url::Host::Ipv4(address) => vec![SocketAddr::new(IpAddr::V4(address), port)],
        url::Host::Ipv6(address) => vec![SocketAddr::new(IpAddr::V6(address), port)],
        url::Host::Domain(name) => lent.lookups.addresses(name, port).await.map_err(Unreachable::Lookup)?,
    };
    reachable(resolved, allowed)
}

fn reachable(resolved: Vec<SocketAddr>, allowed: Addresses) -> Result<Vec<SocketAddr>, Unreachable> {
    let first = resolved.first().ok_or(Unreachable::Nowhere)?.ip();
    let reachable: Vec<SocketAddr> =
        resolved.into_iter().filter(|address| verdict(address.ip(), allowed).is_none()).collect();
    match verdict(first, allowed) {
        Some(kind) if reachable.is_empty() => Err(Unreachable::Inside(kind)),
        _ => Ok(reachable),
    }
}

fn verdict(address: IpAddr, allowed: Addresses) -> Option<&'static str> {
    match allowed {
        Addresses::Any if is_nobody(address) => not_public(address),
        Addresses::Any => None,
        Addresses::Public => not_public(address),
    }
}

/// The size of headers as they are written: two bytes between a name and its value, two at the end of the line.
fn size_of_headers(headers: &http::HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// A client that goes where it is told and nowhere else.
fn client_builder() -> Result<reqwest::ClientBuilder, Error> {
    static TLS: OnceLock<Result<rustls::ClientConfig, String>> = OnceLock::new();
    let tls = TLS.get_or_init(tls_config).clone().map_err(|problem| Error::InternalError(Some(problem)))?;
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .http1_only())
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
            lookups: Lookups::of(Arc::default()),
        };
        Egress::whole(Arc::new(lent), Refusals::default())
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
