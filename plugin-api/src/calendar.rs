//! Days and weekdays of a [`Timestamp`], in UTC, without a time library: components stay small.

use crate::Timestamp;
use serde::Deserialize;
use std::fmt;

const DAY: i64 = 86_400;

/// Day of the week. In settings: `monday` or `mon`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "there is nothing to add")]
pub enum Weekday {
    #[serde(alias = "mon")]
    Monday,
    #[serde(alias = "tue")]
    Tuesday,
    #[serde(alias = "wed")]
    Wednesday,
    #[serde(alias = "thu")]
    Thursday,
    #[serde(alias = "fri")]
    Friday,
    #[serde(alias = "sat")]
    Saturday,
    #[serde(alias = "sun")]
    Sunday,
}

/// Lower case, as in settings.
impl fmt::Display for Weekday {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Monday => "monday",
            Self::Tuesday => "tuesday",
            Self::Wednesday => "wednesday",
            Self::Thursday => "thursday",
            Self::Friday => "friday",
            Self::Saturday => "saturday",
            Self::Sunday => "sunday",
        })
    }
}

/// Days since 1970-01-01, in UTC. Equal for two moments of the same day.
pub const fn day(time: Timestamp) -> i64 {
    time.div_euclid(DAY)
}

/// The day of the week, in UTC.
pub const fn weekday(time: Timestamp) -> Weekday {
    // 1970-01-01 was a Thursday.
    match (day(time) + 3).rem_euclid(7) {
        0 => Weekday::Monday,
        1 => Weekday::Tuesday,
        2 => Weekday::Wednesday,
        3 => Weekday::Thursday,
        4 => Weekday::Friday,
        5 => Weekday::Saturday,
        _ => Weekday::Sunday,
    }
}

/// The moment as `2026-11-21T07:30:00Z`.
pub fn rfc3339(time: Timestamp) -> String {
    let (year, month, day_of_month) = date(day(time));
    let second = time.rem_euclid(DAY);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day since 1970, in the Gregorian calendar.
///
/// Counted in years that begin in March, so that the leap day is a year's last, and in eras of 400 years, after
/// which the calendar repeats.
const fn date(day: i64) -> (i64, i64, i64) {
    const DAYS_OF_ERA: i64 = 146_097;
    /// From 0000-03-01 to 1970-01-01.
    const SHIFT: i64 = 719_468;
    let shifted = day + SHIFT;
    let era = shifted.div_euclid(DAYS_OF_ERA);
    let of_era = shifted.rem_euclid(DAYS_OF_ERA);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_as_dates() {
        for (time, text, expected) in [
            (0, "1970-01-01T00:00:00Z", Weekday::Thursday),
            (-1, "1969-12-31T23:59:59Z", Weekday::Wednesday),
            (951_782_400, "2000-02-29T00:00:00Z", Weekday::Tuesday),
            (951_868_799, "2000-02-29T23:59:59Z", Weekday::Tuesday),
            (951_868_800, "2000-03-01T00:00:00Z", Weekday::Wednesday),
            (1_795_246_200, "2026-11-21T07:30:00Z", Weekday::Saturday),
            (4_107_542_400, "2100-03-01T00:00:00Z", Weekday::Monday),
        ] {
            assert_eq!(rfc3339(time), text);
            assert_eq!(weekday(time), expected, "{text}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let length = |year: i64, month: i64| match month {
            2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let (mut year, mut month, mut of_month) = (1970, 1, 1);
        for day in 0..146_097 {
            assert_eq!(date(day), (year, month, of_month));
            of_month += 1;
            if of_month > length(year, month) {
                (of_month, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }
}
