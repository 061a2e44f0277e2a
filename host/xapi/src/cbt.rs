//! Changed-block tracking: the calls that switch it and ask it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::decode::DecodeError;
use crate::error::Error;
use crate::params;
use crate::records::Vdi;
use crate::reference::Ref;
use crate::session::Session;

impl Session {
    /// Begins to track which blocks of a disk change; nothing happens if that is so already. The next snapshot is
    /// the first one that later ones can be compared with. The disk's VM may run.
    pub async fn enable_cbt(&self, vdi: &Ref<Vdi>) -> Result<(), Error> {
        self.call_async("VDI.enable_cbt", params![vdi]).await
    }

    /// Ends the tracking, and forgets what was tracked since the last snapshot.
    pub async fn disable_cbt(&self, vdi: &Ref<Vdi>) -> Result<(), Error> {
        self.call_async("VDI.disable_cbt", params![vdi]).await
    }

    /// Destroys the data of a tracked snapshot and keeps what is known of its changes, for comparison with later
    /// snapshots.
    ///
    /// No drive may use it: the host waits four seconds for the last one to go away, and then answers
    /// [`ApiError::VdiInUse`](crate::ApiError::VdiInUse).
    pub async fn data_destroy(&self, vdi: &Ref<Vdi>) -> Result<(), Error> {
        self.call_async("VDI.data_destroy", params![vdi]).await
    }

    /// What changed on a disk from snapshot `from` to the later snapshot `to`: a bit for every 64 KiB, the highest of
    /// the first byte for the first 64 KiB (see `vmferry_disk::cbt`).
    ///
    /// Where that is not known, it is [`ApiError::ChangesUnknown`](crate::ApiError::ChangesUnknown).
    pub async fn list_changed_blocks(&self, from: &Ref<Vdi>, to: &Ref<Vdi>) -> Result<Vec<u8>, Error> {
        const METHOD: &str = "VDI.list_changed_blocks";
        // Not as a task, whose result would be kept in the pool's database: four megabytes of a disk of 2 TiB.
        let bitmap: String = self.call(METHOD, params![from, to]).await?;
        STANDARD
            .decode(bitmap.trim_ascii())
            .map_err(|e| Error::decode(METHOD, DecodeError::new(format!("a bitmap that is not base64: {e}"))))
    }
}
