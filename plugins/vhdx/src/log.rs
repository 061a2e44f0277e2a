//! The log: sectors of 4 KiB that have to be written again if the file was not closed. An entry counts whole or not at all.
//!
//! ```text
//! entry:  0 "loge"   4 checksum of the entry   8 its length        12 where the sequence begins
//!        16 sequence number   24 descriptors   32 LogGuid          48 length of the file that is sure
//!        56 length of the file afterwards      64 descriptors of 32 bytes, up to the end of a sector; then the data sectors
//! data:   0 "desc"   4 last 4 bytes            8 first 8 bytes     16 offset in the file   24 sequence number
//! zero:   0 "zero"                             8 length            16 offset in the file   24 sequence number
//! sector: 0 "data"   4 sequence number, high   8 the 4084 bytes between                4092 sequence number, low
//! ```

use crate::wire::{bytes_at, checksum, put, seal, u32_at, u64_at};
use crate::{Guid, VhdxError};

/// What one data sector of the log is about.
pub(crate) const SECTOR: usize = 4096;
const HEADER_SIZE: usize = 64;
const DESCRIPTOR_SIZE: usize = 32;

/// Bytes that an entry with this many sectors takes.
pub(crate) const fn entry_length(sectors: usize) -> usize {
    (HEADER_SIZE + DESCRIPTOR_SIZE * sectors).next_multiple_of(SECTOR) + SECTOR * sectors
}

/// A sector of the file, by its offset.
pub(crate) type Patch = (u64, [u8; SECTOR]);

/// An entry that is a sequence by itself and stands at the beginning of the log, of a file of `length` bytes.
pub(crate) fn encode(log: Guid, patches: &[Patch], length: u64) -> Vec<u8> {
    // The sequence number of the only entry under this LogGuid.
    const SEQUENCE: u64 = 1;
    let mut raw = vec![0; entry_length(patches.len())];
    let data_at = raw.len() - SECTOR * patches.len();
    put(&mut raw, 0, b"loge");
    let total = raw.len() as u32;
    put(&mut raw, 8, &total.to_le_bytes());
    put(&mut raw, 16, &SEQUENCE.to_le_bytes());
    put(&mut raw, 24, &(patches.len() as u32).to_le_bytes());
    put(&mut raw, 32, &log.to_wire());
    put(&mut raw, 48, &length.to_le_bytes());
    put(&mut raw, 56, &length.to_le_bytes());
    for (index, (offset, bytes)) in patches.iter().enumerate() {
        let descriptor = HEADER_SIZE + DESCRIPTOR_SIZE * index;
        put(&mut raw, descriptor, b"desc");
        put(&mut raw, descriptor + 4, &bytes[SECTOR - 4..]);
        put(&mut raw, descriptor + 8, &bytes[..8]);
        put(&mut raw, descriptor + 16, &offset.to_le_bytes());
        put(&mut raw, descriptor + 24, &SEQUENCE.to_le_bytes());
        let sector = data_at + SECTOR * index;
        put(&mut raw, sector, b"data");
        put(&mut raw, sector + 4, &((SEQUENCE >> 32) as u32).to_le_bytes());
        put(&mut raw, sector + 8, &bytes[8..SECTOR - 4]);
        put(&mut raw, sector + SECTOR - 4, &(SEQUENCE as u32).to_le_bytes());
    }
    seal(&mut raw);
    raw
}

/// What an entry has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// These bytes at this offset.
    Data(Box<Patch>),
    /// Zeroes.
    Zero { offset: u64, length: u64 },
}

/// What has to be done again, in order, and how long the file is at least: before, and afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replay {
    pub(crate) writes: Vec<Write>,
    pub(crate) flushed_length: u64,
    pub(crate) last_length: u64,
}

/// The log's bytes, as a ring of whole sectors.
struct Ring<'a> {
    raw: &'a [u8],
    log: Guid,
}

#[derive(Clone, Copy)]
struct Entry {
    at: usize,
    length: usize,
    tail: usize,
    sequence: u64,
    descriptors: usize,
}

impl Ring<'_> {
    fn sector(&self, at: usize) -> &[u8] {
        let at = at % self.raw.len();
        &self.raw[at..at + SECTOR]
    }

    fn descriptor(&self, entry: &Entry, index: usize) -> &[u8] {
        let at = HEADER_SIZE + DESCRIPTOR_SIZE * index;
        &self.sector(entry.at + at / SECTOR * SECTOR)[at % SECTOR..][..DESCRIPTOR_SIZE]
    }

    /// The entry at this sector, if a whole one is there. The sequence number in each descriptor and data sector is looked at before
    /// the checksum: no sector can be part of two entries then, and the work is bounded by the length of the log.
    fn entry(&self, at: usize) -> Option<Entry> {
        let head = self.sector(at);
        let (length, tail) = (u32_at(head, 8) as usize, u32_at(head, 12) as usize);
        let (sequence, descriptors) = (u64_at(head, 16), u32_at(head, 24) as usize);
        let entry = Entry { at, length, tail, sequence, descriptors };
        let fits = length.is_multiple_of(SECTOR) && (SECTOR..=self.raw.len()).contains(&length);
        let tail_fits = tail.is_multiple_of(SECTOR) && tail < self.raw.len();
        let ours = head[..4] == *b"loge" && Guid::from_wire(bytes_at(head, 32)) == self.log && sequence > 0;
        if !fits || !tail_fits || !ours || descriptors > length / DESCRIPTOR_SIZE {
            return None;
        }
        let table = (HEADER_SIZE + DESCRIPTOR_SIZE * descriptors).next_multiple_of(SECTOR);
        let mut sectors = 0;
        for index in 0..descriptors {
            let descriptor = self.descriptor(&entry, index);
            sectors += usize::from(descriptor[..4] == *b"desc");
            if ![*b"desc", *b"zero"].contains(&bytes_at(descriptor, 0)) || u64_at(descriptor, 24) != sequence {
                return None;
            }
        }
        if table + SECTOR * sectors != length {
            return None;
        }
        for index in 0..sectors {
            let sector = self.sector(at + table + SECTOR * index);
            let of = u64::from(u32_at(sector, 4)) << 32 | u64::from(u32_at(sector, SECTOR - 4));
            if sector[..4] != *b"data" || of != sequence {
                return None;
            }
        }
        let bytes: Vec<u8> = (0..length).step_by(SECTOR).flat_map(|part| self.sector(at + part)).copied().collect();
        (u32_at(&bytes, 4) == checksum(&bytes)).then_some(entry)
    }

    /// The entries that follow each other from this sector on.
    fn sequence(&self, mut at: usize) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut room = self.raw.len();
        while room > 0 {
            let Some(entry) = self.entry(at % self.raw.len()) else { break };
            let follows = entries.last().is_none_or(|last| last.sequence.checked_add(1) == Some(entry.sequence));
            if !follows || entry.length > room {
                break;
            }
            at += entry.length;
            room -= entry.length;
            entries.push(entry);
        }
        entries
    }
}

/// What the log `raw` has to be done again; `None` where nothing in it is whole.
pub(crate) fn replay(raw: &[u8], log: Guid) -> Result<Option<Replay>, VhdxError> {
    let ring = Ring { raw, log };
    let mut active: Option<Vec<Entry>> = None;
    let mut at = 0;
    while at + SECTOR <= raw.len() {
        let entries = ring.sequence(at);
        let end =
            entries.last().map_or(at + SECTOR, |last| if last.at < at { raw.len() } else { last.at + last.length });
        if let Some(head) = entries.last() {
            // The head says where its sequence begins; entries before that are done with.
            let begin = entries.iter().position(|entry| entry.at == head.tail);
            let newer =
                active.as_ref().and_then(|active| active.last()).is_none_or(|other| other.sequence < head.sequence);
            if let Some(begin) = begin.filter(|_| newer) {
                active = Some(entries[begin..].to_vec());
            }
        }
        at = end;
    }
    let Some(entries) = active else { return Ok(None) };
    let Some(head) = entries.last().map(|head| ring.sector(head.at)) else { return Ok(None) };
    let (flushed_length, last_length) = (u64_at(head, 48), u64_at(head, 56));
    let mut writes = Vec::new();
    for entry in &entries {
        let mut sector_at = entry.at + (HEADER_SIZE + DESCRIPTOR_SIZE * entry.descriptors).next_multiple_of(SECTOR);
        for index in 0..entry.descriptors {
            let descriptor = ring.descriptor(entry, index);
            let (second, offset) = (u64_at(descriptor, 8), u64_at(descriptor, 16));
            let length = if descriptor[..4] == *b"zero" { second } else { SECTOR as u64 };
            let inside = offset.checked_add(length).is_some_and(|end| end <= last_length.max(flushed_length));
            if !inside || !(offset | length).is_multiple_of(SECTOR as u64) {
                let problem = format!("it writes {length} bytes at {offset} of a file of {last_length}");
                return Err(VhdxError::wrong("log", entry.at as u64, problem));
            }
            if descriptor[..4] == *b"zero" {
                writes.push(Write::Zero { offset, length });
                continue;
            }
            let mut bytes: [u8; SECTOR] = bytes_at(ring.sector(sector_at), 0);
            put(&mut bytes, 0, &descriptor[8..16]);
            put(&mut bytes, SECTOR - 4, &descriptor[4..8]);
            writes.push(Write::Data(Box::new((offset, bytes))));
            sector_at += SECTOR;
        }
    }
    Ok(Some(Replay { writes, flushed_length, last_length }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: Guid = Guid::new(99);

    fn patches(count: u8) -> Vec<Patch> {
        (0..count).map(|index| (u64::from(index) << 20, std::array::from_fn(|at| (at / 3) as u8 ^ index))).collect()
    }

    fn written(patches: &[Patch]) -> Vec<Write> {
        patches.iter().map(|patch| Write::Data(Box::new(*patch))).collect()
    }

    /// As `encode`, with other numbers.
    fn entry(patches: &[Patch], sequence: u64, tail: u32) -> Vec<u8> {
        let mut raw = encode(LOG, patches, 1 << 40);
        put(&mut raw, 12, &tail.to_le_bytes());
        put(&mut raw, 16, &sequence.to_le_bytes());
        for index in 0..patches.len() {
            put(&mut raw, HEADER_SIZE + DESCRIPTOR_SIZE * index + 24, &sequence.to_le_bytes());
            let sector = raw.len() - SECTOR * (index + 1);
            put(&mut raw, sector + SECTOR - 4, &(sequence as u32).to_le_bytes());
        }
        seal(&mut raw);
        raw
    }

    fn log(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut raw = vec![0; 1 << 20];
        for (at, bytes) in parts {
            for (index, byte) in bytes.iter().enumerate() {
                raw[(at + index) % (1 << 20)] = *byte;
            }
        }
        raw
    }

    #[test]
    fn an_entry_is_replayed_whole() {
        for count in [1, 62, 63, 200] {
            let entry = encode(LOG, &patches(count), 1 << 40);
            assert_eq!(entry.len(), entry_length(count.into()));
            let replay = replay(&log(&[(0, &entry)]), LOG).expect("a log").expect("an entry");
            assert_eq!(replay.writes, written(&patches(count)));
            assert_eq!((replay.flushed_length, replay.last_length), (1 << 40, 1 << 40));
        }
    }

    #[test]
    fn no_part_of_a_torn_entry_counts() {
        let whole = encode(LOG, &patches(3), 1 << 40);
        for cut in (0..whole.len()).step_by(512) {
            assert_eq!(replay(&log(&[(0, &whole[..cut])]), LOG).expect("a log"), None);
        }
        for at in [9, 13, 20, 33, 50, 70, 90, 4200, 4100 + 4096] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert_eq!(replay(&log(&[(0, &changed)]), LOG).expect("a log"), None, "at {at}");
        }
        assert_eq!(replay(&log(&[(0, &whole)]), Guid::new(98)).expect("a log"), None);
    }

    #[test]
    fn the_sequence_with_the_newest_head_counts_across_the_end_of_the_ring() {
        let patches = patches(3);
        let [a, b, c] = [7, 8, 9].map(|sequence| entry(&patches[..1], sequence, (1 << 20) - 8192));
        let old = entry(&patches[2..], 3, 65536);
        let ring = log(&[((1 << 20) - 8192, &a), (0, &b), (8192, &c), (65536, &old)]);
        let found = replay(&ring, LOG).expect("a log").expect("a sequence");
        assert_eq!(found.writes, [written(&patches[..1]), written(&patches[..1]), written(&patches[..1])].concat());
        // Without its first entry there is no sequence, and the older one counts.
        let ring = log(&[(0, &b), (8192, &c), (65536, &old)]);
        assert_eq!(replay(&ring, LOG).expect("a log").expect("a sequence").writes, written(&patches[2..]));
    }

    #[test]
    fn a_write_outside_of_the_file_is_refused() {
        let error = replay(&log(&[(0, &encode(LOG, &patches(2), 4096))]), LOG).expect_err("a bad offset").to_string();
        assert_eq!(error, "the log at byte 0 is wrong: it writes 4096 bytes at 1048576 of a file of 4096");
    }
}
