//! Scratch disks: how they are told from everything else, and how they go away.
//!
//! The value of `vmferry:doctor` is `<object> <run> <until> <holder>`. `<object>` is the disk's own uuid; `new` until that is
//! known; or `<uuid>+snapshot` while a snapshot is being taken of that disk, which inherits it. So a snapshot, clone or copy that
//! somebody else makes names another disk than itself and is none of ours.

use crate::error::{RunError, chain};
use crate::holder::{Holder, Liveness};
use crate::keys::{self, Keys};
use crate::objects::{destroy_disk, replace_keys, wait_until_detached};
use crate::snapshot::hangs_elsewhere;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use uuid::Uuid;
use vmferry_xapi::records::{Sr, Vdi};
use vmferry_xapi::{Error, IntoValue, Ref, Session, Value, params};

/// The name of every scratch disk.
pub(super) const NAME: &str = "vmferry-doctor";

/// After this a doctor of which nothing is known from here is taken for gone. It needs minutes.
const LIFE: SignedDuration = SignedDuration::from_hours(2);

/// The doctors of this process that are at work.
static AT_WORK: Mutex<BTreeSet<Uuid>> = Mutex::new(BTreeSet::new());

/// What a mark stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Object {
    /// A disk that does not know its uuid yet.
    New,
    /// The disk with this uuid.
    Disk(String),
    /// The disk with this uuid, while a snapshot of it is taken.
    BeingSnapshotted(String),
}

/// What stands on a scratch disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    object: Object,
    run: Uuid,
    until: Timestamp,
    holder: Holder,
}

impl Mark {
    fn of(keys: &Keys) -> Option<Self> {
        let mut words = keys.get(keys::DOCTOR)?.splitn(4, ' ');
        let object = match words.next()? {
            "new" => Object::New,
            text => match text.strip_suffix("+snapshot") {
                Some(uuid) => Object::BeingSnapshotted(uuid.to_owned()),
                None => Object::Disk(text.to_owned()),
            },
        };
        let run = words.next()?.parse().ok()?;
        let until = Timestamp::from_second(words.next()?.parse().ok()?).ok()?;
        Some(Self { object, run, until, holder: Holder::named(words.next()?) })
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.object {
            Object::New => f.write_str("new"),
            Object::Disk(uuid) => f.write_str(uuid),
            Object::BeingSnapshotted(uuid) => write!(f, "{uuid}+snapshot"),
        }?;
        write!(f, " {} {} {}", self.run, self.until.as_second(), self.holder.as_str())
    }
}

/// One doctor at work. Dropped, it counts as gone.
pub(super) struct Maker {
    run: Uuid,
    holder: Holder,
    until: Timestamp,
}

impl Maker {
    /// `now` is the pool's time.
    pub(super) fn new(holder: &Holder, now: Timestamp) -> Self {
        let run = Uuid::new_v4();
        AT_WORK.lock().unwrap_or_else(PoisonError::into_inner).insert(run);
        Self { run, holder: holder.clone(), until: now.saturating_add(LIFE).unwrap_or(now) }
    }

    fn keys(&self, object: Object) -> Keys {
        let mark = Mark { object, run: self.run, until: self.until, holder: self.holder.clone() };
        Keys::from([(keys::DOCTOR.to_owned(), mark.to_string())])
    }

    /// Makes a disk of `size` bytes, or larger where the storage rounds up.
    pub(super) async fn make(&self, session: &Session, sr: &Ref<Sr>, size: u64) -> Result<(Ref<Vdi>, Vdi), Error> {
        let record = record(sr, size, self.keys(Object::New));
        let disk: Ref<Vdi> = session.call_async("VDI.create", params![record]).await?;
        let record: Vdi = session.get_record(&disk).await?;
        replace_keys(session, &disk, &self.keys(Object::Disk(record.uuid.clone()))).await?;
        Ok((disk, record))
    }

    /// Takes a snapshot of a disk that [`make`](Self::make) made.
    pub(super) async fn snapshot(&self, session: &Session, disk: &Ref<Vdi>, uuid: &str) -> Result<Ref<Vdi>, Error> {
        replace_keys(session, disk, &self.keys(Object::BeingSnapshotted(uuid.to_owned()))).await?;
        let snapshot: Ref<Vdi> = session.call_async("VDI.snapshot", params![disk]).await?;
        let own: String = session.call("VDI.get_uuid", params![&snapshot]).await?;
        replace_keys(session, &snapshot, &self.keys(Object::Disk(own))).await?;
        replace_keys(session, disk, &self.keys(Object::Disk(uuid.to_owned()))).await?;
        Ok(snapshot)
    }

    /// Removes what this doctor made.
    pub(super) async fn remove_own(&self, session: &Session) -> Result<Removed, RunError> {
        remove(session, |mark| mark.run == self.run).await
    }

    /// Removes what doctors left that are gone. `now` is the pool's time.
    pub(super) async fn remove_leftovers(&self, session: &Session, now: Timestamp) -> Result<Removed, RunError> {
        remove(session, |mark| is_gone(mark, &self.holder, now)).await
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        AT_WORK.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.run);
    }
}

/// Whether the doctor that made this mark is at work no more.
fn is_gone(mark: &Mark, this: &Holder, now: Timestamp) -> bool {
    match mark.holder.liveness(this) {
        Liveness::Own => !AT_WORK.lock().unwrap_or_else(PoisonError::into_inner).contains(&mark.run),
        Liveness::Dead => true,
        Liveness::Unknown => mark.until < now,
    }
}

fn record(sr: &Ref<Sr>, size: u64, keys: Keys) -> Value {
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let members: [(&str, Value); 8] = [
        ("SR", sr.into_value()),
        ("name_label", NAME.into_value()),
        ("name_description", "made by `vmferry doctor`, which removes it".into_value()),
        ("other_config", keys.into_value()),
        ("read_only", false.into_value()),
        ("sharable", false.into_value()),
        ("type", "user".into_value()),
        ("virtual_size", size.into_value()),
    ];
    Value::Struct(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>())
}

/// What became of scratch disks.
#[derive(Debug, Default)]
pub(super) struct Removed {
    /// How many are gone.
    pub(super) count: usize,
    /// Those that are still there, with the reason.
    pub(super) left: Vec<String>,
}

/// Destroys the scratch disks whose mark `is_ours`, as far as no VM has taken them.
async fn remove(session: &Session, is_ours: impl Fn(&Mark) -> bool + Send) -> Result<Removed, RunError> {
    let disks = session.get_all_records::<Vdi>().await?;
    let mut removed = Removed::default();
    for (reference, disk) in scratch_disks(&disks, is_ours) {
        match destroy_unused(session, reference).await {
            Ok(true) => removed.count += 1,
            Ok(false) => removed.left.push(format!("{}: a VM has it now", disk.uuid)),
            Err(error) => removed.left.push(format!("{}: {}", disk.uuid, chain(&error))),
        }
    }
    Ok(removed)
}

/// Destroys a disk unless a VM has it. Says whether it did.
async fn destroy_unused(session: &Session, disk: &Ref<Vdi>) -> Result<bool, RunError> {
    wait_until_detached(session, disk).await?;
    let record = session.get_record(disk).await?;
    if hangs_elsewhere(session, &record, &Ref::null()).await? {
        return Ok(false);
    }
    destroy_disk(session, disk).await?;
    Ok(true)
}

/// The disks that a doctor made, its snapshots first.
fn scratch_disks(disks: &[(Ref<Vdi>, Vdi)], is_ours: impl Fn(&Mark) -> bool) -> Vec<&(Ref<Vdi>, Vdi)> {
    let mark = |disk: &Vdi| Mark::of(&disk.other_config).filter(|_| disk.managed);
    let text = |disk: &Vdi| disk.other_config.get(keys::DOCTOR).cloned();
    let is_original = |disk: &Vdi, mark: &Mark| match &mark.object {
        Object::Disk(uuid) => *uuid == disk.uuid,
        // A copy carries it as well, and nothing tells which of them is the copy.
        Object::New => !disk.is_a_snapshot && disks.iter().filter(|(_, other)| text(other) == text(disk)).count() == 1,
        Object::BeingSnapshotted(uuid) if *uuid == disk.uuid => true,
        Object::BeingSnapshotted(uuid) => {
            let still = |(reference, other): &(Ref<Vdi>, Vdi)| {
                *reference == disk.snapshot_of && other.uuid == *uuid && text(other) == text(disk)
            };
            disk.is_a_snapshot && disks.iter().any(still)
        }
    };
    let ours = |(_, disk): &&(Ref<Vdi>, Vdi)| mark(disk).is_some_and(|mark| is_ours(&mark) && is_original(disk, &mark));
    let mut found: Vec<_> = disks.iter().filter(ours).collect();
    found.sort_by_key(|(_, disk)| !disk.is_a_snapshot);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(object: Object) -> Mark {
        Mark { object, run: Uuid::nil(), until: Timestamp::UNIX_EPOCH, holder: Holder::named("boot.1.2.3") }
    }

    fn disk(uuid: &str, object: Object, snapshot_of: Option<&str>) -> (Ref<Vdi>, Vdi) {
        let record = Vdi {
            uuid: uuid.to_owned(),
            managed: true,
            is_a_snapshot: snapshot_of.is_some(),
            snapshot_of: snapshot_of.map_or_else(Ref::null, Ref::new),
            other_config: Keys::from([(keys::DOCTOR.to_owned(), mark(object).to_string())]),
            ..Vdi::default()
        };
        (Ref::new(uuid), record)
    }

    fn found(disks: &[(Ref<Vdi>, Vdi)]) -> Vec<&str> {
        scratch_disks(disks, |_| true).iter().map(|(_, disk)| disk.uuid.as_str()).collect()
    }

    #[test]
    fn a_mark_reads_back_as_it_was_written() {
        for object in [Object::New, Object::Disk("u".to_owned()), Object::BeingSnapshotted("u".to_owned())] {
            let mark = mark(object);
            let keys = Keys::from([(keys::DOCTOR.to_owned(), mark.to_string())]);
            assert_eq!(Mark::of(&keys), Some(mark));
        }
        let other = Keys::from([(keys::DOCTOR.to_owned(), "u".to_owned())]);
        assert_eq!(Mark::of(&other), None);
    }

    #[test]
    fn a_copy_of_a_scratch_disk_is_its_makers() {
        let own = |uuid: &str| Object::Disk(uuid.to_owned());
        let scratch = disk("a", own("a"), None);
        assert_eq!(found(&[scratch.clone(), disk("copy", own("a"), None)]), ["a"]);
        assert_eq!(found(&[scratch.clone(), disk("snapshot", own("a"), Some("a"))]), ["a"]);
        assert_eq!(found(&[scratch, disk("ours", own("ours"), Some("a"))]), ["ours", "a"]);
        assert_eq!(found(&[disk("new", Object::New, None)]), ["new"]);
        assert_eq!(found(&[disk("new", Object::New, None), disk("copy", Object::New, None)]), [""; 0]);
    }

    #[test]
    fn a_snapshot_that_was_being_taken_is_known_by_its_disk() {
        let taking = |uuid: &str, of| disk(uuid, Object::BeingSnapshotted("a".to_owned()), of);
        assert_eq!(found(&[taking("a", None), taking("s", Some("a"))]), ["s", "a"]);
        assert_eq!(found(&[taking("a", None), taking("clone", None)]), ["a"]);
        let done = disk("a", Object::Disk("a".to_owned()), None);
        assert_eq!(found(&[done, taking("somebody's", Some("a"))]), ["a"]);
    }

    #[test]
    fn a_doctor_elsewhere_is_gone_when_its_time_is_over() {
        let this = Holder::this_process();
        let mark = mark(Object::New);
        assert!(!is_gone(&mark, &this, Timestamp::UNIX_EPOCH));
        assert!(is_gone(&mark, &this, Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1)));
        let maker = Maker::new(&this, Timestamp::UNIX_EPOCH);
        let own = Mark { run: maker.run, holder: this.clone(), ..mark };
        assert!(!is_gone(&own, &this, Timestamp::MAX));
        drop(maker);
        assert!(is_gone(&own, &this, Timestamp::UNIX_EPOCH));
    }
}
