//! From the configuration to the values that the engine works with.

use crate::config::Config;
use crate::config::job::{self, Overlap};
use crate::problem::{Failure, Problem};
use std::collections::BTreeMap;
use std::sync::Arc;
use vmferry_engine::{Engine, Integrity, Job, JobIds, StoreTarget, Tuning};
use vmferry_store::{OpenError, Store};

/// The tenant of everything that stands at the top of a configuration.
pub const TENANT: &str = "default";

/// Opens the store that the configuration names.
pub async fn store(config: &Config) -> Result<Store, Failure> {
    Store::open(&config.store).await.map_err(|error| {
        let problem = Problem::new(format!("state store: {error}")).at(config.store.display().to_string());
        match error {
            OpenError::Folder { .. } => {
                let remedy = format!(
                    "set `path` under `[store]` to a folder that this user may write; it is read from {}",
                    main_file(config)
                );
                Failure::usage(problem.remedy(remedy))
            }
            // The others say what to do.
            OpenError::Newer { .. } | OpenError::Damaged { .. } | OpenError::Database { .. } => {
                Failure::failed(problem)
            }
        }
    })
}

fn main_file(config: &Config) -> String {
    config.files.first().map(|file| file.display().to_string()).unwrap_or_default()
}

/// An engine over the configured pools. It logs in where it is first asked to.
pub fn engine(config: &Config, store: &Store) -> Engine {
    let endpoints: BTreeMap<_, _> =
        config.pools.iter().map(|(name, pool)| (name.clone(), pool.endpoint.clone())).collect();
    Engine::new(endpoints, Arc::new(store.clone()), store.digest_dir())
}

/// A job as the engine takes it, with the stores among its targets: see [`Plugins::stores`](crate::plugins::Plugins::stores).
pub fn job(name: &str, configured: &job::Job, stores: Vec<StoreTarget>) -> Job {
    let derived = || JobIds::derived(TENANT, name);
    Job {
        name: name.to_owned(),
        tenant: TENANT.to_owned(),
        select: configured.select.clone(),
        targets: configured.targets.clone(),
        stores,
        ids: configured.xo.map_or_else(derived, |xo| JobIds { job: xo.job, schedule: xo.schedule }),
        integrity: if configured.digests { Integrity::Digest } else { Integrity::Structure },
        reading: configured.reading,
        snapshot: configured.snapshot,
        throttles: configured.throttle.iter().cloned().collect(),
        tuning: Tuning { chains: configured.chains, ..Tuning::default() },
    }
}

/// Whether a run waits for another one on the same VM; `--wait` asks for it where the configuration does not.
pub fn waits(configured: &job::Job, asked_to: bool) -> bool {
    asked_to || configured.overlap == Overlap::Wait
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_ids_of_its_own_unless_it_continues_a_chain() {
        let mut configured = job::Job {
            select: vmferry_engine::Selection::default(),
            targets: Vec::new(),
            links: Vec::new(),
            stores: Vec::new(),
            digests: true,
            reading: vmferry_engine::Reading::default(),
            snapshot: vmferry_engine::SnapshotMode::default(),
            chains: vmferry_engine::ChainLimits::default(),
            limit: crate::config::limit::Limit::default(),
            throttle: None,
            schedule: None,
            retention: None,
            notify: Vec::new(),
            overlap: Overlap::Skip,
            xo: None,
        };
        assert_eq!(job("erp", &configured, Vec::new()).ids, JobIds::derived(TENANT, "erp"));
        let xo = job::XoIds { job: uuid::Uuid::from_u128(1), schedule: uuid::Uuid::from_u128(2) };
        configured.xo = Some(xo);
        assert_eq!(job("erp", &configured, Vec::new()).ids, JobIds { job: xo.job, schedule: xo.schedule });
    }
}
