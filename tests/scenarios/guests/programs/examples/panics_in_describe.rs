//! A scheduler that cannot say who it is.

use vmferry_plugin_api::scheduler::*;

struct Guest;

impl Scheduler for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        panic!("who am I?")
    }

    fn next_run(_: Self::Config, _: State, now: Timestamp) -> Result<Due, Error> {
        Ok(Due::At(now))
    }
}

vmferry_plugin_api::export_scheduler!(Guest);
