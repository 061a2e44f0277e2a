//! The virtual TPM of a VM: a secret that its guest seals keys of its disks with, so a replica without it may not boot.

use vmferry_xapi::records::Vm;
use vmferry_xapi::{Error, Ref, Session, Value, params};

/// A virtual TPM and what it keeps. Not printable: that is a secret.
pub(crate) struct Vtpm {
    is_unique: bool,
    contents: String,
}

/// The virtual TPMs of a VM, in order; XAPI knows at most one.
fn of(vm: &Vm) -> Vec<Ref<()>> {
    let Some(Value::Array(found)) = vm.raw.get("VTPMs") else { return Vec::new() };
    found.iter().filter_map(Value::as_str).map(Ref::new).collect()
}

pub(crate) fn has_one(vm: &Vm) -> bool {
    !of(vm).is_empty()
}

/// Reads those of a snapshot, or of its VM where a host does not copy them to snapshots.
pub(crate) async fn read(session: &Session, snapshot: &Vm, vm: &Vm) -> Result<Vec<Vtpm>, Error> {
    let found = Some(of(snapshot)).filter(|found| !found.is_empty()).unwrap_or_else(|| of(vm));
    let mut vtpms = Vec::with_capacity(found.len());
    for vtpm in found {
        vtpms.push(Vtpm {
            is_unique: session.call("VTPM.get_is_unique", params![&vtpm]).await?,
            contents: session.call("VTPM.get_contents", params![&vtpm]).await?,
        });
    }
    Ok(vtpms)
}

/// Makes those of a replica exactly `wanted`. One that is there is kept and filled: a VM may not have a second one, not even for a
/// moment.
pub(crate) async fn sync(session: &Session, vm: &Ref<Vm>, replica: &Vm, wanted: &[Vtpm]) -> Result<(), Error> {
    let mut kept = Vec::new();
    for vtpm in of(replica) {
        let is_unique: bool = session.call("VTPM.get_is_unique", params![&vtpm]).await?;
        match wanted.get(kept.len()).filter(|wanted| wanted.is_unique == is_unique) {
            Some(_) => kept.push(vtpm),
            None => session.call("VTPM.destroy", params![&vtpm]).await?,
        }
    }
    for wanted in wanted.iter().skip(kept.len()) {
        kept.push(session.call("VTPM.create", params![vm, wanted.is_unique]).await?);
    }
    for (vtpm, wanted) in kept.iter().zip(wanted) {
        let found: String = session.call("VTPM.get_contents", params![vtpm]).await?;
        if found != wanted.contents {
            let () = session.call("VTPM.set_contents", params![vtpm, &wanted.contents]).await?;
        }
    }
    Ok(())
}
