//! The listener and the routes.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::core::Core;
use crate::rpc::{self, Answer};
use crate::state::HostNumber;
use crate::transfer;
use crate::wire::http::{Connection, HeadError, MAX_RPC_BODY, Request, Response, error_page};
use crate::wire::{Call, Malformed, jsonrpc, xmlrpc};

/// Serves the XAPI of one host until told to stop.
pub(crate) async fn serve(
    core: Arc<Core>,
    host: HostNumber,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    stop: watch::Receiver<bool>,
) {
    accept(listener, stop, |socket| {
        let (core, tls) = (core.clone(), tls.clone());
        async move { core.while_reachable(handle(core.clone(), host, socket, tls)).await.unwrap_or(Ok(())) }
    })
    .await;
}

/// Accepts until told to stop; connections end at the same time.
pub(crate) async fn accept<F>(listener: TcpListener, mut stop: watch::Receiver<bool>, handle: impl Fn(TcpStream) -> F)
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    loop {
        let socket = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    continue;
                }
            },
        };
        let (connection, mut stop) = (handle(socket), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                outcome = connection => {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "connection ended");
                    }
                }
            }
        });
    }
}

async fn handle(core: Arc<Core>, host: HostNumber, socket: TcpStream, tls: Option<TlsAcceptor>) -> anyhow::Result<()> {
    let at = socket.local_addr()?.ip();
    let mut connection = Connection::accepted(socket)?;
    if let Some(tls) = &tls {
        connection = connection.start_tls(tls).await?;
    }
    let outcome = requests(&core, host, at, &mut connection).await;
    connection.shutdown().await;
    Ok(outcome?)
}

/// What happens to a connection after a request.
#[derive(PartialEq, Eq)]
enum Then {
    Continue,
    Close,
}

async fn requests(core: &Arc<Core>, host: HostNumber, at: IpAddr, connection: &mut Connection) -> std::io::Result<()> {
    loop {
        let request = match connection.read_head().await {
            Ok(request) => request,
            Err(HeadError::Closed) => return Ok(()),
            Err(HeadError::TooLarge) => {
                return page(connection, "431 Request Header Fields Too Large", "Headers too large").await;
            }
            Err(HeadError::Malformed(text)) => return page(connection, "400 Bad Request", &text).await,
            Err(HeadError::Io(error)) => return Err(error),
        };
        core.with(|state| state.arrivals.push((at, request.method.clone())));
        if request_once(core, host, connection, &request).await? == Then::Close {
            return Ok(());
        }
    }
}

async fn request_once(
    core: &Arc<Core>,
    host: HostNumber,
    connection: &mut Connection,
    request: &Request,
) -> std::io::Result<Then> {
    // The longest prefix wins, as in xapi: any other POST is XML-RPC.
    let under = |prefix: &str| request.path.starts_with(prefix);
    let is = |path: &str| request.path.trim_end_matches('/') == path;
    match request.method.as_str() {
        "POST" => return rpc(core, host, connection, request).await,
        "GET" if under("/export_raw_vdi") => transfer::export(core, host, connection, request).await?,
        "PUT" if under("/import_raw_vdi") => transfer::import(core, host, connection, request).await?,
        "GET" if is("/export") => transfer::xva::export(core, host, connection, request).await?,
        "PUT" if is("/import") => transfer::xva::import(core, host, connection, request).await?,
        "GET" | "PUT" | "OPTIONS" => page(connection, "403 Forbidden", "Nothing here").await?,
        _ => page(connection, "501 Method Not Implemented", "No such method").await?,
    }
    Ok(Then::Close)
}

async fn page(connection: &mut Connection, status: &'static str, detail: &str) -> std::io::Result<()> {
    let body = error_page(status, detail);
    let headers = Vec::new();
    connection.respond(Response { status, content_type: "text/html", headers, body: &body, keep_alive: false }).await
}

/// In which encoding a call came, and how its answer is written.
enum Encoding {
    Xml,
    Json(jsonrpc::Reply),
}

impl Encoding {
    fn parse(path: &str, body: &[u8]) -> Result<(Call, Self), Malformed> {
        if path.starts_with("/jsonrpc") {
            let (call, reply) = jsonrpc::parse_call(body)?;
            return Ok((call, Self::Json(reply)));
        }
        Ok((xmlrpc::parse_call(body)?, Self::Xml))
    }

    fn content_type(&self) -> &'static str {
        match self {
            Self::Xml => "text/xml",
            Self::Json(_) => "application/json",
        }
    }

    /// `None` where there is nothing to write.
    fn write(&self, answer: &Answer) -> Option<String> {
        let no_async = |method: &str| format!("{method} has no asynchronous form");
        match (self, answer) {
            (Self::Xml, Answer::Value(value)) => Some(xmlrpc::success(value)),
            (Self::Xml, Answer::Error(error)) => Some(xmlrpc::failure(error)),
            (Self::Xml, Answer::NoAsync(method)) => Some(xmlrpc::fault(&no_async(method))),
            (Self::Json(reply), Answer::Value(value)) => Some(reply.success(value)),
            (Self::Json(reply), Answer::Error(error)) => Some(reply.failure(error)),
            (Self::Json(reply), Answer::NoAsync(method)) => {
                Some(reply.failure(&crate::error::ApiError::unknown_method(method)))
            }
            (_, Answer::Http500 | Answer::Nothing) => None,
        }
    }
}

async fn rpc(
    core: &Arc<Core>,
    host: HostNumber,
    connection: &mut Connection,
    request: &Request,
) -> std::io::Result<Then> {
    const INTERNAL: &str = "500 Internal Server Error";
    let Some(length) = request.content_length() else {
        page(connection, INTERNAL, "Content-Length is required").await?;
        return Ok(Then::Close);
    };
    if length > MAX_RPC_BODY {
        page(connection, "413 Request Entity Too Large", "The request is too large").await?;
        return Ok(Then::Close);
    }
    let mut body = vec![0; length as usize];
    connection.read_exact(&mut body).await?;
    let (call, encoding) = match Encoding::parse(&request.path, &body) {
        Ok(parsed) => parsed,
        Err(error) => {
            page(connection, INTERNAL, &error.to_string()).await?;
            return Ok(Then::Close);
        }
    };
    // A client that leaves does not undo its call, but nobody waits for events on its behalf.
    let answer = tokio::select! {
        biased;
        answer = rpc::answer(core, host, call) => answer,
        () = connection.closed() => return Ok(Then::Close),
    };
    let Some(body) = encoding.write(&answer) else {
        if matches!(answer, Answer::Http500) {
            page(connection, INTERNAL, "Internal error").await?;
        }
        return Ok(Then::Close);
    };
    let response = Response {
        status: "200 OK",
        content_type: encoding.content_type(),
        headers: vec![("access-control-allow-origin", "*".to_owned())],
        body: body.as_bytes(),
        keep_alive: request.keep_alive(),
    };
    connection.respond(response).await?;
    Ok(if request.keep_alive() { Then::Continue } else { Then::Close })
}
