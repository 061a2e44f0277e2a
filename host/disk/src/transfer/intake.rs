//! The reading side of a transfer.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::patience::{Alarm, Patience};
use super::throttle::{self, Throttle};
use super::{Progress, TransferError};

/// A source, read in large pieces, throttled, under a time limit.
pub(super) struct Intake<'a, R> {
    reader: &'a mut R,
    progress: &'a dyn Progress,
    throttles: &'a [Arc<Throttle>],
    /// Bytes of the stream that came, head included.
    at: u64,
    patience: Patience,
    alarm: Alarm,
    /// What the source had worked when it was last looked at.
    work: u64,
    /// What came behind the bytes: the end, or an error that is told once.
    ended: Option<io::Result<()>>,
}

impl<'a, R: AsyncRead + Unpin> Intake<'a, R> {
    /// A source of which `at` bytes were read before.
    pub(super) fn new(
        reader: &'a mut R,
        at: u64,
        progress: &'a dyn Progress,
        throttles: &'a [Arc<Throttle>],
        patience: Patience,
    ) -> Self {
        progress.read(at);
        Self { reader, progress, throttles, at, patience, alarm: Alarm::new(), work: 0, ended: None }
    }

    /// Bytes of the stream that came, head included.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// What comes next is the end or an error.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// The source itself.
    pub(super) fn reader(&self) -> &R {
        self.reader
    }

    /// Waits until the throttles allow a read, and tells how many of `wanted` bytes that may be. A
    /// source that nobody asks does not stall.
    pub(super) async fn allowance(&self, wanted: usize) -> usize {
        throttle::allowance(self.throttles, wanted).await
    }

    /// Fills `buffer`, or what a throttle allows of it; less only at the end of the stream, 0 behind it.
    ///
    /// A slow source gives little at a time, under TLS a record of at most 16 KiB. Whole buffers
    /// make for few writes, and leaves in one piece cost half as much to hash as in many.
    pub(super) async fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TransferError> {
        let allowed = self.allowance(buffer.len()).await;
        let mut buffer = ReadBuf::new(&mut buffer[..allowed]);
        while buffer.remaining() > 0 && self.ended.is_none() {
            let before = buffer.filled().len();
            let read = self.wait(|reader, cx| Pin::new(reader).poll_read(cx, &mut buffer)).await?;
            self.came(read.map(|()| buffer.filled().len() - before));
        }
        match (buffer.filled().len(), self.ended.take()) {
            (0, Some(Err(source))) => {
                // What is left of a broken source is its end.
                self.ended = Some(Ok(()));
                Err(TransferError::Source { at: self.at, source })
            }
            (filled, ended) => {
                self.ended = ended;
                Ok(filled)
            }
        }
    }

    /// Whether nothing follows. A byte that does is lost.
    pub(super) async fn is_at_end(&mut self) -> Result<bool, TransferError> {
        Ok(self.fill(&mut [0]).await? == 0)
    }

    /// Takes note of what a read gave.
    pub(super) fn came(&mut self, read: io::Result<usize>) {
        match read {
            Ok(0) => self.ended = Some(Ok(())),
            Ok(bytes) => {
                let bytes = bytes as u64;
                self.at += bytes;
                self.patience.at_work();
                self.progress.read(bytes);
                throttle::charge(self.throttles, bytes);
            }
            // TLS says so of a peer that closes without a farewell. An end is an end; whether it
            // came too early, the structure tells.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.ended = Some(Ok(())),
            Err(error) => self.ended = Some(Err(error)),
        }
    }

    /// Waits for one read, but not for ever.
    pub(super) async fn wait<T>(
        &mut self,
        mut read: impl FnMut(&mut R, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Result<io::Result<T>, TransferError> {
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(done) = read(self.reader, cx) {
                    self.patience.moved();
                    return Poll::Ready(Ok(done));
                }
                let work = self.progress.work();
                if work != self.work {
                    self.work = work;
                    self.patience.at_work();
                }
                match self.patience.waiting() {
                    Ok(deadline) => ready!(self.alarm.poll(cx, deadline)),
                    Err(waited) => return Poll::Ready(Err(TransferError::SourceStalled { at: self.at, waited })),
                }
            }
        })
        .await
    }
}
