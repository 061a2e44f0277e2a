//! A scheduler that never answers and never rests.

use std::hint::black_box;
use vmferry_plugin_api::scheduler::*;

struct Guest;

impl Scheduler for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Spins.")
    }

    fn next_run(_: Self::Config, _: State, now: Timestamp) -> Result<Due, Error> {
        let mut turns = now;
        while black_box(turns) != i64::MIN {
            turns = black_box(turns).wrapping_add(1) | 1;
        }
        Ok(Due::At(turns))
    }
}

vmferry_plugin_api::export_scheduler!(Guest);
