//! On which of a target's storage repositories (SRs) a replica is, or is to be.
//!
//! A replica is whole on one SR and stays there: where the newest recovery point is, the next one goes. Only a VM without one is
//! placed, by the space that is left. An SR that is lost costs no full copy by itself: the run says so, and the operator decides
//! by taking it out of the target's list.

use crate::error::RunError;
use crate::inventory::Inventory;
use crate::job::Target;
use crate::lane::bytes;
use crate::view::{SourceVm, TargetView};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use vmferry_xapi::Ref;
use vmferry_xapi::records::{Pbd, Sr};

/// The SRs that a target names, as its pool has them.
#[derive(Clone, Debug)]
pub(crate) struct TargetSrs {
    /// At least one, in the target's order.
    pub(crate) there: Vec<TargetSr>,
    /// uuids of those that the pool does not have.
    pub(crate) missing: Vec<String>,
}

/// An SR of a target.
#[derive(Clone, Debug)]
pub(crate) struct TargetSr {
    pub(crate) reference: Ref<Sr>,
    pub(crate) record: Sr,
    /// Whether a host is connected to it.
    pub(crate) is_plugged: bool,
}

impl TargetSrs {
    /// Looks the target's SRs up; an error where its pool has none of them.
    pub(crate) fn new(inventory: &Inventory, pbds: &[(Ref<Pbd>, Pbd)], target: &Target) -> Result<Self, RunError> {
        let (mut there, mut missing) = (Vec::new(), Vec::new());
        for uuid in &target.srs {
            match inventory.sr_by_uuid(uuid) {
                Some((reference, record)) => there.push(TargetSr {
                    reference: reference.clone(),
                    record: record.clone(),
                    is_plugged: pbds.iter().any(|(_, pbd)| pbd.sr == *reference && pbd.currently_attached),
                }),
                None => missing.push(uuid.clone()),
            }
        }
        if there.is_empty() {
            return Err(RunError::NotFound {
                class: "SR",
                name: missing.join(", "),
                pool: target.pool.clone(),
                remedy: "set the target's `sr` to the uuid of a storage repository of that pool",
            });
        }
        Ok(Self { there, missing })
    }

    /// The SR with this uuid.
    pub(crate) fn get(&self, uuid: &str) -> Option<&TargetSr> {
        self.there.iter().find(|sr| sr.record.uuid == uuid)
    }

    /// Whether this is an SR of the target that no host is connected to.
    pub(crate) fn is_out_of_reach(&self, sr: &Ref<Sr>) -> bool {
        self.there.iter().any(|known| known.reference == *sr && !known.is_plugged)
    }

    /// Why what is on this SR of the target cannot be reached; `None` if it can, or if the target does not name it.
    pub(crate) fn lost(&self, target: &Target, uuid: &str) -> Option<String> {
        let give_up = match target.srs.len() {
            1 => "set another `sr`",
            _ => "take it out of the target's `srs`",
        };
        let consequence = "the next run then makes a full copy on another one";
        let (name, pool) = (&target.name, &target.pool);
        match self.get(uuid) {
            Some(TargetSr { is_plugged: true, .. }) => None,
            Some(TargetSr { record, .. }) => Some(format!(
                "SR {} ({uuid}) of target {name} holds the replica, and no host of pool {pool} is connected to it; connect one with \
                 `xe pbd-plug`, or {give_up}: {consequence}",
                record.name_label
            )),
            None => self.missing.iter().any(|missing| missing == uuid).then(|| {
                format!(
                    "SR {uuid} of target {name} holds the replica and is not in pool {pool} any more; bring it back, or {give_up}: \
                     {consequence}"
                )
            }),
        }
    }

    /// The same for the SR of the VM's newest recovery point on the target: by what the target holds, and by what the source's
    /// snapshots say of an SR that nobody can ask any more.
    pub(crate) fn lost_home(&self, target: &Target, view: &TargetView, source: &SourceVm) -> Option<String> {
        let current = view.current();
        let exported = source.snapshots.iter().rev().find_map(|snapshot| {
            let sr = target.srs.iter().find(|sr| snapshot.exported_to.contains(sr))?;
            Some((snapshot.taken_at, sr))
        });
        let newer = exported.filter(|(at, _)| current.is_none_or(|replica| replica.newest().taken_at < *at));
        newer
            .and_then(|(_, sr)| self.lost(target, sr))
            .or_else(|| current.and_then(|replica| self.lost(target, replica.sr())))
    }
}

/// An SR that a new replica may go to.
#[derive(Clone, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) sr: &'a TargetSr,
    /// Bytes of it that nobody uses and nobody was promised.
    pub(crate) left: u64,
}

/// The SR with the most space left, the first of them where several have as much; or why there is no room for `needed` bytes,
/// with what each of them has.
pub(crate) fn place<'a>(candidates: &[Candidate<'a>], needed: u64, target: &Target) -> Result<&'a TargetSr, String> {
    let plugged = candidates.iter().filter(|candidate| candidate.sr.is_plugged);
    // Of equals `max_by_key` takes the last.
    let best = plugged.rev().max_by_key(|candidate| candidate.left);
    match best {
        Some(best) if best.left >= needed => Ok(best.sr),
        _ => {
            let each = candidates.iter().map(|Candidate { sr, left }| {
                let (name, uuid) = (&sr.record.name_label, &sr.record.uuid);
                match sr.is_plugged {
                    true => format!("SR {name} ({uuid}) has {} left", bytes(*left)),
                    false => format!("no host is connected to SR {name} ({uuid}): connect one with `xe pbd-plug`"),
                }
            });
            Err(format!(
                "no SR of target {} can take the new replica, which needs about {}: {}; connect a host to one, free space there, or name another one in `sr` or `srs`",
                target.name,
                bytes(needed),
                each.collect::<Vec<_>>().join(", ")
            ))
        }
    }
}

/// What one run is about to put on SRs. How much of an SR is in use is known as of its last scan, so what was put there in
/// the meantime may or may not be counted: the run trusts the smaller of what the storage says now and of what it said first,
/// less what was promised since.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accounts: Mutex<BTreeMap<String, Account>>,
}

/// One SR in it.
#[derive(Clone, Copy, Debug)]
struct Account {
    /// Bytes that were free when the run first looked.
    first_seen: u64,
    /// Bytes promised to replicas since.
    promised: u64,
}

impl Account {
    fn left(&self, free: u64) -> u64 {
        free.min(self.first_seen.saturating_sub(self.promised))
    }
}

impl Ledger {
    /// Places a new replica and promises it the space; see [`place`].
    pub(crate) fn place<'a>(&self, srs: &'a TargetSrs, needed: u64, target: &Target) -> Result<&'a TargetSr, String> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let candidates: Vec<Candidate<'a>> = srs
            .there
            .iter()
            .map(|sr| Candidate { sr, left: account(&mut accounts, &sr.record).left(sr.record.free()) })
            .collect();
        let placed = place(&candidates, needed, target)?;
        account(&mut accounts, &placed.record).promised += needed;
        Ok(placed)
    }

    /// Promises space on the SR where a replica is already.
    pub(crate) fn promise(&self, sr: &Sr, needed: u64) {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        account(&mut accounts, sr).promised += needed;
    }

    /// Takes a promise back: nothing of it stays on the SR.
    pub(crate) fn take_back(&self, sr: &Sr, promised: u64) {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let account = account(&mut accounts, sr);
        account.promised = account.promised.saturating_sub(promised);
    }
}

fn account<'m>(accounts: &'m mut BTreeMap<String, Account>, sr: &Sr) -> &'m mut Account {
    accounts.entry(sr.uuid.clone()).or_insert(Account { first_seen: sr.free(), promised: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn sr(uuid: &str, free: u64, is_plugged: bool) -> TargetSr {
        let record = Sr {
            uuid: uuid.to_owned(),
            name_label: format!("store {uuid}"),
            physical_size: 100 * GIB,
            physical_utilisation: 100 * GIB - free,
            ..Sr::default()
        };
        TargetSr { reference: Ref::new(uuid), record, is_plugged }
    }

    fn target() -> Target {
        Target {
            name: "dr".to_owned(),
            pool: "dr".to_owned(),
            srs: vec!["a".to_owned(), "b".to_owned()],
            networks: BTreeMap::new(),
            required: true,
            throttles: Vec::new(),
        }
    }

    fn chosen(srs: &[TargetSr], needed: u64) -> Result<&str, String> {
        let candidates: Vec<_> = srs.iter().map(|sr| Candidate { sr, left: sr.record.free() }).collect();
        place(&candidates, needed, &target()).map(|sr| sr.record.uuid.as_str())
    }

    #[test]
    fn a_new_replica_goes_where_the_most_space_is_left() {
        let ab = |a, b| [sr("a", a, true), sr("b", b, true)];
        assert_eq!(chosen(&ab(GIB, 2 * GIB), GIB), Ok("b"));
        assert_eq!(chosen(&ab(2 * GIB, GIB), GIB), Ok("a"));
        assert_eq!(chosen(&ab(GIB, GIB), GIB), Ok("a"), "of equals the first");
        assert_eq!(chosen(&ab(0, 0), 0), Ok("a"), "nothing needs no room");
        assert_eq!(
            chosen(&[sr("a", GIB, true), sr("b", 9 * GIB, false)], GIB),
            Ok("a"),
            "one that no host sees is none"
        );
    }

    #[test]
    fn without_room_each_sr_is_named_with_what_it_has() {
        let error = chosen(&[sr("a", GIB, true), sr("b", 9 * GIB, false)], 2 * GIB).unwrap_err();
        for part in
            ["about 2.0 GiB", "SR store a (a) has 1.0 GiB left", "no host is connected to SR store b (b)", "`srs`"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn what_was_promised_to_one_vm_is_not_there_for_the_next() {
        let ledger = Ledger::default();
        let seen = |a, b| TargetSrs { there: vec![sr("a", a, true), sr("b", b, true)], missing: Vec::new() };
        let place = |srs: &TargetSrs, needed| {
            ledger.place(srs, needed, &target()).map(|sr| sr.record.uuid.clone()).map_err(drop)
        };
        let before = seen(10 * GIB, 9 * GIB);
        assert_eq!(place(&before, 4 * GIB), Ok("a".to_owned()));
        assert_eq!(place(&before, 4 * GIB), Ok("b".to_owned()));
        // The storage has counted the first one by now; it is not counted twice.
        assert_eq!(place(&seen(6 * GIB, 9 * GIB), 4 * GIB), Ok("a".to_owned()));
        assert_eq!(place(&seen(6 * GIB, 9 * GIB), 6 * GIB), Err(()), "2 GiB and 5 GiB are left");
        // Somebody else fills the other one.
        assert_eq!(place(&seen(6 * GIB, GIB), 2 * GIB), Ok("a".to_owned()));
        ledger.take_back(&before.there[1].record, 4 * GIB);
        assert_eq!(place(&before, 9 * GIB), Ok("b".to_owned()), "a run that failed gives its space back");
        ledger.promise(&before.there[1].record, GIB);
        assert_eq!(place(&before, 1), Err(()));
    }
}
