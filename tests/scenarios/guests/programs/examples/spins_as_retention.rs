//! A retention rule that never answers and never rests.

use std::hint::black_box;
use vmferry_plugin_api::retention::*;

struct Guest;

impl Retention for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Spins.")
    }

    fn select(_: Self::Config, _: Vec<Point>, now: Timestamp) -> Result<Vec<Judgement>, Error> {
        let mut turns = now;
        while black_box(turns) != i64::MIN {
            turns = black_box(turns).wrapping_add(1) | 1;
        }
        Ok(Vec::new())
    }
}

vmferry_plugin_api::export_retention!(Guest);
