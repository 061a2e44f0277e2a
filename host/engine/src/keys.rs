//! The `other_config` keys that make replicas describe themselves.
//!
//! Xen Orchestra's keys (generation 2) let it list, continue and fail back our chains, and us its. Ours, under
//! `vmferry:`, stand beside them. XAPI copies `other_config` to snapshots, clones and copies, so no key counts by
//! itself: `view` checks where it stands.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;

/// `other_config` as XAPI holds it.
pub(crate) type Keys = BTreeMap<String, String>;

pub(crate) const XO_DATETIME: &str = "xo:backup:datetime";
pub(crate) const XO_JOB: &str = "xo:backup:job";
pub(crate) const XO_SCHEDULE: &str = "xo:backup:schedule";
/// uuid of the live source VM.
pub(crate) const XO_VM: &str = "xo:backup:vm";
/// uuid of the target SR; absent on the source.
pub(crate) const XO_SR: &str = "xo:backup:sr";
/// `true` on source snapshots whose transfer to every target is complete.
pub(crate) const XO_EXPORTED: &str = "xo:backup:exported";
pub(crate) const XO_DELTA_CHAIN_LENGTH: &str = "xo:backup:deltaChainLength";
/// uuid of the source snapshot disk that a disk's content equals.
pub(crate) const XO_CONTENT_KEY: &str = "xo:backup:contentKey";
/// On the target only: uuid of the source snapshot VM or disk it was copied from.
pub(crate) const XO_COPY_OF: &str = "xo:copy_of";
/// Without it Xen Orchestra 6.7 and later suspects an old defect of its own and may force a full copy.
pub(crate) const XO_QCOW2_FIX: &str = "xo:backup:includeNonNbdQcow2Fix";

/// On a target disk while Xen Orchestra imports into it.
pub(crate) const XO_IMPORT_TASK: &str = "xo:import:task";
/// Xen Orchestra before 5.17, on the source VM: followed by the uuid of a target SR.
pub(crate) const XO_BASE_DELTA_OF: &str = "xo:base_delta:";
/// Xen Orchestra before 5.17, on a replica: uuid of the source VM.
pub(crate) const XO_SOURCE_VM: &str = "xo:source_vm";

/// `importing`, `committed:<live VM uuid>:<source snapshot uuid>`, `failed-over:<own uuid>:<recovery point uuid>` or
/// `pruning:<own uuid>`: see [`State`].
pub(crate) const STATE: &str = "vmferry:state";
/// See `lease`.
pub(crate) const LEASE: &str = "vmferry:lease";
/// `<content key>:<root of the block digests>` on a disk.
pub(crate) const DIGEST: &str = "vmferry:digest";
/// uuid of the job that owns a replica or a source snapshot.
pub(crate) const JOB: &str = "vmferry:job";
/// uuid of the source VM that a replica, its disks or a source snapshot belong to. Unlike `xo:backup:vm` it stays on the
/// live replica, so that the replica is told from a VM that only happens to be on the target.
pub(crate) const VM: &str = "vmferry:vm";
/// On a recovery point: how many disks it has, so that one that lost a disk is told from a whole one.
pub(crate) const DISKS: &str = "vmferry:disks";
/// On a recovery point's disk while it is cloned: a random text. The clone inherits it, so that one whose maker died is told
/// from a user's as long as the original carries the same text.
pub(crate) const CLONING: &str = "vmferry:cloning";
/// On source snapshots, live replicas and their disks: the object's own uuid. A copy inherits it, and is told from the
/// original by it.
pub(crate) const SELF: &str = "vmferry:self";
/// The tenant that owns it.
pub(crate) const TENANT: &str = "vmferry:tenant";
/// On live replica disks: the content key that they equal while nobody writes to them.
pub(crate) const CONTENT: &str = "vmferry:content";
/// On target disks: uuid of the live source disk.
pub(crate) const DISK: &str = "vmferry:disk";
/// On source snapshots: space-separated uuids of the target SRs that hold a recovery point of it.
pub(crate) const EXPORTED_TO: &str = "vmferry:exported-to";
/// On source snapshots: id of the media that carry them to a target. They are kept until every target holds something as new.
pub(crate) const SEED: &str = "vmferry:seed";
/// On source snapshots: uuids of the target SRs on which a recovery point of it was about to be made. What became of that is known
/// once the target was looked at.
pub(crate) const OFFERED_TO: &str = "vmferry:offered-to";
/// On a recovery point's disk that was read back and is not what was sent: `<content key>:<root of what was read>`. Such a
/// disk is never a base.
pub(crate) const DAMAGED: &str = "vmferry:damaged";
/// On a recovery point: held by the operator, never pruned.
pub(crate) const HOLD: &str = "vmferry:hold";
/// On a recovery point: its interfaces as `<device>=<MAC>`, space-separated. XAPI destroys interfaces together with their
/// network and leaves no trace of them.
pub(crate) const INTERFACES: &str = "vmferry:interfaces";
/// On a replica and its recovery points: the source's `auto_poweron`, which a replica must not carry itself.
pub(crate) const SOURCE_AUTO_POWERON: &str = "vmferry:source-auto-poweron";
/// The same for the source's `ha_restart_priority`, where it has one.
pub(crate) const SOURCE_HA_RESTART_PRIORITY: &str = "vmferry:source-ha-restart-priority";

/// On a source VM that a run shut down for its snapshot, until it is started again.
pub(crate) const STOPPED: &str = "vmferry:stopped";

/// On a VM that is being restored, and on a disk of it until that is attached: `<job>:<uuid of the VM>`. See `restoring`.
pub(crate) const RESTORING: &str = "vmferry:restoring";

/// On the doctor's scratch disks: see `doctor::scratch`.
pub(crate) const DOCTOR: &str = "vmferry:doctor";

/// On a target disk that holds the memory of the source VM. It is no disk of the guest: nothing boots with it attached.
pub(crate) const MEMORY: &str = "vmferry:memory";

/// XAPI starts a VM with this key when its host boots.
pub(crate) const AUTO_POWERON: &str = "auto_poweron";

/// A date as Xen Orchestra's keys write it: `20261121T19:48:01Z`.
pub(crate) fn datetime(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H:%M:%SZ").to_string()
}

/// A date as names carry it: `20261121T194801Z`.
pub(crate) fn compact_datetime(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// Reads either form; `None` for anything else and for the 1970 date of an import that is not complete.
pub(crate) fn parse_datetime(text: &str) -> Option<Timestamp> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let at = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", &digits).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    (at > Timestamp::UNIX_EPOCH).then_some(at)
}

/// What `vmferry:state` says. It counts only where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// On a live replica or a new disk: bytes may be missing.
    Importing,
    /// On a snapshot of the live VM it names: a complete recovery point.
    Committed { live: String, source_snapshot: String },
    /// On a live replica, which it names: it was started from this recovery point. Replication leaves it alone from then on.
    FailedOver { live: String, point: String },
    /// On a snapshot and its disks, each naming itself: being destroyed, and whoever finds it should finish the work.
    Pruning { object: String },
}

impl State {
    /// `None` when the key is absent or says nothing known.
    pub(crate) fn of(keys: &Keys) -> Option<Self> {
        let text = keys.get(STATE)?;
        if text == "importing" {
            return Some(Self::Importing);
        }
        if let Some(object) = text.strip_prefix("pruning:") {
            return Some(Self::Pruning { object: object.to_owned() });
        }
        if let Some((live, point)) = text.strip_prefix("failed-over:").and_then(|rest| rest.split_once(':')) {
            return Some(Self::FailedOver { live: live.to_owned(), point: point.to_owned() });
        }
        let (live, source_snapshot) = text.strip_prefix("committed:")?.split_once(':')?;
        Some(Self::Committed { live: live.to_owned(), source_snapshot: source_snapshot.to_owned() })
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Importing => f.write_str("importing"),
            Self::Pruning { object } => write!(f, "pruning:{object}"),
            Self::FailedOver { live, point } => write!(f, "failed-over:{live}:{point}"),
            Self::Committed { live, source_snapshot } => write!(f, "committed:{live}:{source_snapshot}"),
        }
    }
}

/// The root of a disk's block digests, if the key names this very content.
pub(crate) fn digest_of<'a>(keys: &'a Keys, content_key: &str) -> Option<&'a str> {
    root_beside(keys, DIGEST, content_key)
}

/// The root of what was read from a damaged disk, if the key names this very content.
pub(crate) fn damaged_root<'a>(keys: &'a Keys, content_key: &str) -> Option<&'a str> {
    root_beside(keys, DAMAGED, content_key)
}

fn root_beside<'a>(keys: &'a Keys, key: &str, content_key: &str) -> Option<&'a str> {
    keys.get(key)?.strip_prefix(content_key)?.strip_prefix(':')
}

/// The value of [`DIGEST`] and [`DAMAGED`].
pub(crate) fn digest_value(content_key: &str, root: &str) -> String {
    format!("{content_key}:{root}")
}

/// The target SRs that a source snapshot was exported to ([`EXPORTED_TO`]) or offered to ([`OFFERED_TO`]).
pub(crate) fn srs_under<'a>(keys: &'a Keys, key: &str) -> impl Iterator<Item = &'a str> {
    keys.get(key).map_or("", String::as_str).split_whitespace()
}

/// Whether keys with an unfinished state stand on the object they were written for. Only the moments between the
/// making of an object and its first key leave it without [`SELF`].
pub(crate) fn is_original(keys: &Keys, uuid: &str) -> bool {
    keys.get(SELF).is_none_or(|own| own == uuid)
}

/// Whether a key belongs to replication and so must not pass from a VM to its copy.
pub(crate) fn is_replication_key(key: &str) -> bool {
    const PREFIXES: [&str; 4] = ["vmferry:", "xo:backup:", "xo:import:", "xo:base_delta"];
    PREFIXES.iter().any(|prefix| key.starts_with(prefix)) || [XO_COPY_OF, XO_SOURCE_VM, "xo:export_time"].contains(&key)
}

/// The keys of a source object that its replica takes over.
pub(crate) fn inheritable(source: &Keys) -> Keys {
    source.iter().filter(|(key, _)| !is_replication_key(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_xen_orchestra_writes_them_and_read_in_both_forms() {
        let at: Timestamp = "2026-11-21T19:48:01Z".parse().unwrap();
        assert_eq!(datetime(at), "20261121T19:48:01Z");
        assert_eq!(compact_datetime(at), "20261121T194801Z");
        assert_eq!(parse_datetime("20261121T19:48:01Z"), Some(at));
        assert_eq!(parse_datetime("20261121T194801Z"), Some(at));
    }

    #[test]
    fn the_date_of_an_unfinished_import_is_no_date() {
        for text in ["19700101T000000Z", "", "yesterday", "20261121", "20261301T00:00:00Z"] {
            assert_eq!(parse_datetime(text), None, "{text}");
        }
    }

    #[test]
    fn a_state_reads_back_as_it_was_written() {
        for state in [
            State::Importing,
            State::Pruning { object: "e-f".into() },
            State::Committed { live: "a-b".into(), source_snapshot: "c-d".into() },
            State::FailedOver { live: "a-b".into(), point: "c-d".into() },
        ] {
            let keys = Keys::from([(STATE.to_owned(), state.to_string())]);
            assert_eq!(State::of(&keys), Some(state));
        }
        for nonsense in ["", "committed", "committed:", "committed:only-one", "failed-over:only-one", "done"] {
            assert_eq!(State::of(&Keys::from([(STATE.to_owned(), nonsense.to_owned())])), None, "{nonsense}");
        }
    }

    #[test]
    fn a_digest_counts_only_for_the_content_it_names() {
        let keys = Keys::from([(DIGEST.to_owned(), digest_value("content", "root"))]);
        assert_eq!(digest_of(&keys, "content"), Some("root"));
        assert_eq!(digest_of(&keys, "other"), None);
        assert_eq!(digest_of(&Keys::new(), "content"), None);
    }
}
