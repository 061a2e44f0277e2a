//! Changed block tracking: one log for each disk that is tracked, linked from older to newer.
//!
//! A log says what was written since the one before it began. A snapshot takes the log of its disk over, and the disk goes on
//! with a new one; what lies between two snapshots is therefore the sum of the logs behind the older one up to and
//! including that of the newer one.

use std::collections::BTreeMap;

/// What one bit stands for, in bytes.
const GRANULE: u64 = 64 << 10;

/// One bit for each 64 KiB, the highest bit of the first byte first. It ends behind the last bit that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bitmap(Vec<u8>);

impl Bitmap {
    /// Marks every granule that the range touches.
    fn mark(&mut self, offset: u64, length: u64) {
        let Some(last) = length.checked_sub(1).map(|rest| (offset + rest) / GRANULE) else {
            return;
        };
        let needed = (last / 8 + 1) as usize;
        if self.0.len() < needed {
            self.0.resize(needed, 0);
        }
        for granule in offset / GRANULE..=last {
            self.0[(granule / 8) as usize] |= 0x80 >> (granule % 8);
        }
    }

    fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(ours, theirs)| *ours |= theirs);
    }

    /// As long as a disk of this size needs. A disk that grew shows zeroes where nothing was written since.
    pub(crate) fn encode(mut self, disk_size: u64) -> Vec<u8> {
        self.0.resize(encoded_length(disk_size), 0);
        self.0
    }
}

/// Bytes of the bitmap of a disk.
pub(crate) fn encoded_length(disk_size: u64) -> usize {
    disk_size.div_ceil(GRANULE).div_ceil(8) as usize
}

#[derive(Debug, Default)]
struct Log {
    changed: Bitmap,
    parent: Option<String>,
    child: Option<String>,
}

/// The logs of a pool by the disks that they belong to.
#[derive(Debug, Default)]
pub(crate) struct ChangeLogs(BTreeMap<String, Log>);

impl ChangeLogs {
    /// Begins an empty log that goes on from nothing. One that exists goes on as it is.
    pub(crate) fn start(&mut self, disk: &str) {
        self.0.entry(disk.to_owned()).or_default();
    }

    pub(crate) fn tracks(&self, disk: &str) -> bool {
        self.0.contains_key(disk)
    }

    /// Notes a write; also one of the same bytes.
    pub(crate) fn record(&mut self, disk: &str, offset: u64, length: u64) {
        if let Some(log) = self.0.get_mut(disk) {
            log.changed.mark(offset, length);
        }
    }

    /// The snapshot takes over the log, and the disk begins a new one behind it.
    pub(crate) fn snapshot(&mut self, disk: &str, snapshot: &str) {
        let Some(mut log) = self.0.remove(disk) else {
            return;
        };
        if let Some(parent) = log.parent.as_ref().and_then(|parent| self.0.get_mut(parent)) {
            parent.child = Some(snapshot.to_owned());
        }
        log.child = Some(disk.to_owned());
        self.0.insert(snapshot.to_owned(), log);
        self.0.insert(disk.to_owned(), Log { parent: Some(snapshot.to_owned()), ..Log::default() });
    }

    /// Takes a log out of its chain. What it knew goes into the next newer one, so that comparisons across it stay right; the
    /// log of a live disk has none, and with it the chain ends.
    pub(crate) fn remove(&mut self, disk: &str) {
        let Some(log) = self.0.remove(disk) else {
            return;
        };
        if let Some(child) = log.child.as_ref().and_then(|child| self.0.get_mut(child)) {
            child.changed.merge(&log.changed);
            child.parent.clone_from(&log.parent);
        }
        if let Some(parent) = log.parent.as_ref().and_then(|parent| self.0.get_mut(parent)) {
            parent.child = log.child;
        }
    }

    /// What was written behind `from` up to and including `to`. `None` when no chain leads from one to the other.
    pub(crate) fn between(&self, from: &str, to: &str) -> Option<Bitmap> {
        let mut changed = Bitmap::default();
        let mut at = self.0.get(from)?.child.as_ref()?;
        loop {
            let log = self.0.get(at)?;
            changed.merge(&log.changed);
            if at == to {
                return Some(changed);
            }
            at = log.child.as_ref()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granules(bitmap: Option<Bitmap>) -> Option<Vec<u64>> {
        let bytes = bitmap?.0;
        let bits = (0..bytes.len() as u64 * 8).filter(|bit| bytes[(bit / 8) as usize] & (0x80 >> (bit % 8)) != 0);
        Some(bits.collect())
    }

    #[test]
    fn the_first_granule_is_the_highest_bit_and_the_last_byte_is_padded() {
        let mut bitmap = Bitmap::default();
        bitmap.mark(0, 1);
        bitmap.mark(8 * GRANULE - 1, 2);
        bitmap.mark(100 * GRANULE, 0);
        assert_eq!(bitmap.clone().encode(9 * GRANULE), [0b1000_0001, 0b1000_0000]);
        assert_eq!(bitmap.clone().encode(17 * GRANULE), [0b1000_0001, 0b1000_0000, 0]);
        assert_eq!(encoded_length(8 * GRANULE), 1);
        assert_eq!(encoded_length(8 * GRANULE + 1), 2);
    }

    #[test]
    fn a_chain_is_summed_up_and_survives_the_loss_of_a_middle_link() {
        let mut logs = ChangeLogs::default();
        logs.start("live");
        logs.record("live", 0, 1);
        for (number, snapshot) in ["s1", "s2", "s3"].into_iter().enumerate() {
            logs.snapshot("live", snapshot);
            logs.record("live", (number as u64 + 1) * GRANULE, 1);
        }
        assert_eq!(granules(logs.between("s1", "s2")), Some(vec![1]));
        assert_eq!(granules(logs.between("s1", "s3")), Some(vec![1, 2]));
        assert_eq!(granules(logs.between("s1", "live")), Some(vec![1, 2, 3]));
        assert_eq!((logs.between("s2", "s1"), logs.between("s1", "s1"), logs.between("s1", "x")), (None, None, None));
        logs.remove("s2");
        assert_eq!(granules(logs.between("s1", "s3")), Some(vec![1, 2]));
        logs.remove("s1");
        assert_eq!(granules(logs.between("s3", "live")), Some(vec![3]));
        logs.remove("live");
        logs.start("live");
        assert_eq!(logs.between("s3", "live"), None, "a new chain goes on from nothing");
    }
}
