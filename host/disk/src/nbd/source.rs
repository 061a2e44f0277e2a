//! A disk read by NBD that looks like a stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Client, NbdError, Pace, Reader};
use crate::chunked::{END_MARKER, FRAME_HEADER, MAX_FRAME, Plan, frame_header};
use crate::extent::{Cursor, Extents};
use crate::vhd::{BLOCK_SIZE, FOOTER_SIZE, Head, SECTOR_SIZE, Writer};

/// Every block is sent whole.
const FULL_BITMAP: [u8; SECTOR_SIZE] = [0xff; SECTOR_SIZE];

/// A stream whose payload comes by NBD: `chunked` frames of a plan, or the VHD that a writer laid out.
///
/// Payload is read into the caller's buffer and copied nowhere else. What is read ahead waits in the
/// sockets: no more than a [`Pace`] on each connection.
#[derive(Debug)]
pub struct Source<S> {
    reader: Reader<S>,
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

/// What the next byte belongs to.
///
/// ```text
/// chunked           (Frame -> Disk)… -> EndMarker -> End
/// VHD       Head -> (Bitmap -> Disk -> Padding)… -> Footer -> End
/// ```
#[derive(Debug, Clone, Copy)]
enum Part {
    Head,
    Frame {
        header: [u8; FRAME_HEADER],
        length: u64,
    },
    Bitmap {
        length: u64,
    },
    Disk {
        length: u64,
    },
    /// Zeroes where the disk ends before its last block does.
    Padding {
        length: u64,
    },
    EndMarker,
    Footer,
    End,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Source<S> {
    /// All of a plan as `chunked` frames of at most [`MAX_FRAME`]. Nothing is left out, even if the plan
    /// allows it: that is what [`Resync`](crate::chunked::Resync) does.
    pub fn chunked(clients: Vec<Client<S>>, plan: &Plan, pace: Pace) -> Result<Self, NbdError> {
        Self::new(clients, plan.shared_extents(), pace, Encoding::Chunked)
    }

    /// The VHD that `writer` laid out. Its head comes first, to be read by [`Head::read`] as that of any
    /// other VHD source.
    pub fn vhd(clients: Vec<Client<S>>, writer: &Writer, pace: Pace) -> Result<Self, NbdError> {
        let head = writer.head().clone();
        Self::new(clients, Extents::of_vhd(&head).into(), pace, Encoding::Vhd(head))
    }

    fn new(clients: Vec<Client<S>>, extents: Arc<Extents>, pace: Pace, encoding: Encoding) -> Result<Self, NbdError> {
        let reader = Reader::new(clients, Arc::clone(&extents), pace)?;
        let mut source = Self { reader, encoding, extents, unsent: Cursor::default(), part: Part::End, left: 0 };
        let first = match source.encoding {
            Encoding::Chunked => source.next_unit(),
            Encoding::Vhd(_) => Part::Head,
        };
        source.enter(first);
        Ok(source)
    }

    /// The connections, to be closed.
    pub fn into_clients(self) -> Vec<Client<S>> {
        self.reader.into_clients()
    }

    /// Puts bytes of the current part into `buffer`, which is not empty; how many.
    fn poll_part(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let room = usize::try_from(self.left).map_or(buffer.remaining(), |left| left.min(buffer.remaining()));
        match self.part {
            Part::Disk { .. } => {
                let given = ready!(self.reader.poll_read(cx, buffer.initialize_unfilled_to(room)))?;
                let given = given.map_or(0, |given| given.bytes);
                buffer.advance(given);
                return Poll::Ready(Ok(given));
            }
            Part::Padding { .. } => {
                buffer.initialize_unfilled_to(room).fill(0);
                buffer.advance(room);
            }
            _ => {
                let bytes = self.metadata();
                let from = bytes.len() - self.left as usize;
                buffer.put_slice(&bytes[from..from + room]);
            }
        }
        Poll::Ready(Ok(room))
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
            Part::Disk { length } | Part::Padding { length } => length,
            _ => self.metadata().len() as u64,
        };
    }

    /// What follows the current part, of which no byte is left.
    fn next_part(&mut self) -> Part {
        match (self.part, &self.encoding) {
            (Part::Frame { length, .. } | Part::Bitmap { length }, _) => Part::Disk { length },
            (Part::Disk { length }, Encoding::Vhd(_)) => Part::Padding { length: u64::from(BLOCK_SIZE) - length },
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
                .map_or(Part::EndMarker, |extent| Part::Frame { header: frame_header(extent), length: extent.length }),
            // Ranges of whole blocks, cut at their size, are the blocks.
            Encoding::Vhd(_) => self
                .unsent
                .next(&self.extents, BLOCK_SIZE)
                .map_or(Part::Footer, |block| Part::Bitmap { length: block.length }),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Source<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let source = self.get_mut();
        let before = buffer.filled().len();
        while buffer.remaining() > 0 && !matches!(source.part, Part::End) {
            if source.left == 0 {
                let part = source.next_part();
                source.enter(part);
                continue;
            }
            match source.poll_part(cx, buffer) {
                Poll::Ready(given) => source.left -= given? as u64,
                Poll::Pending if buffer.filled().len() > before => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}
