//! A retention rule: the newest recovery points stay.

use serde::Deserialize;
use std::num::NonZeroUsize;
use vmferry_plugin_api::retention::*;

/// The plugin.
struct Count;

/// `with = { keep = 6 }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// How many points to keep; held ones are kept besides and not counted.
    keep: NonZeroUsize,
}

impl Retention for Count {
    type Config = Config;

    fn describe() -> Description {
        description!("Keeps the newest recovery points.")
    }

    fn select(config: Config, points: Vec<Point>, _: Timestamp) -> Result<Vec<Judgement>, Error> {
        let mut left = config.keep.get();
        let mut judgements: Vec<_> = points
            .iter()
            .rev()
            .map(|point| match left {
                _ if point.held => Judgement::Keep("held".to_owned()),
                0 => Judgement::Drop(format!("older than the newest {}", config.keep)),
                _ => {
                    left -= 1;
                    Judgement::Keep(format!("newest {}", config.keep))
                }
            })
            .collect();
        judgements.reverse();
        Ok(judgements)
    }
}

vmferry_plugin_api::export_retention!(Count);

#[cfg(test)]
mod tests {
    use super::*;

    /// Judges points written as letters, oldest first: `p`oint or `h`eld; answers `k`eep or `d`rop.
    fn judged(keep: usize, points: &str) -> String {
        let config = vmferry_plugin_api::parse_config(&format!("{{\"keep\":{keep}}}")).expect("settings");
        let points = points
            .chars()
            .enumerate()
            .map(|(at, letter)| Point {
                id: format!("point {at}"),
                taken_at: at as i64,
                held: letter == 'h',
                extensions: Vec::new(),
            })
            .collect();
        let judgements = Count::select(config, points, 100).expect("judgements");
        judgements.iter().map(|judgement| if matches!(judgement, Judgement::Keep(_)) { 'k' } else { 'd' }).collect()
    }

    #[test]
    fn the_newest_stay() {
        assert_eq!(judged(2, "pppp"), "ddkk");
        assert_eq!(judged(1, "p"), "k");
        assert_eq!(judged(9, "ppp"), "kkk");
        assert_eq!(judged(2, ""), "");
    }

    #[test]
    fn held_points_stay_and_are_not_counted() {
        assert_eq!(judged(2, "hppp"), "kdkk");
        assert_eq!(judged(1, "pph"), "dkk");
    }

    #[test]
    fn keeping_nothing_is_refused() {
        let error = vmferry_plugin_api::parse_config::<Config>(r#"{"keep": 0}"#).expect_err("nothing kept");
        assert_eq!(error.message, "`keep`: invalid value: integer `0`, expected a nonzero usize");
    }
}
