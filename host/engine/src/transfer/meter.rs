//! How far a stream got.

use super::{Taker, Tap};
use crate::progress::{DiskLabel, Progress};
use crate::storing::Seen;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Tells the watcher how far the stream got, and the transfer who works although nothing moves.
pub(super) struct Meter {
    progress: Arc<dyn Progress>,
    label: DiskLabel,
    written: Vec<AtomicU64>,
    told: AtomicU64,
    work: Option<Arc<AtomicU64>>,
    sinks: Vec<Works>,
    begun: Instant,
}

/// How a sink tells that it works although it takes nothing.
struct Works {
    /// One that gets a part.
    part: Option<Arc<AtomicU64>>,
    /// A store.
    store: Option<Arc<Seen>>,
}

impl Meter {
    pub(super) fn new(
        progress: Arc<dyn Progress>,
        label: DiskLabel,
        takers: &[Taker],
        work: Option<Arc<AtomicU64>>,
    ) -> Self {
        let written = takers.iter().map(|_| AtomicU64::new(0)).collect();
        let sinks = takers.iter().map(|taker| match &taker.tap {
            Tap::Whole(sink) => Works { part: None, store: sink.seen() },
            Tap::Part(part) => Works { part: Some(part.work()), store: part.sink().seen() },
        });
        Self { progress, label, written, told: AtomicU64::new(0), work, sinks: sinks.collect(), begun: Instant::now() }
    }
}

impl vmferry_disk::transfer::Progress for Meter {
    fn read(&self, _: u64) {}

    fn work(&self) -> u64 {
        self.work.as_ref().map_or(0, |work| work.load(Ordering::Relaxed))
    }

    fn sink_work(&self, sink: usize) -> u64 {
        let Works { part, store } = &self.sinks[sink];
        let worked = part.as_ref().map_or(0, |work| work.load(Ordering::Relaxed));
        // A store's call may wait for its turn among others, or for a medium to take gigabytes: who runs it ends it when it stalls.
        let works = store.as_ref().is_some_and(|seen| seen.may_work(self.begun));
        worked + if works { self.begun.elapsed().as_millis() as u64 } else { 0 }
    }

    /// A dead sink stays behind, so the foremost one is what is told.
    fn written(&self, sink: usize, bytes: u64) {
        let now = self.written[sink].fetch_add(bytes, Ordering::Relaxed) + bytes;
        let told = self.told.fetch_max(now, Ordering::Relaxed);
        if now > told {
            self.progress.disk_advanced(&self.label, now - told);
        }
    }
}
