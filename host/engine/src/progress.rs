//! What somebody who watches a run gets to see.

/// Which disk a progress bar is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskLabel {
    /// The VM's name.
    pub vm: String,
    /// The disk's name.
    pub disk: String,
    /// The disk's uuid.
    pub disk_uuid: String,
    /// The targets that this one read feeds.
    pub targets: Vec<String>,
}

/// Watches a run. Called from many tasks at once and on the data path: it must return quickly and never block.
pub trait Progress: Send + Sync {
    /// A VM enters a new phase.
    fn step(&self, vm: &str, text: &str);
    /// A disk's stream starts; `total` bytes will travel.
    fn disk_started(&self, disk: &DiskLabel, total: u64);
    /// `bytes` more were read from the source and written to every live target. Called once per buffer.
    fn disk_advanced(&self, disk: &DiskLabel, bytes: u64);
    /// A disk's stream ended, well or not.
    fn disk_finished(&self, disk: &DiskLabel, ok: bool);
}

/// Watches nothing.
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _: &str, _: &str) {}
    fn disk_started(&self, _: &DiskLabel, _: u64) {}
    fn disk_advanced(&self, _: &DiskLabel, _: u64) {}
    fn disk_finished(&self, _: &DiskLabel, _: bool) {}
}
