//! The head of a stream: footer, header and BAT, which say everything about what follows.

use std::iter;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::wire::{bytes_at, u32_at};
use super::{DiskType, FOOTER_SIZE, Footer, HEADER_SIZE, HeadError, Header, SECTOR_SIZE, VhdError};

/// BAT entry of a block that is not in the stream.
pub(super) const UNUSED: u32 = u32::MAX;

/// Bytes asked of the reader at a time; a BAT has at most a little over 4 MiB.
const READ_SIZE: usize = 64 << 10;

/// Footer, header and BAT of a stream, fully checked: blocks are inside of the disk, behind the
/// metadata, and do not overlap. A clone shares the bytes.
#[derive(Debug, Clone)]
pub struct Head {
    layout: Arc<Layout>,
}

#[derive(Debug)]
struct Layout {
    /// The stream from its first byte to the end of the BAT.
    raw: Vec<u8>,
    footer: Footer,
    header: Header,
    used_blocks: u32,
    order: BlockOrder,
    /// First byte behind the last block, where the last footer starts.
    blocks_end: u64,
}

/// In which order blocks follow each other in the stream.
#[derive(Debug)]
enum BlockOrder {
    /// By number. Every XAPI export does this, and it saves a list of up to 4 MiB.
    ByNumber,
    /// As listed.
    Listed(Vec<u32>),
}

impl Head {
    /// Reads a head, and not a byte of what follows: a gap before the first block stays in the
    /// stream. There is no time limit here; the first byte of an export may take minutes, since
    /// XAPI attaches the disk after it has answered.
    pub async fn read(reader: &mut (impl AsyncRead + Unpin)) -> Result<Self, HeadError> {
        let mut parser = HeadParser::new();
        let mut buffer = vec![0; READ_SIZE];
        loop {
            let at = parser.fed();
            let wanted = parser.wanted().min(buffer.len());
            let read = reader.read(&mut buffer[..wanted]).await.map_err(|source| HeadError::Io { at, source })?;
            if read == 0 {
                return Err(HeadError::Truncated { at });
            }
            match parser.feed(&mut &buffer[..read])? {
                Parsed::More(more) => parser = more,
                Parsed::Head(head) => return Ok(head),
            }
        }
    }

    /// The footer.
    pub fn footer(&self) -> &Footer {
        &self.layout.footer
    }

    /// The dynamic disk header.
    pub fn header(&self) -> &Header {
        &self.layout.header
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.footer().virtual_size
    }

    /// Whether absent blocks are zeroes or those of another disk.
    pub fn disk_type(&self) -> DiskType {
        self.footer().disk_type
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u32 {
        self.header().block_size
    }

    /// Blocks in the stream.
    pub fn used_blocks(&self) -> u32 {
        self.layout.used_blocks
    }

    /// Exact bytes of the whole stream, from the first footer to the end of the last. An XAPI
    /// export has no Content-Length and an XAPI import demands one: this is it.
    pub fn stream_length(&self) -> u64 {
        self.blocks_end() + FOOTER_SIZE as u64
    }

    /// Bytes of disk in the stream, counted in whole blocks.
    pub fn changed_bytes(&self) -> u64 {
        u64::from(self.used_blocks()) * u64::from(self.block_size())
    }

    /// The bytes of the head as they were read, to be forwarded as they are.
    pub fn raw(&self) -> &[u8] {
        &self.layout.raw
    }

    /// Numbers of the blocks in the stream, ascending. Block `n` holds the disk from byte
    /// `n * block_size()` on.
    pub fn block_numbers(&self) -> impl Iterator<Item = u32> {
        iter::successors(self.used_from(0), |block| self.used_from(block + 1))
    }

    /// First byte behind the last block.
    pub(super) fn blocks_end(&self) -> u64 {
        self.layout.blocks_end
    }

    /// The footer's bytes as they were read.
    pub(super) fn raw_footer(&self) -> &[u8] {
        &self.layout.raw[..FOOTER_SIZE]
    }

    /// Byte of the stream at which the bitmap of a used `block` starts.
    pub(super) fn block_start(&self, block: u32) -> u64 {
        block_start(&self.layout.raw, &self.layout.header, block)
    }

    /// The `index`th block of the stream. `previous` is the one before it.
    pub(super) fn block_in_stream(&self, index: u32, previous: Option<u32>) -> Option<u32> {
        match &self.layout.order {
            BlockOrder::ByNumber => self.used_from(previous.map_or(0, |block| block + 1)),
            BlockOrder::Listed(blocks) => blocks.get(index as usize).copied(),
        }
    }

    /// The first used block from `block` on.
    fn used_from(&self, block: u32) -> Option<u32> {
        let Layout { raw, header, .. } = &*self.layout;
        (block..header.table_entries).find(|block| bat_entry(raw, header, *block) != UNUSED)
    }

    /// Checks the BAT at the end of `raw` and all that needs the three parts together.
    fn check(mut raw: Vec<u8>, footer: Footer, header: Header) -> Result<Self, VhdError> {
        raw.shrink_to_fit();
        let needed = footer.virtual_size.div_ceil(u64::from(header.block_size));
        if u64::from(header.table_entries) < needed {
            return Err(VhdError::TableTooShort {
                at: footer.header_offset + 28,
                entries: header.table_entries,
                needed,
            });
        }
        let at = |block| header.table_offset + 4 * u64::from(block);
        let start = |block| block_start(&raw, &header, block);
        let mut used_blocks = 0;
        let mut by_number = true;
        let mut highest = 0;
        for block in used(&raw, &header) {
            let offset = start(block);
            if u64::from(block) >= needed {
                return Err(VhdError::BlockBeyondDisk { at: at(block), block });
            }
            if offset < header.table_end() {
                return Err(VhdError::BlockInHead { at: at(block), block, offset });
            }
            used_blocks += 1;
            by_number &= offset >= highest;
            highest = offset.max(highest);
        }
        let order = if by_number {
            BlockOrder::ByNumber
        } else {
            let mut blocks: Vec<u32> = used(&raw, &header).collect();
            blocks.sort_unstable_by_key(|block| start(*block));
            BlockOrder::Listed(blocks)
        };
        let overlap = match &order {
            BlockOrder::ByNumber => first_overlap(used(&raw, &header), start, &header),
            BlockOrder::Listed(blocks) => first_overlap(blocks.iter().copied(), start, &header),
        };
        if let Some((other, block)) = overlap {
            return Err(VhdError::BlocksOverlap { at: at(block), block, other });
        }
        let blocks_end = if used_blocks == 0 { header.table_end() } else { highest + header.block_length() };
        let layout = Layout { raw, footer, header, used_blocks, order, blocks_end };
        Ok(Self { layout: Arc::new(layout) })
    }
}

fn bat_entry(raw: &[u8], header: &Header, block: u32) -> u32 {
    // The parser refuses tables that do not start in the first MiB.
    u32_at(raw, header.table_offset as usize + 4 * block as usize)
}

fn block_start(raw: &[u8], header: &Header, block: u32) -> u64 {
    u64::from(bat_entry(raw, header, block)) * SECTOR_SIZE as u64
}

fn used<'a>(raw: &'a [u8], header: &'a Header) -> impl Iterator<Item = u32> + 'a {
    (0..header.table_entries).filter(|block| bat_entry(raw, header, *block) != UNUSED)
}

/// The first two neighbours, of blocks in stream order, that share a byte.
fn first_overlap(
    mut blocks: impl Iterator<Item = u32>,
    start: impl Fn(u32) -> u64,
    header: &Header,
) -> Option<(u32, u32)> {
    let mut previous = blocks.next()?;
    blocks.find_map(|block| {
        let before = std::mem::replace(&mut previous, block);
        (start(block) < start(before) + header.block_length()).then_some((before, block))
    })
}

/// Takes the bytes of a head in any pieces. Memory follows the bytes that came and is bounded
/// by [`MAX_TABLE_OFFSET`](super::MAX_TABLE_OFFSET) and
/// [`MAX_TABLE_ENTRIES`](super::MAX_TABLE_ENTRIES), whatever a stream claims.
#[derive(Debug, Default)]
pub struct HeadParser {
    raw: Vec<u8>,
    stage: Stage,
}

/// What [`HeadParser::feed`] came to.
#[derive(Debug)]
pub enum Parsed {
    /// The head goes on.
    More(HeadParser),
    /// The head is complete and good.
    Head(Head),
}

/// The part being read; each says where the next one ends.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Footer,
    Header(Footer),
    Table(Footer, Box<Header>),
}

impl HeadParser {
    /// A parser that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes taken so far.
    pub fn fed(&self) -> u64 {
        self.raw.len() as u64
    }

    /// Bytes that surely belong to the head and are still to come; more may be wanted then.
    pub fn wanted(&self) -> usize {
        let end = match &self.stage {
            Stage::Footer => FOOTER_SIZE as u64,
            Stage::Header(footer) => footer.header_offset + HEADER_SIZE as u64,
            Stage::Table(_, header) => header.table_end(),
        };
        // Bounded by the limits on the header's and the BAT's place, so it fits.
        end as usize - self.raw.len()
    }

    /// Takes from the front of `input` what belongs to the head and leaves the rest there.
    pub fn feed(mut self, input: &mut &[u8]) -> Result<Parsed, VhdError> {
        loop {
            let (taken, rest) = input.split_at(self.wanted().min(input.len()));
            self.raw.extend_from_slice(taken);
            *input = rest;
            if self.wanted() > 0 {
                return Ok(Parsed::More(self));
            }
            self.stage = match self.stage {
                Stage::Footer => Stage::Header(Footer::decode(&bytes_at(&self.raw, 0), 0)?),
                Stage::Header(footer) => {
                    let at = footer.header_offset;
                    let header = Header::decode(&bytes_at(&self.raw, at as usize), at)?;
                    Stage::Table(footer, Box::new(header))
                }
                Stage::Table(footer, header) => {
                    return Head::check(self.raw, footer, *header).map(Parsed::Head);
                }
            };
        }
    }
}
