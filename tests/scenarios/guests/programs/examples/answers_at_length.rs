//! A retention rule whose rules are a novel each.

use vmferry_plugin_api::retention::*;

struct Guest;

impl Retention for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Talks.")
    }

    fn select(_: Self::Config, points: Vec<Point>, _: Timestamp) -> Result<Vec<Judgement>, Error> {
        Ok(points.iter().map(|_| Judgement::Keep("because\n".repeat(10_000))).collect())
    }
}

vmferry_plugin_api::export_retention!(Guest);
