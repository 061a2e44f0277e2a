//! A retention rule that keeps every page it can get.

use vmferry_plugin_api::retention::*;

struct Guest;

impl Retention for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Eats memory.")
    }

    fn select(_: Self::Config, _: Vec<Point>, _: Timestamp) -> Result<Vec<Judgement>, Error> {
        let mut eaten: Vec<Vec<u8>> = Vec::new();
        loop {
            eaten.push(vec![1; 1 << 20]);
            std::hint::black_box(&eaten);
        }
    }
}

vmferry_plugin_api::export_retention!(Guest);
