//! The interfaces of a VM that is made to boot: those of the recovery point, on the networks that the operator wants.

use crate::error::EngineError;
use crate::inventory::Inventory;
use crate::keys::{self, Keys};
use crate::replica::MappedInterface;
use vmferry_xapi::records::{Network, Vif, Vm};
use vmferry_xapi::{IntoValue, Ref, Session, Value};

/// Where the interfaces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkChoice {
    /// The networks that the replica was mapped to.
    AsReplica,
    /// None: no interfaces.
    None,
    /// All on this network, by uuid or unique name.
    Named(String),
}

/// The value of `vmferry:interfaces`.
pub(crate) fn record_of(interfaces: &[MappedInterface]) -> String {
    let kept = interfaces.iter().filter(|(_, network)| network.is_some());
    kept.map(|(interface, _)| format!("{}={}", interface.device, interface.mac)).collect::<Vec<_>>().join(" ")
}

/// How the VM that boots is connected.
pub(crate) struct Wiring<'a> {
    pub(crate) choice: &'a NetworkChoice,
    /// Whether the pool makes up new hardware addresses.
    pub(crate) new_macs: bool,
    /// Whether the VM is about to start beside those that run.
    pub(crate) starts: bool,
}

impl Wiring<'_> {
    /// The interfaces that a VM made of this recovery point has to have.
    pub(crate) async fn of(
        &self,
        session: &Session,
        pool: &str,
        inventory: &Inventory,
        point: &Vm,
    ) -> Result<Vec<MappedInterface>, EngineError> {
        let networks: Vec<(Ref<Network>, Network)> = session.get_all_records().await?;
        let all: Vec<(Ref<Vif>, Vif)> = session.get_all_records().await?;
        let own = all.iter().filter(|(reference, _)| point.vifs.contains(reference)).map(|(_, vif)| vif.clone());
        let interfaces = interfaces(self.choice, own.collect(), &point.other_config, &networks, pool)?;
        if self.new_macs {
            return Ok(interfaces.into_iter().map(|(vif, network)| (with_mac(vif, ""), network)).collect());
        }
        let running = all.iter().map(|(_, vif)| vif).filter(|vif| vif.currently_attached);
        match clash(&interfaces, running, inventory) {
            Some(clash) if self.starts => Err(EngineError::Refused(clash)),
            _ => Ok(interfaces),
        }
    }
}

/// The interfaces `own` of a recovery point with these keys, each on its network.
fn interfaces(
    choice: &NetworkChoice,
    own: Vec<Vif>,
    point: &Keys,
    networks: &[(Ref<Network>, Network)],
    pool: &str,
) -> Result<Vec<MappedInterface>, EngineError> {
    let named = match choice {
        NetworkChoice::None => return Ok(Vec::new()),
        NetworkChoice::Named(name) => Some(find_network(networks, name, pool)?),
        NetworkChoice::AsReplica => None,
    };
    let lost = recorded(point).filter(|(device, _)| own.iter().all(|vif| vif.device != *device));
    let lost: Vec<Vif> = lost.map(|(device, mac)| bare(device, mac)).collect();
    let known = |vif: &&Vif| networks.iter().any(|(reference, _)| *reference == vif.network);
    let astray = own.iter().filter(|vif| !known(vif)).chain(&lost);
    if let (None, [one, ..]) = (&named, astray.collect::<Vec<_>>().as_slice()) {
        return Err(EngineError::Refused(format!(
            "interface {} ({}) was on a network that pool {pool} does not have any more; say where to connect it with --network <name or uuid>, or do without interfaces with --network none",
            one.device, one.mac
        )));
    }
    let on = |vif: Vif| {
        let network = named.clone().unwrap_or_else(|| vif.network.clone());
        (vif, Some(network))
    };
    Ok(own.into_iter().chain(lost).map(on).collect())
}

fn recorded(point: &Keys) -> impl Iterator<Item = (&str, &str)> {
    let text = point.get(keys::INTERFACES).map_or("", String::as_str);
    text.split_whitespace().filter_map(|one| one.split_once('='))
}

/// An interface of which only this is known.
fn bare(device: &str, mac: &str) -> Vif {
    let mut vif = Vif { device: device.to_owned(), ..Vif::default() };
    let empty = || Keys::new().into_value();
    for (name, value) in [
        ("device", device.into_value()),
        ("MTU", 1500i64.into_value()),
        ("other_config", empty()),
        ("qos_algorithm_type", "".into_value()),
        ("qos_algorithm_params", empty()),
    ] {
        vif.raw.insert(name.to_owned(), value);
    }
    with_mac(vif, mac)
}

fn with_mac(mut vif: Vif, mac: &str) -> Vif {
    mac.clone_into(&mut vif.mac);
    vif.raw.insert("MAC".to_owned(), Value::String(mac.to_owned()));
    vif
}

fn find_network(networks: &[(Ref<Network>, Network)], name: &str, pool: &str) -> Result<Ref<Network>, EngineError> {
    let named: Vec<&Ref<Network>> = networks
        .iter()
        .filter(|(_, n)| n.uuid == name || n.name_label == name)
        .map(|(reference, _)| reference)
        .collect();
    match named.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(EngineError::Usage(format!("pool {pool} has no network {name}; give its uuid or name, or `none`"))),
        _ => Err(EngineError::Usage(format!("pool {pool} has more than one network called {name}; give its uuid"))),
    }
}

/// Two machines with one hardware address disturb each other, and the pool does not prevent it.
fn clash<'a>(
    interfaces: &[MappedInterface],
    mut running: impl Iterator<Item = &'a Vif>,
    inventory: &Inventory,
) -> Option<String> {
    let same = |vif: &&Vif| interfaces.iter().any(|(own, _)| own.mac.eq_ignore_ascii_case(&vif.mac));
    let other = running.find(same)?;
    let name = inventory.vms.get(&other.vm).map_or("another VM", |vm| vm.name_label.as_str());
    Some(format!(
        "{name} runs in the same pool with the hardware address {}; stop it first, or start a clone with other addresses (failover clone --new-macs), or without interfaces (--network none)",
        other.mac
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vif(device: &str, mac: &str, network: &str) -> Vif {
        Vif { network: Ref::new(network), ..bare(device, mac) }
    }

    fn network(name: &str) -> (Ref<Network>, Network) {
        (Ref::new(name), Network { name_label: name.to_owned(), ..Network::default() })
    }

    #[test]
    fn interfaces_go_where_the_operator_wants_them_and_a_lost_network_is_an_error() {
        let networks = [network("lan"), network("lab")];
        let point = Keys::from([(keys::INTERFACES.to_owned(), "0=aa 1=bb".to_owned())]);
        let check = |choice: NetworkChoice, own: Vec<Vif>, expected: Result<&[(&str, &str)], &str>| {
            let found = interfaces(&choice, own, &point, &networks, "dr");
            match (found, expected) {
                (Ok(found), Ok(expected)) => {
                    let found: Vec<(&str, &str)> = found
                        .iter()
                        .map(|(vif, network)| (vif.mac.as_str(), network.as_ref().map_or("", Ref::as_str)))
                        .collect();
                    assert_eq!(found, expected, "{choice:?}");
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{choice:?}: {error}"),
                (found, expected) => panic!("{choice:?}: {found:?}, not {expected:?}"),
            }
        };
        let both = || vec![vif("0", "aa", "lan"), vif("1", "bb", "lan")];
        let named = |name: &str| NetworkChoice::Named(name.to_owned());
        check(NetworkChoice::AsReplica, both(), Ok(&[("aa", "lan"), ("bb", "lan")]));
        check(named("lab"), both(), Ok(&[("aa", "lab"), ("bb", "lab")]));
        check(NetworkChoice::None, both(), Ok(&[]));
        check(named("wan"), both(), Err("no network wan"));
        // Destroyed with its network, or left dangling.
        for left in [vec![vif("0", "aa", "lan")], vec![vif("0", "aa", "lan"), vif("1", "bb", "gone")]] {
            check(NetworkChoice::AsReplica, left.clone(), Err("interface 1 (bb)"));
            check(named("lab"), left, Ok(&[("aa", "lab"), ("bb", "lab")]));
        }
    }

    #[test]
    fn a_running_machine_with_the_same_address_is_named() {
        let mut inventory = Inventory::default();
        inventory.vms.insert(Ref::new("vm"), Vm { name_label: "erp".to_owned(), ..Vm::default() });
        let running = Vif { vm: Ref::new("vm"), ..vif("0", "AA", "lan") };
        let own = |mac: &str| [(vif("0", mac, "lan"), None)];
        assert!(clash(&own("aa"), std::iter::once(&running), &inventory).is_some_and(|text| text.starts_with("erp ")));
        assert_eq!(clash(&own("bb"), std::iter::once(&running), &inventory), None);
    }
}
