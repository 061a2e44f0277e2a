//! Whether a transfer moves. A disk may take hours, so what is limited is the time without any progress.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a call has moved so far, told by its thread and watched from outside: a guest, or a file system under it, may keep that
/// thread for itself.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    moves: AtomicU64,
    /// Whether it waits for the host's own side, which is no fault of the guest.
    waits: AtomicU32,
}

impl Progress {
    /// A chunk was taken, or bytes went on their way.
    pub(crate) fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for the host's own side.
    pub(crate) async fn waiting<T>(&self, what: impl Future<Output = T>) -> T {
        self.waits.fetch_add(1, Ordering::Relaxed);
        let got = what.await;
        self.waits.fetch_sub(1, Ordering::Relaxed);
        self.moved();
        got
    }

    /// Ends when there was no progress for as long as this, to within a quarter of it.
    pub(crate) async fn stalls(&self, limit: Duration) {
        let mut last = Last { moves: 0, at: Instant::now() };
        while !last.is_over(self, Instant::now(), limit) {
            tokio::time::sleep((limit / 4).max(Duration::from_millis(1))).await;
        }
    }
}

/// The last progress that was seen.
struct Last {
    moves: u64,
    at: Instant,
}

impl Last {
    /// Whether that was too long ago. Who waits for the host is not to blame for it.
    fn is_over(&mut self, progress: &Progress, now: Instant, limit: Duration) -> bool {
        let moves = progress.moves.load(Ordering::Relaxed);
        if moves != self.moves || progress.waits.load(Ordering::Relaxed) > 0 {
            *self = Self { moves, at: now };
        }
        now.saturating_duration_since(self.at) >= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, poll_fn};
    use std::task::Poll;

    #[tokio::test]
    async fn what_moves_or_waits_for_the_host_does_not_stall() {
        let (progress, begun) = (Progress::default(), Instant::now());
        let mut last = Last { moves: 0, at: begun };
        let mut is_over =
            |seconds| last.is_over(&progress, begun + Duration::from_secs(seconds), Duration::from_secs(60));
        assert!(!is_over(59));
        progress.moved();
        assert!(!is_over(60) && !is_over(119));
        let mut waiting = Box::pin(progress.waiting(pending::<()>()));
        poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending())).await;
        assert!(!is_over(10_000) && !is_over(20_000));
        drop(waiting);
        // A wait that was given up ends with its call.
        let progress = Progress::default();
        progress.waiting(async {}).await;
        let mut last = Last { moves: 0, at: begun };
        assert!(!last.is_over(&progress, begun + Duration::from_secs(60), Duration::from_secs(60)));
        assert!(last.is_over(&progress, begun + Duration::from_secs(120), Duration::from_secs(60)));
    }
}
