//! Whether a call moves. A disk may take hours, and so may what a store has to do to its own files, so what is limited is the time
//! without any progress.
//!
//! There are two kinds of it. Disk data moves on its way through the host: out of its source, into its reader. A call also works:
//! it does something to files, or hears of a server. Work keeps a call alive, but not for ever, or a guest that copies one byte
//! from file to file a minute would keep its turn.

use crate::limits::SYNC;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a call has done so far, told by its thread and watched from outside: a guest, or a file system under it, may keep that
/// thread for itself.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    moves: AtomicU64,
    works: AtomicU64,
    /// Whether it waits for the host's own side, which is no fault of the guest.
    waits: AtomicU32,
    /// Whether it waits until what was written is on a disk.
    syncs: AtomicU32,
}

/// How long a call may go on without progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Without any.
    pub(crate) stall: Duration,
    /// Without disk data on its way, however much it works.
    pub(crate) work: Duration,
}

/// What there was none of for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stalled {
    Everything,
    DiskData,
}

impl Progress {
    /// A chunk was taken, or disk data went on its way.
    pub(crate) fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// A file function did what it was asked for, or a server answered or took a piece.
    pub(crate) fn worked(&self) {
        self.works.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for the host's own side.
    pub(crate) async fn waiting<T>(&self, what: impl Future<Output = T>) -> T {
        let got = counted(&self.waits, what).await;
        self.moved();
        got
    }

    /// Waits until what was written is on a disk: gigabytes may be on their way there.
    pub(crate) async fn syncing<T>(&self, what: impl Future<Output = T>) -> T {
        counted(&self.syncs, what).await
    }

    /// Ends when there was no progress for as long as this, to within a quarter of it.
    pub(crate) async fn stalls(&self, limits: Limits) -> Stalled {
        let mut last = Last::at(Instant::now());
        loop {
            if let Some(stalled) = last.is_over(self, Instant::now(), limits) {
                return stalled;
            }
            tokio::time::sleep((limits.stall.min(limits.work) / 4).max(Duration::from_millis(1))).await;
        }
    }
}

async fn counted<T>(count: &AtomicU32, what: impl Future<Output = T>) -> T {
    count.fetch_add(1, Ordering::Relaxed);
    let got = what.await;
    count.fetch_sub(1, Ordering::Relaxed);
    got
}

/// The last progress that was seen: how often, and when.
struct Last {
    moves: (u64, Instant),
    works: (u64, Instant),
}

impl Last {
    fn at(now: Instant) -> Self {
        Self { moves: (0, now), works: (0, now) }
    }

    /// Of what the last was too long ago. Who waits for the host is not to blame for it.
    fn is_over(&mut self, progress: &Progress, now: Instant, limits: Limits) -> Option<Stalled> {
        let waits = progress.waits.load(Ordering::Relaxed) > 0;
        for (count, last) in [(&progress.moves, &mut self.moves), (&progress.works, &mut self.works)] {
            let count = count.load(Ordering::Relaxed);
            if count != last.0 || waits {
                *last = (count, now);
            }
        }
        let since = |last: Instant| now.saturating_duration_since(last);
        let syncs = progress.syncs.load(Ordering::Relaxed) > 0;
        let stall = if syncs { limits.stall.max(SYNC) } else { limits.stall };
        if since(self.moves.1.max(self.works.1)) >= stall {
            Some(Stalled::Everything)
        } else {
            (since(self.moves.1) >= limits.work).then_some(Stalled::DiskData)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, poll_fn};
    use std::pin::Pin;
    use std::task::Poll;

    const LIMITS: Limits = Limits { stall: Duration::from_secs(60), work: Duration::from_secs(3_600) };

    /// What is over, so many seconds after the beginning.
    fn watching(progress: &Progress) -> impl FnMut(u64) -> Option<Stalled> {
        let begun = Instant::now();
        let mut last = Last::at(begun);
        move |seconds| last.is_over(progress, begun + Duration::from_secs(seconds), LIMITS)
    }

    async fn begin(waiting: Pin<&mut (impl Future + ?Sized)>) {
        let mut waiting = waiting;
        poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending())).await;
    }

    #[tokio::test]
    async fn what_moves_or_waits_for_the_host_does_not_stall() {
        let progress = Progress::default();
        let mut over = watching(&progress);
        assert_eq!(over(59), None);
        progress.moved();
        assert_eq!((over(60), over(119)), (None, None));
        let mut waiting = Box::pin(progress.waiting(pending::<()>()));
        begin(waiting.as_mut()).await;
        assert_eq!((over(10_000), over(20_000)), (None, None));
        // A wait that is over.
        let progress = Progress::default();
        let mut over = watching(&progress);
        progress.waiting(async {}).await;
        assert_eq!((over(60), over(120)), (None, Some(Stalled::Everything)));
    }

    #[tokio::test]
    async fn a_sync_may_take_minutes_and_no_more() {
        let progress = Progress::default();
        let mut over = watching(&progress);
        let mut syncing = Box::pin(progress.syncing(pending::<()>()));
        begin(syncing.as_mut()).await;
        assert_eq!((over(120), over(599)), (None, None));
        assert_eq!(over(600), Some(Stalled::Everything));
    }

    #[test]
    fn work_that_moves_no_disk_data_ends_some_time() {
        let progress = Progress::default();
        let mut over = watching(&progress);
        for seconds in (0..3_600).step_by(50) {
            progress.worked();
            assert_eq!(over(seconds), None);
        }
        progress.worked();
        assert_eq!(over(3_600), Some(Stalled::DiskData));
        progress.moved();
        assert_eq!(over(3_601), None);
    }
}
