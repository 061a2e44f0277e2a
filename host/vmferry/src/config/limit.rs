//! `limit` and `limit_windows`: how many bytes a second a job or a link may take, and when.
//!
//! ```toml
//! limit = "50MiB"
//! limit_windows = [{ days = ["mon", "tue", "wed", "thu", "fri"], from = "08:00", to = "18:00", limit = "10MiB" }]
//! ```
//!
//! A job's limit is on what its transfers read from the source pool, a link's on what they send over it. The two differ where
//! a disk is compared: it is read whole, and only what differs is sent.

use super::read::Section;
use crate::nearest;
use jiff::civil::{DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use std::sync::Arc;
use std::time::SystemTime;
use vmferry_engine::Throttle;

/// Bytes per second over a week. The first window that is open says; outside of all, the usual limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Bytes per second; 0 lets nothing pass, `None` is no limit.
    pub usual: Option<u64>,
    /// Times with another limit.
    pub windows: Vec<Window>,
}

/// A time of some days with a limit of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Days on which it opens.
    pub days: Vec<Weekday>,
    /// When it opens.
    pub from: Time,
    /// When it closes: on the next day if that is not later than `from`.
    pub to: Time,
    /// Bytes per second; 0 lets nothing pass, `None` is no limit.
    pub limit: Option<u64>,
}

const DAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

impl Limit {
    /// What holds at a moment of local time.
    pub fn at(&self, now: DateTime) -> Option<u64> {
        self.windows.iter().find(|window| window.is_open(now)).map_or(self.usual, |window| window.limit)
    }

    /// A throttle that keeps to it by the local clock; `None` if there is never a limit.
    pub fn throttle(&self) -> Option<Arc<Throttle>> {
        if *self == Self::default() {
            return None;
        }
        let limit = self.clone();
        Some(Arc::new(Throttle::new(move |now: SystemTime| {
            let now = jiff::Timestamp::try_from(now).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            limit.at(now.to_zoned(TimeZone::system()).datetime())
        })))
    }
}

impl Window {
    fn is_open(&self, now: DateTime) -> bool {
        let (today, time) = (now.weekday(), now.time());
        if self.from < self.to {
            return self.days.contains(&today) && (self.from..self.to).contains(&time);
        }
        self.days.contains(&today) && time >= self.from || self.days.contains(&today.previous()) && time < self.to
    }
}

pub(super) fn read(section: &mut Section<'_>) -> Limit {
    let usual = rate(section);
    let windows = section.sections("limit_windows").into_iter().filter_map(read_window).collect();
    Limit { usual, windows }
}

fn read_window(mut section: Section<'_>) -> Option<Window> {
    let days = section.strings("days");
    let mut opens = Vec::new();
    for day in &days {
        match DAYS.iter().find(|(name, _)| *name == day.value) {
            Some((_, day)) => opens.push(*day),
            None => {
                let remedy = nearest::remedy(&day.value, DAYS.iter().map(|(name, _)| *name));
                section.error(day.problem(format!("`{}` is no day", day.value)).remedy(remedy));
            }
        }
    }
    if days.is_empty() {
        opens = DAYS.map(|(_, day)| day).to_vec();
    }
    let (from, to) = (time(&mut section, "from"), time(&mut section, "to"));
    if !section.has("limit") {
        section.missing("limit", "\"10MiB\", or \"none\" for no limit");
    }
    let limit = rate(&mut section);
    section.finish();
    Some(Window { days: opens, from: from?, to: to?, limit })
}

/// Bytes per second, or `none`.
fn rate(section: &mut Section<'_>) -> Option<u64> {
    if section.is_string("limit", "none") {
        section.string("limit");
        return None;
    }
    section.size("limit").map(|found| found.value)
}

fn time(section: &mut Section<'_>, key: &'static str) -> Option<Time> {
    let found = section.required_string(key, "\"08:00\"")?;
    let parsed = Time::strptime("%H:%M", &found.value).ok();
    if parsed.is_none() {
        let what = format!("`{}` is no time of day", found.value);
        section.error(found.problem(what).remedy("write it like `08:00`; midnight is `00:00`"));
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_open_window_says_and_the_usual_limit_outside_of_all() {
        let window = |days: &[Weekday], from: &str, to: &str, limit| Window {
            days: days.to_vec(),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            limit,
        };
        let week = [Weekday::Monday, Weekday::Tuesday, Weekday::Wednesday, Weekday::Thursday, Weekday::Friday];
        let limit = Limit {
            usual: Some(50),
            windows: vec![
                window(&week, "08:00", "18:00", Some(10)),
                window(&[Weekday::Friday], "22:00", "06:00", None),
                window(&[Weekday::Sunday], "00:00", "00:00", Some(0)),
            ],
        };
        // 2026-11-23 is a Monday.
        for (moment, expected) in [
            ("2026-11-23T07:59:59", Some(50)),
            ("2026-11-23T08:00:00", Some(10)),
            ("2026-11-23T17:59:59", Some(10)),
            ("2026-11-23T18:00:00", Some(50)),
            ("2026-11-27T22:00:00", None),
            ("2026-11-28T05:59:59", None),
            ("2026-11-28T06:00:00", Some(50)),
            ("2026-11-29T00:00:00", Some(0)),
            ("2026-11-29T23:59:59", Some(0)),
            ("2026-11-30T00:00:00", Some(50)),
        ] {
            assert_eq!(limit.at(at(moment)), expected, "{moment}");
        }
    }

    #[test]
    fn without_any_limit_there_is_no_throttle() {
        assert!(Limit::default().throttle().is_none());
        assert!(Limit { usual: Some(1), windows: Vec::new() }.throttle().is_some());
    }
}
