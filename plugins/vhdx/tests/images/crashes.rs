//! A crash at every write of a change.

use crate::model::{self, AnyImage, Content};
use crate::qemu;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use vmferry_vhdx::{Block, Image, MemoryFile, Storage, recover};

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
    /// How many of them fill room that is free.
    filling: usize,
    changes: Vec<(u64, Block)>,
    old: Content,
    new: Content,
}

/// A disk whose BAT has several pieces.
fn size<I: AnyImage>() -> u64 {
    1100 * I::BLOCK + 512
}

/// A change of blocks in two pieces of the BAT, payload included.
fn change<I: AnyImage<File = Recorded>>() -> Change {
    let first = BTreeMap::from([(0, Some(1)), (1, Some(2)), (1050, Some(3)), (1100, Some(4))]);
    let second = BTreeMap::from([(0, Some(5)), (1, None), (2, Some(6)), (1050, Some(7)), (1100, Some(8))]);
    let mut image = I::make(Recorded::default(), size::<I>());
    let changes = model::changes(&image, &first);
    image.change(&changes, model::ids(1));
    let (mut old, mut new) = (Content::new(), Content::new());
    model::apply(&mut old, &first);
    model::apply(&mut new, &first);
    model::apply(&mut new, &second);
    let before = image.at().file.clone();
    image.at().acts.borrow_mut().clear();
    let changes = model::changes(&image, &second);
    image.at().sync().expect("synced");
    let filling = image.at().acts.borrow().len();
    image.change(&changes, model::ids(2));
    let acts = image.at().acts.take();
    Change { before, acts, filling, changes, old, new }
}

#[test]
fn a_crash_at_any_write_leaves_the_old_content_or_the_new_one() {
    let change = change::<Image<Recorded>>();
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
    let change = change::<Image<Recorded>>();
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
    let change = change::<Image<Recorded>>();
    let mut replayed = 0;
    for count in 0..=change.acts.len() {
        let file = crashed(&change.before, &change.acts, count, Unsynced::Torn(count as u64));
        let is_new = {
            let ours = file.clone();
            replayed += usize::from(recover(&ours).expect("recovered"));
            Image::open(&ours).expect("opened").ids() == model::ids(2)
        };
        let content = if is_new { &change.new } else { &change.old };
        qemu::assert_holds::<Image<MemoryFile>>(&file, content, size::<Image<MemoryFile>>());
    }
    assert!(replayed > 2, "{replayed} logs were replayed");
}

type Vhd<F> = vmferry_vhd::Image<F>;

#[test]
fn a_crash_while_room_of_a_vhd_is_filled_leaves_the_old_content_and_a_footer_at_the_end() {
    let change = change::<Vhd<Recorded>>();
    for count in 0..=change.filling {
        for unsynced in [Unsynced::Kept, Unsynced::Lost].into_iter().chain((0..4).map(Unsynced::Torn)) {
            let file = crashed(&change.before, &change.acts, count, unsynced);
            let image = Vhd::open(&file).expect("opened");
            assert!(image.check().expect("read").is_empty());
            assert_eq!(model::content(&image), change.old, "after {count} acts, {unsynced:?}");
            if matches!(unsynced, Unsynced::Kept) || count == change.filling {
                assert!(ends_with_footer(&file), "after {count} acts");
            }
        }
    }
}

#[test]
fn a_change_of_a_vhd_that_was_interrupted_is_done_again() {
    let change = change::<Vhd<Recorded>>();
    for count in change.filling..=change.acts.len() {
        for unsynced in [Unsynced::Kept, Unsynced::Lost].into_iter().chain((0..16).map(Unsynced::Torn)) {
            let file = crashed(&change.before, &change.acts, count, unsynced);
            let mut image = Vhd::open(&file).expect("opened");
            let found = model::content(&image);
            let either = |block: u64| [&change.old, &change.new].iter().any(|one| one.get(&block) == found.get(&block));
            assert!((0..1101).all(either), "after {count} acts, {unsynced:?}");
            image.commit(&change.changes, model::ids(2)).expect("committed");
            let image = Vhd::open(&file).expect("opened");
            assert_eq!((model::content(&image), image.ids()), (change.new.clone(), model::ids(2)));
            assert!(image.check().expect("read").is_empty() && ends_with_footer(&file));
        }
    }
}

/// Whether a VHD's last sector is the same as its first.
fn ends_with_footer(file: &MemoryFile) -> bool {
    let (mut first, mut last) = ([0; 512], [1; 512]);
    file.read_at(0, &mut first).expect("read");
    file.read_at(file.length().expect("a length") - 512, &mut last).expect("read");
    first == last
}
