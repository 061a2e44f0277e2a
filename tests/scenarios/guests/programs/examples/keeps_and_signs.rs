//! A notifier that keeps a value, reads it back and signs it, as its settings say.

use serde::Deserialize;
use vmferry_plugin_api::notifier::*;
use vmferry_plugin_api::{sign, store};

struct Guest;

#[derive(Deserialize)]
struct Config {
    /// Length of the value to keep; nothing is kept without one.
    #[serde(default)]
    keep: Option<usize>,
    /// Name of the key to sign the event's kind with.
    #[serde(default)]
    sign: Option<String>,
}

impl Notifier for Guest {
    type Config = Config;

    fn describe() -> Description {
        description!("Keeps and signs.")
    }

    fn handle(config: Config, event: Event) -> Result<Verdict, Error> {
        let mut said = String::new();
        if let Some(length) = config.keep {
            store::set("value", &vec![b'v'; length])?;
            said.push_str(&format!("kept {} ", store::get("value")?.map_or(0, |value| value.len())));
        }
        if let Some(key) = config.sign {
            let signature = sign::hmac_sha256(&key, event.kind.as_bytes())?;
            said.extend(signature.iter().map(|byte| format!("{byte:02x}")));
        }
        Ok(Verdict::Skip(said))
    }
}

vmferry_plugin_api::export_notifier!(Guest);
