//! The engine an orchestrator holds.

use crate::digests::Digests;
use crate::error::{EngineError, RunError, chain};
use crate::holder::Holder;
use crate::inventory::Inventory;
use crate::job::{Job, Policies};
use crate::placement::Ledger;
use crate::pools::Pools;
use crate::progress::Progress;
use crate::run::{self, Run};
use crate::select::select;
use crate::tell;
use futures_util::stream;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;
use vmferry_model::plan::JobPlan;
use vmferry_model::report::{Outcome, RunReport, VmReport};
use vmferry_model::store::RunStore;
use vmferry_xapi::records::Vm;
use vmferry_xapi::{Endpoint, Ref};

/// Runs jobs. One engine serves many jobs and tenants; its runs may overlap, and leases keep them apart.
pub struct Engine {
    pub(crate) pools: Pools,
    pub(crate) runs: Arc<dyn RunStore>,
    pub(crate) digest_dir: PathBuf,
    pub(crate) holder: Holder,
}

/// What one run is asked besides its job.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Only this VM, by uuid.
    pub only: Option<String>,
    /// Wait for a VM that another run works on, instead of skipping it.
    pub wait: bool,
    /// The moment that is now where it is decided what to try again; by default, when the run begins.
    pub now: Option<Timestamp>,
}

impl Engine {
    /// An engine over these pools, by name. Sessions open when they are first needed.
    ///
    /// `digest_dir` holds the digest tables; losing it costs digests, never a chain.
    pub fn new(endpoints: BTreeMap<String, Endpoint>, runs: Arc<dyn RunStore>, digest_dir: PathBuf) -> Self {
        Self { pools: Pools::new(endpoints), runs, digest_dir, holder: Holder::this_process() }
    }

    /// Runs a job once. The report tells everything, failures included; it is recorded in the history and told to
    /// the job's notifiers.
    pub async fn run(
        &self,
        job: &Job,
        policies: &Policies,
        options: &RunOptions,
        progress: Arc<dyn Progress>,
    ) -> RunReport {
        let mut report = RunReport {
            job: job.name.clone(),
            run: Uuid::new_v4().to_string(),
            started_at: Timestamp::now(),
            ended_at: Timestamp::now(),
            outcome: Outcome::Succeeded,
            error: None,
            warnings: Vec::new(),
            vms: Vec::new(),
        };
        let started = tell::started(&job.name, &report.run, report.started_at);
        report.warnings = tell::tell(&policies.notifiers, &started).await;
        let now = options.now.unwrap_or(report.started_at);
        match self.run_vms(&self.context(job, policies, options, &progress, now), options, &mut report.warnings).await {
            Ok(vms) if vms.is_empty() => {
                report.outcome = Outcome::Skipped;
                report.warnings.push(format!("the selection of job {} matches no VM", job.name));
            }
            Ok(vms) => {
                report.outcome = Outcome::of(vms.iter().map(|vm| vm.outcome));
                report.vms = vms;
            }
            Err(error) => {
                report.outcome = error.outcome();
                report.error = Some(chain(&error));
            }
        }
        report.ended_at = Timestamp::now();
        report.warnings.extend(tell::tell(&policies.notifiers, &tell::ended(&report)).await);
        if let Err(error) = self.runs.record(&job.tenant, &report).await {
            tracing::error!(job = job.name, %error, "the run is not in the history");
            report.warnings.push(format!("the run is not in the history: {error}"));
        }
        report
    }

    async fn run_vms(
        &self,
        run: &Run<'_>,
        options: &RunOptions,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<VmReport>, RunError> {
        let job = run.job;
        let source = self.pools.session(&job.select.pool).await?;
        warnings.extend(source.stream_warnings().await?);
        // Of a large pool's records only those that are replicated are kept.
        let selected: Vec<(String, Result<_, RunError>)> = {
            let inventory = Inventory::load(&source).await?;
            let selected = select(&inventory, job, options.only.as_deref()).into_iter();
            let owned = |(reference, vm): (&Ref<Vm>, &Vm)| (reference.clone(), vm.clone());
            selected.map(|(uuid, vm)| (uuid, vm.map(owned))).collect()
        };
        let vms = selected.into_iter().map(|(uuid, vm)| {
            let source = &source;
            async move {
                match vm {
                    Ok((reference, record)) => run::replicate(run, source, &reference, &record).await,
                    Err(error) => run::unfound(&uuid, &error),
                }
            }
            .boxed()
        });
        let vms: Vec<_> = vms.collect();
        let mut reports: Vec<VmReport> =
            stream::iter(vms).buffer_unordered(job.tuning.vms_in_parallel.max(1)).collect().await;
        reports.sort_by(|a, b| (&a.name, &a.vm).cmp(&(&b.name, &b.vm)));
        Ok(reports)
    }

    /// What a run would do now. Changes nothing on any pool.
    pub async fn plan(&self, job: &Job, only: Option<&str>) -> Result<JobPlan, EngineError> {
        let (policies, options) = (Policies::default(), RunOptions::default());
        let silent: Arc<dyn Progress> = Arc::new(crate::Silent);
        let run = self.context(job, &policies, &options, &silent, Timestamp::now());
        let source = self.pools.session(&job.select.pool).await?;
        let inventory = Inventory::load(&source).await?;
        let mut vms = Vec::new();
        for (uuid, vm) in select(&inventory, job, only) {
            vms.push(match vm {
                Ok((reference, record)) => run::foresee(&run, &source, &inventory, reference, record).await?,
                Err(error) if only.is_some() => return Err(error.into()),
                Err(error) => run::unforeseeable(&uuid, &error),
            });
        }
        Ok(JobPlan { job: job.name.clone(), vms })
    }

    /// Logs out of every pool.
    pub async fn close(&self) {
        self.pools.close().await;
    }

    pub(crate) fn context<'a>(
        &'a self,
        job: &'a Job,
        policies: &'a Policies,
        options: &'a RunOptions,
        progress: &'a Arc<dyn Progress>,
        now: Timestamp,
    ) -> Run<'a> {
        Run {
            job,
            policies,
            wait: options.wait,
            progress,
            pools: &self.pools,
            runs: self.runs.as_ref(),
            digests: Digests::open(&self.digest_dir, &job.tenant),
            holder: &self.holder,
            ledger: Ledger::default(),
            now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An orchestrator spawns runs, so their futures have to be `Send`; that it compiles is the fact.
    #[test]
    fn runs_can_be_spawned() {
        fn spawnable<T: Send>(_: T) {}
        fn every_call<'a>(
            engine: &'a Engine,
            job: &'a Job,
            policies: &'a Policies,
            options: &'a RunOptions,
            progress: Arc<dyn Progress>,
            (clone, start, gc): (&'a crate::CloneRequest, &'a crate::StartRequest, &'a crate::GcOptions),
            doctor: &'a crate::DoctorRequest,
        ) {
            spawnable(engine.run(job, policies, options, progress));
            spawnable(engine.plan(job, None));
            spawnable(engine.points(job, None));
            spawnable(engine.clone_point(job, clone));
            spawnable(engine.start_replica(job, start));
            spawnable(engine.gc(job, gc));
            spawnable(engine.doctor(doctor, std::future::pending()));
        }
        let _ = every_call;
    }
}
