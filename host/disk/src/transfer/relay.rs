//! The choice between the engines.

use super::checks::Layout;
use super::flow::Flow;
use super::socket::{SocketReader, SocketWriter};
use super::{EngineName, NotSpliced, Options, Outcome, TransferError};

/// Moves a stream like [`lockstep`](super::lockstep()), but lets the kernel do it where nobody has to see
/// the data: a VHD stream, plain TCP at all ends, no leaves asked for. [`Outcome::not_spliced`] tells
/// why it did not.
///
/// Where the kernel writes into a connection that is closed, the process gets a SIGPIPE. Rust programs ignore
/// that signal from their start; one that does not must not relay.
pub async fn relay<'a, R, W>(
    source: &mut R,
    layout: impl Into<Layout<'a>>,
    sinks: &mut [W],
    options: Options<'_>,
) -> Result<Outcome, TransferError>
where
    R: SocketReader,
    W: SocketWriter,
{
    let layout = layout.into();
    let obstacle = obstacle(source, layout, sinks, &options);
    let mut flow = Flow::begin(source, layout, sinks, options).await;
    let not_spliced = match obstacle {
        #[cfg(target_os = "linux")]
        None => super::splice::splice(&mut flow).await?,
        #[cfg(not(target_os = "linux"))]
        None => Some(NotSpliced::Kernel(std::io::ErrorKind::Unsupported.into())),
        Some(obstacle) => Some(obstacle),
    };
    flow.copy_rest().await?;
    let engine = if not_spliced.is_none() { EngineName::Splice } else { EngineName::Lockstep };
    flow.finish(engine, not_spliced).await
}

/// What speaks against `splice` before it is tried.
fn obstacle<R: SocketReader, W: SocketWriter>(
    source: &R,
    layout: Layout<'_>,
    sinks: &[W],
    options: &Options<'_>,
) -> Option<NotSpliced> {
    if options.leaves.is_some() {
        return Some(NotSpliced::Digest);
    }
    if matches!(layout, Layout::Chunked(_)) {
        return Some(NotSpliced::Chunked);
    }
    if sinks.is_empty() {
        return Some(NotSpliced::NoSink);
    }
    if !source.lends_socket() {
        return Some(NotSpliced::Source);
    }
    sinks.iter().position(|sink| !sink.lends_socket()).map(|sink| NotSpliced::Sink { sink })
}
