//! Where chunks pass from the transfer to who takes them, on whichever threads the two are.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{BrokenOff, Chunk};

/// The two ends of a handover of at most `ahead` chunks.
pub(super) fn new(ahead: usize) -> (Sender, ChunkReceiver) {
    let shared = Arc::new(Shared { ahead, state: Mutex::default() });
    (Sender { shared: Arc::clone(&shared) }, ChunkReceiver { shared })
}

#[derive(Debug)]
struct Shared {
    ahead: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Chunks that nobody has taken.
    ready: VecDeque<Chunk>,
    /// What the sender came to.
    ended: Option<Result<(), BrokenOff>>,
    /// Why the receiver takes nothing more.
    refused: Option<BrokenOff>,
    sender: Option<Waker>,
    receiver: Option<Waker>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No statement under the lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where chunks are put.
#[derive(Debug)]
pub(super) struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    /// Ready when another chunk may be begun.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), BrokenOff>> {
        let mut state = self.shared.state();
        if let Some(why) = &state.refused {
            return Poll::Ready(Err(why.clone()));
        }
        if state.ready.len() < self.shared.ahead {
            return Poll::Ready(Ok(()));
        }
        state.sender = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Hands a chunk over.
    pub(super) fn put(&self, chunk: Chunk) {
        self.change(|state| state.ready.push_back(chunk));
    }

    /// Nothing follows: everything was handed over, or why not. Only the first word counts.
    pub(super) fn end(&self, how: Result<(), BrokenOff>) {
        self.change(|state| {
            if state.ended.is_none() {
                state.ended = Some(how);
            }
        });
    }

    /// Why nothing is taken any more, if so.
    pub(super) fn refused(&self) -> Option<BrokenOff> {
        self.shared.state().refused.clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.shared.state();
        change(&mut state);
        let receiver = state.receiver.take();
        drop(state);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.end(Err(BrokenOff("the transfer ended before the stream did".to_owned())));
    }
}

/// Where chunks come out, in ascending order. Dropping it fails the sink.
#[derive(Debug)]
pub struct ChunkReceiver {
    shared: Arc<Shared>,
}

impl ChunkReceiver {
    /// The next chunk; none behind the last one of a stream that was complete. Chunks may be held while others are taken. Nothing is
    /// lost where the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Chunk>, BrokenOff> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same, polled.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>, BrokenOff>> {
        let mut state = self.shared.state();
        if let Some(Err(why)) = &state.ended {
            return Poll::Ready(Err(why.clone()));
        }
        let Some(chunk) = state.ready.pop_front() else {
            if state.ended.is_some() {
                return Poll::Ready(Ok(None));
            }
            state.receiver = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let sender = state.sender.take();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
        Poll::Ready(Ok(Some(chunk)))
    }

    /// Takes nothing more, and has the sink fail for this reason.
    pub fn refuse(self, why: impl Into<String>) {
        self.refuse_for(why.into());
    }

    fn refuse_for(&self, why: String) {
        let mut state = self.shared.state();
        state.refused.get_or_insert(BrokenOff(why));
        let unwanted = std::mem::take(&mut state.ready);
        let sender = state.sender.take();
        drop(state);
        drop(unwanted);
        if let Some(sender) = sender {
            sender.wake();
        }
    }
}

impl Drop for ChunkReceiver {
    fn drop(&mut self) {
        self.refuse_for("nobody takes its chunks any more".to_owned());
    }
}
