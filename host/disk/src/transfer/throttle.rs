//! Throttles: bytes per second, asked before each read, so that the source feels it through its socket.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, Sleep, sleep};

/// How often a throttle asks for its rate, and so how late a change takes effect.
const RATE_AGE: Duration = Duration::from_secs(1);

/// What may pass at once, in seconds of the rate: enough to keep sockets busy, too little to notice.
const BURST_SECONDS: f64 = 0.125;

/// A read that is allowed at all may take this much: one TLS record.
const MIN_READ: usize = 16 << 10;

/// A limit in bytes per second, shared by all transfers that hold it: those of a job, or those that go
/// over a link. Bytes are counted as a transfer reads them. What a source reads to compare, and mostly does not give, is
/// counted where it is read: [`Resync::throttled`](crate::chunked::Resync::throttled).
///
/// A read may overdraw it, and what follows waits until that is made up for. So over any time it lets
/// pass its rate, an eighth of a second's worth, and at most the last read of each transfer.
pub struct Throttle {
    rate: Box<dyn Fn(SystemTime) -> Option<u64> + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bucket: Bucket,
    /// The rate, and when it was asked for.
    known: Option<(Option<u64>, Instant)>,
}

impl Throttle {
    /// A throttle whose limit at a time of day is `rate`: bytes per second, 0 to let nothing pass, `None`
    /// for no limit. It is asked at most once a second, and only while transfers run.
    pub fn new(rate: impl Fn(SystemTime) -> Option<u64> + Send + Sync + 'static) -> Self {
        Self { rate: Box::new(rate), state: Mutex::new(State { bucket: Bucket::new(Instant::now()), known: None }) }
    }

    /// Counts `bytes` that were read.
    fn charge(&self, bytes: u64) {
        let mut state = self.state();
        // Without a limit nothing has to be made up for later.
        if state.known.is_some_and(|(rate, _)| rate.is_some()) {
            state.bucket.charge(bytes);
        }
    }

    /// The bytes of `wanted` that may be read now, or how long to wait before asking again.
    fn ask(&self, wanted: usize) -> Result<usize, Duration> {
        let mut state = self.state();
        let now = Instant::now();
        let rate = match state.known {
            Some((rate, since)) if now < since + RATE_AGE => rate,
            _ => {
                let rate = (self.rate)(SystemTime::now());
                state.known = Some((rate, now));
                rate
            }
        };
        match rate {
            None => {
                state.bucket = Bucket::new(now);
                Ok(wanted)
            }
            Some(rate) => state.bucket.ask(rate, now).map(|allowed| wanted.min(allowed)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is plain numbers, whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle").field("state", &self.state).finish_non_exhaustive()
    }
}

/// How many of `wanted` bytes all `throttles` let pass, or how long to wait before asking again.
fn ask(throttles: &[Arc<Throttle>], wanted: usize) -> Result<usize, Duration> {
    throttles.iter().try_fold(wanted, |wanted, throttle| throttle.ask(wanted))
}

/// Waits until all `throttles` let something pass; how many of `wanted` bytes that may be.
pub(super) async fn allowance(throttles: &[Arc<Throttle>], wanted: usize) -> usize {
    loop {
        match ask(throttles, wanted) {
            Ok(allowed) => return allowed,
            Err(wait) => sleep(wait).await,
        }
    }
}

/// Counts `bytes` that were read.
pub(super) fn charge(throttles: &[Arc<Throttle>], bytes: u64) {
    throttles.iter().for_each(|throttle| throttle.charge(bytes));
}

/// Throttles on a reader that is polled.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    throttles: Vec<Arc<Throttle>>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Gate {
    pub(crate) fn new(throttles: &[Arc<Throttle>]) -> Self {
        Self { throttles: throttles.to_vec(), wait: None }
    }

    /// Ready when all throttles let something pass: how many of `wanted` bytes that may be.
    pub(crate) fn poll_allowance(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(cx));
                self.wait = None;
            }
            match ask(&self.throttles, wanted) {
                Ok(allowed) => return Poll::Ready(allowed),
                Err(wait) => self.wait = Some(Box::pin(sleep(wait))),
            }
        }
    }

    /// Counts `bytes` that were read.
    pub(crate) fn charge(&self, bytes: u64) {
        charge(&self.throttles, bytes);
    }
}

/// A token bucket that may be overdrawn. The rate may differ from one call to the next.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Bytes that may pass; below zero it is overdrawn.
    balance: f64,
    filled: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { balance: 0.0, filled: now }
    }

    /// How many bytes may be read at once, or how long until it is worth asking again. The time since
    /// it was last asked counts at `rate` bytes per second.
    fn ask(&mut self, rate: u64, now: Instant) -> Result<usize, Duration> {
        if rate == 0 {
            self.filled = now;
            return Err(RATE_AGE);
        }
        let rate = rate as f64;
        let burst = rate * BURST_SECONDS;
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.balance = (self.balance + passed * rate).min(burst);
        self.filled = now;
        if self.balance >= 0.0 {
            return Ok(MIN_READ.max(burst as usize));
        }
        // A whole millisecond is what timers keep to, and it is more than nothing.
        let until_paid = Duration::try_from_secs_f64(-self.balance / rate).unwrap_or(RATE_AGE);
        Err((until_paid + Duration::from_millis(1)).min(RATE_AGE))
    }

    fn charge(&mut self, bytes: u64) {
        self.balance -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens to a bucket: time passes at a rate, then a read is tried.
    #[derive(Debug, Clone)]
    struct Step {
        millis: u64,
        rate: u64,
        read: usize,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let rate = prop_oneof![Just(0), 1..100_000u64, 1..10_000_000_000u64];
        let step = (0..5000u64, rate, 1..2_000_000usize).prop_map(|(millis, rate, read)| Step { millis, rate, read });
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Over any time: what the rates made of it, a burst of the highest, and one read.
        #[test]
        fn no_more_passes_than_the_rates_allow(steps in steps()) {
            let mut now = Instant::now();
            let mut bucket = Bucket::new(now);
            let (mut allowed, mut passed, mut burst) = (0.0, 0.0, 0.0f64);
            for Step { millis, rate, read } in steps {
                now += Duration::from_millis(millis);
                allowed += rate as f64 * millis as f64 / 1000.0;
                burst = burst.max(rate as f64 * BURST_SECONDS);
                match bucket.ask(rate, now) {
                    Ok(most) => {
                        prop_assert!(rate > 0 && most >= MIN_READ);
                        passed += read as f64;
                        bucket.charge(read as u64);
                        prop_assert!(passed <= (allowed + burst) * 1.000_001 + read as f64);
                    }
                    Err(wait) => prop_assert!(wait > Duration::ZERO && wait <= RATE_AGE),
                }
            }
        }

        /// Who waits as long as told, and as often, gets through.
        #[test]
        fn a_wait_leads_somewhere(rate in 1..10_000_000_000u64, debt in 0..4_000_000u64) {
            let start = Instant::now();
            let mut bucket = Bucket::new(start);
            bucket.charge(debt);
            let mut now = start;
            while let Err(wait) = bucket.ask(rate, now) {
                now += wait;
            }
            let due = debt as f64 / rate as f64;
            let waited = (now - start).as_secs_f64();
            // A millisecond more each time, and it waits at most a second at a time.
            prop_assert!(waited >= due * 0.999_999 && waited <= due + 0.0011 * (due + 1.0), "{waited} s for {due} s");
        }
    }
}
