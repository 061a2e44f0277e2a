//! Writes and reads a scratch disk: an import is the only way to write without a guest.

use crate::error::chain;
use crate::export::{self, NotBegun};
use crate::objects::wait_until_detached;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;
use vmferry_disk::chunked::{END_MARKER, frame_header};
use vmferry_disk::extent::Extent;
use vmferry_disk::vhd::{Head, NewDisk, Parent, SECTOR_SIZE, Scan, ScanReport, StreamPart, WriteError, Writer};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Error, Import, Ref, Session};

/// What the pool shows as the name of a transfer's task.
const LABEL: &str = "vmferry doctor: a scratch disk";

/// How long a host may take to the first byte of an export.
const FIRST_BYTE: Duration = Duration::from_secs(120);

/// A whole VHD stream of a scratch disk, checked.
pub(super) struct Read {
    pub(super) head: Head,
    pub(super) report: ScanReport,
    /// The host that served it.
    pub(super) address: String,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Read {
    /// The disk that the stream makes of one that held `image`.
    pub(super) fn onto(&self, mut image: Vec<u8>) -> Vec<u8> {
        image.resize(usize::try_from(self.head.virtual_size()).unwrap_or(image.len()), 0);
        for (offset, bytes) in &self.pieces {
            put(&mut image, *offset, bytes);
        }
        image
    }

    /// The content of a disk that was read whole.
    pub(super) fn image(&self) -> Vec<u8> {
        self.onto(Vec::new())
    }
}

/// Reads a disk, or what differs from `base`, and checks the structure of the stream to its end.
pub(super) async fn read(session: &Session, disk: &Ref<Vdi>, base: Option<&Ref<Vdi>>) -> Result<Read, NotBegun> {
    let failed = |error: &dyn std::error::Error| NotBegun::Failed(chain(error));
    // XAPI takes a disk off its own domain a moment after the stream.
    wait_until_detached(session, disk).await.map_err(|error| failed(&error))?;
    let (mut export, head) = export::begin(session, disk, base, LABEL, FIRST_BYTE).await?;
    let mut scan = Scan::new(&head);
    let (mut pieces, mut buffer) = (Vec::new(), vec![0; 256 << 10]);
    let report = loop {
        match export.read(&mut buffer).await {
            Ok(0) => break scan.finish().map_err(|error| chain(&error)),
            Ok(n) => {
                let fed = scan.feed(&buffer[..n], &mut |piece| pieces.push((piece.offset, piece.bytes.to_vec())));
                if let Err(error) = fed {
                    break Err(chain(&error));
                }
            }
            Err(error) => break Err(chain(&error)),
        }
    };
    let address = export.address().to_owned();
    match report {
        Ok(report) => {
            export.finish().await.map_err(|error| failed(&error))?;
            Ok(Read { head, report, address, pieces })
        }
        Err(message) => {
            let told = export.finish().await.err().map(|cause| format!(": {}", chain(&cause)));
            Err(NotBegun::Failed(format!("{message}{}", told.unwrap_or_default())))
        }
    }
}

/// What is written, and how.
pub(super) enum Written {
    /// A whole VHD stream.
    Vhd(Vec<u8>),
    /// A whole stream in the `chunked` framing.
    Chunked(Vec<u8>),
}

/// Writes a stream into a disk, up to the host's word that it is there.
pub(super) async fn write(session: &Session, disk: &Ref<Vdi>, stream: &Written) -> Result<(), Error> {
    wait_until_detached(session, disk).await?;
    let (mut import, bytes): (Import, _) = match stream {
        Written::Vhd(bytes) => (session.import_vdi(disk, bytes.len() as u64, LABEL).await?, bytes),
        Written::Chunked(bytes) => (session.import_chunked(disk, LABEL).await?, bytes),
    };
    // After a failed write the end of the import tells the reason.
    let _ = import.write_all(bytes).await;
    import.finish().await
}

/// A VHD stream that sets `blocks` (of 2 MiB, ascending) to what `image` holds there; with `bitmap`, the sectors of each block
/// that it names alone.
pub(super) fn vhd(
    image: &[u8],
    blocks: &[u32],
    parent: Option<Parent>,
    bitmap: Option<&[u8; SECTOR_SIZE]>,
) -> Result<Written, WriteError> {
    let disk = NewDisk { virtual_size: image.len() as u64, unique_id: Uuid::new_v4(), creator: *b"tap\0", parent };
    let writer = Writer::new(&disk, blocks)?;
    let mut stream = Vec::new();
    for part in writer.parts() {
        match part {
            StreamPart::Bytes(bytes) => stream.extend_from_slice(bytes),
            StreamPart::Disk { offset, length } => {
                if let Some(bitmap) = bitmap {
                    // The bitmap of a block is right in front of its data.
                    stream.truncate(stream.len() - bitmap.len());
                    stream.extend_from_slice(bitmap);
                }
                let end = stream.len() + length as usize;
                let start = usize::try_from(offset).unwrap_or(image.len()).min(image.len());
                stream.extend(image[start..].iter().take(length as usize));
                stream.resize(end, 0);
            }
        }
    }
    Ok(Written::Vhd(stream))
}

/// A `chunked` stream that sets these extents to what `image` holds there.
pub(super) fn chunked(image: &[u8], extents: &[Extent]) -> Written {
    let mut stream = Vec::new();
    for extent in extents {
        stream.extend(frame_header(*extent));
        stream.extend_from_slice(slice(image, *extent));
    }
    stream.extend(END_MARKER);
    Written::Chunked(stream)
}

/// The bytes of an image in an extent, as far as it has them.
pub(super) fn slice(image: &[u8], extent: Extent) -> &[u8] {
    let at = |byte: u64| usize::try_from(byte).unwrap_or(image.len()).min(image.len());
    &image[at(extent.offset)..at(extent.end())]
}

/// Puts bytes into an image, as far as it reaches.
pub(super) fn put(image: &mut [u8], offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).unwrap_or(image.len()).min(image.len());
    let room = bytes.len().min(image.len() - start);
    image[start..start + room].copy_from_slice(&bytes[..room]);
}

/// Bytes that are no other seed's, and not the same at any two near places. `length` is in whole words of 8 bytes.
pub(super) fn pattern(seed: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    for (n, word) in (1..).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&u64::wrapping_mul((n << 8) | u64::from(seed), 0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    bytes
}

/// The first byte in which two images differ; a shorter one differs where it ends.
pub(super) fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    if one == other {
        return None;
    }
    Some(one.iter().zip(other).position(|(a, b)| a != b).unwrap_or(one.len().min(other.len())))
}

/// A bitmap of a block that names these sectors.
pub(super) fn bitmap(sectors: &[usize]) -> [u8; SECTOR_SIZE] {
    let mut bitmap = [0; SECTOR_SIZE];
    for sector in sectors {
        bitmap[sector / 8] |= 0x80 >> (sector % 8);
    }
    bitmap
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_disk::vhd::HeadParser;
    use vmferry_disk::vhd::Parsed;

    #[test]
    fn a_stream_with_a_bitmap_sets_the_sectors_that_it_names() {
        let image = pattern(1, 4 << 20);
        let Ok(Written::Vhd(stream)) = vhd(&image, &[1], None, Some(&bitmap(&[0, 9]))) else { panic!("no stream") };
        let mut rest = stream.as_slice();
        let Parsed::Head(head) = HeadParser::new().feed(&mut rest).unwrap() else { panic!("no head") };
        let mut set = Vec::new();
        let mut scan = Scan::new(&head);
        scan.feed(rest, &mut |piece| set.push((piece.offset, piece.bytes.to_vec()))).unwrap();
        let report = scan.finish().unwrap();
        assert_eq!((report.partial_blocks, report.data_bytes), (1, 1024));
        let at = |sector: usize| (2 << 20) + 512 * sector;
        let expected = [0, 9].map(|sector| (at(sector) as u64, image[at(sector)..at(sector) + 512].to_vec()));
        assert_eq!(set, expected);
    }

    #[test]
    fn images_are_compared_to_the_end_of_the_longer_one() {
        assert_eq!(first_difference(b"abc", b"abc"), None);
        assert_eq!(first_difference(b"abc", b"axc"), Some(1));
        assert_eq!(first_difference(b"abc", b"ab"), Some(2));
    }
}
