//! Leaves: the digest of 64 KiB, made from pieces of any size.

use std::fmt;

use crate::vhd::Piece;

/// Bytes of disk that one leaf stands for: the grain of changed-block tracking, 32 to a VHD block.
pub const LEAF_SIZE: u64 = 65536;
/// Bytes kept of a leaf's BLAKE3 digest.
pub const LEAF_DIGEST: usize = 16;

/// Zeroes to hash when the first bytes of a leaf turn out not to be all of it.
static ZEROES: [u8; LEAF_SIZE as usize] = [0; LEAF_SIZE as usize];

/// Leaves of a disk of `disk_size` bytes. The last one may stand for less than [`LEAF_SIZE`].
pub const fn leaf_count(disk_size: u64) -> u64 {
    disk_size.div_ceil(LEAF_SIZE)
}

/// The first 16 bytes of the BLAKE3 digest of 64 KiB of disk, or of what the disk has of its last
/// 64 KiB. Where all bytes are zero the leaf is sixteen zero bytes, so the table of a sparse
/// disk is a sparse file, and holes cost no hashing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Leaf(pub [u8; LEAF_DIGEST]);

impl Leaf {
    /// The leaf of zeroes.
    pub const ZERO: Self = Self([0; LEAF_DIGEST]);

    /// The leaf of `bytes`, which are all that a leaf stands for.
    pub fn of(bytes: &[u8]) -> Self {
        if is_zero(bytes) { Self::ZERO } else { Self::shorten(blake3::hash(bytes)) }
    }

    fn shorten(digest: blake3::Hash) -> Self {
        let mut leaf = Self::ZERO;
        leaf.0.copy_from_slice(&digest.as_bytes()[..LEAF_DIGEST]);
        leaf
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leaf(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// Bytes of a leaf are missing, so that it has no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// A leaf was begun and left, or entered in its middle.
    #[error("the 64 KiB from disk byte {} on are incomplete: byte {missing} was not given", .leaf * LEAF_SIZE)]
    Partial {
        /// The leaf.
        leaf: u64,
        /// First byte of the disk that was expected and did not come.
        missing: u64,
    },
    /// A piece reaches beyond the disk.
    #[error("data at disk byte {offset}, but the disk ends at byte {disk_size}")]
    BeyondDisk {
        /// First byte beyond the end.
        offset: u64,
        /// The disk's size in bytes.
        disk_size: u64,
    },
}

/// Makes leaves of pieces. Within a leaf the pieces have to follow each other without a gap,
/// cut anywhere; leaves may come in any order. What leaves a leaf incomplete is an error,
/// so that no wrong digest is ever recorded.
#[derive(Debug)]
pub struct LeafHasher {
    disk_size: u64,
    open: Option<OpenLeaf>,
    hasher: blake3::Hasher,
}

/// A leaf of which some bytes came.
#[derive(Debug, Clone, Copy)]
struct OpenLeaf {
    leaf: u64,
    /// Bytes that came.
    filled: u64,
    /// All of them were zero. The hasher has not seen them then.
    zero: bool,
}

impl LeafHasher {
    /// A hasher for a disk of `disk_size` bytes.
    pub fn new(disk_size: u64) -> Self {
        Self { disk_size, open: None, hasher: blake3::Hasher::new() }
    }

    /// Takes a piece and hands each leaf that it completes to `emit`.
    pub fn feed(&mut self, piece: Piece<'_>, emit: &mut (impl FnMut(u64, Leaf) + ?Sized)) -> Result<(), LeafError> {
        let Piece { mut offset, mut bytes } = piece;
        let inside = self.disk_size.saturating_sub(offset);
        if bytes.len() as u64 > inside {
            return Err(LeafError::BeyondDisk { offset: offset.max(self.disk_size), disk_size: self.disk_size });
        }
        self.expect(offset)?;
        while !bytes.is_empty() {
            let leaf = offset / LEAF_SIZE;
            let length = self.leaf_length(leaf);
            let filled = self.open.map_or(0, |open| open.filled);
            let (taken, rest) = bytes.split_at(bytes.len().min((length - filled) as usize));
            if taken.len() as u64 == length {
                emit(leaf, Leaf::of(taken));
            } else if let Some(digest) = self.continue_leaf(leaf, taken, length) {
                emit(leaf, digest);
            }
            offset += taken.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Bytes that complete the leaf that was begun; 0 if none was.
    pub fn missing(&self) -> u64 {
        self.open.map_or(0, |open| self.leaf_length(open.leaf) - open.filled)
    }

    /// Nothing follows: an error if a leaf is left incomplete.
    pub fn finish(&self) -> Result<(), LeafError> {
        match self.open {
            Some(open) => Err(open.partial()),
            None => Ok(()),
        }
    }

    /// The open leaf goes on at `offset`, or a new one starts there.
    fn expect(&self, offset: u64) -> Result<(), LeafError> {
        let leaf = offset / LEAF_SIZE;
        match self.open {
            Some(open) if open.next() != offset => Err(open.partial()),
            None if !offset.is_multiple_of(LEAF_SIZE) => Err(LeafError::Partial { leaf, missing: leaf * LEAF_SIZE }),
            _ => Ok(()),
        }
    }

    /// Bytes that `leaf` stands for.
    fn leaf_length(&self, leaf: u64) -> u64 {
        LEAF_SIZE.min(self.disk_size - leaf * LEAF_SIZE)
    }

    /// Adds a part of a leaf; the digest, if it was the last part.
    fn continue_leaf(&mut self, leaf: u64, bytes: &[u8], length: u64) -> Option<Leaf> {
        let mut open = self.open.take().unwrap_or(OpenLeaf { leaf, filled: 0, zero: true });
        if open.zero && !is_zero(bytes) {
            open.zero = false;
            self.hasher.reset();
            self.hasher.update(&ZEROES[..open.filled as usize]);
        }
        if !open.zero {
            self.hasher.update(bytes);
        }
        open.filled += bytes.len() as u64;
        if open.filled < length {
            self.open = Some(open);
            return None;
        }
        Some(if open.zero { Leaf::ZERO } else { Leaf::shorten(self.hasher.finalize()) })
    }
}

impl OpenLeaf {
    fn next(&self) -> u64 {
        self.leaf * LEAF_SIZE + self.filled
    }

    fn partial(&self) -> LeafError {
        LeafError::Partial { leaf: self.leaf, missing: self.next() }
    }
}

/// Whether all bytes are zero. The inner fold has no early exit, so that it compiles to wide
/// instructions; data is told from zeroes within its first 4 KiB.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: usize = LEAF_SIZE as usize;

    fn leaves(disk_size: u64, pieces: &[(u64, &[u8])]) -> Result<Vec<(u64, Leaf)>, LeafError> {
        let mut hasher = LeafHasher::new(disk_size);
        let mut out = Vec::new();
        for (offset, bytes) in pieces {
            let piece = Piece { offset: *offset, bytes };
            hasher.feed(piece, &mut |leaf, digest| out.push((leaf, digest)))?;
        }
        hasher.finish()?;
        Ok(out)
    }

    #[test]
    fn a_leaf_is_the_start_of_a_blake3_digest() {
        let digest = blake3::hash(&[7; LEAF]);
        assert_eq!(Leaf::of(&[7; LEAF]).0, digest.as_bytes()[..16]);
        assert_eq!(Leaf::of(&[0; LEAF]), Leaf::ZERO);
    }

    #[test]
    fn the_cuts_between_pieces_do_not_matter() {
        let mut disk = vec![0; 3 * LEAF + 1024];
        disk[LEAF - 1] = 1;
        disk[3 * LEAF] = 9;
        let size = disk.len() as u64;
        let whole = leaves(size, &[(0, &disk)]).unwrap();
        assert_eq!(whole[0], (0, Leaf::of(&disk[..LEAF])));
        assert_eq!(whole[1], (1, Leaf::ZERO));
        assert_eq!(whole[3], (3, Leaf::of(&disk[3 * LEAF..])));
        for cut in [1, 100, 4096, LEAF - 1, LEAF + 1, 3 * LEAF, 3 * LEAF + 1023] {
            let (a, b) = disk.split_at(cut);
            assert_eq!(leaves(size, &[(0, a), (cut as u64, b)]), Ok(whole.clone()), "cut {cut}");
        }
    }

    #[test]
    fn leaves_may_come_in_any_order() {
        let (a, b) = ([1; LEAF], [2; LEAF]);
        let got = leaves(2 * LEAF_SIZE, &[(LEAF_SIZE, &b), (0, &a[..9]), (9, &a[9..])]);
        assert_eq!(got, Ok(vec![(1, Leaf::of(&b)), (0, Leaf::of(&a))]));
    }

    #[test]
    fn an_incomplete_leaf_is_an_error() {
        let (some, size) = ([1; 512], 2 * LEAF_SIZE);
        let partial = |leaf, missing| Err(LeafError::Partial { leaf, missing });
        assert_eq!(leaves(size, &[(0, &some)]), partial(0, 512));
        assert_eq!(leaves(size, &[(512, &some)]), partial(0, 0));
        assert_eq!(leaves(size, &[(0, &some), (LEAF_SIZE, &some)]), partial(0, 512));
        assert_eq!(leaves(size, &[(0, &some), (1024, &some)]), partial(0, 512));
        assert_eq!(leaves(size, &[(0, &[1; LEAF]), (LEAF_SIZE + 512, &some)]), partial(1, LEAF_SIZE));
    }

    #[test]
    fn data_beyond_the_disk_is_an_error() {
        let beyond = |offset| Err(LeafError::BeyondDisk { offset, disk_size: 1024 });
        assert_eq!(leaves(1024, &[(0, &[1; 1536])]), beyond(1024));
        assert_eq!(leaves(1024, &[(LEAF_SIZE, &[1; 512])]), beyond(LEAF_SIZE));
        assert_eq!(leaves(1024, &[(u64::MAX, &[1; 512])]), beyond(u64::MAX));
    }
}
