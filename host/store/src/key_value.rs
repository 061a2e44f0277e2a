//! Small values of plugins, within a quota.

use crate::{Store, StoreError};
use async_trait::async_trait;
use vmferry_model::store::{KeyValue, KeyValueError};

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 256;

/// A key the store does not take.
#[derive(Debug, thiserror::Error)]
#[error("{plugin}: a key of {length} bytes; the longest allowed is {MAX_KEY_BYTES}")]
struct KeyTooLong {
    plugin: String,
    length: usize,
}

/// What came of a write.
enum Written {
    Done,
    OverQuota { wanted: u64 },
}

#[async_trait]
impl KeyValue for Store {
    async fn get(&self, tenant: &str, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
        let failed = self.failed("read a plugin's value");
        sqlx::query_scalar("SELECT value FROM plugin_values WHERE tenant = ? AND plugin = ? AND key = ?")
            .bind(tenant)
            .bind(plugin)
            .bind(key.as_bytes())
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| failed(e.into()).into())
    }

    async fn set(&self, tenant: &str, plugin: &str, key: &str, value: &[u8], quota: u64) -> Result<(), KeyValueError> {
        let failed = self.failed("write a plugin's value");
        if key.len() > MAX_KEY_BYTES {
            return Err(failed(KeyTooLong { plugin: plugin.to_owned(), length: key.len() }.into()).into());
        }
        match self.put(tenant, plugin, key.as_bytes(), value, quota).await.map_err(|e| failed(e.into()))? {
            Written::Done => Ok(()),
            Written::OverQuota { wanted } => Err(KeyValueError::Quota { plugin: plugin.to_owned(), wanted, quota }),
        }
    }

    async fn delete(&self, tenant: &str, plugin: &str, key: &str) -> Result<(), KeyValueError> {
        let failed = self.failed("delete a plugin's value");
        sqlx::query("DELETE FROM plugin_values WHERE tenant = ? AND plugin = ? AND key = ?")
            .bind(tenant)
            .bind(plugin)
            .bind(key.as_bytes())
            .execute(&self.pool)
            .await
            .map_err(|e| failed(e.into()))?;
        Ok(())
    }

    async fn list(&self, tenant: &str, plugin: &str, prefix: &str) -> Result<Vec<String>, KeyValueError> {
        let failed = self.failed("list a plugin's keys");
        let keys: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT key FROM plugin_values WHERE tenant = ?1 AND plugin = ?2
             AND substr(key, 1, length(?3)) = ?3 ORDER BY key",
        )
        .bind(tenant)
        .bind(plugin)
        .bind(prefix.as_bytes())
        .fetch_all(&self.pool)
        .await
        .map_err(|e| failed(e.into()))?;
        let text = |key| String::from_utf8(key).map_err(|e| failed(e.into()));
        Ok(keys.into_iter().map(text).collect::<Result<_, StoreError>>()?)
    }
}

impl Store {
    /// Counts and writes in one transaction, so that two writers cannot both fit into the same rest of a quota.
    async fn put(
        &self,
        tenant: &str,
        plugin: &str,
        key: &[u8],
        value: &[u8],
        quota: u64,
    ) -> Result<Written, sqlx::Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let others: i64 = sqlx::query_scalar(
            "SELECT COALESCE(SUM(length(key) + length(value)), 0) FROM plugin_values
             WHERE tenant = ? AND plugin = ? AND key <> ?",
        )
        .bind(tenant)
        .bind(plugin)
        .bind(key)
        .fetch_one(&mut *transaction)
        .await?;
        let wanted = others.unsigned_abs() + key.len() as u64 + value.len() as u64;
        if wanted > quota {
            return Ok(Written::OverQuota { wanted });
        }
        sqlx::query(
            "INSERT INTO plugin_values (tenant, plugin, key, value) VALUES (?, ?, ?, ?)
             ON CONFLICT (tenant, plugin, key) DO UPDATE SET value = excluded.value",
        )
        .bind(tenant)
        .bind(plugin)
        .bind(key)
        .bind(value)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Written::Done)
    }
}
