//! Run history and plugins' small values on SQLite, in one folder that needs no set-up.
//!
//! ```text
//! <folder>/state.db     history, values and locks (plus SQLite's -wal and -shm beside it)
//! <folder>/state.lock   held while the database is opened, so that two processes do not both create it
//! <folder>/digests/     digest tables of recovery points, written by the engine
//! ```
//!
//! All of it is history and cache. Replicas describe themselves, so a folder that is lost or damaged costs
//! no chain and no failover: it can be moved away, and the next run starts a new one.
//!
//! Several processes may use one folder at once. Each write is one short transaction that takes the
//! database's write lock first, so writers wait for each other instead of failing.

mod key_value;
mod leases;
mod runs;
mod schema;

pub use key_value::MAX_KEY_BYTES;
pub use runs::RUNS_KEPT_PER_JOB;
pub use vmferry_model::store::StoreError;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a write waits for another process's write. They last milliseconds; only a stuck disk takes longer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections of one process. SQLite has one writer, so more would only queue inside it.
const CONNECTIONS: u32 = 4;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is missing and cannot be made, or cannot be written.
    #[error("{action} {path}: {source}", path = path.display())]
    Folder {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The database was written by a newer program.
    #[error(
        "{path} has schema version {found}, this program knows versions up to {known}; use the newer program, \
         or move the folder away to begin a new history",
        path = path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The file is not a database, or a damaged one.
    #[error(
        "{path} is damaged or no database ({source}); move it away to begin a new history: replicas do not depend on it",
        path = path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
    /// The database did not open for another reason.
    #[error("open {path}: {source}", path = path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
}

impl OpenError {
    fn database(path: &Path, source: sqlx::Error) -> Self {
        let path = path.to_owned();
        if is_damage(&source) { Self::Damaged { path, source } } else { Self::Database { path, source } }
    }
}

/// SQLite's primary result codes `SQLITE_CORRUPT` and `SQLITE_NOTADB`. sqlx gives the extended code, whose low
/// byte is the primary one.
fn is_damage(error: &sqlx::Error) -> bool {
    const SQLITE_CORRUPT: u32 = 11;
    const SQLITE_NOTADB: u32 = 26;
    let sqlx::Error::Database(error) = error else { return false };
    let primary = error.code().and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff);
    matches!(primary, Some(SQLITE_CORRUPT | SQLITE_NOTADB))
}

/// An open store. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
    /// How errors name it.
    name: Arc<str>,
    digests: PathBuf,
    /// The folder of a store in memory, removed with its last clone.
    _scratch: Option<Arc<tempfile::TempDir>>,
}

impl Store {
    /// Opens the store in `folder`, making the folder (mode 0700) and the database where they are missing, and
    /// bringing an older schema up to date.
    pub async fn open(folder: &Path) -> Result<Self, OpenError> {
        let digests = folder.join("digests");
        make_folder(folder)?;
        make_folder(&digests)?;
        let file = folder.join("state.db");
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // With WAL a power cut may lose the last runs, never the database; a full sync per write buys nothing here.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT);
        // SQLite does not wait its turn while a new file is switched to WAL, so the openers do.
        let _opening = lock(folder.join("state.lock")).await?;
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .connect_with(options)
            .await
            .map_err(|source| OpenError::database(&file, source))?;
        schema::migrate(&pool, &file).await?;
        Ok(Self { pool, name: file.display().to_string().into(), digests, _scratch: None })
    }

    /// A store that is gone with its last clone, for embedders that keep their own history and for tests. Its
    /// digest tables go to a temporary folder.
    pub async fn in_memory() -> Result<Self, OpenError> {
        let scratch = tempfile::tempdir().map_err(|source| OpenError::Folder {
            action: "make a folder under",
            path: std::env::temp_dir(),
            source,
        })?;
        let name = Path::new("(in memory)");
        // Every connection to `:memory:` is a database of its own: there must be one, and it must not be recycled.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(SqliteConnectOptions::new().in_memory(true))
            .await
            .map_err(|source| OpenError::database(name, source))?;
        schema::migrate(&pool, name).await?;
        let digests = scratch.path().to_owned();
        Ok(Self { pool, name: name.display().to_string().into(), digests, _scratch: Some(Arc::new(scratch)) })
    }

    /// Where the digest tables of recovery points belong. The folder exists.
    pub fn digest_dir(&self) -> PathBuf {
        self.digests.clone()
    }

    fn failed(
        &self,
        action: &'static str,
    ) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> StoreError + Send + Sync {
        let store = self.name.to_string();
        move |source| StoreError { store: store.clone(), action, source }
    }
}

/// Makes a folder that only its owner may enter; one that exists keeps its mode.
fn make_folder(path: &Path) -> Result<(), OpenError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| OpenError::Folder {
        action: "make the folder",
        path: path.to_owned(),
        source,
    })
}

/// Takes the lock file, waiting for another opener; dropping it gives the lock back.
async fn lock(path: PathBuf) -> Result<std::fs::File, OpenError> {
    let failed = |action, source| OpenError::Folder { action, path: path.clone(), source };
    let file =
        std::fs::OpenOptions::new().create(true).append(true).open(&path).map_err(|source| failed("write", source))?;
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    locked.map_err(std::io::Error::other).flatten().map_err(|source| failed("lock", source))
}
