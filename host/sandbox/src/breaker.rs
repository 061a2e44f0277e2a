//! A plugin that keeps breaking is left alone for a while.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Breakdowns within [`WINDOW`] after which a use of a plugin is not called any more.
const BREAKDOWNS: usize = 5;

/// How long a breakdown counts, and so how long the plugin rests.
const WINDOW: Duration = Duration::from_secs(600);

/// Counts traps, timeouts and exceeded limits of one use of a plugin. Time is passed in.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    breakdowns: VecDeque<Instant>,
}

impl Breaker {
    /// Whether the plugin may be called; if not, how long it still rests.
    pub(crate) fn check(&mut self, now: Instant) -> Result<(), Duration> {
        self.forget(now);
        match self.breakdowns.front() {
            Some(oldest) if self.breakdowns.len() >= BREAKDOWNS => Err((*oldest + WINDOW).duration_since(now)),
            _ => Ok(()),
        }
    }

    /// Notes a breakdown; true when it is the one that breaks the circuit.
    pub(crate) fn broke(&mut self, now: Instant) -> bool {
        self.forget(now);
        self.breakdowns.push_back(now);
        self.breakdowns.len() == BREAKDOWNS
    }

    fn forget(&mut self, now: Instant) {
        while self.breakdowns.front().is_some_and(|at| now.saturating_duration_since(*at) >= WINDOW) {
            self.breakdowns.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_breakdown_in_ten_minutes_rests_the_plugin_until_the_first_is_forgotten() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::default();
        for second in 0..4 {
            assert!(!breaker.broke(at(second)));
            assert_eq!(breaker.check(at(second)), Ok(()));
        }
        assert!(breaker.broke(at(100)));
        assert_eq!(breaker.check(at(101)), Err(Duration::from_secs(499)));
        assert_eq!(breaker.check(at(600)), Ok(()));
        assert!(breaker.broke(at(600)), "four of the old ones still count");
    }

    #[test]
    fn breakdowns_far_apart_do_no_harm() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        for hour in 0..20 {
            let now = start + Duration::from_secs(hour * 3600);
            assert!(!breaker.broke(now));
            assert_eq!(breaker.check(now), Ok(()));
        }
    }
}
