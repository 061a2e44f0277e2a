//! Which network disk streams and NBD take: the hosts' addresses on it. Calls stay with the configured address.
//!
//! What is known of a host is known by its management address, which the pool and every redirect name it by. Its address on the
//! network is only where the bytes go: the certificate stays the host's, and so does the name that is expected in it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::endpoint::{Address, StreamNetwork};
use crate::error::Error;
use crate::nbd::NbdServerInfo;
use crate::records::{Host, Network, Pif, Pool};
use crate::reference::Ref;
use crate::session::Session;

/// The key of a pool's `other_config` by which Xen Orchestra chooses a network, by its uuid.
const BACKUP_NETWORK: &str = "xo:backupNetwork";

/// How long it is believed which hosts there are and what addresses they have.
const FRESH: Duration = Duration::from_secs(60);

/// What a session remembers.
pub(crate) type Remembered = tokio::sync::Mutex<Option<(Instant, Option<Arc<Route>>)>>;

/// The network that streams take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Its name.
    network: String,
    /// Whether the operator chose it for us: then nothing goes another way. Else the pool's own settings say so, and what cannot go there
    /// goes as before.
    is_required: bool,
    master: Ref<Host>,
    hosts: Vec<RoutedHost>,
    /// Whether the pool has another network for NBD, and this one is none.
    nbd_is_elsewhere: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct RoutedHost {
    reference: Ref<Host>,
    name: String,
    /// As the pool names it.
    management: String,
    /// On the network; the first one is used.
    addresses: Vec<String>,
}

/// Where a stream connects to, and whom it expects there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) address: Address,
    /// The host by its management address: for this its certificate is.
    pub(crate) host: Address,
}

impl Route {
    /// The route by a pool's records; `None` where streams go to the hosts' management addresses.
    fn new(wanted: &StreamNetwork, records: &Records) -> Result<Option<Self>, String> {
        let Some((_, pool)) = records.pools.first() else { return Ok(None) };
        let (named, is_required) = match (wanted, pool.other_config.get(BACKUP_NETWORK)) {
            (StreamNetwork::Named(name), _) => (name, true),
            (StreamNetwork::OfPool, Some(uuid)) => (uuid, false),
            (StreamNetwork::OfPool, None) | (StreamNetwork::Management, _) => return Ok(None),
        };
        let (reference, network) = match find(&records.networks, named) {
            Ok((reference, network)) => (reference.clone(), network.clone()),
            Err(reason) if is_required => return Err(reason),
            // A network that is gone leads to no host.
            Err(_) => (Ref::null(), Network { name_label: named.clone(), ..Network::default() }),
        };
        let hosts = records.hosts.iter().map(|(host, record)| RoutedHost {
            reference: host.clone(),
            name: record.name_label.clone(),
            management: record.address.clone(),
            addresses: addresses(&records.interfaces, &reference, host),
        });
        let is_for_nbd = |network: &Network| network.purpose.iter().any(|p| p == "nbd" || p == "insecure_nbd");
        Ok(Some(Self {
            is_required,
            master: pool.master.clone(),
            hosts: hosts.collect(),
            nbd_is_elsewhere: !is_for_nbd(&network) && records.networks.iter().any(|(_, other)| is_for_nbd(other)),
            network: network.name_label,
        }))
    }

    /// Where a stream for `host` goes, which a redirect named; the pool's master where none did.
    pub(crate) fn to(&self, host: Address, is_master: bool) -> Result<Destination, Error> {
        let at = |address: &String| host.at(address) == host;
        let found = self.hosts.iter().find(|known| match is_master {
            true => known.reference == self.master,
            false => at(&known.management) || known.addresses.iter().any(at),
        });
        match found.map(|known| (known, known.addresses.first())) {
            Some((known, Some(address))) => {
                // A redirect may name the address on the network already.
                let named = if is_master { host.clone() } else { host.at(&known.management) };
                Ok(Destination { address: host.at(address), host: named })
            }
            _ if !self.is_required => Ok(Destination { address: host.clone(), host }),
            Some((known, None)) => Err(Error::Network { reason: without_address(&known.name, &self.network) }),
            None => Err(Error::Network {
                reason: format!(
                    "the host at {host} is none that the pool knows, so its address on network {} is not known",
                    self.network
                ),
            }),
        }
    }

    /// The NBD servers on the network. Where it is none for NBD, nobody on it is asked: the hosts' firewalls let nobody through.
    pub(crate) fn servers(&self, all: Vec<NbdServerInfo>) -> Result<Vec<NbdServerInfo>, String> {
        let same = |a: &str, b: &str| a == b || a.parse::<IpAddr>().is_ok_and(|a| b.parse() == Ok(a));
        let here =
            |info: &NbdServerInfo| self.hosts.iter().flat_map(|host| &host.addresses).any(|a| same(a, &info.address));
        match all.iter().any(here) {
            true => Ok(all.into_iter().filter(here).collect()),
            false if self.is_required && !all.is_empty() => Err(self.network.clone()),
            false => Ok(all),
        }
    }

    /// What goes another way although the pool's own settings name a network.
    fn warnings(&self, pool: &str) -> Vec<String> {
        if self.is_required {
            return Vec::new();
        }
        let without = self.hosts.iter().filter(|host| host.addresses.is_empty());
        let remedy = "`network` in the pool's configuration says otherwise";
        let mut warnings: Vec<String> = without
            .map(|host| {
                format!(
                    "pool {pool}: {} (`{BACKUP_NETWORK}`); its streams go to {}, {remedy}",
                    without_address(&host.name, &self.network),
                    host.management
                )
            })
            .collect();
        if self.nbd_is_elsewhere {
            warnings.push(format!(
                "pool {pool}: network {} (`{BACKUP_NETWORK}`) has not the purpose `nbd`, so disks are read by NBD over another one; {remedy}",
                self.network
            ));
        }
        warnings
    }
}

fn without_address(host: &str, network: &str) -> String {
    format!(
        "host {host} has no address on network {network}, which disk streams are to take; give its interface there one with \
         `xe pif-reconfigure-ip`"
    )
}

/// What a route is made of.
#[derive(Debug, Default)]
struct Records {
    pools: Vec<(Ref<Pool>, Pool)>,
    networks: Vec<(Ref<Network>, Network)>,
    hosts: Vec<(Ref<Host>, Host)>,
    interfaces: Vec<(Ref<Pif>, Pif)>,
}

/// The network with this uuid, else the only one with this name.
fn find<'a>(networks: &'a [(Ref<Network>, Network)], named: &str) -> Result<(&'a Ref<Network>, &'a Network), String> {
    let by_uuid = networks.iter().find(|(_, network)| network.uuid == named);
    let mut by_name = networks.iter().filter(|(_, network)| network.name_label == named);
    match (by_uuid, by_name.next(), by_name.next()) {
        (Some((reference, network)), ..) | (None, Some((reference, network)), None) => Ok((reference, network)),
        (None, None, _) => Err(format!(
            "network {named}, which disk streams are to take, is not in the pool; name one of `xe network-list` by its uuid or name"
        )),
        (None, Some(_), Some(_)) => Err(format!(
            "several networks of the pool are called {named}; name the one that disk streams take by its uuid"
        )),
    }
}

/// Addresses of a host on a network: IPv4 first.
fn addresses(interfaces: &[(Ref<Pif>, Pif)], network: &Ref<Network>, host: &Ref<Host>) -> Vec<String> {
    let here = interfaces.iter().map(|(_, pif)| pif);
    let here = here.filter(|pif| pif.network == *network && pif.host == *host && pif.currently_attached);
    let v4 = here.clone().map(|pif| pif.ip.as_str());
    // With the length of its prefix.
    let v6 = here.flat_map(|pif| &pif.ipv6).map(|address| address.split('/').next().unwrap_or_default());
    v4.chain(v6).filter(|address| !address.is_empty()).map(str::to_owned).collect()
}

impl Session {
    /// Where a stream for `host` goes; see [`Route::to`].
    pub(crate) async fn destination(&self, host: Address, is_master: bool) -> Result<Destination, Error> {
        match self.route().await? {
            Some(route) => route.to(host, is_master),
            None => Ok(Destination { address: host.clone(), host }),
        }
    }

    /// What an operator should know about the way of disk streams: which hosts they reach by their management address although the
    /// pool's own settings name a network.
    pub async fn stream_warnings(&self) -> Result<Vec<String>, Error> {
        let route = self.route().await?;
        Ok(route.map(|route| route.warnings(self.host())).unwrap_or_default())
    }

    /// The route as it was at most a minute ago.
    pub(crate) async fn route(&self) -> Result<Option<Arc<Route>>, Error> {
        let wanted = self.stream_network();
        if *wanted == StreamNetwork::Management {
            return Ok(None);
        }
        let mut remembered = self.remembered_route().lock().await;
        if let Some((since, route)) = &*remembered
            && since.elapsed() < FRESH
        {
            return Ok(route.clone());
        }
        let mut records = Records { pools: self.get_all_records().await?, ..Records::default() };
        let chosen = |(_, pool): &(Ref<Pool>, Pool)| pool.other_config.contains_key(BACKUP_NETWORK);
        if *wanted != StreamNetwork::OfPool || records.pools.iter().any(chosen) {
            (records.networks, records.hosts, records.interfaces) =
                tokio::try_join!(self.get_all_records(), self.get_all_records(), self.get_all_records())?;
        }
        let route = Route::new(wanted, &records).map_err(|reason| Error::Network { reason })?.map(Arc::new);
        *remembered = Some((Instant::now(), route.clone()));
        Ok(route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> Address {
        crate::Endpoint::parse(url).expect("a URL").address
    }

    /// Two hosts, of which the second has no address on the network `storage`.
    fn records(key: Option<&str>) -> Records {
        let host = |name: &str, address: &str| {
            let host = Host { name_label: name.to_owned(), address: address.to_owned(), ..Host::default() };
            (Ref::new(name), host)
        };
        let network = |uuid: &str, name: &str| {
            (Ref::new(uuid), Network { uuid: uuid.to_owned(), name_label: name.to_owned(), ..Network::default() })
        };
        let pif = |host: &str, network: &str, ip: &str, attached| {
            let pif = Pif {
                host: Ref::new(host),
                network: Ref::new(network),
                ip: ip.to_owned(),
                currently_attached: attached,
                ..Pif::default()
            };
            (Ref::new(format!("{host} {network}")), pif)
        };
        let other_config = key.map(|uuid| (BACKUP_NETWORK.to_owned(), uuid.to_owned())).into_iter().collect();
        Records {
            pools: vec![(Ref::new("pool"), Pool { master: Ref::new("one"), other_config, ..Pool::default() })],
            networks: vec![
                network("s", "storage"),
                network("m", "management"),
                network("d", "twice"),
                network("e", "twice"),
            ],
            hosts: vec![host("one", "10.0.0.1"), host("two", "10.0.0.2"), host("three", "10.0.0.3")],
            interfaces: vec![
                pif("one", "m", "10.0.0.1", true),
                pif("one", "s", "192.168.0.1", true),
                pif("two", "s", "192.168.0.2", false),
                pif("three", "s", "192.168.0.3", true),
            ],
        }
    }

    fn route(wanted: &StreamNetwork, key: Option<&str>) -> Route {
        Route::new(wanted, &records(key)).expect("is there").expect("a network")
    }

    fn named(name: &str) -> StreamNetwork {
        StreamNetwork::Named(name.to_owned())
    }

    #[test]
    fn streams_go_to_the_address_on_the_network_and_expect_the_host_there() {
        let route = route(&named("storage"), None);
        let to = |url: &str, is_master| {
            let to = route.to(endpoint(url), is_master).expect("an address");
            (to.address.to_string(), to.host.to_string())
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(to("https://xen1.company.tld:8443", true), pair("192.168.0.1:8443", "xen1.company.tld:8443"));
        assert_eq!(to("https://10.0.0.3", false), pair("192.168.0.3", "10.0.0.3"), "where it was redirected to");
        assert_eq!(to("https://192.168.0.3", false), pair("192.168.0.3", "10.0.0.3"), "it was on the network already");
    }

    #[test]
    fn a_host_without_an_address_there_is_an_error_only_where_the_operator_chose_the_network() {
        let required = route(&named("s"), Some("m"));
        let error = required.to(endpoint("https://10.0.0.2"), false).expect_err("no address").to_string();
        assert!(error.contains("host two") && error.contains("network storage"), "{error}");
        required.to(endpoint("https://10.0.0.9"), false).expect_err("none of the pool's hosts");
        assert_eq!(required.warnings("pool"), Vec::<String>::new());

        let of_pool = route(&StreamNetwork::OfPool, Some("s"));
        let address = endpoint("https://10.0.0.2");
        let there = Destination { address: address.clone(), host: address.clone() };
        assert_eq!(of_pool.to(address, false).expect("as before"), there);
        let warnings = of_pool.warnings("dr");
        assert!(warnings.len() == 1 && warnings[0].contains("pool dr: host two"), "{warnings:?}");
        assert_eq!(route(&StreamNetwork::OfPool, Some("gone")).warnings("dr").len(), 3, "nobody is on it any more");
    }

    #[test]
    fn a_network_is_named_by_its_uuid_or_by_a_name_that_only_it_has() {
        assert_eq!(Route::new(&StreamNetwork::OfPool, &records(None)), Ok(None));
        assert_eq!(Route::new(&StreamNetwork::Management, &records(Some("s"))), Ok(None));
        assert_eq!(route(&named("s"), None), route(&named("storage"), None));
        for (name, says) in [("gone", "is not in the pool"), ("twice", "several networks")] {
            let error = Route::new(&named(name), &records(None)).expect_err(name);
            assert!(error.contains(says), "{error}");
        }
    }
}
