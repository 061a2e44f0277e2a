//! The parts of a request that are not headers, within bounds.
//!
//! wasmtime-wasi-http bounds headers and bodies. It takes methods and authorities of any length, and keeps them for every
//! request that a guest holds, so three functions of `wasi:http/types` are replaced by ones that look at the length
//! first. What is too long is refused as what is malformed.

use crate::limits::{HTTP_AUTHORITY, HTTP_METHOD, HTTP_PATH};
use crate::state::State;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::{HostOutgoingRequest as Request, Method, OutgoingRequest};

/// The version of WASI in wasmtime's bindings; guests of other 0.2 versions find the same functions.
const TYPES: &str = "wasi:http/types@0.2.12";

type Part = (Resource<OutgoingRequest>, Option<String>);

/// Puts bounds around the functions of a linker that has `wasi:http/types`.
pub(crate) fn bound(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES)?;
    types.func_wrap(
        "[method]outgoing-request.set-method",
        |mut store: StoreContextMut<'_, State>, (request, method): (Resource<OutgoingRequest>, Method)| {
            if matches!(&method, Method::Other(name) if name.len() > HTTP_METHOD) {
                return Ok((Err(()),));
            }
            Ok((Request::set_method(&mut store.data_mut().http(), request, method)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-authority",
        |mut store: StoreContextMut<'_, State>, (request, authority): Part| {
            if is_longer(&authority, HTTP_AUTHORITY) {
                return Ok((Err(()),));
            }
            Ok((Request::set_authority(&mut store.data_mut().http(), request, authority)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-path-with-query",
        |mut store: StoreContextMut<'_, State>, (request, path): Part| {
            if is_longer(&path, HTTP_PATH) {
                return Ok((Err(()),));
            }
            Ok((Request::set_path_with_query(&mut store.data_mut().http(), request, path)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

fn is_longer(part: &Option<String>, limit: usize) -> bool {
    part.as_ref().is_some_and(|part| part.len() > limit)
}
