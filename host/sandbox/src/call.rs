//! One call into a plugin: a fresh store, every limit armed, and one judgement of what came back.
//!
//! Whoever makes the call has it [`Ready`]; whichever thread runs it begins it there, and has it judged and ended there. So what a
//! file system keeps waiting, opening folders first and closing files last, is that thread, and it keeps its turn until it is done.

use crate::bindings::host::vmferry::plugin::types::Error as GuestError;
use crate::breaker::Breaker;
use crate::convert;
use crate::egress::{Egress, Streams};
use crate::engines::{Lane, TICK};
use crate::folder;
use crate::guest_log::{CallLog, LineRate, Speaker, StdioToLog};
use crate::limits::{
    Budget, CALLS_AT_A_TIME, HOSTCALL_BYTES, HTTP_HEADERS, RANDOM_BYTES, TARGET_HOSTCALL_BYTES, TENANT_CALLS,
    TENANT_TRANSFERS, WORK,
};
use crate::manifest::Kind;
use crate::memory::{Exceeded, Limiter};
use crate::share::Share;
use crate::state::{Lent, Refusals, State};
use crate::sterile::{Replay, sterilise};
use crate::target::data::Data;
use crate::target::{self, Progress, Stalled, Traffic};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vmferry_model::plugin::{PluginError, PluginFailure, PluginId};
use wasmtime::component::{ResourceTable, ResourceTableError};
use wasmtime::{Store, Trap, UpdateDeadline, WasmBacktrace};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi_http::WasiHttpCtx;

/// What a guest's export answers: a trap or a fault of the host outside, the plugin's own error inside.
pub(crate) type Answer<T> = wasmtime::Result<Result<T, GuestError>>;

/// What a call leaves.
pub(crate) type Called<T> = Result<T, Failed>;

/// Why a call gave no answer.
pub(crate) struct Failed {
    failure: PluginFailure,
    /// How long the plugin asks to wait before the same call.
    retry_after: Option<Duration>,
}

impl From<PluginFailure> for Failed {
    fn from(failure: PluginFailure) -> Self {
        Self { failure, retry_after: None }
    }
}

/// In what world a call happens.
pub(crate) enum Surroundings {
    /// Nothing but the input.
    Sterile(Replay),
    /// Real time, real randomness, and the network as granted.
    Open,
    /// The same with the granted folders, and with bodies of requests that stream: for a target's call, which has a thread of
    /// its own.
    Target(Vec<String>),
}

/// How long a call may take.
#[derive(Clone)]
enum Patience {
    /// Neither waiting for its turn nor running goes beyond this.
    Until(Instant),
    /// It waits for its turn until then, and runs as long as it makes progress.
    WhileItWorks(Instant),
    /// As long as it makes progress, and for its turn as long as it takes.
    WhileItMoves,
}

/// Calls one use of a plugin: these settings, these rights, this tenant.
pub(crate) struct Caller {
    pub(crate) id: PluginId,
    pub(crate) budget: Budget,
    lane: Arc<Lane>,
    lent: Arc<Lent>,
    /// A busy plugin holds up itself and nobody else.
    turns: Arc<Semaphore>,
    share: Arc<Share>,
    breaker: Mutex<Breaker>,
    rate: Arc<Mutex<LineRate>>,
    pub(crate) traffic: Arc<Traffic>,
    hostcall_bytes: usize,
    tenant: Arc<str>,
    plugin: Arc<str>,
}

/// A plugin's own error, with what the host may do about it.
pub(crate) struct Refused {
    pub(crate) error: PluginError,
    /// How long the plugin asks to wait before the same call.
    pub(crate) retry_after: Option<Duration>,
}

impl From<Refused> for PluginError {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

impl Caller {
    pub(crate) fn new(id: PluginId, kind: Kind, lane: Arc<Lane>, budget: Budget, lent: Lent) -> Self {
        Self {
            traffic: Arc::default(),
            hostcall_bytes: if kind == Kind::Target { TARGET_HOSTCALL_BYTES } else { HOSTCALL_BYTES },
            budget,
            share: lane.shares.of(&lent.tenant),
            lane,
            turns: Arc::new(Semaphore::new(CALLS_AT_A_TIME)),
            breaker: Mutex::default(),
            rate: Arc::new(Mutex::new(LineRate::new(Instant::now()))),
            tenant: lent.tenant.as_str().into(),
            plugin: id.to_string().into(),
            lent: Arc::new(lent),
            id,
        }
    }

    /// Calls an export in a fresh store. `guest` begins the call, instantiates, calls, and ends it.
    pub(crate) async fn call<T, F: Future<Output = Called<T>> + Send>(
        &self,
        name: &'static str,
        surroundings: Surroundings,
        guest: impl FnOnce(Ready) -> F + Send,
    ) -> Result<T, Refused> {
        self.call_by(self.deadline(), name, surroundings, guest).await
    }

    /// When a call that begins now has ended: it waits for its turn as long as it may run.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.budget.timeout * 2
    }

    /// The same, with a deadline that several calls may share; neither waiting nor running goes beyond it.
    pub(crate) async fn call_by<T, F: Future<Output = Called<T>> + Send>(
        &self,
        deadline: Instant,
        name: &'static str,
        surroundings: Surroundings,
        guest: impl FnOnce(Ready) -> F + Send,
    ) -> Result<T, Refused> {
        self.try_call(Patience::Until(deadline), name, surroundings, guest).await
    }

    /// Calls an export that works on what a target keeps. It may have a whole store to go over, or gigabytes to merge.
    pub(crate) async fn work<T, F: Future<Output = Called<T>> + Send>(
        &self,
        name: &'static str,
        surroundings: Surroundings,
        guest: impl FnOnce(Ready) -> F + Send,
    ) -> Result<T, Refused> {
        self.try_call(Patience::WhileItWorks(Instant::now() + self.budget.timeout), name, surroundings, guest).await
    }

    /// Calls an export that moves disk data. It waits for its turn as long as it takes, and its source with it.
    pub(crate) async fn transfer<T, F: Future<Output = Called<T>> + Send>(
        &self,
        name: &'static str,
        surroundings: Surroundings,
        guest: impl FnOnce(Ready) -> F + Send,
    ) -> Result<T, Refused> {
        self.try_call(Patience::WhileItMoves, name, surroundings, guest).await
    }

    async fn try_call<T, F: Future<Output = Called<T>> + Send>(
        &self,
        patience: Patience,
        name: &'static str,
        surroundings: Surroundings,
        guest: impl FnOnce(Ready) -> F + Send,
    ) -> Result<T, Refused> {
        let started = Instant::now();
        let outcome = self.attempt(patience, name, surroundings, guest).await;
        let Failed { failure, retry_after } = match outcome {
            Ok(answer) => {
                tracing::debug!(plugin = %self.id, call = name, seconds = started.elapsed().as_secs_f64(), "answered");
                return Ok(answer);
            }
            Err(failed) => failed,
        };
        if matches!(failure, PluginFailure::Trap(_) | PluginFailure::Timeout(_) | PluginFailure::Limit { .. })
            && self.breaker.lock().unwrap_or_else(PoisonError::into_inner).broke(Instant::now())
        {
            tracing::error!(plugin = %self.id, tenant = %self.tenant, "broke down too often and is left alone for a while");
        }
        tracing::debug!(plugin = %self.id, call = name, %failure, "failed");
        Err(Refused { error: self.error(name, failure), retry_after })
    }

    pub(crate) fn error(&self, call: &str, failure: PluginFailure) -> PluginError {
        PluginError { plugin: self.id.clone(), call: call.to_owned(), failure }
    }

    async fn attempt<T, F: Future<Output = Called<T>> + Send>(
        &self,
        patience: Patience,
        name: &'static str,
        surroundings: Surroundings,
        guest: impl FnOnce(Ready) -> F + Send,
    ) -> Called<T> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).check(Instant::now()).map_err(|rest| {
            let seconds = rest.as_secs();
            PluginFailure::Denied(format!("broke down five times within ten minutes; it is asked again in {seconds} s"))
        })?;
        // Waiting for a turn is not the plugin's time, so the clock starts behind it.
        let turn = match &patience {
            Patience::Until(deadline) | Patience::WhileItWorks(deadline) => {
                let turn = tokio::time::timeout(self.time_until(*deadline), self.turn()).await;
                turn.map_err(|_| self.busy())??
            }
            Patience::WhileItMoves => self.turn_to_transfer().await?,
        };
        let _awaited = matches!(patience, Patience::WhileItMoves).then(|| self.share.awaited.clone());
        let progress = Arc::<Progress>::default();
        let ready = self.ready(name, surroundings, &patience, progress.clone(), turn);
        if let Patience::Until(deadline) = patience {
            let time = self.time_until(deadline);
            return tokio::time::timeout(time, guest(ready)).await.map_err(|_| PluginFailure::Timeout(time))?;
        }
        let limits = target::Limits { stall: self.budget.stall, work: self.budget.timeout.saturating_mul(WORK) };
        tokio::select! {
            biased;
            called = guest(ready) => called,
            stalled = progress.stalls(limits) => Err(Failed::from(match stalled {
                Stalled::Everything => {
                    limit("time without progress", format!("{} s", limits.stall.as_secs_f64()), "stall")
                }
                Stalled::DiskData => PluginFailure::Timeout(limits.work),
            })),
        }
    }

    /// What is left until a deadline, as far as one call may have it; in milliseconds, as people read them.
    fn time_until(&self, deadline: Instant) -> Duration {
        let left = deadline.saturating_duration_since(Instant::now());
        if left < self.budget.timeout { Duration::from_millis(left.as_millis() as u64) } else { self.budget.timeout }
    }

    /// A turn among the plugin's calls, among its tenant's, and a slot of the engine.
    async fn turn(&self) -> Result<Turn, PluginFailure> {
        self.stand_in_line([&self.turns, &self.share.calls, &self.lane.slots]).await
    }

    /// A turn among the transfers of its tenant, among all, and a slot of the engine. As long as it takes, if it can come at all.
    async fn turn_to_transfer(&self) -> Result<Turn, PluginFailure> {
        let mut turn = pin!(self.stand_in_line([&self.share.transfers, &self.lane.transfers, &self.lane.slots]));
        loop {
            match tokio::time::timeout(self.budget.stall, &mut turn).await {
                Ok(turn) => return Ok(Turn { _transferring: Some(self.share.transferring.clone()), ..turn? }),
                Err(_) if self.share.hangs() => {
                    return Err(PluginFailure::Host(format!(
                        "busy: all {TENANT_TRANSFERS} transfers that `{}` may have hang in file systems that do not answer; see to \
                         these",
                        self.tenant
                    )));
                }
                Err(_) => {}
            }
        }
    }

    /// What is shared with more comes later, or who waits with his own would take it from others meanwhile.
    async fn stand_in_line(&self, lines: [&Arc<Semaphore>; 3]) -> Result<Turn, PluginFailure> {
        let closed = |_| PluginFailure::Host("the sandbox is shutting down".to_owned());
        let mut permits = Vec::with_capacity(lines.len());
        for line in lines {
            permits.push(line.clone().acquire_owned().await.map_err(closed)?);
        }
        Ok(Turn { _permits: permits, _share: self.share.clone(), _transferring: None })
    }

    fn busy(&self) -> PluginFailure {
        let what = match (self.turns.available_permits(), self.share.calls.available_permits()) {
            (0, _) => format!("{CALLS_AT_A_TIME} calls of this plugin are under way"),
            (_, 0) => format!("{TENANT_CALLS} calls of plugins of `{}` are under way", self.tenant),
            _ => "other plugins are using every slot".to_owned(),
        };
        PluginFailure::Host(format!("busy: {what}, and none ended in time"))
    }

    /// A call with all that it needs, not yet begun.
    fn ready(
        &self,
        call: &'static str,
        surroundings: Surroundings,
        patience: &Patience,
        progress: Arc<Progress>,
        turn: Turn,
    ) -> Ready {
        Ready {
            budget: self.budget.clone(),
            lane: self.lane.clone(),
            lent: self.lent.clone(),
            surroundings,
            ticks: match patience {
                Patience::Until(_) => (self.budget.cpu.as_millis() / TICK.as_millis()).max(1),
                Patience::WhileItWorks(_) | Patience::WhileItMoves => u128::MAX,
            },
            speaker: Speaker { tenant: self.tenant.clone(), plugin: self.plugin.clone(), call },
            rate: self.rate.clone(),
            traffic: self.traffic.clone(),
            hostcall_bytes: self.hostcall_bytes,
            progress,
            turn,
        }
    }
}

/// The right to run, given back when it is dropped. A call that nobody waits for any more has it until its thread is done.
struct Turn {
    _permits: Vec<OwnedSemaphorePermit>,
    _share: Arc<Share>,
    _transferring: Option<Arc<()>>,
}

/// A call that has its turn, and all that its store is made of.
pub(crate) struct Ready {
    budget: Budget,
    lane: Arc<Lane>,
    lent: Arc<Lent>,
    surroundings: Surroundings,
    /// How many ticks it may compute for.
    ticks: u128,
    speaker: Speaker,
    rate: Arc<Mutex<LineRate>>,
    traffic: Arc<Traffic>,
    hostcall_bytes: usize,
    progress: Arc<Progress>,
    turn: Turn,
}

/// A call under way.
pub(crate) struct Running {
    pub(crate) store: Store<State>,
    budget: Budget,
    /// Behind the store, whose slot it is.
    _turn: Turn,
}

impl Ready {
    /// Makes the call's store, with every limit armed before any guest code runs: instantiating runs guest code, too. Opens the
    /// folders of a target, so it belongs where the call runs.
    pub(crate) fn begin(self) -> Result<Running, PluginFailure> {
        let Self { budget, lane, lent, surroundings, ticks, speaker, rate, traffic, hostcall_bytes, progress, turn } =
            self;
        let log = CallLog::new(speaker, rate, budget.log);
        let mut wasi = WasiCtxBuilder::new();
        wasi.stdout(StdioToLog::output(log.clone())).stderr(StdioToLog::errors(log.clone()));
        wasi.max_random_size(RANDOM_BYTES);
        let refusals = Refusals::default();
        let whole = || Egress::whole(lent.clone(), refusals.clone());
        let egress = match surroundings {
            Surroundings::Sterile(replay) => {
                sterilise(&mut wasi, &replay);
                whole()
            }
            Surroundings::Open => whole(),
            Surroundings::Target(folders) => {
                // On a thread of its own nothing is won by handing each operation to another; it holds for folders opened after.
                wasi.allow_blocking_current_thread(true);
                for folder in folders {
                    folder::open(&mut wasi, &folder)?;
                }
                let moving = progress.clone();
                let streams = Streams::new(budget.http_body, Arc::new(move |_| moving.worked()));
                Egress::streamed(lent.clone(), refusals.clone(), streams)
            }
        };
        let mut table = ResourceTable::new();
        table.set_max_capacity(budget.host_objects as usize);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(HTTP_HEADERS);
        let state = State {
            wasi: wasi.build(),
            http,
            egress,
            table,
            limiter: Limiter::new(&budget),
            log,
            lent,
            refusals,
            store_operations: 0,
            lock_operations: 0,
            begun: Instant::now(),
            data: Data::new(progress, Traffic::of_call(traffic), budget.held),
        };
        let mut store = Store::new(&lane.engine, state);
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(hostcall_bytes);
        // Every tick the guest lets others run, which is also when the wall clock can end it.
        store.set_epoch_deadline(1);
        let mut ticks = ticks;
        store.epoch_deadline_callback(move |_| {
            ticks -= 1;
            Ok(if ticks == 0 { UpdateDeadline::Interrupt } else { UpdateDeadline::Yield(1) })
        });
        Ok(Running { store, budget, _turn: turn })
    }
}

impl Running {
    /// What came of it. The store, which knows why things went as they did, ends here, and with it the instance and its files.
    pub(crate) fn end<T>(self, answer: Answer<T>) -> Called<T> {
        let state = self.store.data();
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(refused(&error, state)),
            Err(error) => Err(self.judge(&error, state).into()),
        }
    }

    /// Why the guest did not return.
    fn judge(&self, error: &wasmtime::Error, state: &State) -> PluginFailure {
        if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
            return match self.budget.cpu < self.budget.timeout {
                true => limit("CPU time", format!("{} s", self.budget.cpu.as_secs_f64()), "cpu"),
                false => PluginFailure::Timeout(self.budget.timeout),
            };
        }
        if let Some(Exceeded { what, limit: most, setting }) = state.limiter.exceeded.clone() {
            return limit(what, most, setting);
        }
        if matches!(error.downcast_ref::<ResourceTableError>(), Some(ResourceTableError::Full)) {
            return limit("host object", self.budget.host_objects.to_string(), "host_objects");
        }
        if error.is::<wasmtime::PoolConcurrencyLimitError>() {
            return PluginFailure::Host(format!("{error:#}"));
        }
        PluginFailure::Trap(convert::text(&last_words(error, state)))
    }
}

fn limit(what: &str, limit: String, setting: &str) -> PluginFailure {
    PluginFailure::Limit { what: what.to_owned(), limit, setting: setting.to_owned() }
}

/// The plugin's own no; where the host denied it something before, that is the reason worth reading.
fn refused(error: &GuestError, state: &State) -> Failed {
    match state.refusals.first() {
        Some(refusal) => PluginFailure::Denied(convert::text(&refusal.to_string())).into(),
        None => Failed { failure: convert::refusal(error), retry_after: error.retry_after.map(Duration::from_secs) },
    }
}

/// What a guest left behind when it trapped: the cause, the functions it was in, and what it wrote to its standard
/// error, which is where languages put the message of a panic.
fn last_words(error: &wasmtime::Error, state: &State) -> String {
    /// Enough to see where it was; the rest is the runtime's start-up.
    const FRAMES: usize = 4;
    let mut words = error.root_cause().to_string();
    let frames: Vec<_> = error
        .downcast_ref::<WasmBacktrace>()
        .into_iter()
        .flat_map(|trace| trace.frames())
        .filter_map(|frame| frame.func_name().map(str::to_owned))
        .take(FRAMES)
        .collect();
    if !frames.is_empty() {
        words.push_str(&format!(" in {}", frames.join(" < ")));
    }
    let said = state.log.said_on_error();
    if !said.is_empty() {
        words.push_str(&format!("; it said: {said}"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::Engines;
    use crate::grants::{Grants, Rights};
    use crate::lent::HostServices;
    use crate::lookup::Lookups;
    use crate::target::on_own_thread;
    use std::sync::mpsc;
    use wasmtime_wasi::p2::bindings::random::random::Host;

    fn caller(kind: Kind, budget: Budget) -> Caller {
        let engines = Engines::start().expect("engines");
        let lane = if kind == Kind::Target { engines.target } else { engines.notifier };
        caller_of("tenant", kind, budget, lane)
    }

    fn caller_of(tenant: &str, kind: Kind, budget: Budget, lane: Arc<Lane>) -> Caller {
        let lent = Lent {
            tenant: tenant.to_owned(),
            plugin: "any".to_owned(),
            rights: Rights::new("any", None, Grants::default()),
            store_quota: 0,
            services: HostServices::default(),
            lookups: Lookups::of(Arc::default()),
        };
        let id = PluginId { name: "any".to_owned(), version: "1".to_owned() };
        Caller::new(id, kind, lane, budget, lent)
    }

    #[tokio::test]
    async fn nobody_is_given_more_random_bytes_than_a_guest_can_need() {
        let caller = caller(Kind::Notifier, Budget::default_for(Kind::Notifier));
        let replay = Replay { now: jiff::Timestamp::UNIX_EPOCH, input: blake3::hash(b"input") };
        for surroundings in [Surroundings::Open, Surroundings::Sterile(replay)] {
            let patience = Patience::Until(Instant::now());
            let turn = caller.turn().await.expect("a turn");
            let ready = caller.ready("handle", surroundings, &patience, Arc::default(), turn);
            let mut running = ready.begin().expect("a store");
            let random = running.store.data_mut().wasi.random();
            assert_eq!(random.get_random_bytes(RANDOM_BYTES).expect("as many as allowed").len(), RANDOM_BYTES as usize);
            assert!(random.get_random_bytes(RANDOM_BYTES + 1).is_err());
        }
    }

    /// As when it opens a folder, or reads, on a server that is gone.
    #[tokio::test]
    async fn a_call_whose_thread_hangs_is_ended_and_has_its_turn_until_that_goes_on() {
        let budget = Budget { timeout: Duration::from_millis(50), ..Budget::default_for(Kind::Target) };
        let caller = caller(Kind::Target, budget);
        let free = || (caller.turns.available_permits(), caller.lane.slots.available_permits());
        let all = free();
        let (answers, server) = mpsc::channel::<()>();
        let (ended, end) = tokio::sync::oneshot::channel();
        let hanging = |ready: Ready| async move {
            let thread = on_own_thread(async move {
                let _ = server.recv();
                drop(ready.begin()?);
                let _ = ended.send(());
                Ok(())
            });
            thread.await.expect("a thread")
        };
        let called = caller.call("points", Surroundings::Target(Vec::new()), hanging).await;
        assert!(matches!(called.expect_err("hangs").error.failure, PluginFailure::Timeout(_)));
        assert_eq!(free(), (all.0 - 1, all.1 - 1), "its slot is not free");
        drop(answers);
        end.await.expect("went on");
        assert_eq!(free(), all);
    }

    #[tokio::test]
    async fn one_tenant_cannot_have_all_turns_with_however_many_plugins() {
        let budget = Budget::default_for(Kind::Target);
        let first = caller(Kind::Target, budget.clone());
        let next = |tenant| caller_of(tenant, Kind::Target, budget.clone(), first.lane.clone());
        let now = Duration::ZERO;
        let (mut held, mut plugin) = (Vec::new(), next("tenant"));
        while let Ok(turn) = tokio::time::timeout(now, plugin.turn_to_transfer()).await {
            held.push(turn.expect("open"));
            plugin = next("tenant");
        }
        assert_eq!(held.len(), TENANT_TRANSFERS);
        while let Ok(turn) = tokio::time::timeout(now, plugin.turn()).await {
            held.push(turn.expect("open"));
            plugin = next("tenant");
        }
        assert_eq!(held.len(), TENANT_TRANSFERS + TENANT_CALLS);
        assert!(plugin.busy().to_string().contains("16 calls of plugins of `tenant`"));
        let other = next("other");
        for turn in
            [tokio::time::timeout(now, other.turn_to_transfer()).await, tokio::time::timeout(now, other.turn()).await]
        {
            turn.expect("at once").expect("open");
        }
    }
    #[tokio::test]
    async fn a_transfer_does_not_wait_for_those_that_hang() {
        let budget = Budget { stall: Duration::from_millis(20), ..Budget::default_for(Kind::Target) };
        let caller = caller(Kind::Target, budget);
        let mut given_up = Vec::new();
        for _ in 0..TENANT_TRANSFERS {
            given_up.push(caller.turn_to_transfer().await.expect("a turn"));
        }
        let awaited = caller.share.awaited.clone();
        let next = tokio::time::timeout(Duration::from_millis(200), caller.turn_to_transfer()).await;
        assert!(next.is_err(), "one that somebody waits for will end");
        drop(awaited);
        let refused = caller.turn_to_transfer().await.err().map(|failure| failure.to_string());
        assert!(refused.is_some_and(|text| text.contains("all 32 transfers that `tenant` may have hang")));
        given_up.pop();
        assert!(caller.turn_to_transfer().await.is_ok());
    }
}
