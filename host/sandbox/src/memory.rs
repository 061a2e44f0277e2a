//! The limiter: memory summed over everything one instance allocates.

use crate::limits::{Budget, MAX_CORE_INSTANCES, MAX_MEMORIES, MAX_TABLES, bytes};
use wasmtime::ResourceLimiter;

/// A limit that a guest ran into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exceeded {
    pub(crate) what: &'static str,
    pub(crate) limit: String,
    pub(crate) setting: &'static str,
}

/// Counts what one store's instances allocate. wasmtime's own limits hold for each linear memory by itself, and a
/// component may have several.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory: Share,
    table_elements: Share,
    /// The first growth that was denied. A guest whose allocation failed usually traps right after, and this tells why.
    pub(crate) exceeded: Option<Exceeded>,
}

#[derive(Debug)]
struct Share {
    all: u64,
    used: u64,
}

impl Share {
    fn of(all: u64) -> Self {
        Self { all, used: 0 }
    }

    fn grow(&mut self, current: usize, desired: usize) -> bool {
        let used = self.used.saturating_add(desired.saturating_sub(current) as u64);
        let fits = used <= self.all;
        if fits {
            self.used = used;
        }
        fits
    }
}

impl Limiter {
    pub(crate) fn new(budget: &Budget) -> Self {
        Self { memory: Share::of(budget.memory), table_elements: Share::of(budget.table_elements), exceeded: None }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let fits = self.memory.grow(current, desired);
        if !fits {
            let limit = bytes(self.memory.all);
            self.exceeded.get_or_insert(Exceeded { what: "memory", limit, setting: "memory" });
        }
        Ok(fits)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let fits = self.table_elements.grow(current, desired);
        if !fits {
            let limit = format!("{} elements", self.table_elements.all);
            self.exceeded.get_or_insert(Exceeded { what: "table", limit, setting: "table_elements" });
        }
        Ok(fits)
    }

    fn instances(&self) -> usize {
        MAX_CORE_INSTANCES as usize
    }

    fn tables(&self) -> usize {
        MAX_TABLES as usize
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Kind;

    #[test]
    fn memories_are_summed() {
        let mut budget = Budget::default_for(Kind::Retention);
        budget.memory = 3 << 16;
        let mut limiter = Limiter::new(&budget);
        let mut grow = |from: usize, to: usize| limiter.memory_growing(from << 16, to << 16, None).expect("no error");
        assert!(grow(0, 1), "one page in the first memory");
        assert!(grow(0, 2), "two in the second");
        assert!(!grow(1, 2), "a fourth is too many, whichever memory it is in");
        let exceeded = limiter.exceeded.expect("remembered");
        assert_eq!((exceeded.what, exceeded.limit.as_str()), ("memory", "192 KiB"));
    }
}
