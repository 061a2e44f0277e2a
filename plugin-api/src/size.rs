//! Sizes as people write them.

use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use std::fmt;

/// A size in settings: `64 KiB`, `32MiB`, `1GiB`, or a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size {
    bytes: u64,
}

/// Units by their power of two, the largest first.
const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl Size {
    /// So many bytes.
    pub const fn of(bytes: u64) -> Self {
        Self { bytes }
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    fn parse(text: &str) -> Option<Self> {
        let found = UNITS.iter().find_map(|(unit, power)| Some((text.strip_suffix(unit)?, *power)));
        let (number, power) = found.unwrap_or((text.strip_suffix('B').unwrap_or(text), 0));
        let number: u64 = number.trim().parse().ok()?;
        Some(Self { bytes: number.checked_mul(1 << power)? })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, power)| self.bytes > 0 && self.bytes.is_multiple_of(1 << power)) {
            Some((unit, power)) => write!(f, "{} {unit}", self.bytes >> power),
            None => write!(f, "{} B", self.bytes),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size like \"64 KiB\", \"32MiB\" or a number of bytes")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                Size::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }

            fn visit_u64<E: Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size { bytes })
            }
        }
        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn a_size_is_read_as_people_write_it_and_printed_back() {
        for (text, bytes) in [("64 KiB", 64 << 10), ("32 MiB", 32 << 20), ("3 TiB", 3 << 40), ("5 B", 5), ("0 B", 0)] {
            let size = Size::parse(text).expect(text);
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, text));
        }
        assert_eq!(Size::parse("1GiB").expect("without a space"), Size::of(1 << 30));
        assert_eq!(serde_json::from_str::<Size>("4096").expect("a number").to_string(), "4 KiB");
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "KiB", "1.5 GiB", "-1 B", "1 MB", "16777216 TiB", "1 KiB KiB", "1ü"] {
            assert_eq!(Size::parse(text), None, "{text}");
        }
    }
}
