//! What a repository does when nothing fails.

use crate::support::{CHUNK, Content, Host, Memory, Taken, content};
use std::sync::Arc;
use vmferry_plugin_api::target::Extent;
use vmferry_plugin_api::{ErrorCode, seal};
use vmferry_repository::{Repository, Settings};

#[test]
fn every_point_restores_what_its_disk_was() {
    for key in [None, Some("key".to_owned())] {
        seal::double::add_key("key");
        let mut host = Host::default();
        host.settings.key = key;
        let steps =
            ["abcdefg....h...z", "abXdefg....h...z", "..XdefgYY..h....", "................", "qqqqqqqqqqqqqqqq"];
        let mut before: Option<(String, Content)> = None;
        for (number, step) in steps.iter().enumerate() {
            let now = content(step);
            let id = format!("{number}");
            let base = before.as_ref().map(|(id, content)| (id.as_str(), content));
            let point = host.point(&id, base, &now).expect("stored");
            assert_eq!((point.id.as_str(), point.disks[0].size), (id.as_str(), 16 * CHUNK));
            before = Some((id, now));
        }
        for (number, step) in steps.iter().enumerate() {
            assert_eq!(host.restore(&number.to_string()).expect("restored"), content(step));
            assert_eq!(host.verify(&number.to_string()).expect("looked at"), []);
        }
        assert_eq!(host.points(), ["0", "1", "2", "3", "4"]);
        // Any of them is whole without the others.
        for gone in ["0", "1", "3", "4"] {
            host.delete(gone).expect("deleted");
        }
        host.collect(&[], true).expect("collected");
        assert_eq!(host.restore("2").expect("restored"), content(steps[2]));
        assert_eq!(host.collect(&[], false).expect("looked at"), []);
    }
}

#[test]
fn what_is_told_of_a_point_travels_with_it() {
    let host = Host::default();
    let point = host.point("1", None, &content("ab")).expect("stored");
    assert_eq!((point.vm.as_str(), point.job.as_str(), point.name.as_str()), ("vm", "job", "a VM"));
    assert_eq!(point.disks[0].digest.as_deref(), Some("ab12"));
    assert_eq!(point.disks[0].content, "content of disk at 1");
    assert_eq!(host.with(|repository| repository.metadata("1")).expect("there"), r#"{"format":1,"of":"1"}"#);
    assert!(!point.held);
    host.with(|repository| repository.hold("1", true)).expect("held");
    assert!(host.with(|repository| repository.points(Some("vm"))).expect("listed")[0].held);
    host.with(|repository| repository.hold("1", false)).expect("let go");
    assert!(!host.with(|repository| repository.points(Some("vm"))).expect("listed")[0].held);
    assert_eq!(host.with(|repository| repository.points(Some("another"))).expect("listed"), []);
    let absent = host.with(|repository| repository.hold("2", true)).expect_err("absent");
    assert_eq!(absent.code, ErrorCode::NotFound);
}

#[test]
fn a_second_commit_answers_the_same_point() {
    let host = Host::default();
    let receipts = [host.write("1", "disk", None, &content("ab")).expect("written")];
    let first = host.commit("1", None, &receipts).expect("committed");
    assert_eq!(host.commit("1", None, &receipts).expect("committed"), first);
    // A late abort of a draft that became a point takes nothing.
    host.abort("1").expect("aborted");
    assert_eq!(host.restore("1").expect("restored"), content("ab"));
}

#[test]
fn an_aborted_draft_leaves_nothing() {
    let host = Host::default();
    host.point("1", None, &content("ab")).expect("stored");
    let before = host.storage.names();
    host.write("2", "disk", None, &content("cdefghij")).expect("written");
    host.write("2", "other", None, &content("klm")).expect("written");
    assert_ne!(host.storage.names(), before);
    host.abort("2").expect("aborted");
    host.abort("never heard of").expect("aborted");
    assert_eq!(host.storage.names(), before);
    assert_eq!(host.collect(&[], false).expect("looked at"), []);
}

#[test]
fn a_late_abort_of_a_point_that_was_deleted_takes_nothing_of_others() {
    let host = Host::default();
    host.point("1", None, &content("abcdef")).expect("stored");
    host.point("2", None, &content("abcdef")).expect("stored");
    host.delete("1").expect("deleted");
    host.abort("1").expect("aborted");
    assert_eq!(host.restore("2").expect("restored"), content("abcdef"));
}

#[test]
fn ten_clones_cost_little_more_than_one() {
    let host = Host { chunks: 2000, ..Host::default() };
    // 1,000 different chunks of 64 KiB.
    let disk = |letters: &mut dyn FnMut(u64) -> u8| (0..250).map(|at| (at * 4, letters(at))).collect::<Content>();
    let first = disk(&mut |at| (at % 250) as u8 + 1);
    host.point("0", None, &first).expect("stored");
    let one = host.storage.size();
    for number in 1..10 {
        // Each clone went its own way in one chunk.
        let mut clone = first.clone();
        clone.insert(4, 250 + number as u8 % 5);
        host.point(&number.to_string(), None, &clone).expect("stored");
        assert_eq!(host.restore(&number.to_string()).expect("restored"), clone);
    }
    let all = host.storage.size();
    assert!(all < one + one / 20, "ten take {all} bytes, one {one}");
}

#[test]
fn layouts_are_what_has_data_and_what_changed() {
    let host = Host { chunks: 10_000, ..Host::default() };
    let before: Content = [(0, b'a'), (1, b'b'), (4095, b'c'), (4096, b'd'), (9999, b'e')].into();
    host.point("1", None, &before).expect("stored");
    let mut after = before.clone();
    after.remove(&1);
    after.insert(2, b'x');
    after.insert(4096, b'y');
    host.point("2", Some(("1", &before)), &after).expect("stored");
    let chunks = |extents: Vec<Extent>| -> Vec<(u64, u64)> {
        extents.iter().map(|extent| (extent.offset / CHUNK, extent.length / CHUNK)).collect()
    };
    let layout = |id, since| chunks(host.layout(id, "disk", since).expect("told"));
    assert_eq!(layout("1", None), [(0, 2), (4095, 2), (9999, 1)]);
    assert_eq!(layout("2", Some("1")), [(1, 2), (4096, 1)]);
    assert_eq!(layout("1", Some("2")), [(1, 2), (4096, 1)]);
    assert_eq!(layout("2", Some("2")), []);
    assert_eq!(host.restore("2").expect("restored"), after);
}

#[test]
fn neighbours_are_read_at_once_and_only_what_was_asked_for() {
    let mut host = Host { chunks: 1000, ..Host::default() };
    host.settings.pack_size = 32 << 20;
    let disk: Content = (0..64).map(|at| (at, at as u8 + 1)).collect();
    host.point("1", None, &disk).expect("stored");
    let read = |extents: &[Extent]| {
        let taken = Taken::default();
        let before = host.storage.opened();
        host.with(|repository| repository.read("1", "disk", extents, &taken)).expect("read");
        (taken.content(), host.storage.opened() - before)
    };
    let few = |extents: &[Extent]| read(extents).0.keys().copied().collect::<Vec<_>>();
    let whole = Extent { offset: 0, length: 1000 * CHUNK };
    let (content, opened) = read(&[whole]);
    assert_eq!(content, disk);
    // What the repository is (1), the point's two halves (2), the pack's table and the page (2), all chunks (1).
    assert!(opened <= 6, "{opened} reads");
    assert_eq!(
        few(&[Extent { offset: 3 * CHUNK, length: CHUNK }, Extent { offset: 7 * CHUNK + 5, length: CHUNK }]),
        [3, 7, 8]
    );
    assert_eq!(few(&[Extent { offset: 5, length: 1 }, Extent { offset: 7, length: 1 }]), [0], "once");
}

#[test]
fn a_disk_that_grew_goes_on_from_its_base_and_one_that_shrank_does_not() {
    let mut host = Host::default();
    let before = content("abc");
    host.point("1", None, &before).expect("stored");
    host.chunks = 9000;
    let mut after = before.clone();
    after.insert(8999, b'z');
    host.point("2", Some(("1", &before)), &after).expect("stored");
    assert_eq!(host.restore("2").expect("restored"), after);
    host.chunks = 16;
    let smaller = host.write("3", "disk", Some(("2", &before)), &before).expect_err("smaller");
    assert_eq!(smaller.code, ErrorCode::Unsupported);
}

#[test]
fn settings_that_do_not_fit_the_repository_are_refused() {
    seal::double::add_key("key");
    let mut host = Host::default();
    host.point("1", None, &content("a")).expect("stored");
    let refusal = |host: &Host| host.with(|repository| repository.points(None)).expect_err("refused");
    host.settings.key = Some("key".to_owned());
    assert_eq!(refusal(&host).code, ErrorCode::Config);
    host.settings.key = None;
    host.settings.chunk_size = Some(1 << 20);
    assert!(refusal(&host).message.contains("64 KiB"), "{}", refusal(&host).message);
    host.settings.chunk_size = None;
    host.storage.alter("repository", |bytes| {
        *bytes = String::from_utf8_lossy(bytes).replace("\"format\": 1", "\"format\": 2").into()
    });
    assert_eq!(refusal(&host).code, ErrorCode::Unsupported);
}

#[test]
fn no_repository_is_made_where_what_exists_can_be_made_again() {
    let mut storage = Memory::default();
    storage.replaces = true;
    let refused = Repository::make(&storage, Settings::default(), &|| 0, [7; 32]).err().expect("refused");
    assert_eq!(refused.code, ErrorCode::Unsupported);
    assert!(refused.message.contains("`repository`"), "{}", refused.message);
    assert!(storage.names().is_empty());
}

#[test]
fn a_repository_whose_chunk_size_somebody_changed_is_refused() {
    seal::double::add_key("key");
    for key in [None, Some("key".to_owned())] {
        let mut host = Host::default();
        host.settings.key = key;
        host.point("1", None, &content("a")).expect("stored");
        host.storage.alter("repository", |bytes| {
            *bytes = String::from_utf8_lossy(bytes).replace("65536", "131072").into();
        });
        let refused = host.with(|repository| repository.points(None)).expect_err("refused");
        assert!(refused.is_damaged() && refused.message.contains("chunk size"), "{}", refused.message);
    }
}

#[test]
fn nothing_in_an_encrypted_repository_says_what_is_in_it() {
    seal::double::add_key("key");
    let mut host = Host::default();
    host.settings.key = Some("key".to_owned());
    host.point("the-point", None, &content("ab")).expect("stored");
    for name in host.storage.names() {
        for word in ["the-point", "vm", "disk"] {
            assert!(!name.contains(word), "{name}");
        }
    }
}

#[test]
fn what_nobody_needs_is_removed_after_the_grace_time_and_told_why_until_then() {
    let mut host = Host::default();
    host.settings.grace = 3600;
    host.point("1", None, &content("abc")).expect("stored");
    host.delete("1").expect("deleted");
    let why = |host: &Host, apply| {
        let found = host.collect(&[], apply).expect("looked at");
        found.iter().map(|one| one.why.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        why(&host, false),
        ["No recovery point needs it; it can be removed 60 minutes after a collection that removes."]
    );
    why(&host, true);
    let waits = "No recovery point needs it; it can be removed in 31 minutes, when all who might have begun to use it are done.";
    host.pass(1800);
    assert_eq!(why(&host, true), [waits]);
    // Nobody refers to it any more, also who stores the same.
    host.point("2", None, &content("abc")).expect("stored");
    assert_eq!(host.names("packs/").len(), 2);
    for _ in 0..2 {
        host.pass(1800);
        assert_eq!(why(&host, true), ["No recovery point needs it; it can be removed."]);
    }
    assert_eq!((host.names("packs/").len(), why(&host, false)), (1, Vec::new()));
    assert_eq!(host.restore("2").expect("restored"), content("abc"));
    assert_eq!(host.names("sentenced/").len() + host.names("condemned/").len(), 0);
}

#[test]
fn what_is_left_of_a_shrunk_pack_is_collected_in_its_time_as_well() {
    let mut host = Host::default();
    host.settings.pack_size = 32 << 20;
    host.settings.grace = 3600;
    for (id, disk) in [("1", "abcdefghijklmnop"), ("2", "abcdefgh....stuv"), ("3", "stuv")] {
        host.point(id, None, &content(disk)).expect("stored");
    }
    for (gone, shrunk) in [("1", 1), ("2", 0)] {
        host.delete(gone).expect("deleted");
        // It is condemned, sentenced and removed.
        for _ in 0..3 {
            host.collect(&[], true).expect("collected");
            host.pass(3600);
        }
        let names = host.names("packs/");
        assert_eq!(names.iter().filter(|name| name.contains('~')).count(), shrunk, "{names:?}");
    }
    assert_eq!(host.restore("3").expect("restored"), content("stuv"));
    assert_eq!(host.collect(&[], true).expect("looked at"), []);
    assert_eq!(host.names("sentenced/").len() + host.names("condemned/").len(), 0);
}

#[test]
fn where_objects_are_locked_a_pack_stays_whole_until_nobody_needs_any_of_it() {
    let mut storage = Memory::default();
    storage.locks = true;
    let mut host = Host::on(Arc::new(storage));
    host.settings.pack_size = 32 << 20;
    host.point("1", None, &content("abcdefghijklmnop")).expect("stored");
    host.point("2", None, &content("ab")).expect("stored");
    let shared = host.names("packs/").into_iter().max_by_key(|name| host.storage.length(name)).expect("a pack");
    host.delete("1").expect("deleted");
    assert_eq!(host.collect(&[], true).expect("collected"), []);
    assert_eq!(host.restore("2").expect("restored"), content("ab"));
    // Nobody removes it, so others may go on referring to it.
    host.point("3", None, &content("cdef")).expect("stored");
    assert!(host.storage.size() < 18 * CHUNK);
    for gone in ["2", "3"] {
        assert!(host.names("packs/").contains(&shared));
        host.delete(gone).expect("deleted");
        host.collect(&[], true).expect("collected");
    }
    assert_eq!(host.names("packs/"), Vec::<String>::new());
}
