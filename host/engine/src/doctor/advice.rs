//! What each probe is about, in words. No I/O.

use super::DoctorVerdict;
use serde::Serialize;

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoctorProbe {
    /// The way in, and who the master is.
    Login,
    /// Product, version and hosts.
    Version,
    /// The clocks of the hosts.
    Clocks,
    /// TLS of calls and exports.
    Encryption,
    /// The answer to a path that nobody serves.
    WrongPath,
    /// The storage repository.
    Storage,
    /// Making a disk on it.
    ScratchDisk,
    /// Changes told as they happen.
    Events,
    /// Writing whole blocks as VHD.
    VhdImport,
    /// Reading the disk as VHD.
    VhdExport,
    /// Writing single sectors as VHD.
    SectorBitmaps,
    /// Writing 64 KiB at a time.
    Chunked,
    /// Two snapshots.
    Snapshots,
    /// What differs between them, by export.
    BaseExport,
    /// The parent that such an export names.
    ParentUuid,
    /// What differs between them, by changed-block tracking.
    ChangedBlocks,
    /// Reading by NBD.
    Nbd,
    /// The head of a qcow2 export.
    Qcow2Head,
    /// A snapshot that keeps its changes and loses its data.
    DataDestroy,
    /// The host that sees the storage, where the master does not.
    Redirect,
    /// The removal of everything that was made.
    CleanUp,
}

/// What a probe means.
struct About {
    title: &'static str,
    /// Whether runs fail without it.
    needed: bool,
    with: &'static str,
    without: &'static str,
    remedy: &'static str,
}

impl DoctorProbe {
    /// All of them, as they are tried and told.
    pub const ALL: [Self; 21] = [
        Self::Login,
        Self::Version,
        Self::Clocks,
        Self::Encryption,
        Self::WrongPath,
        Self::Storage,
        Self::ScratchDisk,
        Self::Events,
        Self::VhdImport,
        Self::VhdExport,
        Self::SectorBitmaps,
        Self::Chunked,
        Self::Snapshots,
        Self::BaseExport,
        Self::ParentUuid,
        Self::ChangedBlocks,
        Self::Nbd,
        Self::Qcow2Head,
        Self::DataDestroy,
        Self::Redirect,
        Self::CleanUp,
    ];

    /// A few words for people.
    pub fn title(self) -> &'static str {
        self.about().title
    }

    /// Whether a run fails where this does not work.
    pub fn is_needed(self) -> bool {
        self.about().needed
    }

    /// What a verdict means for replication.
    pub(super) fn means(self, verdict: DoctorVerdict) -> &'static str {
        let about = self.about();
        match verdict {
            DoctorVerdict::Ok => about.with,
            DoctorVerdict::Missing | DoctorVerdict::Broken => about.without,
            DoctorVerdict::NotTried => "nothing is known about it",
        }
    }

    /// What to do where it does not work.
    pub(super) fn remedy(self) -> &'static str {
        self.about().remedy
    }

    fn about(self) -> About {
        let about =
            |title, needed, [with, without, remedy]: [&'static str; 3]| About { title, needed, with, without, remedy };
        match self {
            Self::Login => about(
                "login",
                true,
                [
                    "calls go to the pool's master",
                    "nothing can be done with this pool",
                    "check `url`, `username` and the password of the pool in the configuration, and that the host is up",
                ],
            ),
            Self::Version => about(
                "version",
                false,
                [
                    "what a host does with `chunked` is remembered for this version",
                    "hosts of one pool may do different things with the same stream",
                    "bring all hosts to the same version",
                ],
            ),
            Self::Clocks => about(
                "clocks",
                false,
                [
                    "dates of recovery points and leases mean the same to every host and to this machine",
                    "dates of recovery points are not when they were taken, and leases may look expired or everlasting",
                    "set up NTP on the hosts named, and on this machine",
                ],
            ),
            Self::Encryption => about(
                "encryption",
                false,
                [
                    "nobody on the way reads passwords or disks",
                    "whoever is on the way reads the password and every disk",
                    "write `https://` in the pool's `url`, with `certificate_sha256` or `ca_file`",
                ],
            ),
            Self::WrongPath => about(
                "wrong path",
                false,
                [
                    "a request that nobody serves is an error, as it has to be",
                    "something between this machine and the host answers in its place, and an error may look like success",
                    "let vmferry talk to the host itself, without a proxy",
                ],
            ),
            Self::Storage => about(
                "storage",
                true,
                [
                    "disks can be made there",
                    "no disk can be made there",
                    "plug the SR, free space on it, or name another one with `--sr`",
                ],
            ),
            Self::ScratchDisk => about(
                "new disk",
                true,
                [
                    "replicas can be made",
                    "no replica can be made, and nothing that needs a disk could be tried",
                    "do what the reason says, or try another SR with `--sr`",
                ],
            ),
            Self::Events => about(
                "events",
                false,
                [
                    "the end of a task is known at once",
                    "tasks are looked at every few seconds: runs take a little longer",
                    "restart the toolstack of the master with `xe-toolstack-restart` when nothing is under way",
                ],
            ),
            Self::VhdImport => about(
                "VHD import",
                true,
                [
                    "full copies and deltas can be written",
                    "this pool cannot be a target",
                    "see `/var/log/SMlog` and `/var/log/xensource.log` of the host; thick LVM needs `use_vhd=true`",
                ],
            ),
            Self::VhdExport => about(
                "VHD export",
                true,
                [
                    "full copies can be read, and what was written can be verified",
                    "this pool cannot be a source, and nothing on it can be verified",
                    "see `/var/log/xensource.log` of the host; disks that a running VM uses are read from snapshots only",
                ],
            ),
            Self::SectorBitmaps => about(
                "sector bitmaps",
                false,
                [
                    "a VHD that sets single sectors leaves the others as they are",
                    "a VHD that sets single sectors damages the others; vmferry sends whole blocks, other tools may not",
                    "do not import differencing VHD files of other tools into disks of this pool",
                ],
            ),
            Self::Chunked => about(
                "chunked import",
                false,
                [
                    "deltas of 64 KiB can be written, and disks beyond 2 TiB",
                    "deltas are written in blocks of 2 MiB, and disks beyond 2 TiB not at all",
                    "update the hosts, and tell us which version this is",
                ],
            ),
            Self::Snapshots => about(
                "snapshots",
                true,
                [
                    "recovery points can be made",
                    "no run can work with this storage",
                    "do what the reason says; a chain that is too long gets shorter when the storage coalesces",
                ],
            ),
            Self::BaseExport => about(
                "differential export",
                false,
                [
                    "what changed can be read without changed-block tracking, and an untouched replica is told from a used one",
                    "without changed-block tracking a delta reads the whole disk and compares it, and replicas are not written in place",
                    "use an SR whose disks are VHD where that costs too much",
                ],
            ),
            Self::ParentUuid => about(
                "parent uuid",
                false,
                [
                    "vmferry goes by its own record of what a stream was made from, because this names neither snapshot",
                    "nothing changes: vmferry goes by its own record of what a stream was made from",
                    "nothing has to be done",
                ],
            ),
            Self::ChangedBlocks => about(
                "changed blocks",
                false,
                [
                    "with `read = { cbt = \"enable\" }` deltas are 64 KiB fine where NBD works too",
                    "deltas are read by differential export, in blocks of 2 MiB",
                    "use an SR whose driver tracks changes (VDI_CONFIG_CBT), and a licence without `restrict_cbt`",
                ],
            ),
            Self::Nbd => about(
                "NBD",
                false,
                [
                    "single ranges of a disk can be read, and disks beyond 2 TiB",
                    "deltas are read by differential export, and disks beyond 2 TiB not at all",
                    "give a network that the hosts and this machine share the purpose: \
                 `xe network-param-add param-name=purpose param-key=nbd uuid=…`",
                ],
            ),
            Self::Qcow2Head => about(
                "qcow2 head",
                false,
                [
                    "where a disk beyond 2 TiB has data is known, and only that is read",
                    "disks beyond 2 TiB are read as a whole for a full copy; smaller ones do not need it",
                    "update the hosts where there are disks beyond 2 TiB",
                ],
            ),
            Self::DataDestroy => about(
                "data destroy",
                false,
                [
                    "a snapshot can give its space back and still tell what changed since",
                    "snapshots that serve as a base keep their space; vmferry does not need this",
                    "nothing has to be done",
                ],
            ),
            Self::Redirect => about(
                "redirect",
                false,
                [
                    "storage that only a member of the pool sees can be read and written",
                    "disks on storage that only a member sees cannot be moved",
                    "let this machine reach that member at its address, too",
                ],
            ),
            Self::CleanUp => about(
                "clean-up",
                false,
                [
                    "nothing of the doctor is left",
                    "scratch disks are left, named `vmferry-doctor`",
                    "call it again when the reason is gone: it removes what an earlier one left",
                ],
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_says_what_each_verdict_means_and_what_to_do() {
        for (n, probe) in DoctorProbe::ALL.into_iter().enumerate() {
            assert_eq!(probe as usize, n, "they are told in the order of their declaration");
            let texts =
                [probe.title(), probe.remedy(), probe.means(DoctorVerdict::Ok), probe.means(DoctorVerdict::Broken)];
            assert!(texts.iter().all(|text| !text.is_empty() && !text.contains("  ")), "{texts:?}");
            assert_ne!(texts[2], texts[3]);
        }
    }
}
