//! The VHD streams that the host sends: shaped like XAPI's, random, and for nearly nothing.

use anyhow::Context as _;
use std::io::{self, Write};
use std::sync::OnceLock;
use uuid::Uuid;
use vmferry_disk::vhd::{BLOCK_SIZE, FOOTER_SIZE, NewDisk, SECTOR_SIZE, Writer};

/// Blocks that differ; then they repeat. 32 MiB are more than the caches of one core hold.
const DISTINCT_BLOCKS: u32 = 16;

/// Bytes of a block in the stream, bitmap and data.
const BLOCK_LENGTH: usize = SECTOR_SIZE + BLOCK_SIZE as usize;

/// Size of a disk and how many of its blocks hold data. They are spread evenly over the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes, a multiple of the block size.
    pub(crate) disk_size: u64,
    pub(crate) used_blocks: u32,
}

impl Shape {
    /// A disk that is full of data.
    pub(crate) fn full(mib: u64) -> Self {
        let disk_size = mib << 20;
        Self { disk_size, used_blocks: (disk_size / u64::from(BLOCK_SIZE)) as u32 }
    }

    /// The reference under which the host has such a disk.
    pub(crate) fn reference(self) -> String {
        format!("OpaqueRef:disk-{}-{}", self.disk_size, self.used_blocks)
    }

    pub(crate) fn of_reference(reference: &str) -> Option<Self> {
        let (disk_size, used_blocks) = reference.strip_prefix("OpaqueRef:disk-")?.split_once('-')?;
        Some(Self { disk_size: disk_size.parse().ok()?, used_blocks: used_blocks.parse().ok()? })
    }
}

/// The whole stream of such a disk.
pub(crate) struct Stream {
    writer: Writer,
    used_blocks: u32,
}

impl Stream {
    pub(crate) fn new(shape: Shape) -> anyhow::Result<Self> {
        let disk =
            NewDisk { virtual_size: shape.disk_size, unique_id: Uuid::from_u128(1), creator: *b"tap\0", parent: None };
        let blocks = shape.disk_size / u64::from(BLOCK_SIZE);
        let spread = |n| u64::from(n) * blocks / u64::from(shape.used_blocks);
        let used: Vec<u32> = (0..shape.used_blocks).map(|n| spread(n) as u32).collect();
        let writer = Writer::new(&disk, &used).with_context(|| format!("{shape:?}"))?;
        Ok(Self { writer, used_blocks: shape.used_blocks })
    }

    /// Bytes.
    pub(crate) fn length(&self) -> u64 {
        self.writer.head().stream_length()
    }

    /// The bytes in order.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let head = self.writer.head();
        let blocks = (0..self.used_blocks).step_by(DISTINCT_BLOCKS as usize).map(|first| {
            let count = DISTINCT_BLOCKS.min(self.used_blocks - first);
            &distinct_blocks()[..count as usize * BLOCK_LENGTH]
        });
        [head.raw()].into_iter().chain(blocks).chain([&head.raw()[..FOOTER_SIZE]])
    }

    /// The disk itself, which has to be full.
    pub(crate) fn write_disk(&self, to: &mut impl Write) -> io::Result<()> {
        for block in (0..self.used_blocks).map(|number| number % DISTINCT_BLOCKS) {
            let from = block as usize * BLOCK_LENGTH + SECTOR_SIZE;
            to.write_all(&distinct_blocks()[from..from + BLOCK_SIZE as usize])?;
        }
        Ok(())
    }

    /// BLAKE3 of all of it.
    pub(crate) fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in self.parts() {
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// The blocks that repeat, as they stand in the stream.
fn distinct_blocks() -> &'static [u8] {
    static BLOCKS: OnceLock<Vec<u8>> = OnceLock::new();
    BLOCKS.get_or_init(|| {
        let mut blocks = vec![0; DISTINCT_BLOCKS as usize * BLOCK_LENGTH];
        blake3::Hasher::new().finalize_xof().fill(&mut blocks);
        for block in blocks.chunks_exact_mut(BLOCK_LENGTH) {
            block[..SECTOR_SIZE].fill(0xff);
        }
        blocks
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_disk::vhd::{HeadParser, Parsed, Scan};

    #[test]
    fn a_reference_tells_the_shape() {
        let shape = Shape { disk_size: 1 << 40, used_blocks: 512 };
        assert_eq!(Shape::of_reference(&shape.reference()), Some(shape));
        assert_eq!(Shape::of_reference("OpaqueRef:disk-1"), None);
    }

    #[test]
    fn a_stream_is_a_whole_vhd_of_its_length() {
        for shape in [Shape::full(66), Shape { disk_size: 1 << 40, used_blocks: 17 }] {
            let stream = Stream::new(shape).expect("it is laid out");
            let bytes: Vec<u8> = stream.parts().flatten().copied().collect();
            assert_eq!(bytes.len() as u64, stream.length());
            let mut rest = bytes.as_slice();
            let Ok(Parsed::Head(head)) = HeadParser::new().feed(&mut rest) else { panic!("no head in {shape:?}") };
            assert_eq!(head.block_numbers().count() as u32, shape.used_blocks);
            let mut scan = Scan::new(&head);
            scan.feed(rest, &mut |_| {}).expect("a good stream");
            scan.finish().expect("complete");
        }
    }
}
