//! A crash at every write of a change.

use crate::model::{self, Content};
use crate::qemu;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use vmferry_vhdx::{Image, MIB, MemoryFile, Storage, recover};

#[derive(Clone)]
enum Act {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

/// Notes what is done to it.
#[derive(Default)]
struct Recorded {
    file: MemoryFile,
    acts: RefCell<Vec<Act>>,
}

impl Storage for Recorded {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.acts.borrow_mut().push(Act::Write(offset, bytes.to_vec()));
        self.file.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.acts.borrow_mut().push(Act::Sync);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.acts.borrow_mut().push(Act::Length(length));
        self.file.set_length(length)
    }
}

/// What becomes of a sector that was written and not synced.
#[derive(Clone, Copy, Debug)]
enum Unsynced {
    Kept,
    Lost,
    /// Each sector of 512 bytes as chance has it.
    Torn(u64),
}

/// The file as a crash after `count` acts leaves it.
fn crashed(before: &MemoryFile, acts: &[Act], count: usize, unsynced: Unsynced) -> MemoryFile {
    let file = before.clone();
    let synced = acts[..count].iter().rposition(|act| matches!(act, Act::Sync)).unwrap_or(0);
    let mut chance = if let Unsynced::Torn(seed) = unsynced { seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 } else { 0 };
    for (number, act) in acts[..count].iter().enumerate() {
        match act {
            Act::Sync => {}
            Act::Length(length) => file.set_length(*length).expect("a length"),
            Act::Write(offset, bytes) if number < synced => file.write_at(*offset, bytes).expect("written"),
            Act::Write(offset, bytes) => {
                for (index, sector) in bytes.chunks(512).enumerate() {
                    chance ^= chance << 13;
                    chance ^= chance >> 7;
                    chance ^= chance << 17;
                    let kept = match unsynced {
                        Unsynced::Kept => true,
                        Unsynced::Lost => false,
                        Unsynced::Torn(_) => chance & 1 == 1,
                    };
                    if kept {
                        file.write_at(offset + 512 * index as u64, sector).expect("written");
                    }
                }
            }
        }
    }
    file
}

struct Change {
    before: MemoryFile,
    acts: Vec<Act>,
    old: Content,
    new: Content,
}

const SIZE: u64 = 600 * MIB + 512;

/// A change of blocks in two sectors of the BAT, payload included.
fn change() -> Change {
    let first = BTreeMap::from([(0, Some(1)), (1, Some(2)), (520, Some(3)), (600, Some(4))]);
    let second = BTreeMap::from([(0, Some(5)), (1, None), (2, Some(6)), (520, Some(7)), (600, Some(8))]);
    let mut image = Image::create(Recorded::default(), model::disk(SIZE), model::ids(0), "test").expect("made");
    let changes = model::changes(&image, &first);
    image.commit(&changes, model::ids(1)).expect("committed");
    let (mut old, mut new) = (Content::new(), Content::new());
    model::apply(&mut old, &first);
    model::apply(&mut new, &first);
    model::apply(&mut new, &second);
    let before = image.file().file.clone();
    image.file().acts.borrow_mut().clear();
    let changes = model::changes(&image, &second);
    image.file().sync().expect("synced");
    image.commit(&changes, model::ids(2)).expect("committed");
    Change { before, acts: image.into_file().acts.into_inner(), old, new }
}

#[test]
fn a_crash_at_any_write_leaves_the_old_content_or_the_new_one() {
    let change = change();
    let mut seen = [0, 0];
    for count in 0..=change.acts.len() {
        let torn = (0..16).map(Unsynced::Torn);
        for unsynced in [Unsynced::Kept, Unsynced::Lost].into_iter().chain(torn) {
            let file = crashed(&change.before, &change.acts, count, unsynced);
            recover(&file).expect("recovered");
            let image = Image::open(&file).expect("opened");
            assert!(image.check().expect("read").is_empty());
            let found = model::content(&image);
            let is_new = image.ids() == model::ids(2);
            let expected = if is_new { &change.new } else { &change.old };
            assert_eq!(found, *expected, "after {count} acts, {unsynced:?}");
            seen[usize::from(is_new)] += 1;
        }
    }
    assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
}

#[test]
fn a_crash_during_recovery_costs_nothing() {
    let change = change();
    let last = change.acts.len();
    for count in 0..=last {
        let file =
            Recorded { file: crashed(&change.before, &change.acts, count, Unsynced::Kept), ..Recorded::default() };
        let before = file.file.clone();
        if !recover(&file).expect("recovered") {
            continue;
        }
        let acts = file.acts.into_inner();
        for again in 0..=acts.len() {
            for seed in 0..4 {
                let file = crashed(&before, &acts, again, Unsynced::Torn(seed));
                recover(&file).expect("recovered");
                assert_eq!(model::content(&Image::open(&file).expect("opened")), change.new);
            }
        }
    }
}

#[test]
fn qemu_replays_what_a_crash_leaves() {
    if qemu::is_missing() {
        return;
    }
    let change = change();
    let mut replayed = 0;
    for count in 0..=change.acts.len() {
        let file = crashed(&change.before, &change.acts, count, Unsynced::Torn(count as u64));
        let is_new = {
            let ours = file.clone();
            replayed += usize::from(recover(&ours).expect("recovered"));
            Image::open(&ours).expect("opened").ids() == model::ids(2)
        };
        qemu::assert_holds(&file, if is_new { &change.new } else { &change.old }, SIZE);
    }
    assert!(replayed > 2, "{replayed} logs were replayed");
}
