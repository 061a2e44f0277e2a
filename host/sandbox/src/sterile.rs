//! WASI for guests that only decide.
//!
//! A guest of any language imports WASI, whether its author wants it or not. A policy gets one in which nothing
//! can be learnt and nothing done: no environment, no files, no network; the clock stands at `now`, random numbers
//! follow from the input, and waiting ends at once.

use crate::state::State;
use std::convert::Infallible;
use std::time::Duration;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtxBuilder};

/// What makes two calls the same call.
pub(crate) struct Replay {
    /// The moment at which the guest's clock stands.
    pub(crate) now: jiff::Timestamp,
    /// Digest of everything the call is given.
    pub(crate) input: blake3::Hash,
}

/// Makes a context sterile.
pub(crate) fn sterilise(wasi: &mut WasiCtxBuilder, replay: &Replay) {
    let digest = replay.input.as_bytes();
    let stream = |domain: &str| {
        // Differently keyed streams, so that secure and insecure numbers do not repeat each other.
        let mut hasher = blake3::Hasher::new_keyed(digest);
        hasher.update(domain.as_bytes());
        Replayed(hasher.finalize_xof())
    };
    let mut seed = [0; 16];
    stream("seed").0.fill(&mut seed);
    wasi.wall_clock(Standing(replay.now))
        .monotonic_clock(Standing(replay.now))
        .secure_random(stream("secure"))
        .insecure_random(stream("insecure"))
        .insecure_random_seed(u128::from_le_bytes(seed));
}

/// Replaces the waiting parts of a linker's clock, which would wait for real.
pub(crate) fn stop_the_clock(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    struct StandingClock;
    impl HasData for StandingClock {
        type Data<'a> = NoWaiting<'a>;
    }
    linker.allow_shadowing(true);
    monotonic_clock::add_to_linker::<_, StandingClock>(linker, |state| NoWaiting { table: &mut state.table })?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A clock that stands.
struct Standing(jiff::Timestamp);

impl HostWallClock for Standing {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn now(&self) -> Duration {
        // Before 1970 there is no WASI time.
        Duration::try_from(self.0.duration_since(jiff::Timestamp::UNIX_EPOCH)).unwrap_or_default()
    }
}

impl HostMonotonicClock for Standing {
    fn resolution(&self) -> u64 {
        1_000_000_000
    }

    fn now(&self) -> u64 {
        0
    }
}

struct NoWaiting<'a> {
    table: &'a mut ResourceTable,
}

impl NoWaiting<'_> {
    fn ready(&mut self) -> wasmtime::Result<Resource<DynPollable>> {
        let elapsed = self.table.push(Elapsed)?;
        subscribe(self.table, elapsed)
    }
}

impl monotonic_clock::Host for NoWaiting<'_> {
    fn now(&mut self) -> wasmtime::Result<monotonic_clock::Instant> {
        Ok(0)
    }

    fn resolution(&mut self) -> wasmtime::Result<monotonic_clock::Duration> {
        Ok(1_000_000_000)
    }

    fn subscribe_instant(&mut self, _: monotonic_clock::Instant) -> wasmtime::Result<Resource<DynPollable>> {
        self.ready()
    }

    fn subscribe_duration(&mut self, _: monotonic_clock::Duration) -> wasmtime::Result<Resource<DynPollable>> {
        self.ready()
    }
}

/// A wait that is over.
struct Elapsed;

#[wasmtime_wasi::async_trait]
impl Pollable for Elapsed {
    async fn ready(&mut self) {}
}

/// Random numbers that are the same for the same input.
struct Replayed(blake3::OutputReader);

impl rand_core::TryRng for Replayed {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}
