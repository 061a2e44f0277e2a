//! The watchdog: how long a side may be waited for.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// The patience with one side. Time counts only while that side is the one waited for.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// Since it is being waited for: when that is too long.
    deadline: Option<Instant>,
    /// How long the next wait may last.
    next: Duration,
    /// How long every later wait may last.
    stall: Duration,
}

impl Patience {
    pub(super) fn new(first_byte: Duration, stall: Duration) -> Self {
        Self { deadline: None, next: first_byte.max(stall), stall }
    }

    /// It is not waited for any more.
    pub(super) fn moved(&mut self) {
        if self.deadline.take().is_some() {
            self.next = self.stall;
        }
    }

    /// It is at work: every wait from now on is a later one.
    pub(super) fn at_work(&mut self) {
        self.deadline = None;
        self.next = self.stall;
    }

    /// It is waited for: until when, or the limit, if that has passed.
    pub(super) fn waiting(&mut self) -> Result<Instant, Duration> {
        let now = Instant::now();
        let deadline = *self.deadline.get_or_insert(now + self.next);
        if deadline > now { Ok(deadline) } else { Err(self.next) }
    }
}

/// Wakes a transfer that waits. It may ring too early, never too late: deadlines mostly move away,
/// and following each one costs more.
#[derive(Debug)]
pub(super) struct Alarm(Pin<Box<Sleep>>);

impl Alarm {
    /// An alarm that is set when it is first polled.
    pub(super) fn new() -> Self {
        Self(Box::pin(sleep(Duration::ZERO)))
    }

    /// Ready when the deadlines have to be looked at again, at the latest at `deadline`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if self.0.is_elapsed() || self.0.deadline() > deadline {
            self.0.as_mut().reset(deadline);
        }
        self.0.as_mut().poll(cx)
    }
}
