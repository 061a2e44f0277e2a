//! A scheduler that wants to ask the network.

use vmferry_plugin_api::http::{Request, send};
use vmferry_plugin_api::scheduler::*;

struct Guest;

impl Scheduler for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Asks the network.")
    }

    fn next_run(_: Self::Config, _: State, now: Timestamp) -> Result<Due, Error> {
        let url = "https://time.example.org/".to_owned();
        send(&Request { method: "GET".to_owned(), url, headers: Vec::new(), body: Vec::new() })?;
        Ok(Due::At(now))
    }
}

vmferry_plugin_api::export_scheduler!(Guest);
