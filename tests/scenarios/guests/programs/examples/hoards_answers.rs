//! A notifier that sends one request after another, keeps the answers or lets go of them as its settings say, and
//! reports how far it came.

use serde::Deserialize;
use vmferry_plugin_api::notifier::*;

struct Guest;

#[derive(Deserialize)]
#[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "read by the component alone"))]
struct Config {
    /// Host and port.
    authority: String,
    /// Whether answers are kept.
    keep: bool,
}

impl Notifier for Guest {
    type Config = Config;

    fn describe() -> Description {
        description!("Hoards.")
    }

    #[cfg(target_arch = "wasm32")]
    fn handle(config: Config, _: Event) -> Result<Verdict, Error> {
        use vmferry_plugin_api::bindings::http::wasi::http::outgoing_handler;
        use vmferry_plugin_api::bindings::http::wasi::http::types::{Fields, OutgoingRequest, Scheme};
        let broken = |()| Error::config("no such request");
        let mut kept = Vec::new();
        for sent in 0..10 {
            let request = OutgoingRequest::new(Fields::new());
            request.set_scheme(Some(&Scheme::Http)).map_err(broken)?;
            request.set_authority(Some(&config.authority)).map_err(broken)?;
            request.set_path_with_query(Some("/")).map_err(broken)?;
            let answer = outgoing_handler::handle(request, None).map_err(|code| Error::config(code.to_string()))?;
            answer.subscribe().block();
            match answer.get() {
                Some(Ok(Ok(answer))) if config.keep => kept.push(answer),
                Some(Ok(Ok(_))) => {}
                Some(Ok(Err(code))) => return Ok(Verdict::Skip(format!("{sent} answers, then {code}"))),
                Some(Err(())) | None => return Err(Error::config("no answer")),
            }
        }
        Ok(Verdict::Skip("10 answers".to_owned()))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn handle(_: Config, _: Event) -> Result<Verdict, Error> {
        Ok(Verdict::Proceed)
    }
}

vmferry_plugin_api::export_notifier!(Guest);
