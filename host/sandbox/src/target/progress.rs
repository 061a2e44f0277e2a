//! Whether a transfer moves. A disk may take hours, so what is limited is the time without any progress.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

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
        let mut seen = self.moves.load(Ordering::Relaxed);
        let mut since = Instant::now();
        while since.elapsed() < limit {
            tokio::time::sleep((limit / 4).max(Duration::from_millis(1))).await;
            let moves = self.moves.load(Ordering::Relaxed);
            if moves != seen || self.waits.load(Ordering::Relaxed) > 0 {
                seen = moves;
                since = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test(start_paused = true)]
    async fn what_moves_or_waits_for_the_host_does_not_stall() {
        let progress = Progress::default();
        let limit = Duration::from_secs(60);
        let moving = async {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                progress.moved();
            }
        };
        tokio::select! { () = progress.stalls(limit) => panic!("it moved"), () = moving => {} }
        let waiting = progress.waiting(tokio::time::timeout(Duration::from_secs(3600), pending::<()>()));
        tokio::select! { () = progress.stalls(limit) => panic!("it waited for the host"), _ = waiting => {} }
        let begun = Instant::now();
        progress.stalls(limit).await;
        assert!((60..=75).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    }
}
