//! A target: keeps recovery points somewhere else, as a store of points that the engine can use.
//!
//! Every call has a fresh instance and a thread of its own (`worker`), and but for those that check settings takes as long as it
//! makes progress (`progress`). The handles of disk data are in `data`, the streams behind them in `streams`, and what is particular
//! about files in `files`.

pub(crate) mod data;
mod files;
mod held;
mod progress;
mod streams;
mod worker;

pub(crate) use files::bound;
pub(crate) use progress::{Limits, Progress, Stalled};
pub use streams::Passed;
pub(crate) use streams::{Traffic, watch};
#[cfg(test)]
pub(crate) use worker::on_own_thread;

use crate::bindings::host::vmferry::plugin::types::{Error as GuestError, ErrorCode};
use crate::bindings::target::TargetPre;
use crate::call::{Answer, Called, Ready, Running, Surroundings};
use crate::convert;
use crate::plugin::{SetUp, calling};
use crate::state::{State, error};
use async_trait::async_trait;
use data::{Delta, End, Restore};
use vmferry_model::plugin::{PluginError, PluginFailure};
use vmferry_model::target::{
    BrokenOff, Chunks, Damage, DeltaInfo, DiskReceipt, Draft, PointStore, Restored, Shape, StoredExtent, StoredGarbage,
    StoredPoint, VmMetadata,
};
use wasmtime::component::Resource;

/// One use of a target.
pub struct Target {
    pre: TargetPre<State>,
    set_up: SetUp,
    shape: Shape,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("plugin", &self.set_up.caller.id).finish_non_exhaustive()
    }
}

/// Calls one function of a target on a thread of its own: `call` or `work` of the caller, the function's name in the contract and in
/// the bindings, and its arguments behind the settings.
macro_rules! call {
    ($self:ident . $function:ident ($($argument:expr),*) as $name:literal) => { calls!(call, $self . $function ($($argument),*) as $name) };
}

/// The same for what works on what the target keeps.
macro_rules! work {
    ($self:ident . $function:ident ($($argument:expr),*) as $name:literal) => { calls!(work, $self . $function ($($argument),*) as $name) };
}

macro_rules! calls {
    ($how:ident, $self:ident . $function:ident ($($argument:expr),*) as $name:literal) => {{
        let (pre, config) = ($self.pre.clone(), $self.set_up.config.clone());
        let guest = |ready: Ready| {
            on_its_thread(calling!(pre, ready, vmferry_plugin_replicate, $function(&config $(, $argument)*)))
        };
        $self.set_up.caller.$how($name, $self.surroundings(), guest).await
    }};
}

impl Target {
    /// Has the plugin check its settings and say how it wants its data.
    pub(crate) async fn new(pre: TargetPre<State>, set_up: SetUp) -> Result<Self, PluginError> {
        let mut target = Self { pre, set_up, shape: Shape { chunk_size: 0, only_newest: false } };
        call!(target.call_validate_config() as "validate-config")?;
        let shape = call!(target.call_data_shape() as "data-shape")?;
        target.shape = convert::shape(&shape).map_err(|failure| target.failed("data-shape", failure))?;
        Ok(target)
    }

    /// How much disk data has passed it so far, without what calls have moved that are not over.
    pub fn passed(&self) -> Passed {
        self.set_up.caller.traffic.passed()
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings::Target(self.set_up.folders.clone())
    }

    fn failed(&self, call: &str, failure: PluginFailure) -> PluginError {
        self.set_up.caller.error(call, failure)
    }

    /// Reads or verifies: a call with somewhere to put what was stored.
    async fn restoring<T: Send + 'static, F>(
        &self,
        name: &'static str,
        restore: Restore,
        guest: impl FnOnce(Running, TargetPre<State>, String, Resource<Restore>) -> F + Send + 'static,
    ) -> Result<T, PluginError>
    where
        F: Future<Output = (Running, Answer<T>)> + Send,
    {
        let (pre, config) = (self.pre.clone(), self.set_up.config.clone());
        let call = move |ready: Ready| {
            on_its_thread(async move {
                let mut running = ready.begin()?;
                let restore = match running.store.data_mut().table.push(restore) {
                    Ok(restore) => restore,
                    Err(full) => return running.end(Err(full.into())),
                };
                let (mut running, answer) = guest(running, pre, config, Resource::new_borrow(restore.rep())).await;
                let answer = match running.store.data_mut().table.delete(restore) {
                    Ok(Restore { broken_off: Some(broken), .. }) => answer.and(Ok(Err(broken_off(&broken)))),
                    _ => answer,
                };
                running.end(answer)
            })
        };
        Ok(self.set_up.caller.transfer(name, self.surroundings(), call).await?)
    }
}

/// What a call answers whose other end is gone, whatever the guest made of it.
fn broken_off(broken: &BrokenOff) -> GuestError {
    error(ErrorCode::Unavailable, broken.to_string())
}

async fn on_its_thread<T: Send + 'static>(call: impl Future<Output = Called<T>> + Send + 'static) -> Called<T> {
    let thread = worker::on_own_thread(call).await;
    thread.map_err(|problem| PluginFailure::Host(format!("a thread for the call: {problem}")))?
}

#[async_trait]
impl PointStore for Target {
    fn shape(&self) -> Shape {
        self.shape
    }

    async fn points(&self, vm: Option<&str>) -> Result<Vec<StoredPoint>, PluginError> {
        let vm = vm.map(str::to_owned);
        let points = work!(self.call_points(vm.as_deref()) as "points")?;
        let points = points.into_iter().map(convert::stored_point).collect::<Result<_, _>>();
        points.map_err(|failure| self.failed("points", failure))
    }

    async fn metadata(&self, point: &str) -> Result<VmMetadata, PluginError> {
        let point = point.to_owned();
        let metadata = work!(self.call_metadata(&point) as "metadata")?;
        convert::metadata(&metadata).map_err(|failure| self.failed("metadata", failure))
    }

    async fn layout(&self, point: &str, disk: &str, since: Option<&str>) -> Result<Vec<StoredExtent>, PluginError> {
        let (point, disk, since) = (point.to_owned(), disk.to_owned(), since.map(str::to_owned));
        let layout = work!(self.call_layout(&point, &disk, since.as_deref()) as "layout")?;
        convert::layout(&layout).map_err(|failure| self.failed("layout", failure))
    }

    async fn write(&self, draft: &Draft, delta: DeltaInfo, chunks: Box<dyn Chunks>) -> Result<Vec<u8>, PluginError> {
        let (pre, config, draft) = (self.pre.clone(), self.set_up.config.clone(), convert::draft(draft));
        let delta = Delta::new(convert::delta(delta), self.shape.chunk_size, chunks);
        let call = move |ready: Ready| {
            on_its_thread(async move {
                let mut running = ready.begin()?;
                let store = &mut running.store;
                let answer = async {
                    let delta = store.data_mut().table.push(delta)?;
                    let instance = pre.instantiate_async(&mut *store).await?;
                    let borrowed = Resource::new_borrow(delta.rep());
                    let guest = instance.vmferry_plugin_replicate();
                    let answer = guest.call_write(&mut *store, &config, &draft, borrowed).await?;
                    Ok(match store.data_mut().table.delete(delta)?.end {
                        End::BrokenOff(broken) => Err(broken_off(&broken)),
                        end => answer.map(|receipt| (receipt, end == End::Reached)),
                    })
                }
                .await;
                running.end(answer)
            })
        };
        let (receipt, whole) = self.set_up.caller.transfer("write", self.surroundings(), call).await?;
        convert::receipt(receipt, whole).map_err(|failure| self.failed("write", failure))
    }

    async fn commit(&self, draft: &Draft, receipts: &[DiskReceipt]) -> Result<StoredPoint, PluginError> {
        let id = draft.id.clone();
        let (draft, receipts) = (convert::draft(draft), convert::receipts(receipts));
        let point = work!(self.call_commit(&draft, &receipts) as "commit")?;
        convert::committed(point, &id).map_err(|failure| self.failed("commit", failure))
    }

    async fn abort(&self, draft: &Draft) -> Result<(), PluginError> {
        let draft = convert::draft(draft);
        Ok(work!(self.call_abort(&draft) as "abort")?)
    }

    async fn read(
        &self,
        point: &str,
        disk: &str,
        extents: &[StoredExtent],
        restored: Box<dyn Restored>,
    ) -> Result<(), PluginError> {
        let (point, disk, extents) = (point.to_owned(), disk.to_owned(), extents.to_vec());
        let wanted = convert::extents(&extents);
        self.restoring("read", Restore::of(extents, restored), move |mut running, pre, config, restore| async move {
            let answer = async {
                let instance = pre.instantiate_async(&mut running.store).await?;
                let guest = instance.vmferry_plugin_replicate();
                guest.call_read(&mut running.store, &config, &point, &disk, &wanted, restore).await
            }
            .await;
            (running, answer)
        })
        .await
    }

    async fn verify(&self, point: &str) -> Result<Vec<Damage>, PluginError> {
        let point = point.to_owned();
        let found = self
            .restoring("verify", Restore::check(), move |mut running, pre, config, restore| async move {
                let answer = async {
                    let instance = pre.instantiate_async(&mut running.store).await?;
                    let guest = instance.vmferry_plugin_replicate();
                    guest.call_verify(&mut running.store, &config, &point, restore).await
                }
                .await;
                (running, answer)
            })
            .await?;
        let damage = found.into_iter().map(convert::damage).collect::<Result<_, _>>();
        damage.map_err(|failure| self.failed("verify", failure))
    }

    async fn hold(&self, point: &str, held: bool) -> Result<(), PluginError> {
        let point = point.to_owned();
        Ok(work!(self.call_hold(&point, held) as "hold")?)
    }

    async fn delete(&self, point: &str) -> Result<(), PluginError> {
        let point = point.to_owned();
        Ok(work!(self.call_delete(&point) as "delete")?)
    }

    async fn collect(&self, drafts: &[String], apply: bool) -> Result<Vec<StoredGarbage>, PluginError> {
        let drafts = drafts.to_vec();
        let garbage = work!(self.call_collect(&drafts, apply) as "collect")?;
        Ok(garbage.into_iter().map(convert::garbage).collect())
    }
}
