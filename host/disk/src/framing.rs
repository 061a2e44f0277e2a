//! Streams laid out beforehand, whose payload comes from elsewhere.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use crate::chunked::{END_MARKER, FRAME_HEADER, MAX_FRAME, Plan, frame_header};
use crate::extent::{Cursor, Extent, Extents};
use crate::vhd::{BLOCK_SIZE, FOOTER_SIZE, Head, SECTOR_SIZE, Writer};

/// Every block is sent whole.
const FULL_BITMAP: [u8; SECTOR_SIZE] = [0xff; SECTOR_SIZE];

/// What each next byte of a stream belongs to: `chunked` frames of a plan, or the VHD that a writer laid out.
///
/// ```text
/// chunked           (Frame -> Disk)… -> EndMarker -> End
/// VHD       Head -> (Bitmap -> Disk -> Padding)… -> Footer -> End
/// ```
#[derive(Debug)]
pub(crate) struct Framing {
    encoding: Encoding,
    /// The disk's part of the stream.
    extents: Arc<Extents>,
    /// Frames or blocks that were not begun.
    unsent: Cursor,
    part: Part,
    /// Bytes of the part that are to come.
    left: u64,
}

#[derive(Debug)]
enum Encoding {
    Chunked,
    Vhd(Head),
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Head,
    Frame {
        header: [u8; FRAME_HEADER],
        extent: Extent,
    },
    Bitmap {
        extent: Extent,
    },
    Disk {
        extent: Extent,
    },
    /// Zeroes where the disk ends before its last block does.
    Padding {
        length: u64,
    },
    EndMarker,
    Footer,
    End,
}

/// What comes next in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// What the disk holds in this range.
    Disk(Extent),
    /// As many zeroes.
    Zeroes(u64),
    /// Nothing.
    End,
}

/// Where the disk's part of a stream comes from.
pub(crate) trait Payload {
    /// Puts some bytes of a range of the disk into `buffer`, from its start on; how many. The buffer is no longer than the range.
    fn poll_fill(&mut self, cx: &mut Context<'_>, wanted: Extent, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Ready when what ends the stream may follow.
    fn poll_end(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Framing {
    /// All of a plan as `chunked` frames of at most [`MAX_FRAME`]. Nothing is left out, even if the plan allows it.
    pub(crate) fn chunked(plan: &Plan) -> Self {
        Self::new(plan.shared_extents(), Encoding::Chunked)
    }

    /// The VHD that `writer` laid out, its head included.
    pub(crate) fn vhd(writer: &Writer) -> Self {
        let head = writer.head().clone();
        Self::new(Extents::of_vhd(&head).into(), Encoding::Vhd(head))
    }

    fn new(extents: Arc<Extents>, encoding: Encoding) -> Self {
        let mut framing = Self { encoding, extents, unsent: Cursor::default(), part: Part::End, left: 0 };
        let first = match framing.encoding {
            Encoding::Chunked => framing.next_unit(),
            Encoding::Vhd(_) => Part::Head,
        };
        framing.enter(first);
        framing
    }

    /// The ranges of the disk that are in the stream.
    pub(crate) fn extents(&self) -> &Arc<Extents> {
        &self.extents
    }

    /// What comes next.
    pub(crate) fn next(&self) -> Next<'_> {
        match self.part {
            Part::Disk { extent } => {
                Next::Disk(Extent { offset: extent.offset + (extent.length - self.left), length: self.left })
            }
            Part::Padding { .. } => Next::Zeroes(self.left),
            Part::End => Next::End,
            _ => {
                let bytes = self.metadata();
                Next::Bytes(&bytes[bytes.len() - self.left as usize..])
            }
        }
    }

    /// The disk's part of the stream is over.
    pub(crate) fn is_behind_disk(&self) -> bool {
        matches!(self.part, Part::EndMarker | Part::Footer | Part::End)
    }

    /// Moves on by as many bytes of what comes next.
    pub(crate) fn advance(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        while self.left == 0 && !matches!(self.part, Part::End) {
            let part = self.next_part();
            self.enter(part);
        }
    }

    /// Fills `buffer` with what comes next.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        payload: &mut impl Payload,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        while buffer.remaining() > 0 {
            let room =
                |left: u64| usize::try_from(left).map_or(buffer.remaining(), |left| left.min(buffer.remaining()));
            if self.is_behind_disk() {
                match payload.poll_end(cx) {
                    Poll::Ready(ended) => ended?,
                    Poll::Pending if buffer.filled().len() > before => break,
                    Poll::Pending => return Poll::Pending,
                }
            }
            let given = match self.next() {
                Next::Bytes(bytes) => {
                    let given = room(bytes.len() as u64);
                    buffer.put_slice(&bytes[..given]);
                    given
                }
                Next::Zeroes(length) => {
                    let given = room(length);
                    buffer.initialize_unfilled_to(given).fill(0);
                    buffer.advance(given);
                    given
                }
                Next::Disk(extent) => {
                    let room = room(extent.length);
                    match payload.poll_fill(cx, extent, buffer.initialize_unfilled_to(room)) {
                        // Who has nothing more ends the stream here, and its reader finds it cut.
                        Poll::Ready(Ok(0)) => break,
                        Poll::Ready(given) => {
                            let given = given?;
                            buffer.advance(given);
                            given
                        }
                        Poll::Pending if buffer.filled().len() > before => break,
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Next::End => break,
            };
            self.advance(given as u64);
        }
        Poll::Ready(Ok(()))
    }

    /// The bytes of a part that is not the disk's.
    fn metadata(&self) -> &[u8] {
        let head = match &self.encoding {
            Encoding::Chunked => &[],
            Encoding::Vhd(head) => head.raw(),
        };
        match &self.part {
            Part::Head => head,
            Part::Footer => head.get(..FOOTER_SIZE).unwrap_or_default(),
            Part::Frame { header, .. } => header,
            Part::Bitmap { .. } => &FULL_BITMAP,
            Part::EndMarker => &END_MARKER,
            Part::Disk { .. } | Part::Padding { .. } | Part::End => &[],
        }
    }

    fn enter(&mut self, part: Part) {
        self.part = part;
        self.left = match part {
            Part::Disk { extent } => extent.length,
            Part::Padding { length } => length,
            _ => self.metadata().len() as u64,
        };
    }

    /// What follows the current part, of which no byte is left.
    fn next_part(&mut self) -> Part {
        match (self.part, &self.encoding) {
            (Part::Frame { extent, .. } | Part::Bitmap { extent }, _) => Part::Disk { extent },
            (Part::Disk { extent }, Encoding::Vhd(_)) => {
                Part::Padding { length: u64::from(BLOCK_SIZE) - extent.length }
            }
            (Part::Head | Part::Disk { .. } | Part::Padding { .. }, _) => self.next_unit(),
            (Part::EndMarker | Part::Footer | Part::End, _) => Part::End,
        }
    }

    /// The start of the next frame or block, or of what ends the stream.
    fn next_unit(&mut self) -> Part {
        match self.encoding {
            Encoding::Chunked => self
                .unsent
                .next(&self.extents, MAX_FRAME)
                .map_or(Part::EndMarker, |extent| Part::Frame { header: frame_header(extent), extent }),
            // Ranges of whole blocks, cut at their size, are the blocks.
            Encoding::Vhd(_) => {
                self.unsent.next(&self.extents, BLOCK_SIZE).map_or(Part::Footer, |extent| Part::Bitmap { extent })
            }
        }
    }
}
