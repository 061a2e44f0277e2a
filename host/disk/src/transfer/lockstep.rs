//! The engine for nearly every job: one buffer, and a copy in and out of it.

use tokio::io::{AsyncRead, AsyncWrite};

use super::fan_out::FanOut;
use super::intake::Intake;
use super::{EngineName, Options, Outcome, TransferError};
use crate::digest::{LEAF_SIZE, Leaf, LeafError, LeafHasher};
use crate::vhd::{Head, Piece, Scan, ScanReport, VhdError};

/// Larger buffers gain nothing and fall out of the cache between hashing and writing.
const BUFFER_SIZE: usize = 256 << 10;

/// Moves the rest of a stream, whose `head` was read from `source` before, to all `sinks`.
///
/// Each buffer is read, checked, hashed if leaves are asked for, and written to every living sink
/// before the next is read. The sinks get the head first, and the last bytes only when the source
/// has properly ended behind them: no sink ever holds the whole of a stream that was not good.
///
/// A sink that fails is told in the outcome and costs the others nothing but its last wait. Without
/// any sinks the stream is read and checked all the same.
pub async fn lockstep<R, W>(
    source: &mut R,
    head: &Head,
    sinks: &mut [W],
    options: Options<'_>,
) -> Result<Outcome, TransferError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Options { leaves, progress, stall, first_byte } = options;
    let patience = [first_byte, stall];
    let mut intake = Intake::new(source, head.raw().len() as u64, progress, patience);
    let mut sinks = FanOut::new(sinks, progress, patience);
    let mut checks = Checks::new(head, leaves);

    sinks.write(head.raw()).await;
    let mut buffer = vec![0; BUFFER_SIZE];
    let mut complete = None;
    while complete.is_none() && !sinks.all_failed() {
        let filled = intake.fill(&mut buffer).await?;
        if filled == 0 {
            let (at, expected) = (intake.at(), head.stream_length());
            return Err(TransferError::Truncated { at, expected });
        }
        checks.look_at(&buffer[..filled])?;
        if checks.seen_all() {
            expect_end(&mut intake, head).await?;
            complete = Some(checks.finish()?);
        }
        sinks.write(&buffer[..filled]).await;
    }
    sinks.flush().await;
    let (at, no_sink_left) = (intake.at(), sinks.all_failed());
    let sinks = sinks.into_outcomes();
    match complete {
        Some(scan) if !no_sink_left => Ok(Outcome { engine: EngineName::Lockstep, bytes_read: at, sinks, scan }),
        _ => Err(TransferError::NoSinkLeft { at, sinks }),
    }
}

/// The source has nothing behind the last footer.
async fn expect_end<R: AsyncRead + Unpin>(intake: &mut Intake<'_, R>, head: &Head) -> Result<(), TransferError> {
    match intake.fill(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(VhdError::TrailingBytes { at: head.stream_length() }.into()),
    }
}

/// What every buffer has to pass.
struct Checks<'a> {
    scan: Scan,
    hashing: Option<Hashing<'a>>,
}

struct Hashing<'a> {
    hasher: LeafHasher,
    leaves: &'a mut (dyn FnMut(u64, Leaf) + Send),
}

impl<'a> Checks<'a> {
    fn new(head: &Head, leaves: Option<&'a mut (dyn FnMut(u64, Leaf) + Send)>) -> Self {
        let hasher = LeafHasher::new(head.virtual_size());
        Self { scan: Scan::new(head), hashing: leaves.map(|leaves| Hashing { hasher, leaves }) }
    }

    fn look_at(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        let Some(Hashing { hasher, leaves }) = &mut self.hashing else {
            return Ok(self.scan.feed(bytes, &mut |_| {})?);
        };
        let mut hashed = Ok(());
        self.scan.feed(bytes, &mut |piece: Piece<'_>| {
            if hashed.is_ok() {
                hashed = hasher.feed(piece, *leaves);
            }
        })?;
        hashed.map_err(no_digest)
    }

    fn seen_all(&self) -> bool {
        self.scan.remaining() == 0
    }

    fn finish(&self) -> Result<ScanReport, TransferError> {
        if let Some(Hashing { hasher, .. }) = &self.hashing {
            hasher.finish().map_err(no_digest)?;
        }
        Ok(self.scan.finish()?)
    }
}

/// A scan gives no piece beyond the disk, so what is left is an incomplete leaf.
fn no_digest(error: LeafError) -> TransferError {
    let disk_offset = match error {
        LeafError::Partial { leaf, .. } => leaf * LEAF_SIZE,
        LeafError::BeyondDisk { offset, .. } => offset,
    };
    TransferError::PartialBitmap { disk_offset }
}
