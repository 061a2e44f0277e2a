//! How many bytes a guest makes the host hold for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one call may have held at a time.
#[derive(Debug)]
pub(crate) struct Room {
    all: u64,
    held: AtomicU64,
}

/// A part of it in use. It is given back when whatever keeps the bytes is gone: a chunk, a payload, a body, a stream.
#[derive(Debug)]
pub(crate) struct Held {
    room: Arc<Room>,
    bytes: u64,
}

impl Room {
    pub(crate) fn of(bytes: u64) -> Arc<Self> {
        Arc::new(Self { all: bytes, held: AtomicU64::new(0) })
    }

    pub(crate) fn all(&self) -> u64 {
        self.all
    }

    /// Takes room for so many bytes, if there is as much.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Option<Held> {
        let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= self.all);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Held { room: self.clone(), bytes })
    }
}

impl Held {
    /// Gives back what turned out to be too much.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.room.held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_with_what_filled_it() {
        let room = Room::of(10);
        let mut first = room.take(8).expect("room");
        assert!(room.take(3).is_none());
        first.shrink_to(7);
        let second = room.take(3).expect("room for it now");
        drop((first, second));
        assert!(room.take(10).is_some());
    }
}
