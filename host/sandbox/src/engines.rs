//! The compilers-and-runtimes, one per kind of work, and the thread that ends guests that do not end.
//!
//! Policies and notifiers have an engine each because they want opposite things: a policy's call costs a third
//! without concurrency support, and has to be deterministic; a notifier waits for the network. Targets have one because
//! their calls last for hours, and nobody else should wait for a slot that long.

use crate::limits::{MAX_CORE_INSTANCES, MAX_MEMORIES, MAX_MEMORY, MAX_TABLE_ELEMENTS, MAX_TABLES, TRANSFERS};
use crate::share::Shares;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// How often a running guest is interrupted, and so how precise CPU limits are.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Instances that run at a time, over all plugins of one engine: the pool has so many slots.
const INSTANCES: u32 = 32;

/// The same for targets: what moves disk data, and what answers meanwhile.
const TARGET_INSTANCES: u32 = TRANSFERS + INSTANCES;

/// What the pool keeps of an instance's memory when the kernel can tell which pages were touched; without that every
/// kept byte is written on every reset.
const KEEP_RESIDENT: usize = 1 << 20;

/// Slots that keep their memory while nobody uses them: enough for a busy minute, little for an idle day.
const WARM_SLOTS: u32 = 8;

/// The size of a core instance's bookkeeping; guests with thousands of functions stay below it.
const INSTANCE_SIZE: usize = 4 << 20;

/// An engine that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime refuses the configuration or the machine.
    #[error("the WebAssembly engine cannot start: {0}")]
    Engine(String),
    /// The thread that ends endless guests cannot start.
    #[error("the thread that ends endless guests cannot start: {0}")]
    Ticker(#[from] std::io::Error),
}

/// Where instances get their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// From slots set aside at the start: an instance costs microseconds.
    Pooled,
    /// From the system, each time: this process may not reserve the address space that slots need.
    OnDemand,
}

/// One engine and the right to run instances in it.
pub(crate) struct Lane {
    pub(crate) engine: Engine,
    /// One permit per slot, so that waiting for a slot is waiting and not an error.
    pub(crate) slots: Arc<Semaphore>,
    /// Of targets: calls that move disk data, fewer than there are slots, so that others do not wait for them.
    pub(crate) transfers: Arc<Semaphore>,
    /// What each tenant may have of both.
    pub(crate) shares: Shares,
}

/// All engines with epochs enabled, and the thread that makes epochs pass. They come together: an engine whose
/// epoch never moves would let guests run forever, and one that is interrupted unprepared would end all of them.
pub(crate) struct Engines {
    pub(crate) policy: Arc<Lane>,
    pub(crate) notifier: Arc<Lane>,
    pub(crate) target: Arc<Lane>,
    pub(crate) allocation: Allocation,
}

impl Engines {
    pub(crate) fn start() -> Result<Self, EngineError> {
        let (engines, allocation) = match engines(Allocation::Pooled) {
            Ok(engines) => (engines, Allocation::Pooled),
            Err(error) => {
                tracing::warn!(%error, "no address space for pooled plugin instances; each instance allocates its own");
                (engines(Allocation::OnDemand)?, Allocation::OnDemand)
            }
        };
        tracing::info!(
            ?allocation,
            instances = INSTANCES,
            page_scan = PoolingAllocationConfig::is_pagemap_scan_available(),
            "plugin sandbox ready"
        );
        start_ticker(&engines)?;
        raise_open_files();
        let lane = |engine, slots: u32| {
            let turns = |most: u32| Arc::new(Semaphore::new(most as usize));
            Arc::new(Lane { engine, slots: turns(slots), transfers: turns(TRANSFERS), shares: Shares::default() })
        };
        let [policy, notifier, target] = engines;
        Ok(Self {
            policy: lane(policy, INSTANCES),
            notifier: lane(notifier, INSTANCES),
            target: lane(target, TARGET_INSTANCES),
            allocation,
        })
    }
}

/// Those of policies, notifiers and targets.
fn engines(allocation: Allocation) -> Result<[Engine; 3], EngineError> {
    let engine = |config| Engine::new(&config).map_err(|error| EngineError::Engine(format!("{error:#}")));
    Ok([engine(policy_config(allocation))?, engine(config(allocation, INSTANCES))?, engine(target_config(allocation))?])
}

fn config(allocation: Allocation, instances: u32) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        // Nothing here is asked of a plugin's language, and each would widen what a guest can reach for.
        .wasm_memory64(false)
        .wasm_stack_switching(false)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(16));
    if allocation == Allocation::Pooled {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances)));
    }
    config
}

/// Decisions can be replayed: the same input gives the same answer on any machine.
fn policy_config(allocation: Allocation) -> Config {
    let mut config = config(allocation, INSTANCES);
    config.concurrency_support(false).cranelift_nan_canonicalization(true).relaxed_simd_deterministic(true);
    config
}

/// A target calls the host for every piece that it moves, and such a call costs half without concurrency support.
fn target_config(allocation: Allocation) -> Config {
    let mut config = config(allocation, TARGET_INSTANCES);
    config.concurrency_support(false);
    config
}

fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances * MAX_CORE_INSTANCES)
        .total_memories(instances * MAX_MEMORIES)
        .total_tables(instances * MAX_TABLES)
        .total_stacks(instances)
        .max_unused_warm_slots(WARM_SLOTS)
        .max_core_instances_per_component(MAX_CORE_INSTANCES)
        .max_memories_per_component(MAX_MEMORIES)
        .max_tables_per_component(MAX_TABLES)
        .max_memories_per_module(MAX_MEMORIES)
        .max_tables_per_module(MAX_TABLES)
        .max_component_instance_size(INSTANCE_SIZE)
        .max_core_instance_size(INSTANCE_SIZE)
        .table_elements(MAX_TABLE_ELEMENTS as usize)
        .max_memory_size(MAX_MEMORY as usize)
        .pagemap_scan(Enabled::Auto);
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.linear_memory_keep_resident(KEEP_RESIDENT).table_keep_resident(KEEP_RESIDENT);
    }
    pool
}

/// Targets keep files and connections open, more in all than the 1,024 that a process may have by default. The most that it may have is
/// for whoever started it to say.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of open files cannot be raised; many plugins at a time may find no file left");
    }
}

/// A thread, not a task: it has to run when guests keep all workers busy. It ends with the engines.
fn start_ticker(engines: &[Engine]) -> Result<(), std::io::Error> {
    let engines: Vec<_> = engines.iter().map(|engine| engine.weak()).collect();
    std::thread::Builder::new().name("plugin-epochs".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(TICK);
            let mut alive = false;
            for engine in engines.iter().filter_map(|engine| engine.upgrade()) {
                engine.increment_epoch();
                alive = true;
            }
            if !alive {
                return;
            }
        }
    })?;
    Ok(())
}
