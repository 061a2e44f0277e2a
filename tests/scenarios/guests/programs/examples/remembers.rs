//! A scheduler that counts its calls in a static variable.

use std::sync::atomic::{AtomicU32, Ordering};
use vmferry_plugin_api::scheduler::*;

struct Guest;

static CALLS: AtomicU32 = AtomicU32::new(0);

impl Scheduler for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        CALLS.fetch_add(1, Ordering::Relaxed);
        description!("Counts.")
    }

    fn next_run(_: Self::Config, _: State, _: Timestamp) -> Result<Due, Error> {
        Ok(Due::Never(format!("call {}", CALLS.fetch_add(1, Ordering::Relaxed) + 1)))
    }
}

vmferry_plugin_api::export_scheduler!(Guest);
