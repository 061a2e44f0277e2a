//! Begins exports: up to where the stream says what it holds.

use crate::error::chain;
use std::time::Duration;
use vmferry_disk::vhd::{Head, HeadError};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{ApiError, Error, Export, Ref, Session};

/// An export that did not begin.
pub(crate) enum NotBegun {
    /// XAPI knows no differences from the base, because that is no VHD: in its words.
    NoDifferences(String),
    /// It failed otherwise.
    Failed(String),
}

impl NotBegun {
    fn of(error: &Error) -> Self {
        match error.api() {
            Some(ApiError::BaseIsNoVhd { .. }) => Self::NoDifferences(chain(error)),
            _ => Self::Failed(chain(error)),
        }
    }

    /// What happened, whichever it was.
    pub(crate) fn into_message(self) -> String {
        let (Self::NoDifferences(message) | Self::Failed(message)) = self;
        message
    }
}

/// Opens the export of a disk, or with `base` of what differs from it, and reads its head. XAPI attaches the disk before the
/// first byte, which may take it `patience`.
pub(crate) async fn begin(
    session: &Session,
    disk: &Ref<Vdi>,
    base: Option<&Ref<Vdi>>,
    label: &str,
    patience: Duration,
) -> Result<(Export, Head), NotBegun> {
    let mut export = session.export_vdi(disk, base, label).await.map_err(|error| NotBegun::of(&error))?;
    let broken = match tokio::time::timeout(patience, Head::read(&mut export)).await {
        Ok(Ok(head)) => return Ok((export, head)),
        Ok(Err(error)) => error,
        Err(_) => {
            export.abort().await;
            return Err(NotBegun::Failed(format!("the host did not send the first byte within {patience:?}")));
        }
    };
    let message = chain(&broken);
    // Of bytes that are wrong the host knows nothing; why they ended early, its task alone tells.
    if matches!(broken, HeadError::Vhd(_)) {
        export.abort().await;
        return Err(NotBegun::Failed(message));
    }
    Err(match export.finish().await.map_err(|cause| NotBegun::of(&cause)) {
        Err(NotBegun::Failed(cause)) => NotBegun::Failed(format!("{message}: {cause}")),
        Err(told) => told,
        Ok(()) => NotBegun::Failed(message),
    })
}
