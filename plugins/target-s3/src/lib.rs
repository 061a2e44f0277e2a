//! A target: a deduplicating repository of recovery points in a bucket of Amazon S3, or of what speaks its protocol.
//!
//! ```toml
//! targets = [{ plugin = "target-s3", with = { endpoint = "https://s3.eu-central-1.amazonaws.com", bucket = "acme-backup" } }]
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
//! What the bucket has to do: answer ranges, list what was just made, and honour `If-None-Match: *`, as Amazon S3, MinIO, Ceph and
//! Cloudflare R2 do. An upload that broke off with its host leaves parts behind, which a lifecycle rule
//! (`AbortIncompleteMultipartUpload`) removes; with the default sizes nothing is sent in parts.
//!
//! **Object Lock.** With `lock`, everything that is made is locked for so many days from then on. In the versioned bucket that Object
//! Lock needs, what is deleted is hidden and stays as an older version: a lifecycle rule has to expire those. A chunk that a newer point
//! shares with an older one is locked since the older one was made, so choose a time that is longer than points are kept.
//!
//! Payload never enters the plugin, and neither does the secret key.

mod bucket;
mod store;
mod xml;

pub use bucket::{Addressing, Bucket, Lock, Mode};
pub use store::Store;

use serde::Deserialize;
use std::time::SystemTime;
use vmferry_plugin_api::target::*;
use vmferry_plugin_api::{Size, Span};
use vmferry_repository::{DEFAULT_CHUNK_SIZE, Repository, Settings};

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
    /// Name of the host's key that everything is encrypted with.
    key: Option<String>,
    /// Size of a chunk, chosen when the repository is made: `64 KiB` to `2 MiB`.
    chunk_size: Option<Size>,
    /// Whether chunks are compressed.
    #[serde(default = "yes")]
    compress: bool,
    /// Bytes of chunks that go into one object.
    #[serde(default = "pack_size")]
    pack_size: Size,
    /// How long what nobody needs is left alone before it is removed, which is longer than a run may take.
    grace: Option<Span>,
}

fn part_size() -> Size {
    Size::of(64 << 20)
}

fn pack_size() -> Size {
    Size::of(Settings::default().pack_size)
}

fn yes() -> bool {
    true
}

/// Of payload the host holds 64 MiB at most, and a pack is held until it is sent.
const PACK_SIZES: std::ops::RangeInclusive<u64> = 4 << 20..=48 << 20;

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

    fn settings(&self) -> Result<Settings, Error> {
        let Self { key, chunk_size, compress, pack_size, grace, .. } = self;
        let is_chunk = |size: &u64| size.is_power_of_two() && (64 << 10..=2 << 20).contains(size);
        let chunk_size = match chunk_size {
            None => None,
            Some(size) if is_chunk(&size.bytes()) => u32::try_from(size.bytes()).ok(),
            Some(size) => {
                let why = "is not 64, 128, 256 or 512 KiB, or 1 or 2 MiB";
                return Err(Error::config(format!("`chunk_size`: `{size}` {why}")));
            }
        };
        if !PACK_SIZES.contains(&pack_size.bytes()) {
            return Err(Error::config("`pack_size`: write a size from \"4 MiB\" to \"48 MiB\""));
        }
        let default = Settings::default();
        let grace = grace.map_or(default.grace, |grace| grace.seconds().unsigned_abs());
        Ok(Settings { key: key.clone(), chunk_size, compress: *compress, pack_size: pack_size.bytes(), grace })
    }

    /// Acts on the repository that is there. There is none before the first point is written.
    fn existing<T>(&self, act: impl FnOnce(&Repository<'_>) -> Result<T, Error>) -> Result<Option<T>, Error> {
        let store = Store::new(self.bucket());
        Repository::open(&store, self.settings()?, &now)?.map(|repository| act(&repository)).transpose()
    }

    /// The same, where a point is named: it has to be there.
    fn known<T>(&self, point: &str, act: impl FnOnce(&Repository<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let none = || Error::not_found(format!("the point {point} is not there, nor is any repository"));
        self.existing(act)?.ok_or_else(none)
    }

    /// Acts on the repository, and makes it if there is none.
    fn made<T>(&self, act: impl FnOnce(&Repository<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let store = Store::new(self.bucket());
        act(&Repository::make(&store, self.settings()?, &now, random()?)?)
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Bytes that nobody can guess.
fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let none = |error| Error::with_code(ErrorCode::Unsupported, format!("the host gives no random bytes: {error}"));
    getrandom::fill(&mut bytes).map_err(none)?;
    Ok(bytes)
}

impl Target for InBucket {
    type Config = Config;

    fn describe() -> Description {
        description!("Keeps recovery points in an S3 bucket: deduplicated, compressed and, with a key, encrypted.")
    }

    fn check(config: &Config) -> Result<(), Error> {
        config.bucket().check()?;
        config.settings().map(drop)
    }

    fn data_shape(config: Config) -> Result<Shape, Error> {
        let chunk_size = config.existing(|repository| Ok(repository.chunk_size()))?;
        let chunk_size = chunk_size.or(config.settings()?.chunk_size).unwrap_or(DEFAULT_CHUNK_SIZE);
        Ok(Shape { chunk_size, only_newest: false, extensions: Vec::new() })
    }

    fn points(config: Config, vm: Option<&str>) -> Result<Vec<Point>, Error> {
        Ok(config.existing(|repository| repository.points(vm))?.unwrap_or_default())
    }

    fn metadata(config: Config, point: &str) -> Result<String, Error> {
        config.known(point, |repository| repository.metadata(point))
    }

    fn layout(config: Config, point: &str, disk: &str, since: Option<&str>) -> Result<Vec<Extent>, Error> {
        config.known(point, |repository| repository.layout(point, disk, since))
    }

    fn write(config: Config, draft: Draft, delta: &dyn Delta) -> Result<Vec<u8>, Error> {
        config.made(|repository| repository.write(&draft, delta))
    }

    fn commit(config: Config, draft: Draft, receipts: Vec<DiskReceipt>) -> Result<Point, Error> {
        config.made(|repository| repository.commit(&draft, &receipts))
    }

    fn abort(config: Config, draft: Draft) -> Result<(), Error> {
        Ok(config.existing(|repository| repository.abort(&draft.id))?.unwrap_or_default())
    }

    fn read(config: Config, point: &str, disk: &str, extents: Vec<Extent>, restore: &dyn Restore) -> Result<(), Error> {
        config.known(point, |repository| repository.read(point, disk, &extents, restore))
    }

    fn verify(config: Config, point: &str, check: &dyn Restore) -> Result<Vec<Damage>, Error> {
        config.known(point, |repository| repository.verify(point, check))
    }

    fn hold(config: Config, point: &str, held: bool) -> Result<(), Error> {
        config.known(point, |repository| repository.hold(point, held))
    }

    fn delete(config: Config, point: &str) -> Result<(), Error> {
        Ok(config.existing(|repository| repository.delete(point))?.unwrap_or_default())
    }

    fn collect(config: Config, drafts: Vec<String>, apply: bool) -> Result<Vec<Garbage>, Error> {
        Ok(config.existing(|repository| repository.collect(&drafts, apply))?.unwrap_or_default())
    }
}

vmferry_plugin_api::export_target!(InBucket);

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(config: serde_json::Value) -> Option<String> {
        let mut whole = serde_json::json!({ "endpoint": "https://s3.example.org", "bucket": "acme-backup" });
        whole.as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
        let config = vmferry_plugin_api::parse_config::<Config>(&whole.to_string());
        config.and_then(|config| InBucket::check(&config)).err().map(|error| error.message)
    }

    #[test]
    fn settings_are_checked_by_name() {
        assert_eq!(problem(serde_json::json!({})), None);
        let whole = serde_json::json!({
            "prefix": "site-a", "addressing": "virtual-hosted", "part_size": "16 MiB", "key": "backup", "chunk_size": "1 MiB",
            "compress": false, "pack_size": "16 MiB", "grace": "2d", "lock": { "mode": "compliance", "days": 30 }
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
