//! A scheduler that answers with everything it can learn about where it runs.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use vmferry_plugin_api::scheduler::*;

struct Guest;

impl Scheduler for Guest {
    type Config = HashMap<String, String>;

    fn describe() -> Description {
        description!("Looks around.")
    }

    fn next_run(_: Self::Config, _: State, _: Timestamp) -> Result<Due, Error> {
        let begun = Instant::now();
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(-1, |since| since.as_secs() as i64);
        let random = RandomState::new().hash_one("seed");
        let environment = std::env::vars().count();
        let arguments = std::env::args().count();
        let files = std::fs::read_dir("/").map_or(0, Iterator::count);
        let elapsed = begun.elapsed().as_nanos();
        Ok(Due::Never(format!(
            "clock={clock} random={random} environment={environment} arguments={arguments} files={files} elapsed={elapsed}"
        )))
    }
}

vmferry_plugin_api::export_scheduler!(Guest);
