//! Plugins' locks: exclusive, for a time, with epochs that grow.

use std::time::Duration;
use vmferry_model::store::{Acquired, Leases};
use vmferry_store::Store;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_right_has_one_holder_among_all_who_use_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (store, another) = (Store::open(folder.path()).await.unwrap(), Store::open(folder.path()).await.unwrap());
    assert_eq!(store.acquire("acme", "s3", "index", HOUR).await.unwrap(), Acquired::Epoch(1));
    let held = another.acquire("acme", "s3", "index", HOUR).await.unwrap();
    assert!(matches!(held, Acquired::HeldFor(rest) if rest <= HOUR && rest > HOUR / 2), "{held:?}");
    for (tenant, plugin, name) in [("acme", "s3", "other"), ("acme", "smb", "index"), ("default", "s3", "index")] {
        assert_eq!(another.acquire(tenant, plugin, name, HOUR).await.unwrap(), Acquired::Epoch(1));
    }
    store.release("acme", "s3", "index", 1).await.unwrap();
    assert_eq!(another.acquire("acme", "s3", "index", HOUR).await.unwrap(), Acquired::Epoch(2));
    assert!(!store.renew("acme", "s3", "index", 1, HOUR).await.unwrap(), "it is somebody else's");
    assert!(another.renew("acme", "s3", "index", 2, HOUR).await.unwrap());
    store.release("acme", "s3", "index", 1).await.unwrap();
    assert!(matches!(store.acquire("acme", "s3", "index", HOUR).await.unwrap(), Acquired::HeldFor(_)));
}

#[tokio::test]
async fn a_right_whose_time_has_passed_is_anybodys() {
    let store = Store::in_memory().await.unwrap();
    assert_eq!(store.acquire("acme", "s3", "index", Duration::ZERO).await.unwrap(), Acquired::Epoch(1));
    assert_eq!(store.acquire("acme", "s3", "index", HOUR).await.unwrap(), Acquired::Epoch(2));
}

#[tokio::test]
async fn a_plugin_has_so_many_locks_and_no_more() {
    let store = Store::in_memory().await.unwrap();
    for number in 0..1000 {
        store.acquire("acme", "s3", &number.to_string(), HOUR).await.unwrap();
    }
    assert_eq!(store.acquire("acme", "s3", "one more", HOUR).await.unwrap(), Acquired::TooMany(1000));
    assert!(matches!(store.acquire("acme", "s3", "7", HOUR).await.unwrap(), Acquired::HeldFor(_)));
}
