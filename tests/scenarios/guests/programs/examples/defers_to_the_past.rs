//! A scheduler that puts every plan off until a moment that has passed.

use vmferry_plugin_api::scheduler::*;

struct Guest;

impl Scheduler for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Defers.")
    }

    fn next_run(_: Self::Config, _: State, now: Timestamp) -> Result<Due, Error> {
        Ok(Due::At(now))
    }

    fn approve(_: Self::Config, _: Plan, now: Timestamp) -> Result<Approval, Error> {
        Ok(Approval::Deferred(Deferral { until: now - 60, reason: "later".to_owned() }))
    }
}

vmferry_plugin_api::export_scheduler!(Guest);
