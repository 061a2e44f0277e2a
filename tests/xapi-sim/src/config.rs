//! What a simulated pool is made of.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// How a pool is set up. The default is one host with one SR of 1 TiB behind plain HTTP.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Where XAPI is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// HTTPS with a certificate made at start; TLS 1.2 only, as a real host speaks.
    pub tls: bool,
    /// The pool's `name_label`.
    pub name: String,
    /// The only account.
    pub username: String,
    /// Its password.
    pub password: String,
    /// Where the control port is served, if at all.
    pub admin_listen: Option<SocketAddr>,
    /// How many hosts the pool has, the master included. All share the storage; only the master answers.
    pub hosts: usize,
    /// Size of the default SR in bytes.
    pub sr_size: u64,
    /// Set on a member: every login is refused with `HOST_IS_SLAVE` and this address.
    pub master_address: Option<String>,
    /// Set on a host that cannot see the SR: transfers are answered by 302 to this base URL with the same path and query.
    pub redirect_transfers_to: Option<String>,
    /// Garbage collection waits for [`Sim::collect_garbage`](crate::Sim::collect_garbage) instead of following each deletion.
    pub hold_gc: bool,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: false,
            name: "pool".to_owned(),
            username: "root".to_owned(),
            password: "password".to_owned(),
            admin_listen: None,
            hosts: 1,
            sr_size: 1 << 40,
            master_address: None,
            redirect_transfers_to: None,
            hold_gc: false,
        }
    }
}

/// A VM to add to a pool.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmSpec {
    /// `name_label`
    pub name: String,
    /// Disks at the user devices 0, 1, …
    pub disks: Vec<DiskSpec>,
    /// Started at once, with guest metrics as of a guest with tools.
    pub running: bool,
    /// `tags`
    pub tags: Vec<String>,
    /// `other_config`, beside the `mac_seed` that every VM gets.
    pub other_config: Vec<(String, String)>,
    /// How many interfaces on the pool's network.
    pub vifs: usize,
}

/// A disk of a [`VmSpec`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskSpec {
    /// `name_label`
    pub name: String,
    /// Bytes, rounded up to 2 MiB; 0 takes the size of the image.
    pub size: u64,
    /// A raw image file with the first content. Ranges of zeroes are not allocated.
    pub image: Option<PathBuf>,
    /// `uuid` or nothing: the SR, by default the pool's default SR.
    pub sr: Option<String>,
}
