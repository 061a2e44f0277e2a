//! A notifier that always wants to be asked again at once, and counts in the store how often it was.

use vmferry_plugin_api::notifier::*;
use vmferry_plugin_api::store;

struct Guest;

impl Notifier for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Never gives up.")
    }

    fn handle(_: Self::Config, _: Event) -> Result<Verdict, Error> {
        let mut times = store::get("times")?.unwrap_or_default();
        times.push(b'|');
        store::set("times", &times)?;
        Err(Error::unavailable("try again", 0))
    }
}

vmferry_plugin_api::export_notifier!(Guest);
