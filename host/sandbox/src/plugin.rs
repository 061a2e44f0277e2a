//! A loaded plugin, and its uses: the same code with different settings, rights and tenants.

use crate::bindings::host::vmferry::plugin::types::Description;
use crate::bindings::notifier::NotifierPre;
use crate::bindings::retention::RetentionPre;
use crate::bindings::scheduler::SchedulerPre;
use crate::bindings::target::TargetPre;
use crate::call::{Answer, Called, Caller, Ready, Surroundings};
use crate::convert;
use crate::engines::Lane;
use crate::folder;
use crate::grants::{Grants, Rights};
use crate::lent::HostServices;
use crate::limits::{Budget, Limits};
use crate::lookup::Lookups;
use crate::manifest::{Kind, Manifest};
use crate::package::ComponentDigest;
use crate::state::{Lent, State};
use crate::sterile::Replay;
use crate::target::Target;
use async_trait::async_trait;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmferry_model::event::Event;
use vmferry_model::plan::JobPlan;
use vmferry_model::plugin::{
    Approval, Judgement, NextRun, Notifier, PluginError, PluginFailure, PluginId, PointView, Retention, ScheduleState,
    Scheduler, Verdict,
};

/// A component that has been compiled, linked and has introduced itself. Cheap to clone.
#[derive(Clone)]
pub struct Plugin {
    id: PluginId,
    kind: Kind,
    manifest: Option<Arc<Manifest>>,
    digest: ComponentDigest,
    lane: Arc<Lane>,
    guest: Guest,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// How one use of a plugin is set up.
#[derive(Clone, Debug, Default)]
pub struct Instance {
    /// Whose use it is. Tenants share code and nothing else.
    pub tenant: String,
    /// The plugin's settings: what stands under `with`. Null counts as empty.
    pub with: serde_json::Value,
    /// What the operator allows; the plugin has the part of it that its manifest requests.
    pub grants: Grants,
    /// How much the operator gives; what is open gets its default.
    pub limits: Limits,
    /// What the host can lend.
    pub host: HostServices,
}

/// The generated bindings of a linked component.
#[derive(Clone)]
pub(crate) enum Guest {
    Scheduler(SchedulerPre<State>),
    Retention(RetentionPre<State>),
    Notifier(NotifierPre<State>),
    Target(TargetPre<State>),
}

/// Begins a call, instantiates a world's component and calls one function of the interface it exports.
macro_rules! calling {
    ($pre:expr, $ready:ident, $interface:ident, $function:ident ($($argument:expr),*)) => {
        async move {
            let mut running = $ready.begin()?;
            let store = &mut running.store;
            let answer: Answer<_> = async {
                let instance = $pre.instantiate_async(&mut *store).await?;
                instance.$interface().$function(store, $($argument),*).await
            }
            .await;
            running.end(answer)
        }
    };
}
pub(crate) use calling;

impl Guest {
    pub(crate) async fn describe(&self, ready: Ready) -> Called<Description> {
        match self {
            Self::Scheduler(pre) => calling!(pre, ready, vmferry_plugin_schedule, call_describe()).await,
            Self::Retention(pre) => calling!(pre, ready, vmferry_plugin_retain, call_describe()).await,
            Self::Notifier(pre) => calling!(pre, ready, vmferry_plugin_notify, call_describe()).await,
            Self::Target(pre) => calling!(pre, ready, vmferry_plugin_replicate, call_describe()).await,
        }
    }

    async fn validate_config(&self, ready: Ready, config: &String) -> Called<()> {
        match self {
            Self::Scheduler(pre) => calling!(pre, ready, vmferry_plugin_schedule, call_validate_config(config)).await,
            Self::Retention(pre) => calling!(pre, ready, vmferry_plugin_retain, call_validate_config(config)).await,
            Self::Notifier(pre) => calling!(pre, ready, vmferry_plugin_notify, call_validate_config(config)).await,
            Self::Target(pre) => calling!(pre, ready, vmferry_plugin_replicate, call_validate_config(config)).await,
        }
    }
}

impl Plugin {
    pub(crate) fn new(
        id: PluginId,
        kind: Kind,
        manifest: Option<Manifest>,
        digest: ComponentDigest,
        lane: Arc<Lane>,
        guest: Guest,
    ) -> Self {
        Self { id, kind, manifest: manifest.map(Arc::new), digest, lane, guest }
    }

    /// Its id and version.
    pub fn id(&self) -> &PluginId {
        &self.id
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What its manifest says, if it came with one.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_deref()
    }

    /// SHA-256 of its component.
    pub fn digest(&self) -> ComponentDigest {
        self.digest
    }

    /// Sets the plugin up as a scheduler, after it has checked its settings.
    pub async fn scheduler(&self, instance: Instance) -> Result<Arc<dyn Scheduler>, PluginError> {
        match &self.guest {
            Guest::Scheduler(pre) => Ok(Arc::new(Using { pre: pre.clone(), set_up: self.set_up(instance).await? })),
            _ => Err(self.other_kind(Kind::Scheduler)),
        }
    }

    /// Sets the plugin up as a retention rule, after it has checked its settings.
    pub async fn retention(&self, instance: Instance) -> Result<Arc<dyn Retention>, PluginError> {
        match &self.guest {
            Guest::Retention(pre) => Ok(Arc::new(Using { pre: pre.clone(), set_up: self.set_up(instance).await? })),
            _ => Err(self.other_kind(Kind::Retention)),
        }
    }

    /// Sets the plugin up as a notifier, after it has checked its settings.
    pub async fn notifier(&self, instance: Instance) -> Result<Arc<dyn Notifier>, PluginError> {
        match &self.guest {
            Guest::Notifier(pre) => Ok(Arc::new(Using { pre: pre.clone(), set_up: self.set_up(instance).await? })),
            _ => Err(self.other_kind(Kind::Notifier)),
        }
    }

    /// Sets the plugin up as a target, after it has checked its settings and said how it wants its data.
    pub async fn target(&self, instance: Instance) -> Result<Arc<Target>, PluginError> {
        match &self.guest {
            Guest::Target(pre) => Ok(Arc::new(Target::new(pre.clone(), self.set_up(instance).await?).await?)),
            _ => Err(self.other_kind(Kind::Target)),
        }
    }

    fn other_kind(&self, wanted: Kind) -> PluginError {
        let failure = PluginFailure::Denied(format!("it is a {}, and cannot be used as a {wanted}", self.kind));
        PluginError { plugin: self.id.clone(), call: "setup".to_owned(), failure }
    }

    async fn set_up(&self, instance: Instance) -> Result<SetUp, PluginError> {
        let refused = |failure| PluginError { plugin: self.id.clone(), call: "setup".to_owned(), failure };
        let Instance { tenant, with, grants, limits, host } = instance;
        let requested = self.manifest.as_ref().map(|manifest| manifest.limits.clone()).unwrap_or_default();
        let budget = Budget::settle(self.kind, &requested, &limits)
            .map_err(|problem| refused(PluginFailure::Denied(problem.to_string())))?;
        let config = match with {
            serde_json::Value::Null => "{}".to_owned(),
            with => with.to_string(),
        };
        let requested = self.manifest.as_ref().map(|manifest| manifest.grants.clone());
        let lent = Lent {
            lookups: Lookups::of(self.lane.shares.of(&tenant)),
            tenant,
            plugin: self.id.name.clone(),
            rights: Rights::new(&self.id.name, requested, grants),
            store_quota: budget.store,
            services: host,
        };
        let folders = lent.rights.folders().map_err(|refusal| refused(PluginFailure::Denied(refusal.to_string())))?;
        let folders = folders.to_vec();
        folder::check(&folders).map_err(|nested| refused(PluginFailure::Denied(nested.to_string())))?;
        let caller = Caller::new(self.id.clone(), self.kind, self.lane.clone(), budget, lent);
        let set_up = SetUp { caller, config, folders, component: self.digest, is_policy: self.kind.is_policy() };
        if self.kind == Kind::Target {
            // It may look into its folders, for which a call needs a thread of its own: see `Target::new`.
            return Ok(set_up);
        }
        let surroundings = set_up.surroundings("validate-config", Timestamp::UNIX_EPOCH, |_| {});
        set_up
            .caller
            .call("validate-config", surroundings, |ready| self.guest.validate_config(ready, &set_up.config))
            .await?;
        Ok(set_up)
    }
}

/// Everything about a use that does not depend on its kind.
pub(crate) struct SetUp {
    pub(crate) caller: Caller,
    pub(crate) config: String,
    pub(crate) folders: Vec<String>,
    component: ComponentDigest,
    is_policy: bool,
}

impl SetUp {
    /// The world of a call: for a policy one that follows from the code, the settings, the moment and the input.
    fn surroundings(&self, call: &str, now: Timestamp, input: impl FnOnce(&mut blake3::Hasher)) -> Surroundings {
        if !self.is_policy {
            return Surroundings::Open;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.component.as_bytes());
        hasher.update(&(call.len() as u64).to_le_bytes()).update(call.as_bytes());
        hasher.update(&(self.config.len() as u64).to_le_bytes()).update(self.config.as_bytes());
        hasher.update(&convert::seconds(now).to_le_bytes());
        input(&mut hasher);
        Surroundings::Sterile(Replay { now, input: hasher.finalize() })
    }
}

/// One use of a plugin whose world has this type.
struct Using<Pre> {
    pre: Pre,
    set_up: SetUp,
}

/// Input that serde can write is hashed as it is written.
fn hash_json(hasher: &mut blake3::Hasher, input: &impl serde::Serialize) {
    // A hasher takes every write, and the model's types have no maps with keys that JSON could refuse.
    let _ = serde_json::to_writer(hasher, input);
}

#[async_trait]
impl Scheduler for Using<SchedulerPre<State>> {
    async fn next_run(&self, state: &ScheduleState, now: Timestamp) -> Result<NextRun, PluginError> {
        let Self { pre, set_up } = self;
        let surroundings = set_up.surroundings("next-run", now, |hasher| hash_json(hasher, state));
        let (config, state, now) = (&set_up.config, &convert::schedule_state(state), convert::seconds(now));
        let due = set_up
            .caller
            .call("next-run", surroundings, |ready| {
                calling!(pre, ready, vmferry_plugin_schedule, call_next_run(config, state, now))
            })
            .await?;
        convert::next_run(due).map_err(|failure| set_up.caller.error("next-run", failure))
    }

    async fn approve(&self, plan: &JobPlan, now: Timestamp) -> Result<Approval, PluginError> {
        let Self { pre, set_up } = self;
        let surroundings = set_up.surroundings("approve", now, |hasher| hash_json(hasher, plan));
        let (config, plan, second) = (&set_up.config, &convert::plan(plan), convert::seconds(now));
        let approval = set_up
            .caller
            .call("approve", surroundings, |ready| {
                calling!(pre, ready, vmferry_plugin_schedule, call_approve(config, plan, second))
            })
            .await?;
        convert::approval(approval, now).map_err(|failure| set_up.caller.error("approve", failure))
    }
}

#[async_trait]
impl Retention for Using<RetentionPre<State>> {
    async fn select(&self, points: &[PointView], now: Timestamp) -> Result<Vec<Judgement>, PluginError> {
        let Self { pre, set_up } = self;
        let surroundings = set_up.surroundings("select", now, |hasher| {
            for point in points {
                hasher.update(&(point.id.len() as u64).to_le_bytes()).update(point.id.as_bytes());
                hasher.update(&convert::seconds(point.taken_at).to_le_bytes()).update(&[u8::from(point.held)]);
            }
        });
        let (config, shown, now) = (&set_up.config, &*convert::points(points), convert::seconds(now));
        let judgements = set_up
            .caller
            .call("select", surroundings, |ready| {
                calling!(pre, ready, vmferry_plugin_retain, call_select(config, shown, now))
            })
            .await?;
        convert::judgements(judgements, points.len()).map_err(|failure| set_up.caller.error("select", failure))
    }
}

#[async_trait]
impl Notifier for Using<NotifierPre<State>> {
    async fn handle(&self, event: &Event) -> Result<Verdict, PluginError> {
        let Self { pre, set_up } = self;
        let (config, event) = (&set_up.config, &convert::event(event));
        // One deadline for all attempts: a notifier that asks for another try gets no more time by it.
        let deadline = set_up.caller.deadline();
        let mut attempt = 1;
        let verdict = loop {
            let answer = set_up
                .caller
                .call_by(deadline, "handle", Surroundings::Open, |ready| {
                    calling!(pre, ready, vmferry_plugin_notify, call_handle(config, event))
                })
                .await;
            match answer {
                Ok(verdict) => break verdict,
                Err(refused) => match refused.retry_after.and_then(|wanted| wait_before_retry(attempt, wanted)) {
                    Some(wait) if Instant::now() + wait < deadline => tokio::time::sleep(wait).await,
                    _ => return Err(refused.error),
                },
            }
            attempt += 1;
        };
        convert::verdict(verdict).map_err(|failure| set_up.caller.error("handle", failure))
    }
}

/// How long to wait after a notifier's failed attempt before the next, if there is one. What the plugin wants is
/// bounded on both sides: it can neither hammer its server nor hold up a run.
fn wait_before_retry(failed_attempts: u32, wanted: Duration) -> Option<Duration> {
    const ATTEMPTS: u32 = 3;
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(5);
    (failed_attempts < ATTEMPTS).then(|| wanted.clamp(SHORTEST, LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notifier_is_tried_three_times_and_not_in_a_storm() {
        let wait = |attempt, seconds| wait_before_retry(attempt, Duration::from_secs(seconds));
        assert_eq!(wait(1, 0), Some(Duration::from_secs(1)));
        assert_eq!(wait(2, 3600), Some(Duration::from_secs(5)));
        assert_eq!(wait(3, 1), None);
    }
}
