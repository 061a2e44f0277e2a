//! The control port: JSON over HTTP, for programs that are not in this process.
//!
//! | Request | Body or query | Answer |
//! | --- | --- | --- |
//! | `POST /write` | `{vdi, offset, data_base64}` | `{}` |
//! | `GET /read` | `vdi`, `offset`, `length` | `{data_base64}` |
//! | `GET /sha256` | `vdi` | `{sha256}` |
//! | `POST /load-image`, `POST /dump` | `{vdi, path}` | `{}` |
//! | `POST /fault` | a [`Fault`], for example `{"at": "export", "kind": {"cut_after": 4096}}` | `{}` |
//! | `DELETE /faults` | | `{}` |
//! | `POST /wait-transfer` | `{bytes}` | `{}`, when a transfer has moved so much |
//! | `POST /wait-stalled` | | `{}`, when something is stalled |
//! | `POST /add-vm` | a [`VmSpec`] | `{vm, disks}` |
//! | `POST /add-sr` | an [`SrSpec`], at least `{name, size}` | `{sr}` |
//! | `POST /break-cbt` | `{vdi}` | `{}` |
//! | `GET /counts`, `GET /calls` | | as the library calls |
//! | `GET /records` | `class` | an array of records |
//!
//! What goes wrong is answered by 400 and `{error}`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::config::{SrSpec, VmSpec};
use crate::control;
use crate::core::{Core, Goal};
use crate::fault::Fault;
use crate::wire::http::{Connection, Request, Response};

/// Larger writes go by file.
const MAX_BODY: u64 = 64 << 20;

pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener, stop: watch::Receiver<bool>) {
    let handle = |socket| {
        let core = core.clone();
        async move { requests(&core, &mut Connection::new(socket, None)).await }
    };
    crate::server::accept(listener, stop, handle).await;
}

async fn requests(core: &Core, connection: &mut Connection) -> anyhow::Result<()> {
    loop {
        let request = connection.read_head().await?;
        let length = request.content_length().unwrap_or(0);
        let answer = match length <= MAX_BODY {
            true => {
                let mut body = vec![0; length as usize];
                connection.read_exact(&mut body).await?;
                answer(core, &request, &body).await
            }
            false => Err(anyhow!("the body is larger than {MAX_BODY} bytes")),
        };
        let (status, answer) = match answer {
            Ok(answer) => ("200 OK", answer),
            Err(error) => ("400 Bad Request", json!({ "error": format!("{error:#}") })),
        };
        let keep_alive = request.keep_alive() && length <= MAX_BODY;
        let body = answer.to_string();
        let headers = Vec::new();
        connection
            .respond(Response { status, content_type: "application/json", headers, body: body.as_bytes(), keep_alive })
            .await?;
        if !keep_alive {
            return Ok(());
        }
    }
}

#[derive(Deserialize)]
struct Write {
    vdi: String,
    offset: u64,
    data_base64: String,
}

#[derive(Deserialize)]
struct DiskFile {
    vdi: String,
    path: PathBuf,
}

#[derive(Deserialize)]
struct WaitTransfer {
    bytes: u64,
}

#[derive(Deserialize)]
struct Disk {
    vdi: String,
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body).context("the body")
}

fn query<'a>(request: &'a Request, name: &str) -> anyhow::Result<&'a str> {
    request.param(name).with_context(|| format!("the query needs {name}"))
}

async fn answer(core: &Core, request: &Request, body: &[u8]) -> anyhow::Result<Json> {
    let done = || json!({});
    match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/write") => {
            let Write { vdi, offset, data_base64 } = parse(body)?;
            let data = BASE64.decode(data_base64).context("data_base64")?;
            core.with(|state| control::write(state, &vdi, offset, &data))?;
            Ok(done())
        }
        ("GET", "/read") => {
            let (vdi, offset, length) = (query(request, "vdi")?, query(request, "offset")?, query(request, "length")?);
            let (offset, length) = (offset.parse().context("offset")?, length.parse().context("length")?);
            let data = core.with(|state| control::read(state, vdi, offset, length))?;
            Ok(json!({ "data_base64": BASE64.encode(data) }))
        }
        ("GET", "/sha256") => {
            let vdi = query(request, "vdi")?;
            Ok(json!({ "sha256": core.with(|state| control::sha256(state, vdi))? }))
        }
        ("POST", "/load-image") => {
            let DiskFile { vdi, path } = parse(body)?;
            core.with(|state| control::load_image(state, &vdi, &path))?;
            Ok(done())
        }
        ("POST", "/dump") => {
            let DiskFile { vdi, path } = parse(body)?;
            core.with(|state| control::dump(state, &vdi, &path))?;
            Ok(done())
        }
        ("POST", "/fault") => {
            let fault: Fault = parse(body)?;
            core.with(|state| state.faults.arm(fault));
            Ok(done())
        }
        ("DELETE", "/faults") => {
            core.clear_faults();
            Ok(done())
        }
        ("POST", "/wait-transfer") => {
            let WaitTransfer { bytes } = parse(body)?;
            core.transfers.wait(Goal::Bytes(bytes)).await;
            Ok(done())
        }
        ("POST", "/wait-stalled") => {
            core.transfers.wait(Goal::Stalled).await;
            Ok(done())
        }
        ("POST", "/add-vm") => {
            let spec: VmSpec = parse(body)?;
            core.with(|state| {
                let vm = control::add_vm(state, &spec)?;
                let disks = control::vm_disks(state, &vm)?;
                Ok(json!({ "vm": vm, "disks": disks }))
            })
        }
        ("POST", "/add-sr") => {
            let spec: SrSpec = parse(body)?;
            Ok(json!({ "sr": core.with(|state| control::add_sr(state, &spec))? }))
        }
        ("POST", "/break-cbt") => {
            let Disk { vdi } = parse(body)?;
            core.with(|state| control::break_cbt(state, &vdi))?;
            Ok(done())
        }
        ("GET", "/counts") => Ok(json!(core.with(|state| control::object_counts(state)))),
        ("GET", "/calls") => Ok(json!(core.with(|state| state.calls.clone()))),
        ("GET", "/records") => {
            let class = query(request, "class")?;
            Ok(Json::Array(core.with(|state| control::records(state, class))))
        }
        (method, path) => Err(anyhow!("there is no {method} {path}")),
    }
}
