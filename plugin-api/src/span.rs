//! Lengths of time as people write them.

use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use std::fmt;

/// A length of time in settings: `30s`, `15m`, `1h30m`, `7d`. At least one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    seconds: i64,
}

impl Span {
    /// In whole seconds.
    pub const fn seconds(self) -> i64 {
        self.seconds
    }

    fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim();
        let (mut seconds, mut last_unit) = (0i64, i64::MAX);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let unit = match tail.bytes().next()? {
                b'd' => 86_400,
                b'h' => 3_600,
                b'm' => 60,
                b's' => 1,
                _ => return None,
            };
            // From large to small, each once: `30m1h` is more likely a slip than a wish.
            if unit >= last_unit {
                return None;
            }
            seconds = seconds.checked_add(number.parse::<i64>().ok()?.checked_mul(unit)?)?;
            last_unit = unit;
            rest = &tail[1..];
        }
        (seconds > 0).then_some(Self { seconds })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.seconds;
        for (unit, letter) in [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')] {
            if rest >= unit {
                write!(f, "{}{letter}", rest / unit)?;
                rest %= unit;
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length of time like \"30s\", \"15m\", \"1h30m\" or \"7d\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Span, E> {
                Span::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::Span;

    #[test]
    fn a_span_is_read_as_people_write_it_and_printed_back() {
        for (text, seconds) in [("30s", 30), ("15m", 900), ("1h30m", 5400), ("7d", 604_800), ("1d1s", 86_401)] {
            let span = Span::parse(text).expect(text);
            assert_eq!(span.seconds(), seconds);
            assert_eq!(span.to_string(), text);
        }
        assert_eq!(Span::parse("90m").expect("as minutes").to_string(), "1h30m");
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for text in [
            "",
            "0s",
            "15",
            "m",
            "1.5h",
            "-5m",
            "30m1h",
            "1h1h",
            "5 m",
            "9999999999999999999d",
            "99999999999999999d",
            "1ü",
        ] {
            assert_eq!(Span::parse(text), None, "{text}");
        }
    }
}
