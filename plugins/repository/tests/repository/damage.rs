//! What is damaged is found, told, and costs nothing else.

use crate::support::{CHUNK, Content, Host, content};
use vmferry_plugin_api::target::Extent;

const A: &str = "abcdefgh";

/// A point of two packs, and the names of these: four chunks in the first, four and the page in the other.
fn stored() -> (Host, Vec<String>) {
    let mut host = Host::default();
    host.settings.pack_size = 4 * CHUNK + CHUNK / 2;
    host.point("A", None, &content(A)).expect("stored");
    let mut packs = host.names("packs/");
    packs.sort_by_key(|name| host.storage.length(name));
    (host, packs)
}

#[test]
fn verify_names_the_chunk_that_changed_and_remembers_it() {
    let (host, packs) = stored();
    // Near the end of the pack without a page: its last chunk, `d`.
    host.storage.alter(&packs[0], |bytes| *bytes.last_mut().expect("some") ^= 1);
    let found = host.verify("A").expect("looked at");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].disk.as_deref(), Some("disk"));
    assert_eq!(found[0].extent, Some(Extent { offset: 3 * CHUNK, length: CHUNK }));
    let point = &host.with(|repository| repository.points(None)).expect("listed")[0];
    assert_eq!(point.damaged.as_deref(), Some(found[0].message.as_str()));
    assert!(host.restore("A").expect_err("damaged").is_damaged());

    host.storage.alter(&packs[0], |bytes| *bytes.last_mut().expect("some") ^= 1);
    assert_eq!(host.verify("A").expect("looked at"), []);
    assert_eq!(host.with(|repository| repository.points(None)).expect("listed")[0].damaged, None);
}

#[test]
fn a_full_copy_after_a_verification_stores_anew_what_is_damaged() {
    let (host, packs) = stored();
    host.storage.alter(&packs[0], |bytes| *bytes.last_mut().expect("some") ^= 1);
    assert_eq!(host.verify("A").expect("looked at").len(), 1);
    host.verify("A").expect("looked at");
    assert_eq!(host.names("unsound/").len(), 1, "said once");

    host.point("B", None, &content(A)).expect("stored");
    assert_eq!(host.verify("B").expect("looked at"), []);
    assert_eq!(host.restore("B").expect("restored"), content(A));
    let known = host.storage.size();
    host.point("C", None, &content(A)).expect("stored");
    assert!(host.storage.size() < known + CHUNK, "what is sound is stored once");

    host.delete("A").expect("deleted");
    host.collect(&[], true).expect("collected");
    assert!(!host.storage.names().contains(&packs[0]));
    assert_eq!(host.names("unsound/"), Vec::<String>::new());
    assert_eq!(host.restore("C").expect("restored"), content(A));
}

#[test]
fn a_writer_that_began_before_damage_was_found_gives_up() {
    let (host, packs) = stored();
    let receipt = host.write("B", "disk", None, &content(A)).expect("written");
    host.storage.alter(&packs[0], |bytes| *bytes.last_mut().expect("some") ^= 1);
    assert_eq!(host.verify("A").expect("looked at").len(), 1);
    let refused = host.commit("B", None, std::slice::from_ref(&receipt)).expect_err("refused");
    assert!(refused.retry_after.is_some() && refused.message.contains("damage"), "{}", refused.message);
    assert_eq!(host.points(), ["A"]);
}

#[test]
fn verify_tells_the_extent_of_a_pack_that_is_gone() {
    let (host, packs) = stored();
    host.storage.remove(&packs[0]);
    let found = host.verify("A").expect("looked at");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].extent, Some(Extent { offset: 0, length: 4 * CHUNK }));
}

#[test]
fn nothing_is_collected_while_nobody_knows_what_a_point_needs() {
    let (host, packs) = stored();
    host.point("garbage", None, &content("stuvwxyz")).expect("stored");
    host.delete("garbage").expect("deleted");
    let before = host.names("packs/");
    // The page is in the longer pack.
    host.storage.alter(&packs[1], |bytes| *bytes.last_mut().expect("some") ^= 1);
    let refused = host.collect(&[], true).expect_err("refused");
    assert!(refused.is_damaged() && refused.message.starts_with("nothing was removed"), "{}", refused.message);
    assert_eq!(host.names("packs/"), before);
    // Whoever deletes the point gives up what it needed.
    host.delete("A").expect("deleted");
    host.collect(&[], true).expect("collected");
    assert_eq!(host.names("packs/"), Vec::<String>::new());
}

#[test]
fn a_point_that_cannot_be_read_hides_no_other() {
    let (host, _) = stored();
    host.point("B", None, &content("xyz")).expect("stored");
    let name = host.names("points/").into_iter().next().expect("a point");
    host.storage.alter(&name, |bytes| bytes.truncate(20));
    assert_eq!(host.points().len(), 1);
}

#[test]
fn no_changed_byte_anywhere_goes_unseen_or_panics() {
    let (host, _) = stored();
    for name in
        host.storage.names().into_iter().filter(|name| name.starts_with("packs/") || name.starts_with("points/"))
    {
        let length = host.storage.length(&name);
        for step in 0..60 {
            // The head byte by byte, the rest here and there.
            let at = if step < 40 { step } else { 40 + (length - 41) * (step - 40) / 19 };
            host.storage.alter(&name, |bytes| bytes[at] ^= 0x40);
            match host.verify("A") {
                Ok(found) => assert_ne!(found, [], "byte {at} of {name}"),
                Err(error) => panic!("byte {at} of {name}: {error:?}"),
            }
            let restored = host.restore("A");
            assert!(restored.is_err_and(|error| error.is_damaged()), "byte {at} of {name}");
            host.storage.alter(&name, |bytes| bytes[at] ^= 0x40);
        }
    }
    assert_eq!(host.verify("A").expect("looked at"), []);
}

#[test]
fn an_index_that_is_lost_or_damaged_costs_room_alone_and_is_made_anew() {
    let host = Host::default();
    let disk: Content = content("abcdefghijklmnop");
    host.point("A", None, &disk).expect("stored");
    let index = host.names("index/");
    host.storage.alter(&index[0], |bytes| bytes.truncate(bytes.len() / 2));
    let one = host.storage.size();
    host.point("B", None, &disk).expect("stored");
    assert!(host.storage.size() > one * 19 / 10, "stored again");
    assert_eq!(host.restore("B").expect("restored"), disk);
    for name in host.names("index/") {
        host.storage.remove(&name);
    }
    host.collect(&[], true).expect("collected");
    let two = host.storage.size();
    host.point("C", None, &disk).expect("stored");
    assert!(host.storage.size() < two + one / 10, "known again");
}

#[test]
fn foreign_objects_are_left_alone() {
    let host = Host::default();
    host.point("A", None, &content(A)).expect("stored");
    let foreign =
        ["lost+found", "packs/readme", "packs/a/b", "drafts/x", "points/x/y", "index/x", "condemned/x", "tmp/x"];
    for name in foreign {
        host.with(|_| vmferry_repository::Storage::create(&*host.storage, name, b"hello")).expect("made");
    }
    assert_eq!(host.points(), ["A"]);
    host.collect(&[], true).expect("collected");
    assert_eq!(host.restore("A").expect("restored"), content(A));
    assert!(host.storage.names().iter().any(|name| name == "packs/readme"));
}
