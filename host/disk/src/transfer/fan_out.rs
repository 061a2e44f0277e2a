//! The writing side of a transfer: the same bytes to every sink that still lives.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::patience::{Alarm, Patience};
use super::{Progress, SinkError, SinkOutcome};

/// All sinks of a transfer. A sink that fails is dropped with its own error; the others go on.
pub(super) struct FanOut<'a, W> {
    lanes: Vec<Lane<'a, W>>,
    progress: &'a dyn Progress,
    /// Rings when the first waiting lane has waited too long.
    alarm: Alarm,
}

/// One sink.
pub(super) struct Lane<'a, W> {
    pub(super) writer: &'a mut W,
    /// Bytes of the stream that it took.
    written: u64,
    failure: Option<SinkError>,
    /// Bytes of the current piece that it took.
    taken: usize,
    patience: Patience,
    /// What it had worked when it was last looked at.
    work: u64,
}

impl<'a, W: AsyncWrite + Unpin> FanOut<'a, W> {
    pub(super) fn new(sinks: &'a mut [W], progress: &'a dyn Progress, patience: &Patience) -> Self {
        let lane = |writer| Lane { writer, written: 0, failure: None, taken: 0, patience: patience.clone(), work: 0 };
        Self { lanes: sinks.iter_mut().map(lane).collect(), progress, alarm: Alarm::new() }
    }

    /// Hands `bytes` to every living sink; done when the slowest has taken them.
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.begin_piece();
        self.write_rest(bytes).await;
    }

    /// The same with what each sink has not taken yet of the current piece, which is `bytes`.
    pub(super) async fn write_rest(&mut self, bytes: &[u8]) {
        self.hand_on(bytes.len(), |_, lane, cx| Pin::new(&mut *lane.writer).poll_write(cx, &bytes[lane.taken..])).await;
    }

    /// Makes every living sink pass on what it holds back.
    pub(super) async fn flush(&mut self) {
        self.work(|_, lane, cx, _| {
            let flushed = ready!(Pin::new(&mut *lane.writer).poll_flush(cx));
            Poll::Ready(flushed.map_err(|error| lane.io(error)))
        })
        .await;
    }

    /// There were sinks, and none is left.
    pub(super) fn all_failed(&self) -> bool {
        !self.lanes.is_empty() && self.lanes.iter().all(|lane| lane.failure.is_some())
    }

    pub(super) fn into_outcomes(self) -> Vec<SinkOutcome> {
        let outcome =
            |lane: Lane<'_, W>| SinkOutcome { bytes_written: lane.written, result: lane.failure.map_or(Ok(()), Err) };
        self.lanes.into_iter().map(outcome).collect()
    }

    /// A new piece, of which nobody has taken anything.
    pub(super) fn begin_piece(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.taken = 0);
    }

    /// Whether the `index`th sink lives.
    pub(super) fn lives(&self, index: usize) -> bool {
        self.lanes[index].failure.is_none()
    }

    /// How many there are, living or not.
    pub(super) fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Drops the `index`th sink.
    pub(super) fn fail(&mut self, index: usize, error: io::Error) {
        let lane = &mut self.lanes[index];
        lane.failure = Some(lane.io(error));
    }

    /// Has every living sink take the rest of a piece of `length` bytes by `write`, again and again.
    pub(super) async fn hand_on(
        &mut self,
        length: usize,
        mut write: impl FnMut(usize, &mut Lane<'_, W>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) {
        self.work(|index, lane, cx, progress| {
            while lane.taken < length {
                match ready!(write(index, lane, cx)) {
                    Ok(0) => return Poll::Ready(Err(SinkError::Closed { at: lane.written })),
                    Ok(n) => {
                        lane.patience.moved();
                        lane.taken += n;
                        lane.written += n as u64;
                        progress.written(index, n as u64);
                    }
                    Err(error) => return Poll::Ready(Err(lane.io(error))),
                }
            }
            Poll::Ready(Ok(()))
        })
        .await;
    }

    /// Has every living sink do `step`, as far as it lets itself be moved, until all are done or dropped.
    async fn work(
        &mut self,
        mut step: impl FnMut(usize, &mut Lane<'_, W>, &mut Context<'_>, &dyn Progress) -> Poll<Result<(), SinkError>>,
    ) {
        poll_fn(|cx| {
            loop {
                let mut next_deadline: Option<Instant> = None;
                for (index, lane) in self.lanes.iter_mut().enumerate().filter(|(_, lane)| lane.failure.is_none()) {
                    let outcome = step(index, lane, cx, self.progress);
                    if outcome.is_pending() {
                        lane.look_at_work(self.progress.sink_work(index));
                    }
                    if let Some(deadline) = lane.judge(outcome) {
                        next_deadline = Some(next_deadline.map_or(deadline, |next| next.min(deadline)));
                    }
                }
                match next_deadline {
                    Some(deadline) => ready!(self.alarm.poll(cx, deadline)),
                    None => return Poll::Ready(()),
                }
            }
        })
        .await;
    }
}

impl<W> Lane<'_, W> {
    /// Bytes of the current piece that it took.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// Who works has not stalled, though it takes nothing.
    fn look_at_work(&mut self, work: u64) {
        if work != self.work {
            self.work = work;
            self.patience.moved();
        }
    }

    /// `None`: done or dropped; else it is waited for until then.
    fn judge(&mut self, outcome: Poll<Result<(), SinkError>>) -> Option<Instant> {
        match outcome {
            Poll::Ready(Ok(())) => self.patience.moved(),
            Poll::Ready(Err(failure)) => self.failure = Some(failure),
            Poll::Pending => match self.patience.waiting() {
                Ok(deadline) => return Some(deadline),
                Err(waited) => self.failure = Some(SinkError::Stalled { at: self.written, waited }),
            },
        }
        None
    }

    fn io(&self, source: io::Error) -> SinkError {
        SinkError::Io { at: self.written, source }
    }
}
