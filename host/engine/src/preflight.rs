//! What would stop a run, found before anything is changed; each obstacle says on which object and what to do about it.

use crate::error::RunError;
use crate::inventory::{AttachedDisk, Inventory};
use crate::job::ChainLimits;
use crate::lane::{Lane, bytes};
use crate::replica::{self, MappedInterface};
use crate::view::{Identity, SourceVm, TargetView};
use std::collections::BTreeSet;
use vmferry_model::plan::Kind;
use vmferry_xapi::records::{Vdi, Vif, Vm};
use vmferry_xapi::{Ref, Value, fits_in_a_call};

/// Bytes that a call has room for beside what its object brings along: our keys, and Xen Orchestra's.
const OWN_KEYS: usize = 8 << 10;

/// Depth of a chain at which the storage manager takes no snapshot and no clone any more.
const SM_LIMIT: usize = 30;

/// What was found on one side.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// What stops a run until somebody does something.
    pub(crate) obstacles: Vec<String>,
    /// What stops it until the storage has caught up.
    pub(crate) waits: Vec<String>,
    /// What will matter later.
    pub(crate) warnings: Vec<String>,
}

impl Survey {
    /// The warnings, if nothing stops the run.
    pub(crate) fn passed(self) -> Result<Vec<String>, RunError> {
        match (self.obstacles.is_empty(), self.waits.is_empty()) {
            (true, true) => Ok(self.warnings),
            (true, false) => Err(RunError::Uncoalesced(self.waits)),
            (false, _) => Err(RunError::Obstacles(self.stops())),
        }
    }

    /// Everything that stops a run.
    pub(crate) fn stops(self) -> Vec<String> {
        self.obstacles.into_iter().chain(self.waits).collect()
    }

    /// A replica is made by one call, and the keys of a snapshot are put by one.
    fn add_size(&mut self, whose: &str, record: Value) {
        if !fits_in_a_call(&[record], OWN_KEYS) {
            self.obstacles.push(format!(
                "{whose} has more keys and settings than the 300 KiB that XAPI takes in one call; remove what is large from its \
                 other_config or xenstore_data"
            ));
        }
    }

    fn add_chain(&mut self, whose: &str, inventory: &Inventory, disk: &Vdi, limits: &ChainLimits) {
        let sr = inventory.srs.get(&disk.sr).map_or("", |sr| sr.name_label.as_str());
        match Chain::of(inventory, disk).judge(limits) {
            Judgement::Fine => {}
            Judgement::Wait { depth, waiting } => self.waits.push(format!(
                "{whose} sits on a chain of {depth} links on SR {sr}, of which {waiting} wait to be coalesced; the run waits for that \
                 too: a later one goes on by itself, and if the chain does not get shorter, see `/var/log/SMlog` of the pool's hosts"
            )),
            Judgement::TooLong { depth, waiting: 0 } => self.obstacles.push(format!(
                "{whose} sits on a chain of {depth} links on SR {sr}, all of them in use, and the storage manager takes no snapshot \
                 at {SM_LIMIT}; remove snapshots of it, or keep fewer recovery points"
            )),
            Judgement::TooLong { depth, waiting } => self.obstacles.push(format!(
                "{whose} sits on a chain of {depth} links on SR {sr}, and the storage manager takes no snapshot at {SM_LIMIT}; {waiting} \
                 of them wait to be coalesced: start that with `xe sr-scan`, and see `/var/log/SMlog` if the chain does not get shorter"
            )),
        }
    }
}

/// What stands in the way on the source: a snapshot adds a link to the chain of every disk.
pub(crate) fn source(inventory: &Inventory, source: &SourceVm, limits: &ChainLimits) -> Survey {
    let mut found = Survey::default();
    for disk in &source.disks {
        let whose = format!("disk {} ({})", disk.record.name_label, disk.record.uuid);
        found.add_chain(&whose, inventory, &disk.record, limits);
        let keys = &disk.record.other_config;
        found.add_size(&whose, replica::disk_record(&disk.record, "", &disk.record.name_label, keys));
    }
    let vm = &source.record;
    found.add_size(&format!("VM {}", vm.name_label), replica::creation_record(vm, &vm.name_label, &vm.other_config));
    found
}

/// What stands in the way on one target. `vifs` are all the interfaces of its pool.
pub(crate) fn target(
    lane: &Lane<'_>,
    identity: &Identity,
    disks: &[AttachedDisk],
    vifs: &[Vif],
    limits: &ChainLimits,
) -> Survey {
    let mut found = Survey::default();
    let sr = &lane.sr_record;
    let needed: u64 = lane.plans.iter().map(|plan| plan.expected_bytes).sum();
    let free = sr.free();
    let full = lane.plans.iter().any(|plan| plan.kind == Kind::Full);
    if full && needed > free {
        let stays = match lane.target.srs.len() {
            1 => "",
            _ => " (a replica stays on its SR; taken out of `srs`, the next run makes a full copy on another one)",
        };
        found.obstacles.push(format!(
            "SR {} ({}) of target {} has {} free, the run needs about {}; free space there or set another `sr`{}",
            sr.name_label,
            sr.uuid,
            lane.target.name,
            bytes(free),
            bytes(needed),
            stays
        ));
    }
    for (transfer, disk) in lane.transfers.iter().zip(disks) {
        let Some(held) = transfer.lands_on().and_then(|copy| lane.view.point_disk(copy)) else { continue };
        let whose = format!("the replica of disk {} ({})", disk.record.name_label, disk.record.uuid);
        found.add_chain(&whose, &lane.inventory, &held.attached.record, limits);
    }
    found.warnings =
        mac_clashes(&lane.interfaces, vifs, &lane.inventory, &own_vms(&lane.view, identity, &lane.inventory));
    found
}

/// The files that a disk's content lies in.
#[derive(Debug, PartialEq, Eq)]
struct Chain {
    /// How many, the disk's own included.
    depth: usize,
    /// How many of them only one other file builds on: the storage manager coalesces these in its own time. The others are
    /// shared by snapshots and stay.
    waiting: usize,
}

/// What the length of a chain means for a run, which is about to add a link.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Fine,
    Wait { depth: usize, waiting: usize },
    TooLong { depth: usize, waiting: usize },
}

impl Chain {
    fn of(inventory: &Inventory, disk: &Vdi) -> Self {
        let links = inventory.chain(disk);
        let children = |link: &Vdi| {
            let parents = inventory.vdis.values().filter_map(|vdi| vdi.sm_config.get("vhd-parent"));
            parents.filter(|parent| **parent == link.uuid).count()
        };
        Self { depth: links.len(), waiting: links.iter().filter(|link| !link.managed && children(link) == 1).count() }
    }

    fn judge(&self, limits: &ChainLimits) -> Judgement {
        let Self { depth, waiting } = *self;
        if depth > limits.max {
            Judgement::TooLong { depth, waiting }
        } else if depth > limits.wait_above && waiting > 0 {
            Judgement::Wait { depth, waiting }
        } else {
            Judgement::Fine
        }
    }
}

/// VMs that may share the replica's addresses: it, its predecessors, and its source where both are in one pool.
fn own_vms<'a>(view: &'a TargetView, identity: &Identity, inventory: &'a Inventory) -> BTreeSet<&'a Ref<Vm>> {
    let replicas = view.replicas.iter().map(|replica| &replica.reference);
    let unborn = view.unborn.iter().map(|unborn| &unborn.reference);
    replicas.chain(unborn).chain(inventory.vm_by_uuid(&identity.vm).map(|(vm, _)| vm)).collect()
}

/// Addresses of the replica that another VM has on the same network. Nothing stops a run: the replica is off. It is its
/// start that would put two of them on the wire. Snapshots never are.
fn mac_clashes(
    interfaces: &[MappedInterface],
    vifs: &[Vif],
    inventory: &Inventory,
    own: &BTreeSet<&Ref<Vm>>,
) -> Vec<String> {
    let others = |mac: &str, network| {
        let same = vifs.iter().filter(move |vif| vif.network == network && vif.mac.eq_ignore_ascii_case(mac));
        same.filter(|vif| !own.contains(&vif.vm))
            .filter_map(|vif| inventory.vms.get(&vif.vm))
            .filter(|vm| vm.is_real())
            .map(|vm| format!("{} ({})", vm.name_label, vm.uuid))
            .collect::<BTreeSet<String>>()
    };
    let mapped = interfaces.iter().filter_map(|(vif, network)| Some((vif, network.clone()?)));
    mapped
        .filter_map(|(vif, network)| {
            let others = others(&vif.mac, network);
            let names = others.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            (!others.is_empty()).then(|| {
                format!(
                    "MAC {} of interface {} is taken on the same network of the target by VM {names}; before the replica is started \
                     there, stop that VM, or start the replica on another network",
                    vif.mac, vif.device
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Inventory;
    use vmferry_xapi::records::Network;

    /// A chain of base copies under a disk, of which the first `shared` carry a snapshot as well.
    fn inventory(depth: usize, shared: usize) -> (Inventory, Vdi) {
        let vdi = |uuid: &str, parent: Option<String>, managed| Vdi {
            uuid: uuid.to_owned(),
            managed,
            sm_config: parent.map(|parent| ("vhd-parent".to_owned(), parent)).into_iter().collect(),
            ..Vdi::default()
        };
        let mut inventory = Inventory::default();
        for link in 1..depth {
            let parent = (link > 1).then(|| format!("base {}", link - 1));
            let base = vdi(&format!("base {link}"), parent, false);
            if link <= shared {
                let snapshot = vdi(&format!("snapshot {link}"), Some(base.uuid.clone()), true);
                inventory.vdis.insert(Ref::new(&snapshot.uuid), snapshot);
            }
            inventory.vdis.insert(Ref::new(&base.uuid), base);
        }
        let disk = vdi("disk", (depth > 1).then(|| format!("base {}", depth - 1)), true);
        inventory.vdis.insert(Ref::new("disk"), disk.clone());
        (inventory, disk)
    }

    #[test]
    fn a_chain_is_waited_for_where_the_storage_will_shorten_it_and_refused_near_its_limit() {
        let limits = ChainLimits { wait_above: 20, max: 27 };
        let judge = |depth, shared| {
            let (inventory, disk) = inventory(depth, shared);
            Chain::of(&inventory, &disk).judge(&limits)
        };
        assert_eq!(judge(1, 0), Judgement::Fine);
        assert_eq!(judge(20, 0), Judgement::Fine);
        assert_eq!(judge(21, 0), Judgement::Wait { depth: 21, waiting: 20 });
        assert_eq!(judge(21, 19), Judgement::Wait { depth: 21, waiting: 1 });
        // Every link carries a recovery point that is kept: waiting would be for ever.
        assert_eq!(judge(21, 20), Judgement::Fine);
        assert_eq!(judge(27, 26), Judgement::Fine);
        assert_eq!(judge(28, 27), Judgement::TooLong { depth: 28, waiting: 0 });
        assert_eq!(judge(28, 20), Judgement::TooLong { depth: 28, waiting: 7 });
    }

    #[test]
    fn what_only_takes_time_does_not_hide_what_somebody_has_to_do() {
        let text = |text: &str| vec![text.to_owned()];
        let survey = |obstacles, waits| Survey { obstacles, waits, warnings: text("warning") }.passed();
        assert_eq!(survey(vec![], vec![]).unwrap(), text("warning"));
        assert!(matches!(survey(vec![], text("wait")), Err(RunError::Uncoalesced(waits)) if waits == text("wait")));
        let Err(RunError::Obstacles(both)) = survey(text("full"), text("wait")) else { panic!("not refused") };
        assert_eq!(both, ["full", "wait"]);
    }

    #[test]
    fn an_address_clashes_with_that_of_another_vm_on_the_same_network() {
        let vif = |vm: &str, network: &str, mac: &str| Vif {
            vm: Ref::new(vm),
            network: Ref::new(network),
            mac: mac.to_owned(),
            device: "0".to_owned(),
            ..Vif::default()
        };
        let vm = |name: &str, is_a_snapshot| {
            (Ref::new(name), Vm { uuid: name.to_owned(), name_label: name.to_owned(), is_a_snapshot, ..Vm::default() })
        };
        let vms = [vm("replica", false), vm("web", false), vm("point", true)].into_iter().collect();
        let inventory = Inventory { vms, ..Inventory::default() };
        let replica = Ref::new("replica");
        let clashes = |theirs: Vif| {
            let mapped = (vif("source", "there", "02:00:00:00:00:aa"), Some(Ref::<Network>::new("lan")));
            mac_clashes(&[mapped], &[theirs], &inventory, &BTreeSet::from([&replica]))
        };
        let found = clashes(vif("web", "lan", "02:00:00:00:00:AA"));
        assert!(
            found.len() == 1 && found[0].contains("02:00:00:00:00:aa") && found[0].contains("VM web (web)"),
            "{found:?}"
        );
        for (case, theirs) in [
            ("another network", vif("web", "dmz", "02:00:00:00:00:aa")),
            ("another address", vif("web", "lan", "02:00:00:00:00:bb")),
            ("the replica itself", vif("replica", "lan", "02:00:00:00:00:aa")),
            ("a recovery point", vif("point", "lan", "02:00:00:00:00:aa")),
        ] {
            assert_eq!(clashes(theirs), Vec::<String>::new(), "{case}");
        }
    }
}
