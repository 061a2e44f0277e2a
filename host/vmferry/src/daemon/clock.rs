//! Time, passed in.

use async_trait::async_trait;
use jiff::Timestamp;
use std::time::Duration;

/// Tells the time and waits for it.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
    /// Returns at `at`, or at once if it has passed.
    async fn sleep_until(&self, at: Timestamp);
}

/// The machine's clock.
pub struct SystemClock;

/// Longest uninterrupted sleep: a clock that was set, or a machine that slept, is noticed after this.
const NAP: Duration = Duration::from_secs(30);

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    async fn sleep_until(&self, at: Timestamp) {
        // Conversion fails for what has passed.
        while let Ok(left) = Duration::try_from(at.duration_since(self.now()))
            && !left.is_zero()
        {
            tokio::time::sleep(left.min(NAP)).await;
        }
    }
}
