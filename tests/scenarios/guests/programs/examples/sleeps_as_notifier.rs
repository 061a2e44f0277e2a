//! A notifier that sleeps for a day in a call of the host, where no instruction of its own can be interrupted.

use vmferry_plugin_api::notifier::*;

struct Guest;

impl Notifier for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Sleeps.")
    }

    fn handle(_: Self::Config, _: Event) -> Result<Verdict, Error> {
        std::thread::sleep(std::time::Duration::from_secs(86_400));
        Ok(Verdict::Proceed)
    }
}

vmferry_plugin_api::export_notifier!(Guest);
