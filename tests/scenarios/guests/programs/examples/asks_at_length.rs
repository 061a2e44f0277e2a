//! A notifier that gives a request parts of the lengths in its settings, and reports which of them were taken.

use serde::Deserialize;
use vmferry_plugin_api::notifier::*;

struct Guest;

#[derive(Deserialize)]
#[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "read by the component alone"))]
struct Config {
    method: usize,
    authority: usize,
    path: usize,
}

impl Notifier for Guest {
    type Config = Config;

    fn describe() -> Description {
        description!("Asks at length.")
    }

    #[cfg(target_arch = "wasm32")]
    fn handle(config: Config, _: Event) -> Result<Verdict, Error> {
        use vmferry_plugin_api::bindings::http::wasi::http::types::{Fields, Method, OutgoingRequest};
        let request = OutgoingRequest::new(Fields::new());
        let method = request.set_method(&Method::Other("M".repeat(config.method))).is_ok();
        let authority = request.set_authority(Some(&"a".repeat(config.authority))).is_ok();
        let path = request.set_path_with_query(Some(&format!("/{}", "p".repeat(config.path - 1)))).is_ok();
        Ok(Verdict::Skip(format!("method {method}, authority {authority}, path {path}")))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn handle(_: Config, _: Event) -> Result<Verdict, Error> {
        Ok(Verdict::Proceed)
    }
}

vmferry_plugin_api::export_notifier!(Guest);
