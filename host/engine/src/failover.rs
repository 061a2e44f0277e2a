//! Failover onto the replica itself. Nothing but proven content boots, and what was started is never overwritten.
//!
//! The live disks boot as they are if they are proven to equal the wanted recovery point and nobody can still be writing
//! to them; otherwise clones of the point take their place first. Until its keys say `failed-over` the replica is a
//! standby or a half-written one, which the next run or failover puts right; from then on its disks equal the point or hold
//! the guest's work, and nobody touches them. What came off is destroyed last: storage lets go of a disk late, and nobody
//! should wait for that with his service down.

use crate::commit;
use crate::engine::{Engine, RunOptions};
use crate::error::{EngineError, RunError, chain};
use crate::guest;
use crate::interfaces::{NetworkChoice, Wiring};
use crate::job::{Job, Policies};
use crate::keys::{self, Keys, State};
use crate::lane::{self, Asking, Lane};
use crate::lease::{Lease, LeaseTerms};
use crate::memory;
use crate::objects::destroy_disk;
use crate::points::{Wanted, assert_undamaged};
use crate::progress::{Progress, Silent};
use crate::reconcile;
use crate::replica::{self, StartBlock, block_start, put_autostart_aside};
use crate::view::{Condition, Identity, Point, Replica, TargetView, failed_over_to};
use crate::xen_orchestra;
use jiff::Timestamp;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use vmferry_xapi::params;
use vmferry_xapi::records::PowerState;

/// How long an operation that is under way on a VM that is to start may take until nobody waits for its end.
pub(crate) const OPERATION_LIMIT: Duration = Duration::from_secs(120);

/// What to start, and how it is connected.
#[derive(Clone, Debug)]
pub struct StartRequest {
    /// uuid of the source VM.
    pub vm: String,
    /// uuid of the recovery point; the newest when absent.
    pub point: Option<String>,
    /// Name of the target; the one with the newest point when absent.
    pub target: Option<String>,
    /// Where the replica's interfaces go.
    pub network: NetworkChoice,
    /// Whether replication onto this replica may end, and a run that works on it may be stopped.
    pub force: bool,
    /// Whether it starts by itself from now on, as its source does: with its host, and by high availability.
    pub auto_start: bool,
}

/// A replica that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StartReport {
    /// uuid of the replica.
    pub vm: String,
    /// Its name.
    pub name: String,
    /// The target it is on.
    pub target: String,
    /// The recovery point it was started from.
    pub point: String,
    /// The moment of the source that the point shows, while it is kept.
    pub taken_at: Option<Timestamp>,
    /// Whether its disks were replaced by clones of the recovery point's.
    pub disks_replaced: bool,
    /// Whether it ran already, after an earlier failover to the same point.
    pub already_running: bool,
    /// What an operator should know besides.
    pub warnings: Vec<String>,
}

/// What a start has to do to the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing at all: it runs.
    Running,
    /// Nothing: it was failed over before, and they may hold the guest's work.
    Again,
    /// Prove that they equal the newest recovery point.
    Prove,
    /// The same, and then put an older point in their place.
    ProveAndReplace,
    /// Put the point in the place of what is half written.
    Replace,
}

impl Engine {
    /// Starts a replica from a recovery point. Needs the target only. Runs leave the replica alone afterwards.
    pub async fn start_replica(&self, job: &Job, request: &StartRequest) -> Result<StartReport, EngineError> {
        let (vm, point, target) = (request.vm.as_str(), request.point.as_deref(), request.target.as_deref());
        let found = self.find_point(job, Wanted { vm, point, target, undamaged: false }).await?;
        let (policies, options) = (Policies::default(), RunOptions::default());
        let silent: Arc<dyn Progress> = Arc::new(Silent);
        let run = self.context(job, &policies, &options, &silent, Timestamp::now());
        let identity = Identity { ids: job.ids, vm: request.vm.clone() };
        let lane = Lane::look(&run, &identity, found.survivor.target).await?;
        let mut failover = Failover { lane, job, identity, request, warnings: found.warnings };

        let (replica, point) = failover.subject()?;
        let (session, vm, uuid) = (&failover.lane.session, &replica.reference, &replica.record.uuid);
        if !request.force {
            Lease::assert_free(session, vm, uuid, &self.holder).await?;
        }
        // Asked before anything is changed, the lease included, and once more under it.
        decide(&failover.lane.view, replica, point, job, request)?;
        let lease = Lease::acquire(session, vm, uuid, &self.holder, LeaseTerms::of(&job.tuning), request.force).await?;
        failover.lane.lease = Some(lease);
        let outcome = failover.under_lease().await;
        failover.lane.release().await;
        let mut report = outcome?;
        report.warnings = failover.warnings;
        report.warnings.append(&mut failover.lane.warnings);
        Ok(report)
    }
}

/// Whether and how a replica may be started from a recovery point of its own.
fn decide(
    view: &TargetView,
    replica: &Replica,
    point: &Point,
    job: &Job,
    request: &StartRequest,
) -> Result<Step, EngineError> {
    let refused = |why: &str, remedy: &str| {
        let (name, uuid) = (&replica.record.name_label, &replica.record.uuid);
        Err(EngineError::Refused(format!("replica {name} ({uuid}) {why}; {remedy}")))
    };
    let clone = format!(
        "its recovery points are as they were: vmferry failover clone {} --vm {} --point {}",
        job.name, request.vm, point.uuid
    );
    let halted = replica.record.power_state == PowerState::Halted;
    if let Condition::FailedOver = replica.condition {
        let identity = Identity { ids: job.ids, vm: request.vm.clone() };
        let to = failed_over_to(&identity, &replica.record).unwrap_or_default();
        if request.point.as_ref().is_some_and(|asked| *asked != to) {
            return refused(&format!("was failed over to recovery point {to} before"), &clone);
        }
        return match &replica.record.power_state {
            PowerState::Halted => Ok(Step::Again),
            PowerState::Running => Ok(Step::Running),
            other => refused(&format!("was failed over to before and is {other}"), "resume it as any other VM"),
        };
    }
    if replica.condition == Condition::Foreign {
        return refused(xen_orchestra::UNDER_WAY, &clone);
    }
    let replaced = view.current().is_none_or(|current| current.reference != replica.reference);
    if replica.condition == Condition::Used || replaced || !halted {
        return refused("was used since its newest recovery point, and that work is not overwritten", &clone);
    }
    assert_undamaged(point, replica.points.iter())?;
    let half_written = replica.condition == Condition::HalfWritten;
    if !request.force {
        let state = if half_written {
            "is half-written by a run that has not finished, and its start is blocked"
        } else {
            "is a standby, and its start is blocked"
        };
        return refused(
            state,
            &format!(
                "start a clone (vmferry failover clone {} --vm {}), or add --force: replication onto this replica ends with that until it is failed back",
                job.name, request.vm
            ),
        );
    }
    Ok(match half_written {
        true => Step::Replace,
        false if point.uuid == replica.newest().uuid => Step::Prove,
        false => Step::ProveAndReplace,
    })
}

struct Failover<'j> {
    lane: Lane<'j>,
    job: &'j Job,
    identity: Identity,
    request: &'j StartRequest,
    warnings: Vec<String>,
}

impl Failover<'_> {
    /// The wanted recovery point and its replica, as last observed.
    fn subject(&self) -> Result<(&Replica, &Point), EngineError> {
        let view = &self.lane.view;
        let meant = |point: &&Point| self.request.point.as_ref().is_none_or(|wanted| *wanted == point.uuid);
        let point = view.points().find(meant);
        let of = |point: &&Point| {
            let has = |replica: &&Replica| replica.points.iter().any(|own| own.uuid == point.uuid);
            view.replicas.iter().find(has)
        };
        let subject = point.and_then(|point| Some((of(&point)?, point)));
        subject.ok_or_else(|| EngineError::Usage("the recovery point was removed meanwhile; try again".to_owned()))
    }

    async fn under_lease(&mut self) -> Result<StartReport, EngineError> {
        self.lane.observe(&self.identity).await?;
        let (replica, point) = self.subject()?;
        let (mut replica, point) = (replica.clone(), point.clone());
        if !self.lane.lease.as_ref().is_some_and(|lease| lease.is_of(&replica.reference)) {
            return Err(EngineError::Refused(
                "another run made a newer recovery point meanwhile; try again".to_owned(),
            ));
        }
        let step = decide(&self.lane.view, &replica, &point, self.job, self.request)?;
        let mut disks_replaced = false;
        match step {
            Step::Running => {}
            Step::Again => {
                if self.request.network != NetworkChoice::AsReplica {
                    self.warnings.push("its interfaces are as they were after the earlier failover".to_owned());
                }
                self.boot(&replica, &point, step).await?;
            }
            Step::Prove | Step::ProveAndReplace | Step::Replace => {
                let wiring = Wiring { choice: &self.request.network, new_macs: false, starts: true };
                let lane = &self.lane;
                let record = &lane.inventory.vms[&point.reference];
                let interfaces = wiring.of(&lane.session, &lane.target.pool, &lane.inventory, record).await?;
                let mut proven = false;
                if step != Step::Replace {
                    (replica, proven) = self.prove(replica, &point).await?;
                }
                // Whoever held the lease before may still write to the live disks.
                let late_writer = self.lane.lease.as_ref().is_some_and(|lease| lease.taken_over);
                disks_replaced = step != Step::Prove || !proven || late_writer;
                if disks_replaced {
                    self.replace_disks(&replica, &point).await?;
                }
                let (session, vm) = (&self.lane.session, &replica.reference);
                replica::sync_interfaces(session, vm, &replica.record, &interfaces).await?;
                self.mark(&replica, &point).await?;
                self.boot(&replica, &point, step).await?;
            }
        }
        self.clear_away().await;
        let recorded = match step {
            Step::Running | Step::Again => failed_over_to(&self.identity, &replica.record),
            Step::Prove | Step::ProveAndReplace | Step::Replace => None,
        };
        let point = recorded.unwrap_or(point.uuid);
        Ok(StartReport {
            vm: replica.record.uuid,
            name: replica.record.name_label,
            target: self.lane.target.name.clone(),
            taken_at: replica.points.iter().find(|own| own.uuid == point).map(|own| own.taken_at),
            point,
            disks_replaced,
            already_running: step == Step::Running,
            warnings: Vec::new(),
        })
    }

    /// Makes sure that the replica was not used since its newest recovery point, so that nothing is lost when its disks go.
    /// Whether the storage says of all of them that they still equal it, too: else they must not boot.
    async fn prove(&mut self, replica: Replica, point: &Point) -> Result<(Replica, bool), EngineError> {
        let mut replica = replica;
        if replica.condition == Condition::Untidy {
            commit::tidy(&self.lane, self.job, &self.identity, &replica.reference).await?;
            self.lane.observe(&self.identity).await?;
            replica = self.subject()?.0.clone();
        }
        let change = lane::change(&self.lane.session, &replica, self.job.tuning.first_byte, Asking::Quickly).await?;
        match change.written {
            None => Ok((replica, change.untold.is_empty())),
            Some(why) => Err(EngineError::Refused(format!(
                "replica {} ({}) was used since its newest recovery point: {why}; that work is not overwritten, so clone the point instead: vmferry failover clone {} --vm {} --point {}",
                replica.record.name_label, replica.record.uuid, self.job.name, self.request.vm, point.uuid
            ))),
        }
    }

    async fn replace_disks(&self, replica: &Replica, point: &Point) -> Result<(), RunError> {
        // First those of an attempt that died: once their original is cloned again, nothing tells whose they are.
        let vdis = &self.lane.inventory.vdis;
        let half_made = |vdi: &&_| vdis[*vdi].other_config.contains_key(keys::CLONING);
        for clone in self.lane.view.orphans.iter().filter(half_made) {
            destroy_disk(&self.lane.session, clone).await?;
        }
        reconcile::swap_in(&self.lane, self.job, &self.identity, replica, point).await?;
        commit::tidy_disks(&self.lane, self.job, &replica.reference).await
    }

    /// The write after which nobody but its guest writes to this replica.
    async fn mark(&self, replica: &Replica, point: &Point) -> Result<(), RunError> {
        let uuid = &replica.record.uuid;
        let mut own = commit::live_keys(self.job, &self.identity, replica.sr(), uuid);
        let state = State::FailedOver { live: uuid.clone(), point: point.uuid.clone() };
        own.insert(keys::STATE.to_owned(), state.to_string());
        let mark = |keys: &mut Keys| {
            commit::take_off_point_keys(keys);
            put_autostart_aside(keys);
            keys.extend(own);
        };
        self.lane.change_live_keys(&replica.reference, mark).await
    }

    /// Takes the start block off and starts. A replica that could not be started is what it was before, as far as it
    /// was not failed over already.
    async fn boot(&mut self, replica: &Replica, point: &Point, step: Step) -> Result<(), EngineError> {
        let (session, vm) = (self.lane.session.clone(), &replica.reference);
        if let Some(lease) = &self.lane.lease {
            lease.check().await?;
        }
        memory::detach(&session, vm).await?;
        for operation in ["start", "start_on"] {
            let () = session.call("VM.remove_from_blocked_operations", params![vm, operation]).await?;
        }
        if let Err(error) = session.call_async::<()>("VM.start", params![vm, false, false]).await {
            // An attempt that died may have asked for the same.
            let record = guest::settled(&session, vm, OPERATION_LIMIT).await?;
            if record.power_state == PowerState::Halted && step != Step::Again {
                self.take_back(replica, point).await?;
            }
            if record.power_state != PowerState::Running {
                return Err(RunError::Obstacles(vec![format!(
                    "replica {} ({}) could not be started: {}",
                    replica.record.name_label,
                    replica.record.uuid,
                    chain(&error)
                )])
                .into());
            }
        }
        if self.request.auto_start {
            self.restore_auto_start(replica).await;
        }
        Ok(())
    }

    async fn take_back(&self, replica: &Replica, point: &Point) -> Result<(), RunError> {
        if point.uuid != replica.newest().uuid || point.has_memory() {
            // Its live disks are not those of the newest point any more, or lack the image that came off.
            return reconcile::mark_half_written(&self.lane, self.job, &self.identity, replica, replica.newest()).await;
        }
        block_start(&self.lane.session, &replica.reference, StartBlock::Standby { job: &self.job.name }).await?;
        let unmark = |keys: &mut Keys| drop(keys.remove(keys::STATE));
        self.lane.change_live_keys(&replica.reference, unmark).await
    }

    /// It runs; that it would not start by itself is worth a warning and no more.
    async fn restore_auto_start(&mut self, replica: &Replica) {
        let restore = |keys: &mut Keys| {
            if let Some(value) = keys.get(keys::SOURCE_AUTO_POWERON).cloned() {
                keys.insert(keys::AUTO_POWERON.to_owned(), value);
            }
        };
        if let Err(error) = self.lane.change_live_keys(&replica.reference, restore).await {
            self.warnings.push(format!("auto power-on could not be switched on: {}", chain(&error)));
        }
        let priority = replica.record.other_config.get(keys::SOURCE_HA_RESTART_PRIORITY);
        self.warnings.extend(replica::set_ha_priority(&self.lane.session, &replica.reference, priority).await);
    }

    /// Destroys what is left of the disks that came off, and of attempts that died.
    async fn clear_away(&mut self) {
        const LEFT: &str = "disks that this replica does not use any more are left for the next run to remove";
        if self.lane.lease.as_ref().is_some_and(|lease| lease.displaced) {
            self.warnings.push(format!("a run that works on this replica was stopped; {LEFT}"));
            return;
        }
        let cleared = async {
            self.lane.observe(&self.identity).await?;
            for orphan in &self.lane.view.orphans {
                destroy_disk(&self.lane.session, orphan).await?;
            }
            Ok::<(), RunError>(())
        };
        if let Err(error) = cleared.await {
            self.warnings.push(format!("{LEFT}: {}", chain(&error)));
        }
    }
}
