//! Targets that misbehave: what each does to its own call, and to nothing else.

use crate::house::{Pieces, Source, draft, failure, in_folder, info, load, with};
use async_trait::async_trait;
use bytes::Bytes;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;
use vmferry_model::plugin::PluginFailure;
use vmferry_model::target::{BrokenOff, PointStore, Restored, StoredExtent};
use vmferry_sandbox::{Instance, Limits, Target};

const MIB: u64 = 1 << 20;

async fn target(instance: Instance) -> Arc<Target> {
    let plugin = load("misbehaves_as_target", "target", "[grants]\nfolders = true").await;
    plugin.target(instance).await.expect("set up")
}

fn doing(does: &str) -> Instance {
    with(serde_json::json!({ "does": does }))
}

fn limited(does: &str, limits: Limits) -> Instance {
    Instance { limits, ..doing(does) }
}

/// Three chunks, of which the second is all zeroes.
fn source() -> Box<Source> {
    Box::new(Source::of(&[(0, 1 << 20, 1), (MIB, 1 << 20, 0), (2 * MIB, 1 << 20, 3)]))
}

async fn write(instance: Instance) -> Result<Vec<u8>, PluginFailure> {
    let written = target(instance).await.write(&draft("a"), info(3 * MIB, None), source()).await;
    written.map_err(|error| error.failure)
}

async fn read(instance: Instance) -> Result<Vec<(u64, Bytes)>, PluginFailure> {
    let pieces = Pieces::default();
    let extents = [StoredExtent { offset: 8, length: 4 }];
    let read = target(instance).await.read("a", "disk", &extents, Box::new(pieces.clone())).await;
    read.map_err(|error| error.failure)?;
    Ok(pieces.0.lock().expect("unpoisoned").clone())
}

fn nonsense<T: std::fmt::Debug>(result: Result<T, PluginFailure>) -> String {
    match result {
        Err(PluginFailure::Nonsense(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, PluginFailure>) -> (String, String) {
    match result {
        Err(PluginFailure::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_that_traps_says_why_and_the_next_call_is_as_good_as_any() {
    let target = target(doing("trap")).await;
    let trapped = failure(target.write(&draft("a"), info(3 * MIB, None), source()).await);
    assert!(matches!(&trapped, PluginFailure::Trap(words) if words.contains("as told")), "{trapped}");
    let empty = Box::new(Source::of(&[]));
    assert_eq!(target.write(&draft("a"), info(3 * MIB, None), empty).await, Ok(Vec::new()));
}

#[tokio::test]
async fn one_that_moves_nothing_is_ended() {
    for does in ["spin", "sleep"] {
        let limits = Limits { stall: Some(Duration::from_millis(200)), ..Limits::default() };
        let stalled = write(limited(does, limits)).await.expect_err("it never ends");
        assert!(matches!(&stalled, PluginFailure::Limit { setting, .. } if setting == "stall"), "{does}: {stalled}");
    }
}

#[tokio::test]
async fn one_that_does_nothing_on_its_own_store_is_ended_and_one_that_works_is_not() {
    let limits = Limits {
        timeout: Some(Duration::from_millis(200)),
        stall: Some(Duration::from_millis(200)),
        ..Limits::default()
    };
    let stalled = failure(target(limited("sleep", limits.clone())).await.commit(&draft("a"), &[]).await);
    assert!(matches!(&stalled, PluginFailure::Limit { setting, .. } if setting == "stall"), "{stalled}");
    let place = tempfile::tempdir().expect("a folder");
    let with = serde_json::json!({ "does": "work", "folder": place.path() });
    let working = target(Instance { limits, ..in_folder(place.path(), with) }).await;
    working.delete("a").await.expect("longer than either, but never idle");
}

#[tokio::test]
async fn what_it_has_held_for_it_has_a_limit_however_it_holds_it() {
    let limits = Limits { held: Some(2 * MIB), ..Limits::default() };
    for does in ["hold-chunks", "hold-bodies"] {
        let (code, message) = refusal(write(limited(does, limits.clone())).await);
        assert!(code == "limit" && message.contains("2 MiB together"), "{does}: {message}");
    }
    let (code, _) = refusal(read(limited("hold-pieces", limits)).await);
    assert_eq!(code, "limit");
}

#[tokio::test]
async fn files_that_it_has_open_are_few_however_it_holds_them() {
    let place = tempfile::tempdir().expect("a folder");
    for does in ["hold-files", "hold-streams"] {
        let with = serde_json::json!({ "does": does, "folder": place.path() });
        let (_, message) = refusal(write(in_folder(place.path(), with)).await);
        assert!(message.contains("ENOMEM"), "{does}: {message}");
    }
}

#[tokio::test]
async fn a_receipt_is_of_a_whole_and_short() {
    assert!(nonsense(write(doing("answer-early")).await).contains("before it had taken all"));
    assert!(nonsense(write(doing("long-receipt")).await).contains("65537 bytes"));
    let target = target(doing("ignore-the-break")).await;
    let source = Box::new(Source::of(&[(0, 1 << 20, 1)]).breaking_off("the pool is gone"));
    let written = target.write(&draft("a"), info(3 * MIB, None), source).await;
    let (code, message) = refusal(written.map_err(|error| error.failure));
    assert!(code == "unavailable" && message.contains("the pool is gone"), "{message}");
}

#[tokio::test]
async fn what_a_guest_copies_is_counted() {
    let target = target(doing("copy")).await;
    target.write(&draft("a"), info(3 * MIB, None), source()).await.expect("written");
    let passed = target.passed();
    assert!(passed.stored > 0 && passed.copied == passed.stored, "{passed:?}");
    let pieces = Box::new(Pieces::default());
    target.read("a", "disk", &[StoredExtent { offset: 8, length: 4 }], pieces).await.expect("read");
    assert_eq!(target.passed().copied, passed.copied + 12);
}

#[tokio::test]
async fn no_path_leads_out_of_a_granted_folder() {
    let place = tempfile::tempdir().expect("a folder");
    let (granted, secret) = (place.path().join("granted"), place.path().join("secret"));
    std::fs::create_dir_all(granted.join("inner")).expect("a folder");
    std::fs::write(&secret, "secret").expect("a file");
    std::fs::write(granted.join("own"), "own").expect("a file");
    symlink(&secret, granted.join("link")).expect("a link");
    symlink(place.path(), granted.join("up")).expect("a link");
    let leave = async |folder: &std::path::Path, path: &str| {
        let with = serde_json::json!({ "does": "leave", "folder": folder, "path": path });
        write(in_folder(&granted, with)).await
    };
    assert_eq!(leave(&granted, "own").await, Ok(Vec::new()));
    for path in ["../secret", "link", "up/secret", secret.to_str().expect("UTF-8"), "inner/../../secret"] {
        let (code, message) = refusal(leave(&granted, path).await);
        assert_eq!(code, "denied", "{path}: {message}");
    }
    let (code, message) = refusal(leave(place.path(), "secret").await);
    assert!(code == "denied" && message.contains("grants: folders = ["), "{message}");
}

#[tokio::test]
async fn folders_are_requested_and_exist() {
    let place = tempfile::tempdir().expect("a folder");
    let plugin = load("misbehaves_as_target", "target", "").await;
    let refused = plugin.target(in_folder(place.path(), serde_json::json!({}))).await.map_err(|error| error.failure);
    assert!(matches!(&refused, Err(PluginFailure::Denied(text)) if text.contains("does not request folders")));
    let plugin = load("misbehaves_as_target", "target", "[grants]\nfolders = true").await;
    let gone = place.path().join("gone");
    let refused = plugin.target(in_folder(&gone, serde_json::json!({}))).await.map_err(|error| error.failure);
    assert!(matches!(&refused, Err(PluginFailure::Host(text)) if text.contains("gone")), "{refused:?}");
}

#[tokio::test]
async fn a_granted_folder_is_none_that_a_link_leads_to() {
    let place = tempfile::tempdir().expect("a folder");
    let (outer, elsewhere) = (place.path().join("outer"), place.path().join("elsewhere"));
    let granted = outer.join("granted");
    std::fs::create_dir_all(&granted).expect("a folder");
    std::fs::create_dir_all(elsewhere.join("granted")).expect("a folder");
    for folder in [&granted, &elsewhere.join("granted")] {
        std::fs::write(folder.join("own"), "own").expect("a file");
    }
    let with = serde_json::json!({ "does": "leave", "folder": granted, "path": "own" });
    let target = target(in_folder(&granted, with)).await;
    let write = async || target.write(&draft("a"), info(3 * MIB, None), source()).await;
    write().await.expect("read from it");
    // The last part of the path, and one before it.
    for (moved, to) in [(&granted, elsewhere.join("granted")), (&outer, elsewhere.clone())] {
        let aside = moved.with_extension("aside");
        std::fs::rename(moved, &aside).expect("out of the way");
        symlink(&to, moved).expect("a link");
        let refused = failure(write().await);
        let there = elsewhere.join("granted");
        let names = |text: &str| [&granted, &there].iter().all(|path| text.contains(path.to_str().expect("UTF-8")));
        assert!(matches!(&refused, PluginFailure::Denied(text) if names(text)), "{refused}");
        std::fs::remove_file(moved).expect("a link");
        std::fs::rename(&aside, moved).expect("back");
        write().await.expect("as before");
    }
}

#[tokio::test]
async fn granted_folders_lie_side_by_side() {
    let place = tempfile::tempdir().expect("a folder");
    let plugin = load("misbehaves_as_target", "target", "[grants]\nfolders = true").await;
    let mut nested = in_folder(place.path(), serde_json::json!({}));
    nested.grants.folders.push(place.path().join("site").to_str().expect("UTF-8").to_owned());
    let refused = plugin.target(nested).await.map_err(|error| error.failure);
    assert!(matches!(&refused, Err(PluginFailure::Denied(text)) if text.contains("which it lies in")), "{refused:?}");
}

#[tokio::test]
async fn what_comes_back_is_in_order_and_what_its_digest_says() {
    let asked = vec![(8, Bytes::from_static(&[7; 4]))];
    assert_eq!(read(doing("nothing")).await, Ok(asked), "more was put than was asked for");
    let (code, message) = refusal(read(doing("backwards")).await);
    assert!(code == "unsupported" && message.contains("ascending"), "{message}");
    let (code, message) = refusal(read(doing("damage")).await);
    assert!(code == "damaged" && message.contains("digest"), "{message}");
}

/// Takes nothing.
struct Gone;

#[async_trait]
impl Restored for Gone {
    async fn put(&mut self, _: u64, _: Bytes) -> Result<(), BrokenOff> {
        Err(BrokenOff("the SR is full".to_owned()))
    }
}

#[tokio::test]
async fn one_that_reads_for_nobody_is_told() {
    let read = target(doing("nothing"))
        .await
        .read("a", "disk", &[StoredExtent { offset: 8, length: 4 }], Box::new(Gone))
        .await;
    let (code, message) = refusal(read.map_err(|error| error.failure));
    assert!(code == "unavailable" && message.contains("the SR is full"), "{message}");
}

#[tokio::test]
async fn answers_that_mean_nothing_are_refused_at_the_edge() {
    let plugin = load("misbehaves_as_target", "target", "").await;
    let shaped = plugin.target(with(serde_json::json!({ "path": "shape" }))).await;
    assert!(nonsense(shaped.map(drop).map_err(|error| error.failure)).contains("chunks of 12345 bytes"));
    let target = target(with(serde_json::json!({ "path": "a\nb" }))).await;
    let text = |result: Result<(), vmferry_model::plugin::PluginError>| nonsense(result.map_err(|error| error.failure));
    assert!(text(target.points(None).await.map(drop)).contains("`a b`, which identifies nothing"));
    assert!(text(target.metadata("a").await.map(drop)).contains("is damaged"));
    assert!(text(target.layout("a", "disk", None).await.map(drop)).contains("begins before the one in front of it"));
    assert!(text(target.commit(&draft("a"), &[]).await.map(drop)).contains("committed `another`"));
    assert!(text(target.verify("a").await.map(drop)).contains("no range of a disk"));
    let (code, message) = refusal(target.abort(&draft("a")).await.map_err(|error| error.failure));
    assert_eq!((&*code, &*message), ("unavailable", "not now"));
}
