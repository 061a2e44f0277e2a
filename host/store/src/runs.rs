//! The history of runs.

use crate::{Store, StoreError};
use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use vmferry_model::plan::Kind;
use vmferry_model::plugin::ScheduleState;
use vmferry_model::report::{DiskReport, Outcome, RunReport};
use vmferry_model::store::RunStore;

/// Runs kept per job: a week of runs every ten minutes. Older ones are dropped, except the newest that succeeded,
/// because a schedule starts from it however long ago it was.
pub const RUNS_KEPT_PER_JOB: u32 = 1008;

#[async_trait]
impl RunStore for Store {
    async fn record(&self, tenant: &str, report: &RunReport) -> Result<(), StoreError> {
        let failed = self.failed("record a run");
        let json = serde_json::to_string(report).map_err(|e| failed(e.into()))?;
        self.insert_run(tenant, report, &json).await.map_err(|e| failed(e.into()))
    }

    async fn schedule_state(&self, tenant: &str, job: &str) -> Result<ScheduleState, StoreError> {
        let failed = self.failed("read a job's last runs");
        self.last_runs(tenant, job).await.map_err(|e| failed(e.into()))
    }

    async fn delta_history(
        &self,
        tenant: &str,
        job: &str,
        target: &str,
        disk: &str,
        limit: u32,
    ) -> Result<Vec<u64>, StoreError> {
        let failed = self.failed("read the sizes of earlier deltas");
        let sizes: Vec<i64> = sqlx::query_scalar(
            "SELECT bytes_sent FROM deltas WHERE tenant = ? AND job = ? AND target = ? AND disk = ?
             ORDER BY started_at DESC, run_id DESC LIMIT ?",
        )
        .bind(tenant)
        .bind(job)
        .bind(target)
        .bind(disk)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(|e| failed(e.into()))?;
        sizes.into_iter().map(|size| u64::try_from(size).map_err(|e| failed(e.into()))).collect()
    }

    async fn recent(&self, tenant: &str, job: &str, limit: u32) -> Result<Vec<RunReport>, StoreError> {
        let failed = self.failed("read the latest runs");
        let reports: Vec<String> = sqlx::query_scalar(
            "SELECT report FROM runs WHERE tenant = ? AND job = ? ORDER BY started_at DESC, id DESC LIMIT ?",
        )
        .bind(tenant)
        .bind(job)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(|e| failed(e.into()))?;
        reports.iter().map(|report| serde_json::from_str(report).map_err(|e| failed(e.into()))).collect()
    }

    async fn recall(&self, fact: &str) -> Result<Option<String>, StoreError> {
        let failed = self.failed("recall what was found out");
        sqlx::query_scalar("SELECT value FROM facts WHERE fact = ?")
            .bind(fact)
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| failed(e.into()))
    }

    async fn remember(&self, fact: &str, value: &str) -> Result<(), StoreError> {
        let failed = self.failed("keep what was found out");
        sqlx::query(
            "INSERT INTO facts (fact, value) VALUES (?, ?) ON CONFLICT (fact) DO UPDATE SET value = excluded.value",
        )
        .bind(fact)
        .bind(value)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(|e| failed(e.into()))
    }
}

impl Store {
    async fn insert_run(&self, tenant: &str, report: &RunReport, json: &str) -> Result<(), sqlx::Error> {
        let started_at = report.started_at.as_microsecond();
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let run_id: i64 = sqlx::query_scalar(
            "INSERT INTO runs (tenant, job, run, started_at, ended_at, outcome, report)
             VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(tenant)
        .bind(&report.job)
        .bind(&report.run)
        .bind(started_at)
        .bind(report.ended_at.as_microsecond())
        .bind(report.outcome.to_string())
        .bind(json)
        .fetch_one(&mut *transaction)
        .await?;
        for (target, disk) in committed_deltas(report) {
            sqlx::query(
                "INSERT INTO deltas (run_id, tenant, job, target, disk, started_at, bytes_sent)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(run_id)
            .bind(tenant)
            .bind(&report.job)
            .bind(target)
            .bind(&disk.disk)
            .bind(started_at)
            .bind(i64::try_from(disk.bytes_sent).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await?;
        }
        sqlx::query(
            "DELETE FROM runs WHERE tenant = ?1 AND job = ?2
             AND id NOT IN (SELECT id FROM runs WHERE tenant = ?1 AND job = ?2
                            ORDER BY started_at DESC, id DESC LIMIT ?3)
             AND id NOT IN (SELECT id FROM runs WHERE tenant = ?1 AND job = ?2 AND outcome = ?4
                            ORDER BY started_at DESC, id DESC LIMIT 1)",
        )
        .bind(tenant)
        .bind(&report.job)
        .bind(RUNS_KEPT_PER_JOB)
        .bind(Outcome::Succeeded.to_string())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }

    async fn last_runs(&self, tenant: &str, job: &str) -> Result<ScheduleState, sqlx::Error> {
        let mut reader = self.pool.begin().await?; // one snapshot for the three questions
        let last = sqlx::query(
            "SELECT started_at, ended_at, outcome FROM runs WHERE tenant = ? AND job = ?
             ORDER BY started_at DESC, id DESC LIMIT 1",
        )
        .bind(tenant)
        .bind(job)
        .fetch_optional(&mut *reader)
        .await?;
        let Some(last) = last else {
            return Ok(ScheduleState { job: job.to_owned(), ..ScheduleState::default() });
        };
        let success = sqlx::query(
            "SELECT started_at, id FROM runs WHERE tenant = ? AND job = ? AND outcome = ?
             ORDER BY started_at DESC, id DESC LIMIT 1",
        )
        .bind(tenant)
        .bind(job)
        .bind(Outcome::Succeeded.to_string())
        .fetch_optional(&mut *reader)
        .await?;
        let since: (i64, i64) = match &success {
            Some(row) => (row.try_get("started_at")?, row.try_get("id")?),
            None => (i64::MIN, i64::MIN),
        };
        let failures: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM runs WHERE tenant = ? AND job = ? AND (started_at, id) > (?, ?)")
                .bind(tenant)
                .bind(job)
                .bind(since.0)
                .bind(since.1)
                .fetch_one(&mut *reader)
                .await?;
        Ok(ScheduleState {
            job: job.to_owned(),
            last_started: Some(time(&last, "started_at")?),
            last_ended: Some(time(&last, "ended_at")?),
            last_outcome: Some(outcome(&last)?),
            last_success: success.map(|row| time(&row, "started_at")).transpose()?,
            failures_since_success: u32::try_from(failures).unwrap_or(u32::MAX),
        })
    }
}

/// Deltas whose size says something about the next one: a failed transfer stopped somewhere, and a full copy
/// is another matter.
fn committed_deltas(report: &RunReport) -> impl Iterator<Item = (&str, &DiskReport)> {
    let targets = report.vms.iter().flat_map(|vm| &vm.targets);
    targets.filter(|target| target.outcome == Outcome::Succeeded).flat_map(|target| {
        let deltas = target.disks.iter().filter(|disk| disk.kind == Kind::Delta);
        deltas.map(|disk| (target.target.as_str(), disk))
    })
}

fn time(row: &SqliteRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_microsecond(row.try_get(column)?).map_err(|e| sqlx::Error::Decode(e.into()))
}

fn outcome(row: &SqliteRow) -> Result<Outcome, sqlx::Error> {
    let name: String = row.try_get("outcome")?;
    serde_json::from_value(name.into()).map_err(|e| sqlx::Error::Decode(e.into()))
}
