//! A scheduler whose version is a sentence with a line of its own.

use vmferry_plugin_api::scheduler::*;

struct Guest;

impl Scheduler for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        Description { version: "1.0\nERROR the disk is full \u{202e}!".to_owned(), ..description!("Poses.") }
    }

    fn next_run(_: Self::Config, _: State, now: Timestamp) -> Result<Due, Error> {
        Ok(Due::At(now))
    }
}

vmferry_plugin_api::export_scheduler!(Guest);
