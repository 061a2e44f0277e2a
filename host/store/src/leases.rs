//! Exclusive rights of plugins, among all processes that use the store. They run on one machine, and go by its clock.

use crate::{Store, StoreError};
use async_trait::async_trait;
use jiff::Timestamp;
use std::time::Duration;
use vmferry_model::store::{Acquired, Leases};

/// Names that a plugin may use, since each leaves a row.
const MAX_NAMES: u32 = 1000;

#[async_trait]
impl Leases for Store {
    async fn acquire(&self, tenant: &str, plugin: &str, name: &str, length: Duration) -> Result<Acquired, StoreError> {
        let failed = self.failed("take a plugin's lock");
        self.take(tenant, plugin, name, length).await.map_err(|e| failed(e.into()))
    }

    async fn renew(
        &self,
        tenant: &str,
        plugin: &str,
        name: &str,
        epoch: u64,
        length: Duration,
    ) -> Result<bool, StoreError> {
        // One whose time has passed is its holder's still, until somebody else takes it.
        self.hold(tenant, plugin, name, epoch, after(now(), length)).await
    }

    async fn release(&self, tenant: &str, plugin: &str, name: &str, epoch: u64) -> Result<(), StoreError> {
        self.hold(tenant, plugin, name, epoch, 0).await.map(|_| ())
    }
}

impl Store {
    async fn take(&self, tenant: &str, plugin: &str, name: &str, length: Duration) -> Result<Acquired, sqlx::Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let now = now();
        let found: Option<(i64, i64)> =
            sqlx::query_as("SELECT epoch, expires FROM plugin_leases WHERE tenant = ? AND plugin = ? AND name = ?")
                .bind(tenant)
                .bind(plugin)
                .bind(name)
                .fetch_optional(&mut *transaction)
                .await?;
        let epoch = match found {
            Some((_, expires)) if expires > now => {
                return Ok(Acquired::HeldFor(Duration::from_millis((expires - now).unsigned_abs())));
            }
            Some((epoch, _)) => epoch + 1,
            None => {
                let names: u32 =
                    sqlx::query_scalar("SELECT COUNT(*) FROM plugin_leases WHERE tenant = ? AND plugin = ?")
                        .bind(tenant)
                        .bind(plugin)
                        .fetch_one(&mut *transaction)
                        .await?;
                if names >= MAX_NAMES {
                    return Ok(Acquired::TooMany(MAX_NAMES));
                }
                1
            }
        };
        sqlx::query(
            "INSERT INTO plugin_leases (tenant, plugin, name, epoch, expires) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (tenant, plugin, name) DO UPDATE SET epoch = excluded.epoch, expires = excluded.expires",
        )
        .bind(tenant)
        .bind(plugin)
        .bind(name)
        .bind(epoch)
        .bind(after(now, length))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Acquired::Epoch(epoch.unsigned_abs()))
    }

    /// Sets when a right ends that nobody else has taken since.
    async fn hold(&self, tenant: &str, plugin: &str, name: &str, epoch: u64, until: i64) -> Result<bool, StoreError> {
        let failed = self.failed("hold a plugin's lock");
        let held = sqlx::query(
            "UPDATE plugin_leases SET expires = ? WHERE tenant = ? AND plugin = ? AND name = ? AND epoch = ?",
        )
        .bind(until)
        .bind(tenant)
        .bind(plugin)
        .bind(name)
        .bind(i64::try_from(epoch).unwrap_or(i64::MAX))
        .execute(&self.pool)
        .await
        .map_err(|e| failed(e.into()))?;
        Ok(held.rows_affected() > 0)
    }
}

fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

fn after(now: i64, length: Duration) -> i64 {
    now.saturating_add(i64::try_from(length.as_millis()).unwrap_or(i64::MAX))
}
