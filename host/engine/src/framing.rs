//! Whether a target takes XAPI's `chunked` framing, and the proof.
//!
//! The framing is known from XAPI's source, not from hosts in the field. So what is written by it for the first time on a
//! host version is read back before the commit, and the result is remembered for that version: for this pool of this tenant
//! alone, because a pool may say of itself what it likes, and another tenant's must not suffer from it.

use crate::digests::table_size;
use crate::error::RunError;
use crate::inventory::AttachedDisk;
use crate::lane::Lane;
use crate::readback::{Read, ReadBack, Written};
use crate::run::Run;
use crate::source::Chunked;
use crate::transfer::blocking;
use std::path::Path;
use vmferry_disk::digest::{Leaf, Table};
use vmferry_disk::extent::Extents;
use vmferry_model::store::RunStore;
use vmferry_xapi::records::{Host, Pool, Vdi};
use vmferry_xapi::{Error, Ref, Session};

const PROVEN: &str = "proven";
const REFUTED: &str = "refuted";

/// What is known of the hosts of a pool, and under which name more is remembered.
#[derive(Clone, Debug)]
pub(crate) struct Framing {
    pub(crate) chunked: Chunked,
    fact: String,
}

impl Framing {
    /// Asks the pool for its version, and the store what its hosts of that version did.
    pub(crate) async fn of(session: &Session, runs: &dyn RunStore, tenant: &str) -> Result<Self, Error> {
        let pools = session.get_all_records::<Pool>().await?;
        let pool = pools.into_iter().next().map(|(_, pool)| pool).unwrap_or_default();
        let host: Host = session.get_record(&pool.master).await?;
        let version = |key: &str| host.software_version.get(key).map_or("?", String::as_str);
        let fact = format!(
            "tenant {tenant}, pool {}: chunked import on {} {} build {}, xapi {}",
            pool.uuid,
            version("product_brand"),
            version("product_version"),
            version("build_number"),
            version("xapi_build")
        );
        let chunked = match runs.recall(&fact).await.ok().flatten().as_deref() {
            Some(PROVEN) => Chunked::Proven,
            Some(_) => Chunked::Unusable("a host of this version wrote something else than it was sent"),
            None => Chunked::Untried,
        };
        Ok(Self { chunked, fact })
    }

    /// Remembers what a host made of a stream. A stream without data proves nothing, and one good disk does not take back
    /// what another one showed.
    pub(crate) async fn learn(&self, runs: &dyn RunStore, good: bool, had_data: bool) {
        let known = runs.recall(&self.fact).await.ok().flatten();
        let value = match good {
            true if !had_data || known.is_some() => return,
            true => PROVEN,
            false => REFUTED,
        };
        if let Err(error) = runs.remember(&self.fact, value).await {
            tracing::warn!(%error, "what a host did with the chunked framing is forgotten, and will be tried again");
        }
    }
}

/// A disk that arrived in the framing for the first time.
pub(crate) struct FirstUse<'a> {
    pub(crate) disk: &'a AttachedDisk,
    /// Where it landed.
    pub(crate) landed: &'a Ref<Vdi>,
    /// The recovery point's disk that it was put on; `None` for a new disk.
    pub(crate) landed_on: Option<&'a Ref<Vdi>>,
    /// What was written; `None` if some of what was planned was left out, because the target held it.
    pub(crate) extents: Option<&'a Extents>,
    /// Bytes of the disk that were written.
    pub(crate) written: u64,
    /// Digests of what the whole disk should be now.
    pub(crate) table: &'a Path,
}

/// Reads back what was written, and remembers what came of it. Says why more was read than had to be.
pub(crate) async fn prove(
    run: &Run<'_>,
    lane: &Lane<'_>,
    vm: &str,
    this: &FirstUse<'_>,
) -> Result<Option<String>, RunError> {
    let failed = |message: String| RunError::Transfer { disk: this.disk.record.uuid.clone(), message };
    let (different, note) = read_back(run, lane, vm, this).await?;
    lane.framing.learn(run.runs, different == 0, this.written > 0).await;
    match different {
        0 => Ok(note),
        different => Err(failed(format!(
            "the host did not write what it was sent in the chunked framing: {different} pieces of 64 KiB differ; \
             from now on it gets VHD, and the next run sends the disk so"
        ))),
    }
}

/// How many leaves are not what they should be.
async fn read_back(
    run: &Run<'_>,
    lane: &Lane<'_>,
    vm: &str,
    this: &FirstUse<'_>,
) -> Result<(u64, Option<String>), RunError> {
    let table = Table::open(this.table).map_err(RunError::Digests)?;
    let mut different = 0;
    let mut compare = |leaf: u64, digest: Leaf| {
        if table.leaf(leaf).ok() != Some(digest) {
            different += 1;
        }
    };
    // With nothing left out, the blocks that differ from what was there before hold all that was written. Else the whole
    // disk tells, the blocks that it does not have included.
    let mut written = this.landed_on.zip(this.extents).map(|(onto, extents)| Written { onto, extents });
    let landed = AttachedDisk { vdi: this.landed.clone(), ..this.disk.clone() };
    let back = ReadBack { job: run.job, progress: run.progress.as_ref(), vm };
    let Read { extents, note } = match back.read(&lane.session, &landed, written, &mut compare).await? {
        Some(read) => read,
        None => {
            written = None;
            back.read(&lane.session, &landed, None, &mut compare).await?.unwrap_or_default()
        }
    };
    // In a whole disk, what is not there is zeroes; in a difference, it was not written.
    let expected = match written {
        Some(written) => written.extents.clone(),
        None => blocking(move || table.data_extents()).await.map_err(RunError::Digests)?,
    };
    let read = extents.to_leaves(table_size(this.disk.record.virtual_size));
    let missing = expected.without(&read).leaf_numbers().count() as u64;
    Ok((different + missing, note))
}
