//! The root: one digest for a whole disk.

use std::fmt;
use std::str::FromStr;

/// BLAKE3 over the disk's size (u64, little-endian) and all of its leaves in order. Two disks with
/// the same root have the same size and content. As text: 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root(pub [u8; 32]);

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({self})")
    }
}

/// The text is not a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a digest root: 64 lower-case hex digits are expected")]
pub struct ParseRootError {
    text: String,
}

impl FromStr for Root {
    type Err = ParseRootError;

    /// Upper case is refused: a root has one text, so that texts may be compared.
    fn from_str(text: &str) -> Result<Self, ParseRootError> {
        let error = || ParseRootError { text: text.chars().take(80).collect() };
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| error())?;
        let mut root = [0; 32];
        for (byte, pair) in root.iter_mut().zip(digits.chunks_exact(2)) {
            let (high, low) = (hex_value(pair[0]), hex_value(pair[1]));
            *byte = high.zip(low).map(|(high, low)| high << 4 | low).ok_or_else(error)?;
        }
        Ok(Self(root))
    }
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_survives_its_text() {
        let root = Root(std::array::from_fn(|index| index as u8 * 7));
        assert_eq!(root.to_string().parse(), Ok(root));
        assert!(root.to_string().starts_with("00070e15"));
    }

    #[test]
    fn other_texts_are_refused() {
        let good = Root([0xab; 32]).to_string();
        for text in ["", "ab", &good[1..], &good.to_uppercase(), &good.replace('a', "g")] {
            assert!(text.parse::<Root>().is_err(), "{text:?}");
        }
        assert!("é".repeat(32).parse::<Root>().is_err());
    }
}
