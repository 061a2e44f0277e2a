//! A retention rule that traps.

use vmferry_plugin_api::retention::*;

struct Guest;

impl Retention for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Traps.")
    }

    fn select(_: Self::Config, _: Vec<Point>, _: Timestamp) -> Result<Vec<Judgement>, Error> {
        panic!("on purpose")
    }
}

vmferry_plugin_api::export_retention!(Guest);
