//! Plugins' small values: separation, order and quota.

use vmferry_model::store::{KeyValue, KeyValueError};
use vmferry_store::{MAX_KEY_BYTES, Store};

const QUOTA: u64 = 100;

#[tokio::test]
async fn values_belong_to_one_plugin_of_one_tenant() {
    let store = Store::in_memory().await.unwrap();
    store.set("acme", "notify", "seen", b"1", QUOTA).await.unwrap();
    assert_eq!(store.get("acme", "notify", "seen").await.unwrap(), Some(b"1".to_vec()));
    assert_eq!(store.get("acme", "other", "seen").await.unwrap(), None);
    assert_eq!(store.get("default", "notify", "seen").await.unwrap(), None);

    store.delete("acme", "notify", "seen").await.unwrap();
    store.delete("acme", "notify", "seen").await.unwrap();
    assert_eq!(store.get("acme", "notify", "seen").await.unwrap(), None);
}

#[tokio::test]
async fn keys_are_listed_by_prefix_in_order() {
    let store = Store::in_memory().await.unwrap();
    for key in ["b/1", "a/2", "a/10", "a%", "A/1", "a/\0x"] {
        store.set("default", "notify", key, b"", QUOTA).await.unwrap();
    }
    assert_eq!(store.list("default", "notify", "a/").await.unwrap(), ["a/\0x", "a/10", "a/2"]);
    assert_eq!(store.list("default", "notify", "").await.unwrap().len(), 6);
}

#[tokio::test]
async fn a_plugin_cannot_hold_more_than_its_quota() {
    let store = Store::in_memory().await.unwrap();
    store.set("default", "notify", "k1", &[0; 48], QUOTA).await.unwrap();
    store.set("default", "notify", "k2", &[0; 48], QUOTA).await.unwrap();

    let error = store.set("default", "notify", "k3", b"", QUOTA).await.unwrap_err();
    assert!(matches!(error, KeyValueError::Quota { wanted: 102, quota: 100, .. }), "{error}");
    assert_eq!(store.list("default", "notify", "").await.unwrap(), ["k1", "k2"]);

    // Replacing a value counts the new one only, and what others hold does not count.
    store.set("default", "notify", "k1", &[1; 48], QUOTA).await.unwrap();
    store.set("default", "other", "k3", &[0; 98], QUOTA).await.unwrap();
}

#[tokio::test]
async fn a_key_has_a_longest_length() {
    let store = Store::in_memory().await.unwrap();
    store.set("default", "notify", &"k".repeat(MAX_KEY_BYTES), b"", 1000).await.unwrap();
    let error = store.set("default", "notify", &"k".repeat(MAX_KEY_BYTES + 1), b"", 1000).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "state store (in memory): write a plugin's value: notify: a key of 257 bytes; the longest allowed is 256"
    );
}
