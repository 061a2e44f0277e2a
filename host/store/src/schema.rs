//! The schema's versions, oldest first. They only ever go forward.
//!
//! `PRAGMA user_version` holds the version and changes in the same transaction as the tables, so an interrupted
//! migration leaves the version before it, and of two processes that migrate at once the second finds it done.

use crate::OpenError;
use sqlx::sqlite::SqlitePool;
use sqlx::{AssertSqlSafe, Executor};
use std::path::Path;

/// Version N is the result of the first N scripts. A released script is never edited.
const MIGRATIONS: [&str; 3] = [
    include_str!("../migrations/0001_runs_and_values.sql"),
    include_str!("../migrations/0002_facts.sql"),
    include_str!("../migrations/0003_leases.sql"),
];

/// Brings the database to the newest version, and refuses one that is newer than that.
pub(crate) async fn migrate(pool: &SqlitePool, file: &Path) -> Result<(), OpenError> {
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let failed = |source| OpenError::database(file, source);
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *transaction).await.map_err(failed)?;
    if found > known {
        return Err(OpenError::Newer { path: file.to_owned(), found, known });
    }
    let applied = usize::try_from(found).unwrap_or(0);
    for script in MIGRATIONS.into_iter().skip(applied) {
        transaction.execute(script).await.map_err(failed)?;
    }
    // A pragma takes no parameters; the text is a number of our own.
    let set_version = AssertSqlSafe(format!("PRAGMA user_version = {known}"));
    transaction.execute(set_version).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)
}
