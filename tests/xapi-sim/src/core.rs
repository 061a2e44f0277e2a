//! What the servers of one pool share: the state behind its lock, and the signals around it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::config::SimConfig;
use crate::state::State;

pub(crate) struct Core {
    state: Mutex<State>,
    /// The database generation, for those who wait for events.
    generation: watch::Sender<u64>,
    /// Counts the calls, for those who wait for one.
    called: watch::Sender<u64>,
    /// Counts how often the faults were cleared, for those who are stalled by one.
    cleared: watch::Sender<u64>,
    /// Whether clients reach the pool.
    reach: watch::Sender<Reach>,
    /// Counts how often the toolstack ended, and with it whatever it was about to do.
    ended: watch::Sender<u64>,
    pub(crate) transfers: Transfers,
    pub(crate) redirect_transfers_to: Option<String>,
    pub(crate) qcow2_streams: bool,
    pub(crate) data_destroy_patience: Duration,
}

impl Core {
    pub(crate) fn new(state: State, config: &SimConfig) -> Self {
        Self {
            generation: watch::Sender::new(state.db.generation),
            state: Mutex::new(state),
            called: watch::Sender::new(0),
            cleared: watch::Sender::new(0),
            reach: watch::Sender::new(Reach::Up),
            ended: watch::Sender::new(0),
            transfers: Transfers::default(),
            redirect_transfers_to: config.redirect_transfers_to.clone(),
            qcow2_streams: config.qcow2_streams,
            data_destroy_patience: config.data_destroy_patience,
        }
    }

    /// Works on the state and then tells of what changed.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = work(&mut state);
        let generation = state.db.generation;
        drop(state);
        self.generation.send_if_modified(|seen| std::mem::replace(seen, generation) != generation);
        result
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    pub(crate) fn clear_faults(&self) -> usize {
        let unstruck = self.with(|state| state.faults.clear());
        self.transfers.let_go();
        self.cleared.send_modify(|count| *count += 1);
        unstruck
    }

    pub(crate) fn note_call(&self, method: &str) {
        self.with(|state| state.calls.push(method.to_owned()));
        self.called.send_modify(|count| *count += 1);
    }

    pub(crate) async fn wait_for_call(&self, method: &str) {
        let was_called = |_: &u64| self.with(|state| state.calls.iter().any(|call| call == method));
        // The sender lives as long as `self`.
        let _ = self.called.subscribe().wait_for(was_called).await;
    }

    /// The toolstack ends, and with it every connection and what it was at. Sessions and tasks were in its memory alone.
    pub(crate) fn go_down(&self) {
        self.reach.send_replace(Reach::Down);
        self.ended.send_modify(|count| *count += 1);
        self.with(State::forget_what_is_not_kept);
    }

    pub(crate) fn go_silent(&self) {
        self.reach.send_replace(Reach::Silent);
    }

    pub(crate) fn come_back(&self) {
        self.reach.send_replace(Reach::Up);
    }

    /// Does something for as long as the toolstack lives.
    pub(crate) async fn while_alive(&self, work: impl Future<Output = ()>) {
        let mut ended = self.ended.subscribe();
        tokio::select! {
            biased;
            // The sender lives as long as `self`: this ends by a change alone.
            _ = ended.changed() => {}
            () = work => {}
        }
    }

    /// Serves a connection for as long as the client reaches the pool. One that is cut off stays open and stands still until
    /// the pool is back. `None` where the connection was cut.
    pub(crate) async fn while_reachable<T>(&self, connection: impl Future<Output = T>) -> Option<T> {
        let mut connection = std::pin::pin!(connection);
        let (mut reach, mut ended) = (self.reach.subscribe(), self.ended.subscribe());
        let found = *reach.borrow_and_update();
        if found == Reach::Up {
            tokio::select! {
                biased;
                _ = ended.changed() => return None,
                _ = reach.changed() => {}
                outcome = &mut connection => return Some(outcome),
            }
        }
        let _ = reach.wait_for(|reach| *reach != Reach::Silent).await;
        None
    }

    /// Stands still until the faults are cleared.
    pub(crate) async fn stall(&self) {
        let mut cleared = self.cleared.subscribe();
        let _stalled = self.transfers.stalled();
        // The sender lives as long as `self`: this ends by a change alone.
        let _ = cleared.changed().await;
    }
}

/// What a client that tries to reach the pool meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Up,
    /// Connections end at once.
    Down,
    /// Nothing comes back.
    Silent,
}

/// A panic under the lock has been reported by its own thread; the state behind it is still the best there is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Transfers in progress, and who waits for them to get somewhere.
#[derive(Default)]
pub(crate) struct Transfers(Mutex<Progress>);

#[derive(Default)]
struct Progress {
    next: u64,
    /// Bytes of the body moved, by transfer.
    moved: BTreeMap<u64, u64>,
    /// Of all transfers together, also those that are over.
    total: u64,
    /// Since the faults were last cleared: what was stalled then may not have noticed yet.
    stalled: usize,
    clearances: u64,
    waiting: Vec<(Goal, oneshot::Sender<()>)>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    Bytes(u64),
    Stalled,
}

impl Progress {
    fn reached(&self, goal: Goal) -> bool {
        match goal {
            Goal::Bytes(bytes) => self.moved.values().any(|moved| *moved >= bytes),
            Goal::Stalled => self.stalled > 0,
        }
    }

    /// Nobody misses a moment: whoever waits is told by the one who makes progress.
    fn tell(&mut self) {
        for (goal, waiter) in std::mem::take(&mut self.waiting) {
            if self.reached(goal) {
                // Whoever stopped waiting does not care.
                let _ = waiter.send(());
            } else {
                self.waiting.push((goal, waiter));
            }
        }
    }
}

impl Transfers {
    pub(crate) fn begin(&self) -> u64 {
        let mut progress = lock(&self.0);
        progress.next += 1;
        let id = progress.next;
        progress.moved.insert(id, 0);
        progress.tell();
        id
    }

    pub(crate) fn advance(&self, id: u64, moved: u64) {
        let mut progress = lock(&self.0);
        let before = progress.moved.insert(id, moved).unwrap_or(0);
        progress.total += moved - before;
        progress.tell();
    }

    pub(crate) fn total(&self) -> u64 {
        lock(&self.0).total
    }

    pub(crate) fn end(&self, id: u64) {
        lock(&self.0).moved.remove(&id);
    }

    fn stalled(&self) -> Stalled<'_> {
        let mut progress = lock(&self.0);
        progress.stalled += 1;
        progress.tell();
        Stalled { transfers: self, clearances: progress.clearances }
    }

    fn let_go(&self) {
        let mut progress = lock(&self.0);
        progress.stalled = 0;
        progress.clearances += 1;
    }

    pub(crate) async fn wait(&self, goal: Goal) {
        let (sender, receiver) = oneshot::channel();
        {
            let mut progress = lock(&self.0);
            progress.waiting.push((goal, sender));
            progress.tell();
        }
        let _ = receiver.await;
    }
}

struct Stalled<'a> {
    transfers: &'a Transfers,
    clearances: u64,
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        let mut progress = lock(&self.transfers.0);
        if progress.clearances == self.clearances {
            progress.stalled -= 1;
        }
    }
}
