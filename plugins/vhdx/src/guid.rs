//! Identities as Microsoft writes them.

use std::fmt;

/// A GUID. In a file its first three fields are little-endian, in text they are not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Guid(u128);

impl Guid {
    /// No identity: of a log that is empty.
    pub const NIL: Self = Self(0);

    /// The GUID whose text has these digits.
    pub const fn new(digits: u128) -> Self {
        Self(digits)
    }

    /// The GUID that these 16 bytes make when they are as good as random, such as the beginning of a hash: version and variant are
    /// set to those of a UUID of the maker's own kind.
    pub const fn from_random(bytes: [u8; 16]) -> Self {
        let digits = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0b11 << 62);
        Self(digits | 0x8 << 76 | 0b10 << 62)
    }

    /// As its text has the digits.
    pub const fn digits(self) -> u128 {
        self.0
    }

    /// Reads what stands in a file.
    pub fn from_wire(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(swapped(bytes)))
    }

    /// What stands in a file.
    pub fn to_wire(self) -> [u8; 16] {
        swapped(self.0.to_be_bytes())
    }
}

/// The way from text to file, and back.
fn swapped(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[0..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (high, low) = ((self.0 >> 64) as u64, self.0 as u64);
        let (a, b, c) = (high >> 32, high >> 16 & 0xffff, high & 0xffff);
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::Guid;

    #[test]
    fn file_and_text_have_different_orders() {
        let guid = Guid::new(0x2dc27766_f623_4200_9d64_115e9bfd4a08);
        assert_eq!(guid.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(guid.to_wire()[..8], [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42]);
        assert_eq!(Guid::from_wire(guid.to_wire()), guid);
    }

    #[test]
    fn a_made_up_one_says_so() {
        assert_eq!(Guid::from_random([0xff; 16]).to_string(), "ffffffff-ffff-8fff-bfff-ffffffffffff");
        assert_eq!(Guid::from_random([0; 16]).to_string(), "00000000-0000-8000-8000-000000000000");
    }
}
