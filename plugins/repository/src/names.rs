//! What objects are called.
//!
//! ```text
//! repository                                what it is, JSON
//! packs/<draft>/<pack>                      chunks and pages
//! packs/<draft>/<pack>~<table>              what is left of a pack that was shrunk
//! drafts/<draft>/open-<disk>-<seconds>      somebody writes, or wrote, this disk of the draft
//! drafts/<draft>/<disk>-<content>           one disk of it, complete
//! drafts/<draft>/closing                    the draft is being removed
//! points/<vm>/<draft>                       a recovery point; `.held` and `.damaged` beside it are said of it
//! condemned/<content>, sentenced/<content>  packs that nobody may refer to any more
//! unsound/<content>                         packs that were found damaged
//! index/<content>                           where known chunks are
//! ```
//!
//! All parts in angle brackets are digests in hex: of identities they are keyed with the repository's secret, so a name tells
//! nothing of what it is the name of.

use std::fmt;

pub(crate) const REPOSITORY: &str = "repository";
pub(crate) const PACKS: &str = "packs/";
pub(crate) const DRAFTS: &str = "drafts/";
pub(crate) const POINTS: &str = "points/";
pub(crate) const CONDEMNED: &str = "condemned/";
pub(crate) const SENTENCED: &str = "sentenced/";
pub(crate) const UNSOUND: &str = "unsound/";
pub(crate) const INDEX: &str = "index/";
/// Begins the names of what a storage is still making; the time in seconds since 1970 follows, then `-`.
pub const TEMPORARY: &str = "tmp/";

/// A BLAKE3 digest.
pub(crate) type Digest = [u8; 32];

/// The name of a draft, and of the point that it becomes.
///
/// Ten bytes: `abort` removes all packs under a draft's tag, so two drafts must never have the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tag([u8; 10]);

/// The name of a pack: the draft that it was written for, eight bytes of its table's digest, and how many entries it has.
///
/// Who writes the same again gets the same names, so that a second attempt leaves nothing behind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PackId([u8; 20]);

/// One of a repository's identities, as names.
#[derive(Clone)]
pub(crate) struct Names {
    secret: [u8; 32],
}

impl Names {
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        Self { secret }
    }

    fn keyed(&self, what: &str, id: &str) -> Digest {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(what.as_bytes()).update(&[0]).update(id.as_bytes());
        *hasher.finalize().as_bytes()
    }

    pub(crate) fn draft(&self, id: &str) -> Tag {
        Tag(prefix(&self.keyed("draft", id)))
    }

    pub(crate) fn vm(&self, id: &str) -> String {
        hex(&prefix::<8>(&self.keyed("vm", id)))
    }

    pub(crate) fn disk(&self, id: &str) -> String {
        hex(&prefix::<8>(&self.keyed("disk", id)))
    }

    /// The object of one disk of a draft.
    pub(crate) fn draft_disk(&self, tag: Tag, disk: &str, content: &[u8]) -> String {
        format!("{}{}-{}", tag.draft(), self.disk(disk), content_name(content))
    }

    /// A point and the VM that it is of.
    pub(crate) fn point(&self, vm: &str, tag: Tag) -> String {
        format!("{POINTS}{}/{tag}", self.vm(vm))
    }
}

impl Tag {
    /// Begins the names of what is stored for the draft.
    pub(crate) fn draft(self) -> String {
        format!("{DRAFTS}{self}/")
    }

    /// Begins the names of its packs.
    pub(crate) fn packs(self) -> String {
        format!("{PACKS}{self}/")
    }

    pub(crate) fn parse(hex: &str) -> Option<Self> {
        unhex(hex).map(Self)
    }

    pub(crate) fn from_bytes(bytes: [u8; 10]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 10] {
        &self.0
    }
}

impl PackId {
    /// Stands in a pack for the pack itself, whose name is not known yet.
    pub(crate) const SELF: Self = Self([0; 20]);

    pub(crate) fn new(tag: Tag, table: &Digest, entries: u16) -> Self {
        let mut id = [0; 20];
        id[..10].copy_from_slice(&tag.0);
        id[10..18].copy_from_slice(&table[..8]);
        id[18..].copy_from_slice(&entries.to_be_bytes());
        Self(id)
    }

    pub(crate) fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    pub(crate) fn tag(&self) -> Tag {
        Tag(prefix(&self.0))
    }

    /// How many entries it has, those that are gone among them.
    pub(crate) fn entries(&self) -> u16 {
        u16::from_be_bytes([self.0[18], self.0[19]])
    }

    /// Whether this is what a table with this digest is called.
    pub(crate) fn is_of(&self, table: &Digest) -> bool {
        self.0[10..18] == table[..8]
    }

    /// The object that it was written as.
    pub(crate) fn name(&self) -> String {
        format!("{}{}", self.tag().packs(), hex(&self.0[10..]))
    }

    /// The object with what is left of it, by the digest of that table.
    pub(crate) fn shrunk_name(&self, table: &Digest) -> String {
        format!("{}~{}", self.name(), hex(&table[..8]))
    }

    /// The pack that an object is, or is left of.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (tag, rest) = name.strip_prefix(PACKS)?.split_once('/')?;
        let (rest, shrunk) = rest.split_once('~').map_or((rest, None), |(rest, shrunk)| (rest, Some(shrunk)));
        let (tag, rest) = (Tag::parse(tag)?, unhex::<10>(rest)?);
        if shrunk.is_some_and(|shrunk| unhex::<8>(shrunk).is_none()) {
            return None;
        }
        let mut id = [0; 20];
        id[..10].copy_from_slice(&tag.0);
        id[10..].copy_from_slice(&rest);
        Some(Self(id))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Tag({self})")
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PackId({})", hex(&self.0))
    }
}

/// What an object is called whose name follows from what is in it.
pub(crate) fn content_name(content: &[u8]) -> String {
    hex(&blake3::hash(content).as_bytes()[..8])
}

fn prefix<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut prefix = [0; N];
    prefix.copy_from_slice(&bytes[..N]);
    prefix
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |bits: u8| char::from(DIGITS[usize::from(bits & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// Lower-case hex of exactly `N` bytes.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = unhex_all(text)?;
    bytes.try_into().ok()
}

pub(crate) fn unhex_all(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_known_by_the_names_of_its_objects() {
        let tag = Names::new([7; 32]).draft("draft");
        let id = PackId::new(tag, &[9; 32], 513);
        assert_eq!((id.tag(), id.entries(), id.is_of(&[9; 32])), (tag, 513, true));
        assert_eq!(PackId::parse(&id.name()), Some(id));
        assert_eq!(PackId::parse(&id.shrunk_name(&[3; 32])), Some(id));
        for foreign in ["packs/", "packs/x/y", "points/a/b", &format!("{}~x", id.name()), &format!("{}0", id.name())] {
            assert_eq!(PackId::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn names_of_two_repositories_have_nothing_in_common() {
        assert_ne!(Names::new([1; 32]).draft("draft"), Names::new([2; 32]).draft("draft"));
        assert_ne!(Names::new([1; 32]).vm("vm"), Names::new([2; 32]).vm("vm"));
    }
}
