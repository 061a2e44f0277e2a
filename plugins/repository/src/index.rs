//! Which packs have which chunks, as far as it is worth knowing: hints for a writer, never the truth.
//!
//! A hook is the beginning of a chunk's digest and the pack that the chunk is in. A writer that meets a hook reads that pack's table
//! and then knows all its neighbours, which are what most likely comes next. So a part of the hooks is enough: a set that
//! would grow beyond its bound keeps those whose digests end in one more zero bit, half of them. A hook that leads nowhere
//! costs a chunk that is stored twice.
//!
//! ```text
//! 0  1      level: digests of hooks have so many zero bits at their end, counted in the first eight bytes, big-endian
//! 1  varint number of packs; for each 20 bytes: its id; in the order in which they were written
//!    varint number of hooks; for each 12 bytes, ascending: the digest's first 8 bytes and the pack's number (4 bytes), big-endian
//! ```

use crate::names::{Digest, PackId};
use crate::wire::{Malformed, Reader, Writer};
use std::collections::BTreeMap;

const HOOK: usize = 12;
/// No segment has more hooks: 3 MiB.
pub(crate) const MOST_OF_SEGMENT: usize = 1 << 18;
/// No writer holds more: 24 MiB, all chunks of 128 GiB where these have 64 KiB.
pub(crate) const MOST_OF_WRITER: usize = 1 << 21;

/// The first eight bytes of a digest, in halves, so that no padding makes it larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hook {
    high: u32,
    low: u32,
    pack: u32,
}

/// A set of hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hooks {
    level: u8,
    packs: Vec<PackId>,
    /// Ascending once they are [sorted](Hooks::sort).
    hooks: Vec<Hook>,
}

fn key(digest: &Digest) -> u64 {
    digest[..8].iter().fold(0, |key, byte| key << 8 | u64::from(*byte))
}

fn has_level(key: u64, level: u8) -> bool {
    key.trailing_zeros() >= u32::from(level)
}

impl Hook {
    fn key(&self) -> u64 {
        u64::from(self.high) << 32 | u64::from(self.low)
    }
}

impl Hooks {
    pub(crate) fn packs(&self) -> &[PackId] {
        &self.packs
    }

    /// Adds a pack with these chunks.
    pub(crate) fn add<'a>(&mut self, pack: PackId, chunks: impl Iterator<Item = &'a Digest>, most: usize) {
        let number = self.packs.len() as u32;
        self.packs.push(pack);
        let level = self.level;
        let keys = chunks.map(key).filter(|key| has_level(*key, level));
        self.hooks.extend(keys.map(|key| Hook { high: (key >> 32) as u32, low: key as u32, pack: number }));
        self.bound(most);
    }

    /// Adds what another set says of packs that `keep` wants.
    pub(crate) fn merge(&mut self, other: &Self, most: usize, keep: impl Fn(&PackId) -> bool) {
        let known: BTreeMap<PackId, u32> = self.packs.iter().zip(0..).map(|(id, number)| (*id, number)).collect();
        let numbers: Vec<Option<u32>> = other
            .packs
            .iter()
            .map(|id| match known.get(id) {
                Some(number) => Some(*number),
                None if keep(id) => {
                    self.packs.push(*id);
                    Some(self.packs.len() as u32 - 1)
                }
                None => None,
            })
            .collect();
        let renumbered = |hook: &Hook| Some(Hook { pack: numbers[hook.pack as usize]?, ..*hook });
        self.hooks.extend(other.hooks.iter().filter_map(renumbered));
        self.level = self.level.max(other.level);
        let level = self.level;
        self.hooks.retain(|hook| has_level(hook.key(), level));
        self.bound(most);
    }

    /// Brings the hooks into the order that [`find`](Self::find) and [`encode`](Self::encode) need.
    pub(crate) fn sort(&mut self) {
        self.hooks.sort_unstable();
        self.hooks.dedup();
    }

    fn bound(&mut self, most: usize) {
        while self.hooks.len() > most && self.level < 63 {
            self.level += 1;
            let level = self.level;
            self.hooks.retain(|hook| has_level(hook.key(), level));
        }
        self.hooks.truncate(most);
    }

    /// Packs that may have the chunk.
    pub(crate) fn find(&self, digest: &Digest) -> impl Iterator<Item = PackId> {
        let key = key(digest);
        let from = self.hooks.partition_point(|hook| hook.key() < key);
        self.hooks[from..].iter().take_while(move |hook| hook.key() == key).map(|hook| self.packs[hook.pack as usize])
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(20 + self.packs.len() * 20 + self.hooks.len() * HOOK));
        out.raw(&[self.level]);
        out.varint(self.packs.len() as u64);
        self.packs.iter().for_each(|id| out.raw(id.as_bytes()));
        out.varint(self.hooks.len() as u64);
        for hook in &self.hooks {
            out.raw(&hook.key().to_be_bytes());
            out.raw(&hook.pack.to_be_bytes());
        }
        out.0
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let level = reader.u8()?;
        if level > 63 {
            return Err(reader.malformed("an impossible level"));
        }
        let count = reader.count(20, usize::MAX)?;
        let packs = (0..count).map(|_| reader.array().map(PackId::from_bytes)).collect::<Result<Vec<_>, _>>()?;
        let count = reader.count(HOOK, MOST_OF_SEGMENT)?;
        let mut hooks = Vec::with_capacity(count);
        for _ in 0..count {
            let (key, pack) = (u64::from_be_bytes(reader.array()?), u32::from_be_bytes(reader.array()?));
            let hook = Hook { high: (key >> 32) as u32, low: key as u32, pack };
            if hooks.last().is_some_and(|last| *last >= hook) || pack as usize >= packs.len() || !has_level(key, level)
            {
                return Err(reader.malformed("a hook that is out of order"));
            }
            hooks.push(hook);
        }
        Ok(Self { level, packs, hooks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Names;
    use proptest::prelude::*;

    fn pack(number: u8) -> PackId {
        PackId::new(Names::new([0; 32]).draft("draft"), &[number; 32], 100)
    }

    /// Digests of some chunks.
    fn chunks(from: u32, to: u32) -> Vec<Digest> {
        (from..to).map(|number| *blake3::hash(&number.to_le_bytes()).as_bytes()).collect()
    }

    #[test]
    fn a_bounded_set_knows_a_part_of_every_pack() {
        let (first, second) = (chunks(0, 4000), chunks(4000, 8000));
        let mut hooks = Hooks::default();
        hooks.add(pack(1), first.iter(), 1000);
        hooks.add(pack(2), second.iter(), 1000);
        hooks.sort();
        assert!(hooks.hooks.len() <= 1000 && hooks.level >= 3, "{} hooks of level {}", hooks.hooks.len(), hooks.level);
        for (all, pack) in [(&first, pack(1)), (&second, pack(2))] {
            let known = all.iter().filter(|chunk| hooks.find(chunk).eq([pack])).count();
            assert!((300..700).contains(&known), "{known} of 4000");
        }
    }

    #[test]
    fn a_merged_set_knows_what_both_knew_of_packs_that_are_kept() {
        let sets = [(1, chunks(0, 50)), (2, chunks(50, 100)), (3, chunks(0, 50))].map(|(number, chunks)| {
            let mut hooks = Hooks::default();
            hooks.add(pack(number), chunks.iter(), 1000);
            hooks.sort();
            hooks
        });
        let mut merged = Hooks::default();
        for set in sets.iter().chain(&sets) {
            merged.merge(set, 1000, |id| *id != pack(2));
        }
        merged.sort();
        assert_eq!(merged.packs(), [pack(1), pack(3)]);
        assert!(merged.find(&chunks(0, 1)[0]).eq([pack(1), pack(3)]));
        assert_eq!(merged.find(&chunks(50, 51)[0]).count(), 0);
    }

    proptest! {
        #[test]
        fn a_set_comes_back(count in 0_u32..300, most in 1_usize..300) {
            let mut hooks = Hooks::default();
            hooks.add(pack(1), chunks(0, count).iter(), most);
            hooks.sort();
            let bytes = hooks.encode();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(Hooks::decode(&mut reader), Ok(hooks));
            prop_assert!(reader.finish().is_ok());
        }

        #[test]
        fn anything_is_refused_or_a_set(bytes: Vec<u8>) {
            if let Ok(hooks) = Hooks::decode(&mut Reader::new(&bytes)) {
                prop_assert!(hooks.find(&[0; 32]).all(|id| hooks.packs().contains(&id)));
            }
        }
    }
}
