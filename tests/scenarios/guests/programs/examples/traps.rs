//! A scheduler that panics when it is asked.

use vmferry_plugin_api::scheduler::*;

struct Guest;

impl Scheduler for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Panics.")
    }

    fn next_run(_: Self::Config, state: State, _: Timestamp) -> Result<Due, Error> {
        panic!("no idea when to run {}", state.job)
    }
}

vmferry_plugin_api::export_scheduler!(Guest);
