//! Where a disk beyond VHD's 2 TiB has data, so that it need not be read as a whole.
//!
//! The head of its qcow2 export says so; the export ends behind it, and the data comes by NBD. Hosts before that format, and
//! storage whose host would have to read all of the disk to answer, leave it unknown.

use crate::error::chain;
use std::time::Duration;
use vmferry_disk::extent::Extents;
use vmferry_disk::qcow2::{Content, Head, HeadError};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Ref, Session};

/// Largest disk that XAPI exports as VHD.
pub(crate) const MAX_VHD_DISK: u64 = 2040 << 30;

/// A disk, or with `base` what differs from that one.
pub(crate) struct Question<'a> {
    pub(crate) session: &'a Session,
    pub(crate) vdi: &'a Ref<Vdi>,
    pub(crate) base: Option<&'a Ref<Vdi>>,
    /// Size of the disk in bytes.
    pub(crate) size: u64,
    /// How long the host may take to answer.
    pub(crate) patience: Duration,
    /// What the pool shows as the name of the export's task.
    pub(crate) label: &'a str,
}

impl Question<'_> {
    /// The ranges that hold data, in whole digest leaves, the rest being zeroes; or those that may differ from the base, the
    /// rest being the same. Else, why that is not known.
    pub(crate) async fn ask(&self) -> Result<Extents, String> {
        let content = if self.base.is_some() { Content::Difference } else { Content::Whole };
        let export = self.session.export_qcow2(self.vdi, self.base, self.label).await;
        let mut export = export.map_err(|error| chain(&error))?;
        let head = match tokio::time::timeout(self.patience, Head::read(&mut export, content)).await {
            Ok(Ok(head)) => Ok(head),
            // Why a stream ended early its task tells.
            Ok(Err(error @ (HeadError::Io { .. } | HeadError::Truncated { .. }))) => {
                let cause = export.finish().await.err().map(|cause| format!(": {}", chain(&cause)));
                return Err(format!("{}{}", chain(&error), cause.unwrap_or_default()));
            }
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("the host did not tell within {:?}", self.patience)),
        };
        export.abort().await;
        let head = head?;
        if head.virtual_size() != self.size {
            return Err(format!("the disk has {} bytes, the host tells of one of {}", self.size, head.virtual_size()));
        }
        Ok(head.extents().to_leaves(self.size))
    }
}
