//! Runs in a random life: faults and kills while they go on, and between them guests that write, administrators that
//! change the source, and hands that meddle with what is ours. After every step the invariants of a run hold.
//!
//! A schedule is its seed. `VMFERRY_SEED=17` repeats one, `VMFERRY_SCHEDULES=5000` tries that many:
//!
//! ```sh
//! VMFERRY_SCHEDULES=5000 cargo test -p vmferry-scenarios --test random -- --nocapture
//! ```
//!
//! - `dice`: what is random about it.
//! - `life`: the world and what may happen in it.
//! - `invariants`: what always holds.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod dice;
mod invariants;
mod life;

use dice::Dice;
use life::Life;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinSet;

/// How many schedules are tried where nobody asks for more.
const SCHEDULES: u64 = 48;

/// Steps of a schedule; two undisturbed runs follow.
const STEPS: usize = 14;

/// Schedules at a time: a step mostly waits for the other side.
const AT_A_TIME: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_the_invariants_hold() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("VMFERRY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("VMFERRY_SCHEDULES").unwrap_or(SCHEDULES),
    };
    let (mut seeds, mut running, mut broken) = (seeds, JoinSet::new(), Vec::new());
    loop {
        while running.len() < AT_A_TIME
            && let Some(seed) = seeds.next()
        {
            running.spawn(schedule(seed));
        }
        match running.join_next().await {
            Some(ended) => broken.extend(ended.expect("a schedule catches its own panic").err()),
            None => break,
        }
    }
    assert!(broken.is_empty(), "{} schedules broke an invariant:\n\n{}", broken.len(), broken.join("\n\n"));
}

/// Lives one schedule; the story of it, if an invariant broke.
async fn schedule(seed: u64) -> Result<(), String> {
    let story = Arc::new(Mutex::new(vec![format!("VMFERRY_SEED={seed}")]));
    let told = Arc::clone(&story);
    let living = tokio::spawn(async move {
        let mut life = Life::new(Dice::new(seed), told).await;
        for _ in 0..STEPS {
            life.step().await;
        }
        life.end().await;
    });
    living.await.map_err(|broken| {
        let panic = broken.into_panic();
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let mut story = story.lock().unwrap_or_else(PoisonError::into_inner).clone();
        story.push(text.unwrap_or_default());
        story.join("\n  ")
    })
}
