//! A notifier that reads from its store until it is told to stop, and reports how often it could.

use vmferry_plugin_api::notifier::*;
use vmferry_plugin_api::store;

struct Guest;

impl Notifier for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Hammers.")
    }

    fn handle(_: Self::Config, _: Event) -> Result<Verdict, Error> {
        for times in 0..1_000 {
            if let Err(error) = store::get("value") {
                return Ok(Verdict::Skip(format!("{times} times, then: {}", error.message)));
            }
        }
        Ok(Verdict::Proceed)
    }
}

vmferry_plugin_api::export_notifier!(Guest);
