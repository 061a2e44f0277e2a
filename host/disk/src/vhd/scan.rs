//! The rest of a stream, checked as it passes: bitmaps, data, gaps, the last footer.

use super::{FOOTER_SIZE, Head, SECTOR_SIZE, VhdError};

/// A run of sectors that the stream sets. Pieces come in stream order, which is ascending on the
/// disk for every XAPI export, and each byte of the disk comes at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Where it belongs, in bytes from the start of the disk.
    pub offset: u64,
    /// What it holds; never empty, never beyond the end of the disk.
    pub bytes: &'a [u8],
}

/// What a complete stream held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanReport {
    /// Bytes of the whole stream, head included.
    pub stream_length: u64,
    /// Blocks.
    pub blocks: u32,
    /// Blocks whose bitmap leaves out a sector. XAPI exports have none.
    pub partial_blocks: u32,
    /// Bytes of the disk that the stream sets.
    pub data_bytes: u64,
}

/// Follows a stream from the end of its [`Head`] to the end of its last footer. It does no I/O:
/// bytes are either fed, or skipped where they need no look.
///
/// ```text
/// Gap -> Bitmap -> Data -> Gap -> … -> Footer -> End
/// ```
///
/// After an error it stays where it was; the stream is lost.
#[derive(Debug)]
pub struct Scan {
    head: Head,
    /// Byte of the stream.
    at: u64,
    place: Place,
    /// Blocks entered.
    blocks: u32,
    /// Bitmap of the current block, filled while in [`Place::Bitmap`].
    bitmap: Box<[u8]>,
    partial_blocks: u32,
    /// The first sector of the disk that a bitmap left out.
    hole: Option<u64>,
    data_bytes: u64,
}

/// What the next byte is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Bytes that belong to nobody, up to the start of `next`.
    Gap { next: u32 },
    /// The sector bitmap of `block`.
    Bitmap { block: u32 },
    /// The data of `block`; `whole` if all of its sectors are set.
    Data { block: u32, whole: bool },
    /// The last footer.
    Footer,
    /// Nothing: the stream is complete.
    End,
}

impl Scan {
    /// Starts behind the BAT of `head`.
    pub fn new(head: &Head) -> Self {
        let mut scan = Self {
            head: head.clone(),
            at: head.raw().len() as u64,
            place: Place::End,
            blocks: 0,
            // At most 64 KiB, by the limit on the block size.
            bitmap: vec![0; head.header().bitmap_length() as usize].into(),
            partial_blocks: 0,
            hole: None,
            data_bytes: 0,
        };
        scan.place = scan.after(None);
        scan
    }

    /// Bytes still to come until the stream is complete.
    pub fn remaining(&self) -> u64 {
        self.head.stream_length() - self.at
    }

    /// Bytes from here on that tell nothing about the structure: the rest of a block's data, or of
    /// a gap. They may be skipped instead of fed; their pieces are not seen then.
    pub fn opaque(&self) -> u64 {
        match self.place {
            Place::Gap { .. } | Place::Data { .. } => self.place_end() - self.at,
            Place::Bitmap { .. } | Place::Footer | Place::End => 0,
        }
    }

    /// Bytes from here on that have to be fed before more may be skipped: the rest of a bitmap, or of the
    /// last footer.
    pub fn metadata(&self) -> u64 {
        match self.place {
            Place::Bitmap { .. } | Place::Footer => self.place_end() - self.at,
            Place::Gap { .. } | Place::Data { .. } | Place::End => 0,
        }
    }

    /// How many bytes of one kind follow, and where on the disk the first of them belongs if they are a block's data.
    pub(crate) fn ahead(&self) -> (u64, Option<u64>) {
        let place = match self.place {
            Place::Data { block, .. } => Some(self.disk_offset(block) + (self.at - self.data_start(block))),
            Place::Gap { .. } | Place::Bitmap { .. } | Place::Footer | Place::End => None,
        };
        (self.place_end() - self.at, place)
    }

    /// Where on the disk the first sector starts that a bitmap seen so far leaves out of its block. XAPI's
    /// exports leave out none.
    pub fn hole(&self) -> Option<u64> {
        self.hole
    }

    /// Passes over `n` bytes of the stream, at most [`opaque`](Self::opaque).
    pub fn skip(&mut self, n: u64) -> Result<(), VhdError> {
        let allowed = self.opaque();
        if n > allowed {
            return Err(VhdError::SkipTooFar { at: self.at, asked: n, allowed });
        }
        self.advance(n);
        Ok(())
    }

    /// Takes the next bytes of the stream and hands their set sectors to `sink`.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Piece<'_>)) -> Result<(), VhdError> {
        while !bytes.is_empty() {
            let left = self.place_end() - self.at;
            let (taken, rest) = match usize::try_from(left) {
                Ok(left) if left < bytes.len() => bytes.split_at(left),
                _ => (bytes, [].as_slice()),
            };
            match self.place {
                Place::Gap { .. } => {}
                Place::Bitmap { .. } => {
                    let filled = self.bitmap.len() - left as usize;
                    self.bitmap[filled..filled + taken.len()].copy_from_slice(taken);
                }
                Place::Data { block, whole } => self.emit(block, whole, taken, sink),
                Place::Footer => self.compare_footer(taken)?,
                Place::End => return Err(VhdError::TrailingBytes { at: self.at }),
            }
            self.advance(taken.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    /// Nothing follows: a report if the stream was complete.
    pub fn finish(&self) -> Result<ScanReport, VhdError> {
        let expected = self.head.stream_length();
        if self.at < expected {
            return Err(VhdError::Truncated { at: self.at, expected });
        }
        Ok(ScanReport {
            stream_length: expected,
            blocks: self.blocks,
            partial_blocks: self.partial_blocks,
            data_bytes: self.data_bytes,
        })
    }

    /// First byte of the stream behind the current place.
    fn place_end(&self) -> u64 {
        match self.place {
            Place::Gap { next } => self.head.block_start(next),
            Place::Bitmap { block } => self.data_start(block),
            Place::Data { block, .. } => self.data_start(block) + u64::from(self.head.block_size()),
            Place::Footer | Place::End => self.head.stream_length(),
        }
    }

    fn data_start(&self, block: u32) -> u64 {
        self.head.block_start(block) + self.head.header().bitmap_length()
    }

    /// Moves on by `n` bytes, which end at most at the end of the current place.
    fn advance(&mut self, n: u64) {
        self.at += n;
        if self.at < self.place_end() {
            return;
        }
        self.place = match self.place {
            Place::Gap { next } => Place::Bitmap { block: next },
            Place::Bitmap { block } => self.enter_data(block),
            Place::Data { block, .. } => self.after(Some(block)),
            Place::Footer | Place::End => Place::End,
        };
    }

    /// What follows a block, or the head.
    fn after(&self, block: Option<u32>) -> Place {
        match self.head.block_in_stream(self.blocks, block) {
            Some(next) if self.head.block_start(next) == self.at => Place::Bitmap { block: next },
            Some(next) => Place::Gap { next },
            None => Place::Footer,
        }
    }

    /// Reads the complete bitmap of `block`.
    fn enter_data(&mut self, block: u32) -> Place {
        let sectors = self.visible(self.disk_offset(block), self.head.block_size() as usize) / SECTOR_SIZE;
        let set = set_bits(&self.bitmap, sectors);
        let whole = set == sectors;
        self.blocks += 1;
        self.partial_blocks += u32::from(!whole);
        if !whole && self.hole.is_none() {
            let sector = (0..sectors).find(|sector| !is_set(&self.bitmap, *sector)).unwrap_or(0);
            self.hole = Some(self.disk_offset(block) + (sector * SECTOR_SIZE) as u64);
        }
        self.data_bytes += (set * SECTOR_SIZE) as u64;
        Place::Data { block, whole }
    }

    fn disk_offset(&self, block: u32) -> u64 {
        u64::from(block) * u64::from(self.head.block_size())
    }

    /// How many of `length` bytes from `offset` on are inside of the disk. The last block is
    /// stored whole even if the disk ends in it.
    fn visible(&self, offset: u64, length: usize) -> usize {
        let inside = self.head.virtual_size().saturating_sub(offset);
        usize::try_from(inside).map_or(length, |inside| inside.min(length))
    }

    /// Hands the set sectors of `bytes`, which stand at the current byte, to `sink`.
    fn emit(&self, block: u32, whole: bool, bytes: &[u8], sink: &mut impl FnMut(Piece<'_>)) {
        let within = (self.at - self.data_start(block)) as usize;
        let offset = self.disk_offset(block) + within as u64;
        let bytes = &bytes[..self.visible(offset, bytes.len())];
        let mut from = 0;
        while from < bytes.len() {
            let (set, to) = if whole {
                (true, bytes.len())
            } else {
                let (set, run_end) = run_at(&self.bitmap, within + from, within + bytes.len());
                (set, run_end - within)
            };
            if set {
                sink(Piece { offset: offset + from as u64, bytes: &bytes[from..to] });
            }
            from = to;
        }
    }

    fn compare_footer(&self, bytes: &[u8]) -> Result<(), VhdError> {
        let from = FOOTER_SIZE - self.remaining() as usize;
        let expected = &self.head.raw_footer()[from..from + bytes.len()];
        match bytes.iter().zip(expected).position(|(found, expected)| found != expected) {
            Some(index) => Err(VhdError::FooterMismatch { at: self.at + index as u64 }),
            None => Ok(()),
        }
    }
}

/// Whether `sector`'s bit is set. The first sector is the highest bit of the first byte.
fn is_set(bitmap: &[u8], sector: usize) -> bool {
    bitmap[sector / 8] & (0x80 >> (sector % 8)) != 0
}

/// How many of the first `sectors` bits are set.
fn set_bits(bitmap: &[u8], sectors: usize) -> usize {
    // Nearly every bitmap is full, and this compiles to wide instructions.
    if bitmap[..sectors / 8].iter().fold(0xff, |all, byte| all & byte) == 0xff && sectors.is_multiple_of(8) {
        return sectors;
    }
    let whole: u32 = bitmap[..sectors / 8].iter().map(|byte| byte.count_ones()).sum();
    let rest = (sectors / 8 * 8..sectors).filter(|sector| is_set(bitmap, *sector)).count();
    whole as usize + rest
}

/// Whether the byte `from` of a block is set, and where the run of equal sectors ends, at most `to`.
fn run_at(bitmap: &[u8], from: usize, to: usize) -> (bool, usize) {
    let first = from / SECTOR_SIZE;
    let set = is_set(bitmap, first);
    let end = (first + 1..to.div_ceil(SECTOR_SIZE))
        .find(|sector| is_set(bitmap, *sector) != set)
        .map_or(to, |sector| sector * SECTOR_SIZE);
    (set, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sector_is_the_highest_bit_of_the_first_byte() {
        let bitmap = [0b1000_0001, 0b0100_0000];
        let set: Vec<_> = (0..16).filter(|sector| is_set(&bitmap, *sector)).collect();
        assert_eq!(set, [0, 7, 9]);
        assert_eq!(set_bits(&bitmap, 16), 3);
        assert_eq!(set_bits(&bitmap, 9), 2);
    }

    #[test]
    fn runs_start_and_end_inside_of_sectors() {
        let bitmap = [0b0110_0000];
        assert_eq!(run_at(&bitmap, 0, 4096), (false, 512));
        assert_eq!(run_at(&bitmap, 700, 4096), (true, 1536));
        assert_eq!(run_at(&bitmap, 700, 800), (true, 800));
        assert_eq!(run_at(&bitmap, 1536, 4096), (false, 4096));
    }
}
