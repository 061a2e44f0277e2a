//! What was found out about the disks of a source by trying, and how long it counts.
//!
//! | Found | Then | Tried again |
//! | --- | --- | --- |
//! | NBD broke off while it was read | the disk is exported | after a day: NBD that always breaks costs one run a day |
//! | the storage knows no differences from a base | the disk is read whole, and compared where digests are known | after a day where tracked changes may come by NBD; else never |
//! | a read for several targets broke off, or the target that it was made for failed | each target is read for alone | after a day: it may cost those who lack little one run a day |
//!
//! It is remembered by tenant, pool and disk. Losing it costs one run that fails.

use crate::inventory::AttachedDisk;
use crate::job::Nbd;
use crate::run::Run;
use jiff::{SignedDuration, Timestamp};
use std::fmt;
use std::str::FromStr;

const A_DAY: SignedDuration = SignedDuration::from_hours(24);

/// Something that did not work, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setback {
    /// When the run began that met it.
    run: Timestamp,
    why: String,
}

impl Setback {
    /// Whether it still counts. A clock that was set back does not make it count for longer.
    fn is_fresh(&self, now: Timestamp) -> bool {
        now.duration_since(self.run).abs() < A_DAY
    }
}

impl fmt::Display for Setback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.run, self.why)
    }
}

impl FromStr for Setback {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (run, why) = text.split_once(' ').ok_or(())?;
        Ok(Self { run: run.parse().map_err(drop)?, why: why.to_owned() })
    }
}

/// Why the disk is not read by NBD for now; `None` if it may be.
pub(crate) async fn nbd_is_left_alone(run: &Run<'_>, disk: &AttachedDisk) -> Option<String> {
    let setback = recall(run, &nbd_of(run, disk)).await.filter(|setback| setback.is_fresh(run.now))?;
    Some(format!(
        "NBD broke off in the run of {:.0}: {}; read by export until {:.0}",
        setback.run,
        setback.why,
        setback.run + A_DAY
    ))
}

/// NBD broke off while the disk was read.
pub(crate) async fn nbd_broke_off(run: &Run<'_>, disk: &AttachedDisk, why: &str) {
    remember(run, &nbd_of(run, disk), why).await;
}

/// Whether nobody tells what differs between two snapshots of the disk.
pub(crate) async fn has_no_differences(run: &Run<'_>, disk: &AttachedDisk) -> bool {
    let may_be_tracked = disk.record.cbt_enabled && run.job.reading.nbd != Nbd::Never;
    let setback = recall(run, &differences_of(run, disk)).await;
    setback.is_some_and(|setback| !may_be_tracked || setback.is_fresh(run.now))
}

/// The storage knew no differences between two snapshots of the disk.
pub(crate) async fn no_differences_told(run: &Run<'_>, disk: &AttachedDisk, why: &str) {
    remember(run, &differences_of(run, disk), why).await;
}

/// Why the disk is not read for several targets at once for now; `None` if it may be.
pub(crate) async fn is_read_apart(run: &Run<'_>, disk: &AttachedDisk) -> Option<String> {
    let setback = recall(run, &together_of(run, disk)).await.filter(|setback| setback.is_fresh(run.now))?;
    Some(format!(
        "a read for several targets failed in the run of {:.0}: {}; each is read for alone until {:.0}",
        setback.run,
        setback.why,
        setback.run + A_DAY
    ))
}

/// A read of the disk for several targets failed, or the target that most of it was for.
pub(crate) async fn reading_together_failed(run: &Run<'_>, disk: &AttachedDisk, why: &str) {
    remember(run, &together_of(run, disk), why).await;
}

fn together_of(run: &Run<'_>, disk: &AttachedDisk) -> String {
    fact(run, disk, "reads for several targets")
}

fn nbd_of(run: &Run<'_>, disk: &AttachedDisk) -> String {
    fact(run, disk, "NBD")
}

fn differences_of(run: &Run<'_>, disk: &AttachedDisk) -> String {
    fact(run, disk, "exported differences")
}

fn fact(run: &Run<'_>, disk: &AttachedDisk, what: &str) -> String {
    format!("tenant {}, pool {}: {what} of disk {}", run.job.tenant, run.job.select.pool, disk.record.uuid)
}

async fn recall(run: &Run<'_>, fact: &str) -> Option<Setback> {
    run.runs.recall(fact).await.ok().flatten()?.parse().ok()
}

async fn remember(run: &Run<'_>, fact: &str, why: &str) {
    let setback = Setback { run: run.now, why: why.to_owned() };
    if let Err(error) = run.runs.remember(fact, &setback.to_string()).await {
        tracing::warn!(%error, fact, why, "what did not work is forgotten, and will be tried again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setback_counts_for_a_day_and_reads_as_it_was_written() {
        let run: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let setback = Setback { run, why: "the source failed at byte 7: reset".to_owned() };
        assert_eq!(setback.to_string().parse(), Ok(setback.clone()));
        for (now, fresh) in [
            ("2026-11-24T12:00:00Z", true),
            ("2026-11-25T11:59:59Z", true),
            ("2026-11-25T12:00:00Z", false),
            ("2026-11-24T11:00:00Z", true),
            ("2026-11-20T12:00:00Z", false),
        ] {
            assert_eq!(setback.is_fresh(now.parse().unwrap()), fresh, "{now}");
        }
        assert!("proven".parse::<Setback>().is_err());
    }
}
