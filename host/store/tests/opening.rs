//! Opening: new, again, newer, damaged, by several at once.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use vmferry_model::report::{Outcome, RunReport};
use vmferry_model::store::{KeyValue, RunStore};
use vmferry_store::{OpenError, Store};

async fn refusal(folder: &Path) -> OpenError {
    Store::open(folder).await.expect_err("it does not open")
}

/// The text of an error with the folder's name taken out.
fn text(error: &OpenError, folder: &Path) -> String {
    error.to_string().replace(&folder.display().to_string(), "FOLDER")
}

#[tokio::test]
async fn a_new_folder_is_private_and_has_a_place_for_digests() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("var/vmferry");
    let store = Store::open(&folder).await.unwrap();
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(store.digest_dir(), folder.join("digests"));
    assert!(store.digest_dir().is_dir());
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(Store::open(folder.path()).await.unwrap());
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("state.db"));
    let pool = sqlx::SqlitePool::connect_with(file).await.unwrap();
    sqlx::query("PRAGMA user_version = 1000").execute(&pool).await.unwrap();
    pool.close().await;

    assert_eq!(
        text(&refusal(folder.path()).await, folder.path()),
        "FOLDER/state.db has schema version 1000, this program knows versions up to 3; use the newer program, \
         or move the folder away to begin a new history"
    );
}

#[tokio::test]
async fn a_file_that_is_no_database_is_told_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("state.db"), "this was never a database, only a text\n".repeat(100)).unwrap();
    let error = refusal(folder.path()).await;
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    let text = text(&error, folder.path());
    assert!(text.starts_with("FOLDER/state.db is damaged or no database ("), "{text}");
    assert!(text.ends_with("; move it away to begin a new history: replicas do not depend on it"), "{text}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let parent = tempfile::tempdir().unwrap();
    std::fs::write(parent.path().join("file"), "").unwrap();
    let error = refusal(&parent.path().join("file/store")).await;
    assert_eq!(text(&error, parent.path()), "make the folder FOLDER/file/store: Not a directory (os error 20)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_openers_and_writers_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    // Each opens its own connections, as a process of its own would.
    let writers = (0..4).map(|writer| {
        let path = folder.path().to_owned();
        tokio::spawn(async move {
            let store = Store::open(&path).await.unwrap();
            for n in 0..25 {
                let now = jiff::Timestamp::from_second(n).unwrap();
                let report = RunReport {
                    job: "erp".to_owned(),
                    run: format!("{writer}-{n}"),
                    started_at: now,
                    ended_at: now,
                    outcome: Outcome::Succeeded,
                    error: None,
                    warnings: Vec::new(),
                    vms: Vec::new(),
                };
                store.record("default", &report).await.unwrap();
                store.set("default", "notify", &format!("{writer}-{n}"), b"x", 10_000).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let store = Store::open(folder.path()).await.unwrap();
    assert_eq!(store.recent("default", "erp", 1000).await.unwrap().len(), 100);
    assert_eq!(store.list("default", "notify", "").await.unwrap().len(), 100);
}

#[tokio::test]
async fn a_store_in_memory_removes_its_folder_with_the_last_clone() {
    let store = Store::in_memory().await.unwrap();
    let digests = store.digest_dir();
    let clone = store.clone();
    drop(store);
    assert!(digests.is_dir());
    drop(clone);
    assert!(!digests.exists());
}
