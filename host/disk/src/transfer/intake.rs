//! The reading side of a transfer.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::timeout;

use super::{Progress, TransferError};

/// A source, read in large pieces under a time limit.
pub(super) struct Intake<'a, R> {
    reader: &'a mut R,
    progress: &'a dyn Progress,
    /// Bytes of the stream that came, head included.
    at: u64,
    /// How long the next wait may last.
    patience: Duration,
    /// How long every later wait may last.
    stall: Duration,
    /// What came behind bytes that were handed out first.
    ended: Option<io::Result<()>>,
}

impl<'a, R: AsyncRead + Unpin> Intake<'a, R> {
    /// A source of which `at` bytes were read before.
    pub(super) fn new(
        reader: &'a mut R,
        at: u64,
        progress: &'a dyn Progress,
        [first_byte, stall]: [Duration; 2],
    ) -> Self {
        progress.read(at);
        Self { reader, progress, at, patience: first_byte.max(stall), stall, ended: None }
    }

    /// Bytes of the stream that came, head included.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Reads until `buffer` is full or the source has nothing ready; 0 at its end.
    pub(super) async fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TransferError> {
        let (at, waited) = (self.at, self.patience);
        let filled = timeout(waited, poll_fn(|cx| self.poll_fill(cx, buffer)))
            .await
            .map_err(|_| TransferError::SourceStalled { at, waited })?
            .map_err(|source| TransferError::Source { at, source })?;
        self.patience = self.stall;
        self.at += filled as u64;
        self.progress.read(filled as u64);
        Ok(filled)
    }

    /// Under TLS every read gives one record of at most 16 KiB, so one read a buffer would mean
    /// many small writes to each sink.
    fn poll_fill(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        while self.ended.is_none() && buffer.remaining() > 0 {
            let before = buffer.filled().len();
            match Pin::new(&mut *self.reader).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() == before => self.ended = Some(Ok(())),
                Poll::Ready(Ok(())) => {}
                // TLS says so of a peer that closes without a farewell. An end is an end; whether
                // it came too early, the structure tells.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.ended = Some(Ok(()));
                }
                Poll::Ready(Err(error)) => self.ended = Some(Err(error)),
                Poll::Pending if before > 0 => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        let filled = buffer.filled().len();
        if filled == 0
            && let Some(Err(_)) = &self.ended
        {
            // Told once; what is left of a broken source is its end.
            return Poll::Ready(self.ended.replace(Ok(())).unwrap_or(Ok(())).map(|()| 0));
        }
        Poll::Ready(Ok(filled))
    }
}
