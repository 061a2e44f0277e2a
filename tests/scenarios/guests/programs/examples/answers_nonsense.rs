//! A retention rule with one judgement too few.

use vmferry_plugin_api::retention::*;

struct Guest;

impl Retention for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Cannot count.")
    }

    fn select(_: Self::Config, points: Vec<Point>, _: Timestamp) -> Result<Vec<Judgement>, Error> {
        Ok(points.iter().skip(1).map(|_| Judgement::Drop("all must go".to_owned())).collect())
    }
}

vmferry_plugin_api::export_retention!(Guest);
