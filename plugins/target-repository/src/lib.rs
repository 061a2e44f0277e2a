//! A target: a deduplicating repository of recovery points in a folder, which may be on a NAS and shared by several hosts.
//!
//! ```toml
//! targets = [{ plugin = "target-repository", with = { folder = "/mnt/backup", key = "backup", create = true } }]
//!
//! [plugin.target-repository]
//! grants = { folders = ["/mnt/backup"], seal = ["backup"] }
//! ```
//!
//! `create = true` has the first run make a repository in the folder. Take it out of the settings after that: without it an
//! empty folder is an error, since it is more likely a share that is not mounted.
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
        let Config { create, key, chunk_size, compress, pack_size, grace, .. } = config;
        let (create, key, chunk_size, compress) = (*create, key.clone(), *chunk_size, *compress);
        Choices { create, key, chunk_size, compress, pack_size: *pack_size, grace: *grace }
    }

    const FIND_IT: &str = "mount what belongs there";

    fn name(config: &Config) -> String {
        config.folder.clone()
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
    use vmferry_plugin_api::delta::{Info, Kind, double};

    fn problem(config: serde_json::Value) -> Option<String> {
        let config = vmferry_plugin_api::parse_config::<Config>(&config.to_string());
        config.and_then(|config| Kept::<InFolder>::check(&config)).err().map(|error| error.message)
    }

    #[test]
    fn an_empty_folder_is_no_repository_unless_one_is_to_be_made() {
        let scratch = tempfile::tempdir().expect("a folder");
        let mounted = scratch.path().join("mounted");
        std::fs::create_dir(&mounted).expect("made");
        let config = |create: bool| -> Config {
            let config = serde_json::json!({ "folder": mounted, "create": create }).to_string();
            vmferry_plugin_api::parse_config(&config).expect("right")
        };
        let draft = || Draft {
            id: "1".to_owned(),
            job: "job".to_owned(),
            vm: "vm".to_owned(),
            name: "a VM".to_owned(),
            taken_at: 1,
            base: None,
            metadata: "{}".to_owned(),
            extensions: Vec::new(),
        };
        let write = |create: bool| {
            let info = Info {
                disk: "disk".to_owned(),
                content: "content".to_owned(),
                size: 64 << 10,
                kind: Kind::Full,
                expected_bytes: 64 << 10,
                extensions: Vec::new(),
            };
            let delta = double::Delta::new(info, vec![(0, vec![7; 64 << 10])]);
            let receipt = Kept::<InFolder>::write(config(create), draft(), &delta)?;
            let receipt = DiskReceipt { disk: "disk".to_owned(), receipt, digest: None };
            Kept::<InFolder>::commit(config(create), draft(), vec![receipt])
        };
        let points = |create| Kept::<InFolder>::points(config(create), None);
        let refused = |error: Error| {
            let names = [mounted.to_str().expect("UTF-8"), "`create = true`", "mount"];
            assert!(names.iter().all(|name| error.message.contains(name)), "{}", error.message);
        };
        // Also what only takes something away: the draft may be on the share that is not mounted.
        let calls = || {
            refused(points(false).expect_err("no repository"));
            refused(write(false).expect_err("no repository"));
            refused(Kept::<InFolder>::delete(config(false), "1").expect_err("no repository"));
            refused(Kept::<InFolder>::abort(config(false), draft()).expect_err("no repository"));
            refused(Kept::<InFolder>::collect(config(false), Vec::new(), true).expect_err("no repository"));
            assert_eq!(std::fs::read_dir(&mounted).expect("there").count(), 0, "nothing was made");
        };
        calls();
        assert_eq!(points(true).expect("none yet"), []);
        write(true).expect("written");
        assert_eq!(points(false).expect("listed").len(), 1);
        write(false).expect("the same again");

        let away = scratch.path().join("away");
        std::fs::rename(&mounted, &away).expect("unmounted");
        std::fs::create_dir(&mounted).expect("made");
        calls();
        // Its shape is told, so that a job's other targets go on.
        Kept::<InFolder>::data_shape(config(false)).expect("told");
    }

    #[test]
    fn settings_are_checked_by_name() {
        assert_eq!(problem(serde_json::json!({ "folder": "/mnt/backup" })), None);
        let whole = serde_json::json!({
            "folder": "/mnt/backup/", "create": true, "key": "backup", "chunk_size": "1 MiB", "compress": false, "pack_size": "16 MiB", "grace": "2d"
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
