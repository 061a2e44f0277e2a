//! A target: a deduplicating repository of recovery points in a bucket of Amazon S3, or of what speaks its protocol.
//!
//! ```toml
//! targets = [
//!     { plugin = "target-s3", with = { endpoint = "https://s3.eu-central-1.amazonaws.com", bucket = "acme-backup", create = true } },
//! ]
//!
//! [plugin.target-s3]
//! grants = { http = ["https://s3.eu-central-1.amazonaws.com"] }
//!
//! [[plugin.target-s3.credentials]]
//! server = "https://s3.eu-central-1.amazonaws.com"
//! access_key = "AKIAIOSFODNN7EXAMPLE"
//! secret_key_file = "secrets/s3"
//! region = "eu-central-1"
//! ```
//!
//! `create = true` has the first run make a repository in the bucket. Take it out of the settings after that: without it a place
//! without a repository is an error, since `bucket` or `prefix` is more likely wrong.
//!
//! What the bucket has to do: answer ranges, list what was just made, and honour `If-None-Match: *`, as Amazon S3, MinIO, Ceph and
//! Cloudflare R2 do; no repository is made where that is ignored. An upload that broke off with its host leaves parts behind, which a
//! lifecycle rule (`AbortIncompleteMultipartUpload`) removes; with the default sizes nothing is sent in parts. It was tried with two
//! stores, moto and s3s-fs, of which the second compares whole objects with the check sums that they are sent with.
//!
//! **Object Lock.** With `lock`, everything that is made is locked for so many days from then on; a chunk that newer points share is
//! not locked anew. So what is younger than that cannot be destroyed by whoever has the key, and of what is older only the newest chunks
//! cannot. Of each point the store is asked whether it is locked, for which the credential has to allow `s3:GetObjectRetention`; one
//! that is not is taken back. A pack is never made smaller then: it goes when no point needs any of it. In the versioned bucket that
//! Object Lock needs, what is deleted is hidden and stays as an older version: a lifecycle rule has to expire those.
//!
//! Payload never enters the plugin, and neither does the secret key.

mod bucket;
mod store;
mod xml;

pub use bucket::{Addressing, Bucket, Lock, Mode};
pub use store::Store;

use serde::Deserialize;
use vmferry_plugin_api::target::*;
use vmferry_plugin_api::{Size, Span};
use vmferry_repository::target::{Choices, Kept, Place};

/// The plugin.
struct InBucket;

/// `with = { endpoint = "https://s3.eu-central-1.amazonaws.com", bucket = "acme-backup", prefix = "site-a", key = "backup" }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The store's address, without the bucket.
    endpoint: String,
    /// The bucket.
    bucket: String,
    /// What all names begin with.
    #[serde(default)]
    prefix: String,
    /// Where the bucket's name stands: `path` or `virtual-hosted`.
    #[serde(default)]
    addressing: Addressing,
    /// Up to this size an object is sent by one request, a larger one in parts of about this size. From `5 MiB` on; some stores
    /// want all parts of an object to be equal, which these are not.
    #[serde(default = "part_size")]
    part_size: Size,
    /// Object Lock: `{ mode = "governance", days = 30 }`.
    lock: Option<Lock>,
    /// Whether a repository is made where none is: for the first run.
    #[serde(default)]
    create: bool,
    /// Name of the host's key that everything is encrypted with.
    key: Option<String>,
    /// Size of a chunk, chosen when the repository is made: `64 KiB` to `2 MiB`.
    chunk_size: Option<Size>,
    /// Whether chunks are compressed.
    #[serde(default = "yes")]
    compress: bool,
    /// Bytes of chunks that go into one object.
    pack_size: Option<Size>,
    /// How long what nobody needs is left alone before it is removed, which is longer than a run may take.
    grace: Option<Span>,
}

fn part_size() -> Size {
    Size::of(64 << 20)
}

fn yes() -> bool {
    true
}

impl Config {
    fn bucket(&self) -> Bucket {
        let Self { endpoint, bucket, prefix, addressing, part_size, lock, .. } = self;
        Bucket {
            endpoint: endpoint.clone(),
            bucket: bucket.clone(),
            prefix: prefix.clone(),
            addressing: *addressing,
            part_size: part_size.bytes(),
            lock: *lock,
        }
    }
}

/// Bytes that nobody can guess.
fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let none = |error| Error::with_code(ErrorCode::Unsupported, format!("the host gives no random bytes: {error}"));
    getrandom::fill(&mut bytes).map_err(none)?;
    Ok(bytes)
}

impl Place for InBucket {
    type Config = Config;
    type Store = Store;

    fn describe() -> Description {
        description!("Keeps recovery points in an S3 bucket: deduplicated, compressed and, with a key, encrypted.")
    }

    fn check(config: &Config) -> Result<(), Error> {
        config.bucket().check()
    }

    fn choices(config: &Config) -> Choices {
        let Config { create, key, chunk_size, compress, pack_size, grace, .. } = config;
        let (create, key, chunk_size, compress) = (*create, key.clone(), *chunk_size, *compress);
        Choices { create, key, chunk_size, compress, pack_size: *pack_size, grace: *grace }
    }

    const FIND_IT: &str = "correct `bucket` and `prefix`";

    fn name(config: &Config) -> String {
        config.bucket().url(Some(""), &[])
    }

    fn store(config: &Config) -> Result<Store, Error> {
        Ok(Store::new(config.bucket()))
    }

    fn secret() -> Result<[u8; 32], Error> {
        random()
    }
}

vmferry_plugin_api::export_target!(Kept<InBucket>);

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_repository::Storage;

    fn problem(config: serde_json::Value) -> Option<String> {
        let mut whole = serde_json::json!({ "endpoint": "https://s3.example.org", "bucket": "acme-backup" });
        whole.as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
        let config = vmferry_plugin_api::parse_config::<Config>(&whole.to_string());
        config.and_then(|config| Kept::<InBucket>::check(&config)).err().map(|error| error.message)
    }

    #[test]
    fn what_is_locked_is_made_of_no_ranges() {
        let takes_ranges = |lock: serde_json::Value| {
            let config =
                serde_json::json!({ "endpoint": "https://s3.example.org", "bucket": "acme-backup", "lock": lock });
            let config = vmferry_plugin_api::parse_config(&config.to_string()).expect("right");
            InBucket::store(&config).expect("a store").takes_ranges()
        };
        assert!(takes_ranges(serde_json::Value::Null));
        assert!(!takes_ranges(serde_json::json!({ "mode": "governance", "days": 30 })));
    }

    #[test]
    fn settings_are_checked_by_name() {
        assert_eq!(problem(serde_json::json!({})), None);
        let whole = serde_json::json!({
            "prefix": "site-a", "addressing": "virtual-hosted", "part_size": "16 MiB", "create": true, "key": "backup",
            "chunk_size": "1 MiB", "compress": false, "pack_size": "16 MiB", "grace": "2d", "lock": { "mode": "compliance", "days": 30 }
        });
        assert_eq!(problem(whole), None);
        for (key, value) in [
            ("endpoint", serde_json::json!("s3.example.org")),
            ("addressing", serde_json::json!("dns")),
            ("part_size", serde_json::json!("1 MiB")),
            ("chunk_size", serde_json::json!("96 KiB")),
            ("pack_size", serde_json::json!("1 GiB")),
            ("grace", serde_json::json!("soon")),
            ("lock", serde_json::json!({ "mode": "compliance", "days": 0 })),
            ("secret_key", serde_json::json!("hush")),
        ] {
            let problem = problem(serde_json::json!({ key: value })).expect(key);
            assert!(problem.contains(key), "{problem}");
        }
    }
}
