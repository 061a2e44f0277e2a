//! A notifier that makes objects in the host and never lets go of them.

use vmferry_plugin_api::notifier::*;

struct Guest;

impl Notifier for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Leaks.")
    }

    #[cfg(target_arch = "wasm32")]
    fn handle(_: Self::Config, _: Event) -> Result<Verdict, Error> {
        use vmferry_plugin_api::bindings::http::wasi::http::types::Fields;
        loop {
            std::mem::forget(Fields::new());
        }
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn handle(_: Self::Config, _: Event) -> Result<Verdict, Error> {
        Ok(Verdict::Proceed)
    }
}

vmferry_plugin_api::export_notifier!(Guest);
