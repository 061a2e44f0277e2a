//! A notifier that burns CPU without end.

use std::hint::black_box;
use vmferry_plugin_api::notifier::*;

struct Guest;

impl Notifier for Guest {
    type Config = std::collections::BTreeMap<String, String>;

    fn describe() -> Description {
        description!("Spins.")
    }

    fn handle(_: Self::Config, event: Event) -> Result<Verdict, Error> {
        let mut turns = event.time;
        while black_box(turns) != i64::MIN {
            turns = black_box(turns).wrapping_add(1) | 1;
        }
        Ok(Verdict::Proceed)
    }
}

vmferry_plugin_api::export_notifier!(Guest);
