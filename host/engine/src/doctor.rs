//! `vmferry doctor`: what the hosts of a pool really do, tried on scratch disks of our own.
//!
//! [`story`] tries one thing after another, each a function in `probes`; what it means and what to do is in `advice`, how scratch
//! disks are told from everything else in `scratch`, and how they are written without a guest in `streams`. The doctor changes nothing but its
//! scratch disks. They are removed at the end, however it ends; what a doctor left that was killed, the next one removes.

mod advice;
mod probes;
mod scratch;
mod streams;

use crate::engine::Engine;
use crate::error::{EngineError, RunError, chain};
pub use advice::DoctorProbe;
use jiff::Timestamp;
use probes::{Bench, version};
use scratch::{Maker, Removed};
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::Duration;
use vmferry_model::report::Outcome;
use vmferry_xapi::records::{Host, Pbd, Pool, Sr};
use vmferry_xapi::{Error, Ref, Session};

/// How long one probe may take. XAPI alone waits up to five minutes for a disk to come off its domain.
const PROBE: Duration = Duration::from_secs(10 * 60);

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct DoctorRequest {
    /// Name of the pool in the configuration.
    pub pool: String,
    /// The tenant for whom it is remembered what hosts do.
    pub tenant: String,
    /// uuid of the SR for scratch disks; by default the pool's default SR.
    pub sr: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DoctorReport {
    /// Name of the pool in the configuration.
    pub pool: String,
    /// Name and uuid of the SR that was tried, and who chose it; `None` where there was none.
    pub sr: Option<String>,
    /// `succeeded` if everything works, `failed` if something does not that a run needs, else `partial`.
    pub outcome: Outcome,
    /// One line for each probe, in the order in which they are tried.
    pub lines: Vec<DoctorLine>,
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DoctorLine {
    /// What was looked at.
    pub probe: DoctorProbe,
    /// Whether it works.
    pub verdict: DoctorVerdict,
    /// Whether a run fails without it.
    pub needed: bool,
    /// What was seen; for what was not tried, why.
    pub seen: String,
    /// What it means for replication.
    pub means: &'static str,
    /// What to do, where there is something to do.
    pub remedy: Option<&'static str>,
}

/// Whether something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoctorVerdict {
    /// It works.
    Ok,
    /// The pool does not have it, or has it switched off.
    Missing,
    /// It is there and does not do what it should.
    Broken,
    /// It could not be tried.
    NotTried,
}

/// What a probe saw.
struct Found {
    verdict: DoctorVerdict,
    seen: String,
}

impl Found {
    fn ok(seen: impl Into<String>) -> Self {
        Self { verdict: DoctorVerdict::Ok, seen: seen.into() }
    }

    fn missing(seen: impl Into<String>) -> Self {
        Self { verdict: DoctorVerdict::Missing, seen: seen.into() }
    }

    fn broken(seen: impl Into<String>) -> Self {
        Self { verdict: DoctorVerdict::Broken, seen: seen.into() }
    }

    fn not_tried(why: impl Into<String>) -> Self {
        Self { verdict: DoctorVerdict::NotTried, seen: why.into() }
    }
}

/// A probe that could not come to an end has found something broken.
impl From<Error> for Found {
    fn from(error: Error) -> Self {
        Self::broken(chain(&error))
    }
}

/// What was found so far.
#[derive(Default)]
struct Chart(Vec<DoctorLine>);

impl Chart {
    fn note(&mut self, probe: DoctorProbe, found: Found) {
        let Found { verdict, seen } = found;
        let works = matches!(verdict, DoctorVerdict::Ok | DoctorVerdict::NotTried);
        self.0.push(DoctorLine {
            probe,
            verdict,
            needed: probe.is_needed(),
            seen,
            means: probe.means(verdict),
            remedy: (!works).then(|| probe.remedy()),
        });
    }

    fn has(&self, probe: DoctorProbe) -> bool {
        self.0.iter().any(|line| line.probe == probe)
    }

    /// The report; what was not come to was not tried, for this reason.
    fn finish(mut self, pool: &str, sr: Option<String>, why_not: &str) -> DoctorReport {
        for probe in DoctorProbe::ALL {
            if !self.has(probe) {
                self.note(probe, Found::not_tried(why_not));
            }
        }
        self.0.sort_by_key(|line| line.probe as usize);
        DoctorReport { pool: pool.to_owned(), sr, outcome: outcome(&self.0), lines: self.0 }
    }
}

/// What the lines make of the whole. What is not needed and could not be tried says nothing.
fn outcome(lines: &[DoctorLine]) -> Outcome {
    let works = |line: &&DoctorLine| line.verdict == DoctorVerdict::Ok;
    let untried = |line: &&DoctorLine| line.verdict == DoctorVerdict::NotTried;
    match () {
        () if lines.iter().filter(|line| line.needed).any(|line| !works(&line)) => Outcome::Failed,
        () if lines.iter().all(|line| works(&line) || untried(&line)) => Outcome::Succeeded,
        () => Outcome::Partial,
    }
}

/// What the pool says of itself.
struct Scene {
    hosts: Vec<(Ref<Host>, Host)>,
    master: Ref<Host>,
    pbds: Vec<(Ref<Pbd>, Pbd)>,
    sr: Option<(Ref<Sr>, Sr)>,
    /// Whether the SR was asked for by its uuid.
    sr_given: bool,
    /// The pool's time.
    now: Timestamp,
}

impl Scene {
    async fn look(session: &Session, request: &DoctorRequest) -> Result<Self, RunError> {
        let pool =
            session.get_all_records::<Pool>().await?.into_iter().next().map(|(_, pool)| pool).unwrap_or_default();
        let srs = session.get_all_records::<Sr>().await?;
        let sr = match &request.sr {
            Some(uuid) => Some(srs.into_iter().find(|(_, sr)| sr.uuid == *uuid).ok_or_else(|| RunError::NotFound {
                class: "SR",
                name: uuid.clone(),
                pool: request.pool.clone(),
                remedy: "`xe sr-list` shows those that are",
            })?),
            None => srs.into_iter().find(|(reference, _)| *reference == pool.default_sr),
        };
        Ok(Self {
            hosts: session.get_all_records().await?,
            master: pool.master,
            pbds: session.get_all_records().await?,
            sr,
            sr_given: request.sr.is_some(),
            now: session.server_time().await?,
        })
    }

    fn sr_told(&self) -> Option<String> {
        let (_, sr) = self.sr.as_ref()?;
        let chosen = if self.sr_given { "as asked for" } else { "the pool's default" };
        Some(format!("{} ({}), {chosen}", sr.name_label, sr.uuid))
    }

    /// The hosts that have an SR plugged.
    fn seen_by(&self, sr: &Ref<Sr>) -> BTreeSet<&Ref<Host>> {
        let plugged = self.pbds.iter().filter(|(_, pbd)| pbd.sr == *sr && pbd.currently_attached);
        plugged.map(|(_, pbd)| &pbd.host).collect()
    }
}

impl Engine {
    /// Tries on scratch disks what a pool's hosts really do, and says what it found. When `interrupted` is ready it stops, and
    /// removes what it made.
    pub async fn doctor(
        &self,
        request: &DoctorRequest,
        interrupted: impl Future<Output = ()> + Send,
    ) -> Result<DoctorReport, EngineError> {
        let mut chart = Chart::default();
        let session = match self.pools.session(&request.pool).await {
            Ok(session) => session,
            Err(RunError::Pool { source, .. }) => {
                chart.note(DoctorProbe::Login, Found::from(source));
                return Ok(chart.finish(&request.pool, None, "the pool could not be logged in to"));
            }
            Err(error) => return Err(error.into()),
        };
        let scene = Scene::look(&session, request).await?;
        let maker = Maker::new(&self.holder, scene.now);
        let before = maker.remove_leftovers(&session, scene.now).await;
        let why_not = {
            let bench = Bench { engine: self, request, session: &session, scene: &scene, maker: &maker };
            tokio::select! {
                () = story(&bench, &mut chart) => "there is no scratch disk to try it on",
                () = interrupted => "it was interrupted",
            }
        };
        let after = maker.remove_own(&session).await;
        chart.note(DoctorProbe::CleanUp, clean_up(before, after));
        Ok(chart.finish(&request.pool, scene.sr_told(), why_not))
    }
}

/// All probes, in order. Each stands for itself, as far as there is something to try it on.
async fn story(bench: &Bench<'_>, chart: &mut Chart) {
    use DoctorProbe::{
        BaseExport, ChangedBlocks, Chunked, Clocks, DataDestroy, Encryption, Events, Login, Nbd, ParentUuid, Qcow2Head,
        Redirect, ScratchDisk, SectorBitmaps, Storage, Version, VhdExport, VhdImport, WrongPath,
    };
    chart.note(Login, bench.login());
    chart.note(Version, version(&bench.scene.hosts));
    chart.note(Clocks, bounded(bench.clocks()).await);
    chart.note(Encryption, bounded(bench.encryption()).await);
    chart.note(WrongPath, bounded(bench.wrong_path()).await);
    let (sr, storage) = bench.storage();
    chart.note(Storage, storage);
    let Some((sr_ref, _)) = sr else { return };
    let (disk, made) = match tokio::time::timeout(PROBE, bench.make_disk(sr_ref)).await {
        Ok((disk, made)) => (disk, made),
        Err(_) => (None, too_long()),
    };
    chart.note(ScratchDisk, made);
    let Some(mut disk) = disk else { return };
    chart.note(Events, bounded(bench.events(&disk)).await);
    chart.note(VhdImport, bounded(bench.vhd_import(&mut disk)).await);
    chart.note(VhdExport, bounded(bench.vhd_export(&disk)).await);
    chart.note(SectorBitmaps, bounded(bench.sector_bitmaps(&mut disk)).await);
    let chunked = bounded(bench.chunked(&mut disk)).await;
    let takes_chunked = chunked.verdict == DoctorVerdict::Ok;
    chart.note(Chunked, chunked);
    chart.note(Redirect, bounded(bench.redirect(sr_ref, &disk)).await);
    chart.note(Qcow2Head, bounded(bench.qcow2_head(&disk)).await);
    let tracked = bounded(bench.track_changes(&disk)).await;
    let snapshots = bench.snapshots(&mut disk, takes_chunked);
    let (snapshots, taken) = match tokio::time::timeout(PROBE, snapshots).await {
        Ok(Ok(snapshots)) => {
            (Some(snapshots), Found::ok("two snapshots of the scratch disk, with a write of 64 KiB in between"))
        }
        Ok(Err(why)) => (None, Found::broken(why)),
        Err(_) => (None, too_long()),
    };
    chart.note(DoctorProbe::Snapshots, taken);
    let Some(snapshots) = snapshots else {
        for probe in [BaseExport, ParentUuid, ChangedBlocks, Nbd, DataDestroy] {
            chart.note(probe, Found::not_tried("there are no two snapshots"));
        }
        return;
    };
    let (found, parent) = match tokio::time::timeout(PROBE, bench.base_export(&disk, &snapshots)).await {
        Ok(both) => both,
        Err(_) => (too_long(), Found::not_tried("the differential export took too long")),
    };
    chart.note(BaseExport, found);
    chart.note(ParentUuid, parent);
    chart.note(Nbd, bounded(bench.nbd(&snapshots)).await);
    let changes = match tracked.verdict {
        DoctorVerdict::Ok => bounded(bench.changed_blocks(&snapshots)).await,
        _ => tracked,
    };
    let data_destroy = match changes.verdict {
        DoctorVerdict::Ok => bounded(bench.data_destroy(&snapshots)).await,
        _ => Found::not_tried("changed blocks do not work"),
    };
    chart.note(ChangedBlocks, changes);
    chart.note(DataDestroy, data_destroy);
}

fn too_long() -> Found {
    Found::broken(format!("it did not come to an end within {} s", PROBE.as_secs()))
}

/// A probe that found something, or could not come to an end.
async fn bounded(probe: impl Future<Output = Result<Found, Error>>) -> Found {
    match tokio::time::timeout(PROBE, probe).await {
        Ok(found) => found.unwrap_or_else(Found::from),
        Err(_) => too_long(),
    }
}

fn clean_up(before: Result<Removed, RunError>, after: Result<Removed, RunError>) -> Found {
    let (mut seen, mut left) = (Vec::new(), Vec::new());
    for (whose, removed) in [("of an earlier doctor", before), ("of this one", after)] {
        match removed {
            Ok(removed) => {
                if removed.count > 0 {
                    seen.push(format!("{} disks {whose} removed", removed.count));
                }
                left.extend(removed.left);
            }
            Err(error) => left.push(format!("disks {whose} could not be looked for: {}", chain(&error))),
        }
    }
    match (left.is_empty(), seen.is_empty()) {
        (true, true) => Found::ok("nothing had to be removed"),
        (true, false) => Found::ok(seen.join(", ")),
        (false, _) => Found::broken(format!("left: {}", left.join("; "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(probe: DoctorProbe, verdict: DoctorVerdict) -> DoctorLine {
        let mut chart = Chart::default();
        chart.note(probe, Found { verdict, seen: "seen".to_owned() });
        chart.0.remove(0)
    }

    #[test]
    fn what_a_run_needs_decides_about_failure_and_the_rest_about_a_part() {
        use DoctorProbe::{Nbd, Redirect, VhdImport};
        use DoctorVerdict::{Broken, Missing, NotTried, Ok};
        for (lines, expected) in [
            (vec![line(VhdImport, Ok), line(Nbd, Ok), line(Redirect, NotTried)], Outcome::Succeeded),
            (vec![line(VhdImport, Ok), line(Nbd, Missing)], Outcome::Partial),
            (vec![line(VhdImport, Broken), line(Nbd, Ok)], Outcome::Failed),
            (vec![line(VhdImport, NotTried)], Outcome::Failed),
        ] {
            assert_eq!(outcome(&lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn only_what_does_not_work_has_a_remedy() {
        assert_eq!(line(DoctorProbe::Nbd, DoctorVerdict::Ok).remedy, None);
        assert_eq!(line(DoctorProbe::Nbd, DoctorVerdict::NotTried).remedy, None);
        assert!(line(DoctorProbe::Nbd, DoctorVerdict::Missing).remedy.is_some_and(|remedy| remedy.contains("purpose")));
    }

    #[test]
    fn every_probe_has_its_line() {
        let report = Chart::default().finish("dr", None, "it was interrupted");
        assert_eq!(report.lines.iter().map(|line| line.probe).collect::<Vec<_>>(), DoctorProbe::ALL);
        assert!(report.lines.iter().all(|line| line.seen == "it was interrupted"));
        assert_eq!(report.outcome, Outcome::Failed);
    }
}
