//! A scheduler: a run at a fixed interval, and sooner after one that failed.
//!
//! The interval is counted from the start of the last run, so that runs of different lengths do not drift apart. A
//! run that takes longer than the interval is followed by the next at once; runs of one job never overlap.

use serde::Deserialize;
use vmferry_plugin_api::Span;
use vmferry_plugin_api::scheduler::*;

/// The plugin.
struct Interval;

/// `with = { every = "15m" }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// From the start of one run to the start of the next.
    every: Span,
}

/// The first wait after a failure, in seconds; it doubles with each further one, up to the interval.
const FIRST_RETRY: i64 = 60;

impl Scheduler for Interval {
    type Config = Config;

    fn describe() -> Description {
        description!("Starts a run at a fixed interval, and sooner after one that failed.")
    }

    fn next_run(config: Config, state: State, now: Timestamp) -> Result<Due, Error> {
        let every = config.every.seconds();
        let due = match (state.last_started, &state.last_outcome) {
            (None, _) => now,
            // What failed once often works a minute later; what keeps failing should not be asked every minute.
            (Some(started), Some(Outcome::Failed | Outcome::Partial | Outcome::Skipped)) => {
                state.last_ended.unwrap_or(started).saturating_add(retry_wait(state.failures_since_success, every))
            }
            (Some(started), _) => started.saturating_add(every),
        };
        // A clock that was set back must not put the next run off by more than the interval.
        Ok(Due::At(due.min(now.saturating_add(every))))
    }
}

fn retry_wait(failures: u32, every: i64) -> i64 {
    let doublings = failures.saturating_sub(1).min(32);
    FIRST_RETRY.saturating_mul(1 << doublings).min(every)
}

vmferry_plugin_api::export_scheduler!(Interval);

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = 1_800_000_000;

    fn due(every: &str, state: State) -> i64 {
        let config = vmferry_plugin_api::parse_config(&format!("{{\"every\":\"{every}\"}}")).expect("settings");
        match Interval::next_run(config, state, NOW) {
            Ok(Due::At(at)) => at - NOW,
            other => panic!("{other:?}"),
        }
    }

    fn after(started: i64, ended: i64, outcome: Outcome, failures: u32) -> State {
        State {
            job: "erp".to_owned(),
            last_started: Some(NOW + started),
            last_ended: Some(NOW + ended),
            last_outcome: Some(outcome),
            last_success: None,
            failures_since_success: failures,
            extensions: Vec::new(),
        }
    }

    fn never_ran() -> State {
        State { last_started: None, last_ended: None, last_outcome: None, ..after(0, 0, Outcome::Succeeded, 0) }
    }

    #[test]
    fn a_job_that_never_ran_is_due_at_once() {
        assert_eq!(due("15m", never_ran()), 0);
    }

    #[test]
    fn the_interval_counts_from_the_start_of_the_last_run() {
        assert_eq!(due("15m", after(-300, -100, Outcome::Succeeded, 0)), 600);
        assert_eq!(due("15m", after(-300, -100, Outcome::Refused, 1)), 600);
        assert_eq!(due("15m", after(-2000, -10, Outcome::Succeeded, 0)), -1100, "late: at once");
    }

    #[test]
    fn a_failed_run_is_retried_sooner_and_ever_more_patiently() {
        let waits: Vec<_> = (1..7).map(|failures| due("15m", after(-900, 0, Outcome::Failed, failures))).collect();
        assert_eq!(waits, [60, 120, 240, 480, 900, 900]);
        assert_eq!(due("30s", after(-30, 0, Outcome::Failed, 1)), 30, "never later than the interval");
        assert_eq!(due("1d", after(-900, 0, Outcome::Failed, u32::MAX)), 86_400);
    }

    #[test]
    fn a_clock_that_was_set_back_delays_by_no_more_than_the_interval() {
        assert_eq!(due("15m", after(86_400, 86_500, Outcome::Succeeded, 0)), 900);
    }

    #[test]
    fn wrong_settings_name_the_key() {
        let refusal = |json: &str| vmferry_plugin_api::parse_config::<Config>(json).expect_err("wrong").message;
        assert_eq!(
            refusal(r#"{"every": "often"}"#),
            "`every`: invalid value: string \"often\", expected a length of time like \"30s\", \"15m\", \"1h30m\" or \"7d\""
        );
        assert_eq!(refusal("{}"), "missing field `every`");
    }
}
