//! A scheduler that says more than anybody can read, by the log and by its standard output, and then answers.

use vmferry_plugin_api::log;
use vmferry_plugin_api::scheduler::*;

struct Guest;

impl Scheduler for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Floods the log.")
    }

    #[expect(clippy::print_stdout, reason = "that is what it does")]
    fn next_run(_: Self::Config, _: State, now: Timestamp) -> Result<Due, Error> {
        for line in 0..5_000 {
            log::info(format!("flood\nof {line}"));
            println!("flooded output {line}");
        }
        Ok(Due::At(now))
    }
}

vmferry_plugin_api::export_scheduler!(Guest);
