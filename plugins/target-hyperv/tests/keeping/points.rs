//! What an operator and a host see.

use crate::folder::{Recorded, Unsynced};
use crate::model::*;
use target_hyperv::{DiskFile, Format, Keeper, Place, Points};
use vmferry_plugin_api::delta::double;
use vmferry_plugin_api::target::*;
use vmferry_vhdx::Storage;

fn full() -> Vec<(&'static str, u64, Change)> {
    vec![
        ("a", SIZE, change([(0, Some(1)), (1, Some(2)), (3, None), (4, Some(3))])),
        ("b", 2 * MIB, change([(1, Some(4))])),
    ]
}

fn second() -> Vec<(&'static str, u64, Change)> {
    vec![("a", SIZE, change([(0, None), (2, Some(5)), (4, Some(6))])), ("b", 2 * MIB, change([]))]
}

#[test]
fn each_setting_keeps_the_points_that_it_promises() {
    for setting in ALL {
        let kept = if setting.1 == Points::Newest { 1 } else { 3 };
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        model.commit(&keeper, &draft(2, Some("point-1")), &second());
        let third = [("a", SIZE, change([(0, Some(7)), (2, None)])), ("b", 2 * MIB, change([(0, Some(8))]))];
        model.commit(&keeper, &draft(3, Some("point-2")), &third);
        assert_eq!(ids(&keeper).len(), kept, "{setting:?}");
        assert_reads(&keeper, &model);
        assert_sound(&keeper);
        assert_eq!(keeper.metadata("point-3").expect("metadata"), "{\"format\": 1, \"number\": 3}");
        assert!(keeper.collect(&[], false).expect("collected").is_empty());
    }
}

#[test]
fn a_point_that_is_deleted_leaves_the_others_as_they_were() {
    for setting in SEVERAL {
        for deleted in [[1, 2], [2, 1], [2, 3], [3, 1], [1, 3]] {
            let keeper = keeper(Recorded::default(), setting);
            let mut model = Model::default();
            model.commit(&keeper, &draft(1, None), &full());
            model.commit(&keeper, &draft(2, Some("point-1")), &second());
            let third = [("a", SIZE, change([(1, None), (3, Some(9))])), ("b", 2 * MIB, change([(0, Some(8))]))];
            model.commit(&keeper, &draft(3, Some("point-2")), &third);
            for number in deleted {
                keeper.delete(&format!("point-{number}")).expect("deleted");
                assert_reads(&keeper, &model);
                assert_sound(&keeper);
            }
            keeper.delete("never heard of").expect("no error");
            let left = ids(&keeper);
            let next = [("a", SIZE, change([(0, Some(11))])), ("b", 2 * MIB, change([]))];
            model.commit(&keeper, &draft(4, Some(&left[0])), &next);
            assert_reads(&keeper, &model);
            assert!(keeper.collect(&[], false).expect("collected").is_empty());
            // Two points with two disks each, a file and a table of digests each; the VM of each; points.json; register.ps1.
            assert_eq!(keeper.place.list(FOLDER).expect("files").len(), 2 * 2 * 2 + 2 + 2);
        }
    }
}

#[test]
fn layouts_tell_what_is_there_and_what_is_new() {
    for setting in SEVERAL {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        model.commit(&keeper, &draft(2, Some("point-1")), &second());
        let block = block_size(&keeper);
        let layout = |point, since| {
            let extents = keeper.layout(point, "a", since).expect("a layout");
            extents.iter().map(|extent| (extent.offset / block, extent.length)).collect::<Vec<_>>()
        };
        assert_eq!(layout("point-1", None), [(0, 2 * block), (4, 512)]);
        assert_eq!(layout("point-2", None), [(1, 2 * block), (4, 512)]);
        assert_eq!(layout("point-2", Some("point-1")), [(0, block), (2, block), (4, 512)]);
        assert_eq!(layout("point-2", Some("point-2")), []);
    }
}

#[test]
fn ranges_that_cut_blocks_are_read() {
    for setting in NEWEST {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        let block = block_size(&keeper);
        let disk = raw(setting.0, SIZE, &model.points["point-1"].disks["a"].1);
        let restore = double::Restore::of_size(disk.len());
        let extents = [Extent { offset: 512, length: block }, Extent { offset: 2 * block - 512, length: 1024 }];
        keeper.read("point-1", "a", &extents, &restore).expect("read");
        let mut expected = vec![0; disk.len()];
        for Extent { offset, length } in extents {
            let range = offset as usize..(offset + length) as usize;
            expected[range.clone()].copy_from_slice(&disk[range]);
        }
        assert!(restore.disk() == expected);
        let beyond = [Extent { offset: disk.len() as u64, length: 1 }];
        assert_eq!(keeper.read("point-1", "a", &beyond, &restore).expect_err("not there").code, ErrorCode::NotFound);
    }
}

#[test]
fn a_disk_that_was_resized_is_a_file_of_its_own_with_what_it_had() {
    for setting in ALL {
        for size in [2 * MIB + 512, 3 * MIB, SIZE + 512, 9 * MIB] {
            let keeper = keeper(Recorded::default(), setting);
            let mut model = Model::default();
            model.commit(&keeper, &draft(1, None), &[("a", SIZE, change([(0, Some(1)), (1, Some(2)), (2, Some(3))]))]);
            let changes = [("a", size, change([(1, Some(9))]))];
            let receipts = write(&keeper, &draft(2, Some("point-1")), &changes).expect("written");
            keeper.commit(&draft(2, Some("point-1")), &receipts).expect("committed");
            let found = restored(&keeper, "point-2", "a", size);
            // What a block had is kept as far as the disk goes, byte by byte.
            let (_, content) = &model.points["point-1"].disks["a"];
            let mut expected = raw(setting.0, SIZE, content);
            expected.resize(stretched(setting.0, size) as usize, 0);
            let block = block_size(&keeper) as usize;
            let changed = raw(setting.0, SIZE, &[(1, 9)].into());
            expected[block..2 * block].copy_from_slice(&changed[block..2 * block]);
            assert!(found == expected, "{setting:?} to {size}");
            assert_sound(&keeper);
        }
    }
}

/// Makes a point of a disk by what differs from the one before.
fn keep(keeper: &Keeper<Recorded>, number: u32, before: Option<&[u8]>, disk: &[u8]) {
    let base = before.map(|_| format!("point-{}", number - 1));
    let draft = draft(number, base.as_deref());
    let info = Info { size: disk.len() as u64, ..delta(keeper.format, "a", 0, base.as_deref(), &change([])).info() };
    let size = keeper.format.block_size() as usize;
    let nothing = vec![0; disk.len()];
    let blocks = before.unwrap_or(&nothing).chunks(size).zip(disk.chunks(size)).enumerate();
    let changed = blocks.filter(|(_, (old, new))| old != new).map(|(block, (_, new))| ((block * size) as u64, new));
    let delta = double::Delta::new(info, changed.map(|(at, new)| (at, new.to_vec())).collect::<Vec<_>>());
    let receipt = keeper.write_disk(&draft, &delta).expect("written");
    keeper.commit(&draft, &[DiskReceipt { disk: "a".to_owned(), receipt, digest: None }]).expect("committed");
}

#[test]
fn a_delta_in_another_format_than_its_base_is_a_copy_in_that() {
    for (from, to) in [(Format::Vhdx, Format::Vhd), (Format::Vhd, Format::Vhdx)] {
        for points in [Points::Copies, Points::Newest] {
            // Blocks of both sizes that are full, half full and empty.
            let mut first = vec![0; (7 * MIB + 512) as usize];
            for mib in [1, 2, 3, 6, 7] {
                first[mib << 20..][..512].fill(mib as u8);
            }
            let mut second = first.clone();
            second[3 << 20] = 0xff;
            let mut third = second.clone();
            third[6 << 20..7 << 20].fill(0);
            let mut keeper = keeper(Recorded::default(), (from, points));
            keep(&keeper, 1, None, &first);
            keeper.format = to;
            keep(&keeper, 2, Some(&first), &second);
            keep(&keeper, 3, Some(&second), &third);
            for (id, disk) in [("point-1", first), ("point-2", second), ("point-3", third)] {
                if ids(&keeper).iter().any(|kept| kept == id) {
                    let restore = double::Restore::of_size(disk.len());
                    let extents = keeper.layout(id, "a", None).expect("a layout");
                    keeper.read(id, "a", &extents, &restore).expect("read");
                    assert!(restore.disk() == disk, "{id}, {points:?} from {from:?} to {to:?}");
                }
            }
            assert_sound(&keeper);
            if points == Points::Copies {
                let all = [Extent { offset: 0, length: 7 * MIB + 512 }];
                assert_eq!(keeper.layout("point-2", "a", Some("point-1")).expect("a layout"), all);
            }
        }
    }
}

#[test]
fn a_held_point_stays_whatever_the_setting() {
    for setting in NEWEST {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        keeper.hold("point-1", true).expect("held");
        assert!(keeper.points(None).expect("points")[0].held);
        model.commit(&keeper, &draft(2, Some("point-1")), &second());
        assert_eq!(ids(&keeper), ["point-1", "point-2"]);
        assert_reads(&keeper, &model);
        keeper.hold("point-1", false).expect("released");
        keeper.delete("point-1").expect("deleted");
        model.commit(&keeper, &draft(3, Some("point-2")), &second());
        assert_eq!(ids(&keeper), ["point-3"]);
        assert_reads(&keeper, &model);
    }
}

#[test]
fn a_point_held_between_write_and_commit_is_not_changed() {
    for setting in NEWEST {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        let receipts = write(&keeper, &draft(2, Some("point-1")), &second()).expect("written");
        keeper.hold("point-1", true).expect("held");
        let refused = keeper.commit(&draft(2, Some("point-1")), &receipts).expect_err("held").message;
        assert!(refused.ends_with("the point before it is held since it was written; run again"), "{refused}");
        assert_reads(&keeper, &model);
    }
}

#[test]
fn in_place_the_file_stays_as_small_as_two_states_need() {
    for setting in NEWEST {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &[("a", SIZE, change([(0, Some(1)), (1, Some(1))]))]);
        let file = image_of(setting, "point-1");
        let first = keeper.place.size(&file).expect("a size").expect("a file");
        for number in 2..8 {
            let base = format!("point-{}", number - 1);
            let changes = [("a", SIZE, change([(0, Some(number as u8)), (1, Some(number as u8))]))];
            model.commit(&keeper, &draft(number, Some(&base)), &changes);
        }
        // A VHD's blocks are 4 KiB apart.
        let each = if setting.0 == Format::Vhd { block_size(&keeper) + 4096 } else { block_size(&keeper) };
        assert_eq!(keeper.place.size(&file).expect("a size"), Some(first + 2 * each));
        assert_reads(&keeper, &model);
    }
}

#[test]
fn what_a_hypervisor_wrote_to_is_no_base_and_no_point_any_more() {
    for setting in ALL {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        start_a_vm_on(&keeper, &image_of(setting, "point-1"));
        let point = keeper.points(None).expect("points").remove(0);
        assert!(point.damaged.is_some_and(|damage| damage.contains("was written by something else")));
        assert!(point.held, "no rule takes away the disk of a VM");
        let refused = write(&keeper, &draft(2, Some("point-1")), &second()).expect_err("no base").message;
        assert!(refused.contains("was written by something else"), "{refused}");
        let damages = keeper.verify("point-1", &double::Restore::default()).expect("verified");
        assert_eq!(damages.iter().map(|damage| damage.disk.as_deref()).collect::<Vec<_>>(), [Some("a")]);
        // A full copy goes on.
        model.commit(&keeper, &draft(3, None), &full());
        assert_eq!(restored(&keeper, "point-3", "b", 2 * MIB), raw(setting.0, 2 * MIB, &[(1, 4)].into()));
    }
}

#[test]
fn what_a_hypervisor_wrote_to_between_write_and_commit_is_not_changed() {
    for setting in NEWEST {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        let receipts = write(&keeper, &draft(2, Some("point-1")), &second()).expect("written");
        assert_reads(&keeper, &model);
        start_a_vm_on(&keeper, &image_of(setting, "point-1"));
        let refused = keeper.commit(&draft(2, Some("point-1")), &receipts).expect_err("used").message;
        assert!(refused.contains("was written by something else"), "{refused}");
    }
}

#[test]
fn a_vm_that_was_started_after_a_run_broke_off_is_told_from_that_run() {
    for setting in NEWEST {
        // After the whole draft, and after less and less of it.
        for acts_less in [0, 2, 4, 8] {
            let whole = keeper(Recorded::default(), setting);
            let mut model = Model::default();
            model.commit(&whole, &draft(1, None), &full());
            let whole = keeper(Recorded::of(&whole.place.world()), setting);
            write(&whole, &draft(2, Some("point-1")), &second()[..1]).expect("written");
            let left = whole.place.crashed(whole.place.acts() - acts_less, Unsynced::Kept);

            let keeper = keeper(Recorded::of(&left), setting);
            keeper.place.pass_an_hour();
            assert_reads(&keeper, &model);
            start_a_vm_on(&keeper, &image_of(setting, "point-1"));
            keeper.place.pass_an_hour();
            for _ in 0..2 {
                let damaged = keeper.points(None).expect("points").remove(0).damaged;
                assert!(damaged.is_some_and(|told| told.contains("was written by something else")));
                write(&keeper, &draft(3, Some("point-1")), &second()).expect_err("no base");
                // Nor is it forgotten when the draft is.
                keeper.abort(&draft(2, None)).expect("aborted");
                keeper.collect(&[], true).expect("collected");
            }
        }
    }
}

#[test]
fn a_disk_that_the_script_gave_to_a_vm_is_no_base_any_more() {
    for setting in ALL {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        keeper.place.create(&format!("{}.started", image_of(setting, "point-1"))).expect("made");
        assert!(keeper.collect(&[], false).expect("collected").is_empty());
        assert!(keeper.points(None).expect("points").remove(0).damaged.is_some());
        write(&keeper, &draft(2, Some("point-1")), &second()).expect_err("no base");
        model.commit(&keeper, &draft(3, None), &full());
        keeper.delete("point-1").expect("deleted");
        assert_reads(&keeper, &model);
        assert!(keeper.collect(&[], false).expect("collected").is_empty());
    }
}

#[test]
fn verify_finds_a_bit_that_changed_and_remembers_it() {
    for setting in ALL {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        model.commit(&keeper, &draft(2, Some("point-1")), &second());
        let newest = keeper.points(None).expect("points").pop().expect("a point");
        let (name, at) = where_is(&keeper.place, 1);
        let file = keeper.place.open(&name, true).expect("a file");
        let (mut byte, modified) = ([0], file.modified().expect("a time"));
        file.read_at(at + 700, &mut byte).expect("read");
        // The medium forgets: nobody writes.
        file.write_at(at + 700, &[byte[0] ^ 1]).and_then(|()| file.set_modified(modified)).expect("written");
        let damages = keeper.verify(&newest.id, &double::Restore::default()).expect("verified");
        let found: Vec<_> = damages.iter().map(|damage| (damage.disk.as_deref(), damage.extent)).collect();
        assert_eq!(
            found,
            [(Some("a"), Some(Extent { offset: block_size(&keeper), length: block_size(&keeper) }))],
            "{setting:?}"
        );
        let told = keeper.points(None).expect("points").pop().expect("a point").damaged;
        assert_eq!(told, Some(damages[0].message.clone()));
        // As it was before, it is sound again.
        file.write_at(at + 700, &byte).and_then(|()| file.set_modified(modified)).expect("written");
        assert_sound(&keeper);
        assert_eq!(keeper.points(None).expect("points").pop().expect("a point").damaged, None);
    }
}

/// The file of disk `a` that has this block, and where.
fn where_is(place: &Recorded, block: u64) -> (String, u64) {
    let names = place.list(FOLDER).expect("files").into_iter().map(|(name, _)| format!("{FOLDER}/{name}"));
    let images = names.filter(|name| name.contains("/a~") && (name.ends_with(".vhdx") || name.ends_with(".vhd")));
    let mut found = images.filter_map(|name| Some((place_of(place, &name, block)?, name)));
    let (at, name) = found.next_back().expect("somewhere");
    (name, at)
}

#[test]
fn an_aborted_draft_leaves_nothing() {
    for setting in ALL {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        let first = draft(1, None);
        write(&keeper, &first, &full()).expect("written");
        keeper.abort(&first).expect("aborted");
        assert!(keeper.place.list(FOLDER).expect("files").is_empty());
        model.commit(&keeper, &draft(2, None), &full());
        let files = |keeper: &target_hyperv::Keeper<Recorded>| {
            let names = keeper.place.list(FOLDER).expect("files").into_iter().map(|(name, _)| name);
            names
                .map(|name| (keeper.place.size(&format!("{FOLDER}/{name}")).expect("a size"), name))
                .collect::<Vec<_>>()
        };
        let before = files(&keeper);
        let third = draft(3, Some("point-2"));
        write(&keeper, &third, &second()).expect("written");
        assert_ne!(files(&keeper), before);
        assert!(keeper.collect(&["point-3".to_owned()], true).expect("collected").is_empty());
        keeper.abort(&third).expect("aborted");
        assert_eq!(files(&keeper), before, "{setting:?}");
        keeper.abort(&draft(9, None)).expect("never heard of");
        // A point is not aborted.
        keeper.abort(&draft(2, None)).expect("nothing to do");
        assert_reads(&keeper, &model);
    }
}

#[test]
fn a_chain_that_is_long_ends_with_a_whole_disk() {
    let keeper = keeper(Recorded::default(), (Format::Vhdx, Points::Differencing));
    let mut model = Model::default();
    model.commit(&keeper, &draft(1, None), &full());
    for number in 2..=102 {
        model.commit(&keeper, &draft(number, Some(&format!("point-{}", number - 1))), &second());
    }
    let state = keeper.place.read(&format!("{FOLDER}/points.json")).expect("read").expect("there");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
    let images = state["images"].as_object().expect("images");
    let whole = images.iter().filter(|(name, image)| name.starts_with("a~") && image["parent"].is_null());
    assert_eq!(whole.map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a~point-1.vhdx", "a~point-101.vhdx"]);
    assert_reads(&keeper, &model);
}

#[test]
fn collecting_leaves_what_somebody_may_be_writing() {
    for setting in NEWEST {
        let mut keeper = keeper(Recorded::default(), setting);
        keeper.grace = u64::MAX;
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        let second_draft = draft(2, Some("point-1"));
        let receipts = write(&keeper, &second_draft, &second()).expect("written");
        assert!(keeper.collect(&[], true).expect("collected").is_empty(), "{setting:?}");
        keeper.commit(&second_draft, &receipts).expect("all of it is there");
        keeper.grace = 0;
        assert!(keeper.collect(&[], true).expect("collected").is_empty(), "{setting:?}");
    }
}

#[test]
fn collecting_names_what_is_left_and_leaves_what_is_an_operator_s() {
    for setting in NEWEST {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        write(&keeper, &draft(2, Some("point-1")), &second()).expect("written");
        keeper.place.create(&format!("{FOLDER}/notes.txt")).expect("made");
        let found = keeper.collect(&[], false).expect("collected");
        let names: Vec<&str> = found.iter().map(|garbage| garbage.what.rsplit('/').next().expect("a name")).collect();
        assert_eq!(names, ["a~point-2.updates", "b~point-2.updates"]);
        let removed = keeper.collect(&[], true).expect("collected");
        // What those were about can be seen now: room at the end of a file.
        assert!(removed[2..].iter().all(|garbage| garbage.what.ends_with(&image_of(setting, "point-1"))));
        // A VHD's blocks are 4 KiB apart.
        let each = if setting.0 == Format::Vhd { block_size(&keeper) + 4096 } else { block_size(&keeper) };
        assert_eq!(removed[2..].iter().map(|garbage| garbage.bytes).collect::<Vec<_>>(), [2 * each]);
        assert!(keeper.collect(&[], false).expect("collected").is_empty());
        assert!(keeper.place.size(&format!("{FOLDER}/notes.txt")).expect("a size").is_some());
        assert_reads(&keeper, &model);
    }
}

#[test]
fn names_do_not_lead_anywhere() {
    let keeper = keeper(Recorded::default(), ALL[0]);
    for (number, text) in ["../../etc", "A", "a", "con", "", "a/b", "\u{202e}x", &"y".repeat(300)].iter().enumerate() {
        let draft =
            Draft { id: format!("../{text}"), job: (*text).to_owned(), vm: (*text).to_owned(), ..draft(1, None) };
        let receipt =
            keeper.write_disk(&draft, &delta(keeper.format, text, SIZE, None, &change([(0, Some(number as u8 + 1))])));
        let receipt = DiskReceipt { disk: (*text).to_owned(), receipt: receipt.expect("written"), digest: None };
        keeper.commit(&draft, &[receipt]).expect("committed");
    }
    assert_eq!(keeper.points(None).expect("points").len(), 8);
    for (path, _) in keeper.place.world().files() {
        let plain = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || b"-_.~".contains(&letter);
        let parts: Vec<&str> = path.split('/').collect();
        assert!(parts.len() == 3 && parts.iter().all(|part| part.len() < 200 && part.bytes().all(plain)), "{path}");
    }
}

#[test]
fn a_writer_whose_file_another_writes_to_meanwhile_is_refused() {
    /// Has a later draft write the same disk while its own chunks are asked for.
    struct Late<'a>(&'a target_hyperv::Keeper<Recorded>, double::Delta);
    impl Delta for Late<'_> {
        fn info(&self) -> Info {
            self.1.info()
        }
        fn next(&self) -> Result<Option<Box<dyn Chunk>>, vmferry_plugin_api::Error> {
            let chunk = self.1.next()?;
            if chunk.is_none() {
                let later = delta(self.0.format, "a", SIZE, Some("point-1"), &change([(1, Some(2))]));
                self.0.write_disk(&draft(3, Some("point-1")), &later).expect("written");
            }
            Ok(chunk)
        }
    }
    for setting in NEWEST {
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        model.commit(&keeper, &draft(1, None), &full());
        let late = Late(&keeper, delta(keeper.format, "a", SIZE, Some("point-1"), &change([(0, Some(9))])));
        let refused = keeper.write_disk(&draft(2, Some("point-1")), &late).expect_err("another writes").message;
        assert!(refused.contains("was written by something else"), "{refused}");
        assert_reads(&keeper, &model);
    }
}

#[test]
fn the_script_holds_no_text_of_others() {
    let keeper = keeper(Recorded::default(), ALL[0]);
    let mut model = Model::default();
    model.commit(&keeper, &draft(1, None), &full());
    let script = keeper.place.read(&format!("{FOLDER}/register.ps1")).expect("read").expect("a script");
    assert_eq!(script, include_bytes!("../../src/register.ps1"));
    assert!(script.is_ascii(), "Windows PowerShell takes a script without a mark for one in the machine's code page");
}
