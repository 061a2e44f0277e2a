//! How long a decision takes, each in a fresh sandbox.
//!
//! ```text
//! cargo run --release -p vmferry-sandbox --example decision
//! ```

use anyhow::Context;
use std::io::Write;
use std::time::{Duration, Instant};
use vmferry_model::plugin::ScheduleState;
use vmferry_sandbox::{Instance, Package, Sandbox, Settings};

const DECISIONS: usize = 20_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let sandbox = Sandbox::new(&Settings::default())?;
    let bundled = vmferry_bundle::get("schedule-interval").context("the bundle has no schedule-interval")?;
    let package = Package::from_parts(bundled.id, bundled.manifest, bundled.component)?;
    let begun = Instant::now();
    let plugin = sandbox.load(&package).await?;
    writeln!(out, "allocation {:?}; load with compilation {:?}", sandbox.allocation(), begun.elapsed())?;

    let with = serde_json::json!({ "every": "15m" });
    let scheduler = plugin.scheduler(Instance { with, ..Instance::default() }).await?;
    let now: jiff::Timestamp = "2026-11-21T07:30:00Z".parse()?;
    let state = ScheduleState { job: "erp".to_owned(), last_started: Some(now), ..Default::default() };
    for _ in 0..1_000 {
        scheduler.next_run(&state, now).await?;
    }
    let mut times = Vec::with_capacity(DECISIONS);
    for _ in 0..DECISIONS {
        let begun = Instant::now();
        scheduler.next_run(&state, now).await?;
        times.push(begun.elapsed());
    }
    times.sort();
    let at = |share: f64| times[((DECISIONS - 1) as f64 * share) as usize];
    writeln!(out, "one after the other: median {:?}, p99 {:?}, best {:?}", at(0.5), at(0.99), times[0])?;

    let begun = Instant::now();
    let due: Vec<_> = (0..10_000)
        .map(|_| {
            let (scheduler, state) = (scheduler.clone(), state.clone());
            tokio::spawn(async move { scheduler.next_run(&state, now).await })
        })
        .collect();
    for decision in due {
        decision.await??;
    }
    let took: Duration = begun.elapsed();
    writeln!(out, "10,000 due jobs of one plugin: {took:?}")?;
    Ok(())
}
