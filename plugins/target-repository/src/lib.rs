//! A target: a deduplicating repository of recovery points in a folder, which may be on a NAS and shared by several hosts.
//!
//! ```toml
//! targets = [{ plugin = "target-repository", with = { folder = "/mnt/backup", key = "backup" } }]
//!
//! [plugin.target-repository]
//! grants = { folders = ["/mnt/backup"], seal = ["backup"] }
//! ```
//!
//! Every chunk is stored once, whatever points of whatever VMs it is part of. Payload never enters the plugin, and neither does the key.
//!
//! Several hosts that share an NFS export mount it with `acdirmax=0,lookupcache=none`: who lists a folder has to see what others
//! made there before.

mod folder;

pub use folder::FolderStore;

use serde::Deserialize;
use vmferry_plugin_api::target::*;
use vmferry_plugin_api::{Size, Span};
use vmferry_repository::target::{Choices, Kept, Place};

/// The plugin.
struct InFolder;

/// `with = { folder = "/mnt/backup", key = "backup" }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Where the repository is: an absolute path.
    folder: String,
    /// Name of the host's key that everything is encrypted with.
    key: Option<String>,
    /// Size of a chunk, chosen when the repository is made: `64 KiB` to `2 MiB`.
    chunk_size: Option<Size>,
    /// Whether chunks are compressed.
    #[serde(default = "yes")]
    compress: bool,
    /// Bytes of chunks that go into one file.
    pack_size: Option<Size>,
    /// How long what nobody needs is left alone before it is removed, which is longer than a run may take.
    grace: Option<Span>,
}

fn yes() -> bool {
    true
}

impl Place for InFolder {
    type Config = Config;
    type Store = FolderStore;

    fn describe() -> Description {
        description!("Keeps recovery points in a folder: deduplicated, compressed and, with a key, encrypted.")
    }

    fn check(config: &Config) -> Result<(), Error> {
        let inside = |part: &str| !matches!(part, "." | "..");
        if !config.folder.starts_with('/') || !config.folder.split('/').all(inside) {
            let folder = &config.folder;
            return Err(Error::config(format!("`folder`: `{folder}` is no absolute path of a folder: /mnt/backup")));
        }
        Ok(())
    }

    fn choices(config: &Config) -> Choices {
        let Config { key, chunk_size, compress, pack_size, grace, .. } = config;
        Choices { key: key.clone(), chunk_size: *chunk_size, compress: *compress, pack_size: *pack_size, grace: *grace }
    }

    fn store(config: &Config) -> Result<FolderStore, Error> {
        FolderStore::open(&config.folder)
    }

    fn secret() -> Result<[u8; 32], Error> {
        folder::random()
    }
}

vmferry_plugin_api::export_target!(Kept<InFolder>);

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(config: serde_json::Value) -> Option<String> {
        let config = vmferry_plugin_api::parse_config::<Config>(&config.to_string());
        config.and_then(|config| Kept::<InFolder>::check(&config)).err().map(|error| error.message)
    }

    #[test]
    fn settings_are_checked_by_name() {
        assert_eq!(problem(serde_json::json!({ "folder": "/mnt/backup" })), None);
        let whole = serde_json::json!({
            "folder": "/mnt/backup/", "key": "backup", "chunk_size": "1 MiB", "compress": false, "pack_size": "16 MiB", "grace": "2d"
        });
        assert_eq!(problem(whole), None);
        for (key, value) in [
            ("folder", serde_json::json!("backup")),
            ("folder", serde_json::json!("/mnt/../etc")),
            ("chunk_size", serde_json::json!("96 KiB")),
            ("pack_size", serde_json::json!("1 GiB")),
            ("grace", serde_json::json!("soon")),
            ("compress", serde_json::json!("zstd")),
            ("password", serde_json::json!("hush")),
        ] {
            let mut config = serde_json::json!({ "folder": "/mnt/backup" });
            config[key] = value;
            let problem = problem(config).expect(key);
            assert!(problem.contains(key), "{problem}");
        }
    }
}
