//! A transfer under way: what all engines share.

use tokio::io::{AsyncRead, AsyncWrite};

use super::checks::{Checks, Content, Layout};
use super::fan_out::FanOut;
use super::intake::Intake;
use super::patience::Patience;
use super::{EngineName, NotSpliced, Options, Outcome, TransferError};
use crate::digest::{LEAF_SIZE, Leaf};
use crate::vhd::SECTOR_SIZE;

/// Four leaves, and the sector bitmap that comes in between once in each VHD block. Larger buffers gain
/// nothing and fall out of the cache between hashing and writing.
const BUFFER_SIZE: usize = 4 * LEAF_SIZE as usize + SECTOR_SIZE;

/// Source, sinks, and the checks between them.
///
/// The sinks get the head first, and the last bytes only when the source has properly ended behind them:
/// no sink ever holds the whole of a stream that was not good.
pub(super) struct Flow<'a, R, W> {
    pub(super) intake: Intake<'a, R>,
    pub(super) sinks: FanOut<'a, W>,
    pub(super) checks: Checks<'a>,
    pub(super) buffer: Box<[u8]>,
    /// What the stream held, once it is complete.
    content: Option<Content>,
}

impl<'a, R, W> Flow<'a, R, W>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    /// Sends the head to all sinks.
    pub(super) async fn begin<'o: 'a>(
        source: &'a mut R,
        layout: Layout<'_>,
        sinks: &'a mut [W],
        options: Options<'o>,
    ) -> Self {
        let Options { leaves, progress, throttles, stall, first_byte } = options;
        let head = layout.head();
        let patience = Patience::new(first_byte, stall);
        let mut sinks = FanOut::new(sinks, progress, &patience);
        let intake = Intake::new(source, head.len() as u64, progress, throttles, patience);
        let checks = Checks::new(layout, leaves.map(|leaves| leaves as &mut (dyn FnMut(u64, Leaf) + Send)));
        sinks.write(head).await;
        Self { intake, sinks, checks, buffer: vec![0; BUFFER_SIZE].into(), content: None }
    }

    /// The stream is not complete, and somebody wants it.
    pub(super) fn goes_on(&self) -> bool {
        self.content.is_none() && !self.sinks.all_failed()
    }

    /// The whole stream has come, and its end.
    pub(super) fn is_complete(&self) -> bool {
        self.content.is_some()
    }

    /// Moves what is left through the buffer.
    pub(super) async fn copy_rest(&mut self) -> Result<(), TransferError> {
        while self.goes_on() {
            let most = self.checks.next_read(self.buffer.len());
            self.copy(most).await?;
        }
        Ok(())
    }

    /// Moves at most `most` bytes through the buffer.
    pub(super) async fn copy(&mut self, most: usize) -> Result<(), TransferError> {
        let filled = self.take(most).await?;
        self.sinks.write(&self.buffer[..filled]).await;
        Ok(())
    }

    /// Reads at most `most` bytes into the buffer and checks them. With the last of a stream it waits for
    /// the end behind them.
    pub(super) async fn take(&mut self, most: usize) -> Result<usize, TransferError> {
        let most = most.min(self.buffer.len());
        let filled = self.intake.fill(&mut self.buffer[..most]).await?;
        if filled == 0 {
            return Err(self.checks.truncated(self.intake.at()));
        }
        self.checks.look_at(&self.buffer[..filled])?;
        if self.checks.seen_all() {
            let end = self.intake.at();
            if !self.intake.is_at_end().await? {
                return Err(self.checks.trailing_bytes(end));
            }
            self.content = Some(self.checks.finish()?);
        }
        Ok(filled)
    }

    /// Ends the transfer, which `engine` did.
    pub(super) async fn finish(
        mut self,
        engine: EngineName,
        not_spliced: Option<NotSpliced>,
    ) -> Result<Outcome, TransferError> {
        self.sinks.flush().await;
        let (bytes_read, no_sink_left) = (self.intake.at(), self.sinks.all_failed());
        let sinks = self.sinks.into_outcomes();
        match self.content {
            Some(content) if !no_sink_left => Ok(Outcome { engine, not_spliced, bytes_read, sinks, content }),
            _ => Err(TransferError::NoSinkLeft { at: bytes_read, sinks }),
        }
    }
}
