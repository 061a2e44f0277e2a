//! The engine for nearly every job: one buffer, and a copy in and out of it.

use tokio::io::{AsyncRead, AsyncWrite};

use super::checks::Layout;
use super::flow::Flow;
use super::{EngineName, Options, Outcome, TransferError};

/// Moves a stream, or the rest of one whose head was read from `source` before, to all `sinks`.
///
/// Each buffer is read, checked, hashed if leaves are asked for, and written to every living sink before
/// the next is read. The sinks get the last bytes only when the source has properly ended behind them:
/// no sink ever holds the whole of a stream that was not good.
///
/// A sink that fails is told in the outcome and costs the others nothing but its last wait. Without any
/// sinks the stream is read and checked all the same.
pub async fn lockstep<'a, R, W>(
    source: &mut R,
    layout: impl Into<Layout<'a>>,
    sinks: &mut [W],
    options: Options<'_>,
) -> Result<Outcome, TransferError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut flow = Flow::begin(source, layout.into(), sinks, options).await;
    flow.copy_rest().await?;
    flow.finish(EngineName::Lockstep, None).await
}
