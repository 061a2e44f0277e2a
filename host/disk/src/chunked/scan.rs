//! A stream, checked against its plan as it passes.

use super::{ChunkedError, Coverage, END_MARKER, FRAME_HEADER, Plan, parse_header};
use crate::digest::LEAF_SIZE;
use crate::extent::Extent;
use crate::vhd::Piece;

/// What a complete stream held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanReport {
    /// Bytes of the whole stream, end marker included.
    pub stream_length: u64,
    /// Frames, without the end marker.
    pub frames: u64,
    /// Bytes of the disk that the stream sets.
    pub data_bytes: u64,
    /// Planned bytes of the disk that it leaves out, because the target holds them.
    pub left_out_bytes: u64,
}

/// Follows a stream from its first byte to its end marker: frames hold the planned ranges, each byte
/// once, in order, and nothing else. How a range is cut into frames is free. It does no I/O.
///
/// ```text
/// Header -> Data -> Header -> … -> End
/// ```
///
/// After an error it stays where it was; the stream is lost.
#[derive(Debug)]
pub struct Scan {
    plan: Plan,
    /// Byte of the stream.
    at: u64,
    place: Place,
    /// The planned range that is being sent.
    index: usize,
    /// First byte of the disk that has neither come nor been passed over; at most the end of that range.
    next: u64,
    frames: u64,
    data_bytes: u64,
}

/// What the next byte is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// A frame's header, of which `filled` bytes came.
    Header { raw: [u8; FRAME_HEADER], filled: usize },
    /// The data of a frame, of which `left` bytes are to come. They belong at `next`.
    Data { left: u64 },
    /// Nothing: the stream is complete.
    End,
}

const NEW_HEADER: Place = Place::Header { raw: END_MARKER, filled: 0 };

impl Scan {
    /// Starts at the first byte of a stream.
    pub fn new(plan: &Plan) -> Self {
        Self { plan: plan.clone(), at: 0, place: NEW_HEADER, index: 0, next: 0, frames: 0, data_bytes: 0 }
    }

    /// The end marker has come.
    pub fn is_complete(&self) -> bool {
        matches!(self.place, Place::End)
    }

    /// How many bytes of one kind follow, and where on the disk the first of them belongs if they are a frame's data.
    pub(crate) fn ahead(&self) -> (u64, Option<u64>) {
        match self.place {
            Place::Header { filled, .. } => ((FRAME_HEADER - filled) as u64, None),
            Place::Data { left } => (left, Some(self.next)),
            Place::End => (0, None),
        }
    }

    /// Takes the next bytes of the stream and hands the disk's bytes in them to `sink`.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Piece<'_>)) -> Result<(), ChunkedError> {
        while !bytes.is_empty() {
            let wanted = match self.place {
                Place::Header { filled, .. } => (FRAME_HEADER - filled) as u64,
                Place::Data { left } => left,
                Place::End => return Err(ChunkedError::TrailingBytes { at: self.at }),
            };
            let (taken, rest) = bytes.split_at(usize::try_from(wanted).map_or(bytes.len(), |n| n.min(bytes.len())));
            self.at += taken.len() as u64;
            match &mut self.place {
                Place::Header { raw, filled } => {
                    raw[*filled..*filled + taken.len()].copy_from_slice(taken);
                    *filled += taken.len();
                    if *filled == FRAME_HEADER {
                        let frame = parse_header(*raw);
                        self.place = self.enter(frame)?;
                    }
                }
                Place::Data { left } => {
                    sink(Piece { offset: self.next, bytes: taken });
                    *left -= taken.len() as u64;
                    self.next += taken.len() as u64;
                    self.data_bytes += taken.len() as u64;
                    if *left == 0 {
                        self.place = NEW_HEADER;
                    }
                }
                Place::End => {}
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Nothing follows: a report if the stream was complete.
    pub fn finish(&self) -> Result<ScanReport, ChunkedError> {
        if !self.is_complete() {
            return Err(ChunkedError::Truncated { at: self.at });
        }
        Ok(ScanReport {
            stream_length: self.at,
            frames: self.frames,
            data_bytes: self.data_bytes,
            left_out_bytes: self.plan.extents().total_bytes() - self.data_bytes,
        })
    }

    /// Moves to the data of `frame`, or to the end.
    fn enter(&mut self, frame: Extent) -> Result<Place, ChunkedError> {
        let at = self.header_start();
        if frame == parse_header(END_MARKER) {
            return self.pass_over_all().map(|()| Place::End);
        }
        let Extent { offset, length } = frame;
        if length == 0 {
            return Err(ChunkedError::EmptyFrame { at, offset });
        }
        self.pass_over(offset)?;
        let end = self.planned().map_or(0, Extent::end);
        if length > end - offset {
            return Err(ChunkedError::TooLong { at, offset, length, end });
        }
        self.next = offset;
        self.frames += 1;
        Ok(Place::Data { left: length })
    }

    /// Moves to the planned range that holds `offset`, if what lies before it may be left out.
    fn pass_over(&mut self, offset: u64) -> Result<(), ChunkedError> {
        let at = self.header_start();
        self.leave_finished_range();
        let expected = self.expected();
        let out_of_place = ChunkedError::OutOfPlace { at, offset, expected };
        if expected == Some(offset) {
            return Ok(());
        }
        if self.plan.coverage() == Coverage::Whole || expected.is_none_or(|expected| offset < expected) {
            return Err(out_of_place);
        }
        self.expect_edge(expected)?;
        while self.planned().is_some_and(|range| range.end() <= offset) {
            self.index += 1;
        }
        match self.planned() {
            Some(range) if range.offset <= offset => self.expect_edge(Some(offset)),
            _ => Err(out_of_place),
        }
    }

    /// Moves behind the last planned range, if what has not come may be left out.
    fn pass_over_all(&mut self) -> Result<(), ChunkedError> {
        self.leave_finished_range();
        let Some(offset) = self.expected() else { return Ok(()) };
        if self.plan.coverage() == Coverage::Whole {
            return Err(ChunkedError::Missing { at: self.header_start(), offset });
        }
        self.expect_edge(Some(offset))
    }

    fn leave_finished_range(&mut self) {
        if self.planned().is_some_and(|range| range.end() <= self.next) {
            self.index += 1;
        }
    }

    /// A digest leaf comes whole or not at all, so what is left out starts and ends at the edge of a
    /// leaf or of the range.
    fn expect_edge(&self, offset: Option<u64>) -> Result<(), ChunkedError> {
        match (offset, self.planned()) {
            (Some(offset), Some(range)) if offset % LEAF_SIZE != 0 && offset != range.offset => {
                Err(ChunkedError::LeftOutInside { at: self.header_start(), offset })
            }
            _ => Ok(()),
        }
    }

    fn planned(&self) -> Option<Extent> {
        self.plan.extents().get(self.index)
    }

    /// The byte of the disk that is to come next.
    fn expected(&self) -> Option<u64> {
        self.planned().map(|range| range.offset.max(self.next))
    }

    /// Where in the stream the header starts that was just read.
    fn header_start(&self) -> u64 {
        self.at.saturating_sub(FRAME_HEADER as u64)
    }
}
