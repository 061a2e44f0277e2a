//! The writing side of a transfer: the same bytes to every sink that still lives.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep, sleep};

use super::{Progress, SinkError, SinkOutcome};

/// All sinks of a transfer. A sink that fails is dropped with its own error; the others go on.
pub(super) struct FanOut<'a, W> {
    lanes: Vec<Lane<'a, W>>,
    progress: &'a dyn Progress,
    /// Wakes the transfer when the first waiting lane has waited too long. It may ring too early,
    /// never too late: deadlines mostly move away, and following each one costs more.
    alarm: Pin<Box<Sleep>>,
}

/// One sink.
struct Lane<'a, W> {
    writer: &'a mut W,
    written: u64,
    failure: Option<SinkError>,
    /// Bytes of the current buffer that it took.
    taken: usize,
    /// Since it is being waited for: when that is too long.
    deadline: Option<Instant>,
    /// How long the next wait may last.
    patience: Duration,
    /// How long every later wait may last.
    stall: Duration,
}

/// What every sink has to do before the transfer goes on.
#[derive(Clone, Copy)]
enum Work<'b> {
    Write(&'b [u8]),
    Flush,
}

impl<'a, W: AsyncWrite + Unpin> FanOut<'a, W> {
    pub(super) fn new(sinks: &'a mut [W], progress: &'a dyn Progress, [first_byte, stall]: [Duration; 2]) -> Self {
        let lane = |writer| Lane {
            writer,
            written: 0,
            failure: None,
            taken: 0,
            deadline: None,
            patience: first_byte.max(stall),
            stall,
        };
        let lanes = sinks.iter_mut().map(lane).collect();
        Self { lanes, progress, alarm: Box::pin(sleep(stall)) }
    }

    /// Hands `bytes` to every living sink; done when the slowest has taken them.
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.work(Work::Write(bytes)).await;
    }

    /// Makes every living sink pass on what it holds back.
    pub(super) async fn flush(&mut self) {
        self.work(Work::Flush).await;
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

    async fn work(&mut self, work: Work<'_>) {
        for lane in &mut self.lanes {
            lane.taken = 0;
        }
        poll_fn(|cx| self.poll_work(cx, work)).await;
    }

    fn poll_work(&mut self, cx: &mut Context<'_>, work: Work<'_>) -> Poll<()> {
        loop {
            let mut next_deadline: Option<Instant> = None;
            for (index, lane) in self.lanes.iter_mut().enumerate() {
                let took = |bytes| self.progress.written(index, bytes);
                if let Some(deadline) = lane.poll(cx, work, took) {
                    next_deadline = Some(next_deadline.map_or(deadline, |next| next.min(deadline)));
                }
            }
            let Some(deadline) = next_deadline else {
                return Poll::Ready(());
            };
            if self.alarm.is_elapsed() || self.alarm.deadline() > deadline {
                self.alarm.as_mut().reset(deadline);
            }
            if self.alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<W: AsyncWrite + Unpin> Lane<'_, W> {
    /// Works as far as the sink lets it. `None`: done or dropped; else it is waited for until then.
    fn poll(&mut self, cx: &mut Context<'_>, work: Work<'_>, took: impl Fn(u64)) -> Option<Instant> {
        if self.failure.is_some() {
            return None;
        }
        let done = match work {
            Work::Write(bytes) => self.poll_write(cx, bytes, took),
            Work::Flush => Pin::new(&mut *self.writer).poll_flush(cx).map_err(|e| self.io(e)),
        };
        match done {
            Poll::Ready(Ok(())) => self.moved(),
            Poll::Ready(Err(failure)) => self.failure = Some(failure),
            Poll::Pending => return self.waiting(),
        }
        None
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8], took: impl Fn(u64)) -> Poll<Result<(), SinkError>> {
        while self.taken < bytes.len() {
            match Pin::new(&mut *self.writer).poll_write(cx, &bytes[self.taken..]) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(SinkError::Closed { at: self.written }));
                }
                Poll::Ready(Ok(n)) => {
                    self.moved();
                    self.taken += n;
                    self.written += n as u64;
                    took(n as u64);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.io(error))),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// It is not waited for any more.
    fn moved(&mut self) {
        if self.deadline.take().is_some() {
            self.patience = self.stall;
        }
    }

    /// It is waited for: until when, or `None` if that has passed and it is dropped.
    fn waiting(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let deadline = *self.deadline.get_or_insert(now + self.patience);
        if deadline > now {
            return Some(deadline);
        }
        self.failure = Some(SinkError::Stalled { at: self.written, waited: self.patience });
        None
    }

    fn io(&self, source: io::Error) -> SinkError {
        SinkError::Io { at: self.written, source }
    }
}
