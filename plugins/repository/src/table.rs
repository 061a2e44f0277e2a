//! The table of a pack: what is in it, in the order of the data behind.
//!
//! ```text
//! 0    2  number of entries
//! 2       for each, 41 bytes:
//!         1  form: 0 gone · 1 identity · 2 zstd · 3 sealed · 4 zstd-sealed · 16 page · 17 sealed page
//!         4  length as stored, in bytes
//!         4  length of the plain bytes
//!         32 BLAKE3 of the plain bytes
//! ```

use crate::names::{Digest, PackId};
use crate::wire::{Malformed, Reader, Writer};
use vmferry_plugin_api::delta::Encoding;

/// No pack has more entries: each is a handle of the host's while the pack is made.
pub(crate) const MOST_ENTRIES: usize = 2048;
/// No entry is longer as stored: the largest chunk, and what encrypting adds.
pub(crate) const LONGEST_STORED: u32 = (2 << 20) + (64 << 10);
const LONGEST_PLAIN: u32 = 2 << 20;
const ENTRY: usize = 41;

/// How an entry's bytes are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Not there any more: nobody needed it when the pack was shrunk.
    Gone = 0,
    Identity = 1,
    Zstd = 2,
    Sealed = 3,
    ZstdSealed = 4,
    Page = 16,
    SealedPage = 17,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) form: Form,
    /// Length as stored, in bytes.
    pub(crate) stored: u32,
    /// Length of the plain bytes.
    pub(crate) plain: u32,
    /// BLAKE3 of the plain bytes.
    pub(crate) digest: Digest,
}

impl Entry {
    pub(crate) const GONE: Self = Self { form: Form::Gone, stored: 0, plain: 0, digest: [0; 32] };

    pub(crate) fn is_chunk(&self) -> bool {
        matches!(self.form, Form::Identity | Form::Zstd | Form::Sealed | Form::ZstdSealed)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) entries: Vec<Entry>,
}

impl Form {
    fn parse(code: u8) -> Option<Self> {
        let all =
            [Self::Gone, Self::Identity, Self::Zstd, Self::Sealed, Self::ZstdSealed, Self::Page, Self::SealedPage];
        all.into_iter().find(|form| *form as u8 == code)
    }

    pub(crate) fn of(encoding: &Encoding) -> Option<Self> {
        match encoding {
            Encoding::Identity => Some(Self::Identity),
            Encoding::Zstd => Some(Self::Zstd),
            Encoding::Sealed(_) => Some(Self::Sealed),
            Encoding::ZstdSealed(_) => Some(Self::ZstdSealed),
            Encoding::Other(_) => None,
        }
    }

    /// The encoding of a chunk in this form; none for what is no chunk, and for a sealed one without a key.
    pub(crate) fn encoding(self, key: Option<&str>) -> Option<Encoding> {
        match self {
            Self::Identity => Some(Encoding::Identity),
            Self::Zstd => Some(Encoding::Zstd),
            Self::Sealed => key.map(|key| Encoding::Sealed(key.to_owned())),
            Self::ZstdSealed => key.map(|key| Encoding::ZstdSealed(key.to_owned())),
            Self::Gone | Self::Page | Self::SealedPage => None,
        }
    }
}

impl Table {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(2 + self.entries.len() * ENTRY));
        out.raw(&(self.entries.len() as u16).to_le_bytes());
        for entry in &self.entries {
            out.raw(&[entry.form as u8]);
            out.raw(&entry.stored.to_le_bytes());
            out.raw(&entry.plain.to_le_bytes());
            out.raw(&entry.digest);
        }
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let count = usize::from(reader.u16()?);
        if count > MOST_ENTRIES || count * ENTRY != reader.left() {
            return Err(reader.malformed("a number of entries that are not there"));
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let form = Form::parse(reader.u8()?).ok_or(reader.malformed("an unknown form"))?;
            let entry = Entry { form, stored: reader.u32()?, plain: reader.u32()?, digest: reader.array()? };
            let possible = match form {
                Form::Gone => entry == Entry::GONE,
                _ => (1..=LONGEST_STORED).contains(&entry.stored) && (1..=LONGEST_PLAIN).contains(&entry.plain),
            };
            if !possible {
                return Err(reader.malformed("an entry of an impossible length"));
            }
            entries.push(entry);
        }
        reader.finish()?;
        Ok(Self { entries })
    }

    /// Where the entry is, in bytes from the first one's.
    pub(crate) fn offset(&self, entry: usize) -> u64 {
        self.entries[..entry].iter().map(|entry| u64::from(entry.stored)).sum()
    }

    /// Bytes of all entries as stored.
    pub(crate) fn stored(&self) -> u64 {
        self.offset(self.entries.len())
    }

    /// Whether this is the table of the pack as it was made, not of what is left.
    pub(crate) fn is_original(&self, id: &PackId, digest: &Digest) -> bool {
        id.is_of(digest) && self.entries.len() == usize::from(id.entries())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let form = prop::sample::select(vec![Form::Identity, Form::ZstdSealed, Form::Page]);
        let entry = (form, 1..=LONGEST_STORED, 1..=LONGEST_PLAIN, any::<Digest>());
        let there = entry.prop_map(|(form, stored, plain, digest)| Entry { form, stored, plain, digest });
        prop::collection::vec(prop_oneof![1 => Just(Entry::GONE), 4 => there], 0..20)
    }

    #[test]
    fn impossible_entries_are_refused() {
        let entry = Entry { form: Form::Zstd, stored: 5, plain: 5, digest: [1; 32] };
        for wrong in [
            Entry { stored: 0, ..entry },
            Entry { stored: LONGEST_STORED + 1, ..entry },
            Entry { plain: LONGEST_PLAIN + 1, ..entry },
            Entry { form: Form::Gone, ..entry },
        ] {
            assert!(Table::decode(&Table { entries: vec![wrong] }.encode()).is_err(), "{wrong:?}");
        }
        let mut unknown = Table { entries: vec![entry] }.encode();
        unknown[2] = 5;
        assert!(Table::decode(&unknown).is_err());
    }

    proptest! {
        #[test]
        fn a_table_comes_back(entries in entries()) {
            let table = Table { entries };
            prop_assert_eq!(Table::decode(&table.encode()), Ok(table));
        }

        #[test]
        fn anything_is_refused_or_a_table(bytes: Vec<u8>) {
            if let Ok(table) = Table::decode(&bytes) {
                prop_assert_eq!(table.encode(), bytes);
            }
        }
    }
}
