//! The plugin to copy: a retention rule that keeps the last recovery point of each chosen weekday.
//!
//! A retention rule is one function: it is shown the recovery points of a replica, oldest first, and says of each
//! whether to keep it and by which part of the rule. It runs in a sandbox without files, network or clock, so it is
//! tested like any other function: see the end of this file, and run `cargo test`.

use serde::Deserialize;
use vmferry_plugin_api::Span;
use vmferry_plugin_api::calendar::{Weekday, day, weekday};
// Everything a retention rule needs: the trait, the types of its arguments, `Error`, `description!`.
use vmferry_plugin_api::retention::*;

/// The plugin. It has no fields: nothing survives from one call to the next.
struct Weekdays;

/// What an operator writes under `with`:
///
/// ```toml
/// retention = { plugin = "example-retain-weekdays", with = { days = ["friday"], weeks = 4 } }
/// ```
///
/// `deny_unknown_fields` turns a typing error into a message instead of a surprise.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The weekdays, in UTC, whose last point is kept.
    days: Vec<Weekday>,
    /// For how many weeks.
    weeks: u32,
    /// Points younger than this are all kept.
    #[serde(default)]
    keep_all: Option<Span>,
}

const DAY: i64 = 86_400;

impl Retention for Weekdays {
    type Config = Config;

    fn describe() -> Description {
        description!("Keeps the last point of each chosen weekday for some weeks, and everything young.")
    }

    // What the types of `Config` cannot say. Asked when the host starts, not at night.
    fn check(config: &Config) -> Result<(), Error> {
        if config.days.is_empty() {
            return Err(Error::config("`days`: name at least one weekday, or nothing old would be kept"));
        }
        if config.weeks == 0 {
            return Err(Error::config("`weeks`: must be at least 1"));
        }
        Ok(())
    }

    fn select(config: Config, points: Vec<Point>, now: Timestamp) -> Result<Vec<Judgement>, Error> {
        let young = config.keep_all.map_or(DAY, Span::seconds);
        let oldest_day = day(now) - 7 * i64::from(config.weeks);
        Ok(points
            .iter()
            .enumerate()
            .map(|(at, point)| {
                let point_day = day(point.taken_at);
                let is_last_of_its_day = points.get(at + 1).is_none_or(|next| day(next.taken_at) != point_day);
                let weekday = weekday(point.taken_at);
                // The text says which part of the rule spoke; it stands in the report of the run.
                if now - point.taken_at < young {
                    Judgement::Keep("young".to_owned())
                } else if is_last_of_its_day && point_day > oldest_day && config.days.contains(&weekday) {
                    Judgement::Keep(format!("last of a {weekday}"))
                } else {
                    Judgement::Drop("no rule keeps it".to_owned())
                }
            })
            .collect())
    }
}

// Makes this crate a component. Natively it does nothing, so that the tests below need no WebAssembly.
vmferry_plugin_api::export_retention!(Weekdays);

#[cfg(test)]
mod tests {
    use super::*;

    /// Saturday, 2026-11-21, noon.
    const NOW: Timestamp = 1_795_262_400;

    /// What the rule says of points of these ages in hours, oldest first.
    fn kept(json: &str, ages: &[i64]) -> Vec<bool> {
        let config = vmferry_plugin_api::parse_config(json).expect("settings");
        Weekdays::check(&config).expect("right settings");
        let points = ages
            .iter()
            .map(|hours| Point {
                id: format!("{hours} hours old"),
                taken_at: NOW - hours * 3600,
                held: false,
                extensions: Vec::new(),
            })
            .collect();
        let judgements = Weekdays::select(config, points, NOW).expect("judgements");
        judgements.iter().map(|judgement| matches!(judgement, Judgement::Keep(_))).collect()
    }

    #[test]
    fn everything_young_is_kept() {
        assert_eq!(kept(r#"{"days": ["monday"], "weeks": 1}"#, &[23, 12, 1]), [true, true, true]);
        assert_eq!(kept(r#"{"days": ["monday"], "weeks": 1, "keep_all": "6h"}"#, &[7, 5]), [false, true]);
    }

    #[test]
    fn of_a_chosen_weekday_the_last_point_is_kept() {
        // 36 hours before Saturday noon is Friday at midnight; 30 and 25 hours before are Friday morning.
        assert_eq!(kept(r#"{"days": ["friday"], "weeks": 2}"#, &[40, 36, 30, 25]), [false, false, false, true]);
        assert_eq!(kept(r#"{"days": ["thu", "fri"], "weeks": 2}"#, &[40, 36, 30, 25]), [true, false, false, true]);
    }

    #[test]
    fn after_its_weeks_a_point_goes() {
        let friday = |weeks_ago: i64| 25 + weeks_ago * 7 * 24;
        let ages = [friday(3), friday(2), friday(1), friday(0)];
        assert_eq!(kept(r#"{"days": ["friday"], "weeks": 2}"#, &ages), [false, false, true, true]);
    }

    #[test]
    fn a_rule_that_would_keep_nothing_old_is_refused() {
        let config = vmferry_plugin_api::parse_config(r#"{"days": [], "weeks": 2}"#).expect("well-formed");
        assert!(Weekdays::check(&config).expect_err("no day").message.contains("`days`"));
        let error =
            vmferry_plugin_api::parse_config::<Config>(r#"{"days": ["caturday"], "weeks": 2}"#).expect_err("no day");
        assert!(error.message.contains("`days[0]`: unknown variant `caturday`"), "{}", error.message);
    }
}
