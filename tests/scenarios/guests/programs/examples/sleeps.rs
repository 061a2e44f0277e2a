//! A scheduler that sleeps for a day before it answers.

use vmferry_plugin_api::scheduler::*;

struct Guest;

impl Scheduler for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Sleeps.")
    }

    fn next_run(_: Self::Config, _: State, now: Timestamp) -> Result<Due, Error> {
        std::thread::sleep(std::time::Duration::from_secs(86_400));
        Ok(Due::At(now))
    }
}

vmferry_plugin_api::export_scheduler!(Guest);
