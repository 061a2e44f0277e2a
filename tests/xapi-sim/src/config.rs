//! What a simulated pool is made of.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    /// How many hosts the pool has, the master included. Each answers at a port of its own: members refuse the login with
    /// `HOST_IS_SLAVE`, take any other call, and answer a transfer from an SR that they do not see by 302.
    pub hosts: usize,
    /// Each host has a second address, 127.0.0.2 and so on, on a network `replication`, and serves there what it serves at its first.
    pub replication_network: bool,
    /// Where the NBD servers of the hosts are served; port 0 takes a free one, which the members always do.
    pub nbd_listen: SocketAddr,
    /// What the pool's network is for from the start; without it NBD connections are closed at once.
    pub nbd_purpose: Option<NbdPurpose>,
    /// The licence leaves changed block tracking out.
    pub restrict_cbt: bool,
    /// Exports know the format `qcow2`; those of older hosts do not.
    pub qcow2_streams: bool,
    /// How long `VDI.data_destroy` waits for the VBDs of its disk to be gone.
    pub data_destroy_patience: Duration,
    /// Size of the default SR in bytes.
    pub sr_size: u64,
    /// Driver of the default SR.
    pub sr_kind: SrKind,
    /// Set on a member: every login is refused with `HOST_IS_SLAVE` and this address.
    pub master_address: Option<String>,
    /// Set on a host that cannot see the SR: transfers are answered by 302 to this base URL with the same path and query.
    pub redirect_transfers_to: Option<String>,
    /// Garbage collection waits for [`Sim::collect_garbage`](crate::Sim::collect_garbage) instead of following each deletion.
    pub hold_gc: bool,
    /// A guest says nothing after its start until [`Sim::bring_up_guest`](crate::Sim::bring_up_guest), as one that takes
    /// its time to boot.
    pub hold_guests: bool,
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
            replication_network: false,
            nbd_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            nbd_purpose: None,
            restrict_cbt: false,
            qcow2_streams: true,
            data_destroy_patience: Duration::from_secs(4),
            sr_size: 1 << 40,
            sr_kind: SrKind::default(),
            master_address: None,
            redirect_transfers_to: None,
            hold_gc: false,
            hold_guests: false,
        }
    }
}

/// A `purpose` of a network. In one pool there is one of the two at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NbdPurpose {
    /// NBD over TLS, and no other
    Nbd,
    /// NBD without TLS, and no other
    InsecureNbd,
}

impl NbdPurpose {
    /// As XAPI spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::InsecureNbd => "insecure_nbd",
        }
    }
}

/// What an SR is driven by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SrKind {
    /// VHD and raw files; tracks changes.
    #[default]
    Ext,
    /// Besides, qcow2 for disks that ask for it by `image-format` in their `sm_config`; these may be larger than a VHD.
    Nfs,
    /// Like `Ext`, without changed block tracking.
    Untracked,
    /// Raw volumes as SMAPIv3 drivers keep them: of any number of whole sectors, exported whole only, changes not tracked.
    Volumes,
}

impl SrKind {
    pub(crate) const ALL: [Self; 4] = [Self::Ext, Self::Nfs, Self::Untracked, Self::Volumes];

    /// `SR.type`
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ext => "ext",
            Self::Nfs => "nfs",
            Self::Untracked => "file",
            Self::Volumes => "zfs-vol",
        }
    }

    /// `SM.supported_image_formats`; a disk that asks for none gets the first.
    pub(crate) fn image_formats(self) -> &'static [&'static str] {
        match self {
            Self::Ext | Self::Untracked => &["vhd", "raw"],
            Self::Nfs => &["vhd", "raw", "qcow2"],
            Self::Volumes => &["raw"],
        }
    }

    pub(crate) fn tracks_changes(self) -> bool {
        matches!(self, Self::Ext | Self::Nfs)
    }
}

/// An SR to add to a pool.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SrSpec {
    /// `name_label`
    pub name: String,
    /// Bytes
    pub size: u64,
    /// Its driver.
    pub kind: SrKind,
    /// The only host that sees it, 0 being the master; by default all see it.
    pub host: Option<usize>,
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
    /// Bytes, rounded up as the SR does; 0 takes the size of the image.
    pub size: u64,
    /// A raw image file with the first content. Ranges of zeroes are not allocated.
    pub image: Option<PathBuf>,
    /// `uuid` or nothing: the SR, by default the pool's default SR.
    pub sr: Option<String>,
    /// `image-format` in its `sm_config`: `vhd`, `raw` or `qcow2`; by default the first that the SR has.
    pub image_format: Option<String>,
}
