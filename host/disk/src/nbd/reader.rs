//! Extents of a disk, read in order over several connections.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use super::client::Given;
use super::{Client, MAX_CONNECTIONS, NbdError};
use crate::extent::{Cursor, Extents};
use crate::vhd::{Piece, SECTOR_SIZE};

/// How far a reader asks ahead. What it asked for waits in the sockets until it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Requests under way on each connection; 0 counts as 1.
    pub depth: u16,
    /// Bytes of a request, in whole sectors of 512; less than one counts as one.
    pub request_size: u32,
}

impl Default for Pace {
    /// Eight requests of 256 KiB, which was the best of what was measured over two connections.
    fn default() -> Self {
        Self { depth: 8, request_size: 256 << 10 }
    }
}

/// Reads extents of a disk, ascending, over connections to servers of the same disk. Requests go to the
/// connections in turn, and payload is given in the order of the disk.
///
/// After an error it gives nothing but errors.
#[derive(Debug)]
pub struct Reader<S> {
    clients: Vec<Client<S>>,
    extents: Arc<Extents>,
    request_size: u32,
    /// What was not asked for.
    unasked: Cursor,
    /// The connection whose payload is next.
    turn: usize,
    /// Requests whose payload was not given in full.
    in_flight: usize,
    failed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Reader<S> {
    /// A reader of `extents`, which are whole sectors of 512 bytes.
    pub fn new(clients: Vec<Client<S>>, extents: impl Into<Arc<Extents>>, pace: Pace) -> Result<Self, NbdError> {
        let extents = extents.into();
        let (count, most) = (clients.len(), MAX_CONNECTIONS);
        if !(1..=most).contains(&count) {
            return Err(NbdError::BadConnectionCount { count, most });
        }
        let end = extents.end();
        if let Some(size) = clients.iter().map(Client::size).find(|size| *size < end) {
            return Err(NbdError::ExportTooSmall { size, end });
        }
        let sector = SECTOR_SIZE as u32;
        let request_size = (pace.request_size / sector * sector).max(sector);
        let unasked = Cursor::default();
        let mut reader = Self { clients, extents, request_size, unasked, turn: 0, in_flight: 0, failed: false };
        for _ in 0..pace.depth.max(1) {
            (0..count).for_each(|client| reader.ask(client));
        }
        Ok(reader)
    }

    /// Reads into `buffer`, which is not empty; what came, or `None` behind the last extent. A piece
    /// ends at the latest with its request.
    pub async fn read<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<Piece<'b>>, NbdError> {
        let given = poll_fn(|cx| self.poll_read(cx, buffer)).await?;
        Ok(given.map(|given| Piece { offset: given.offset, bytes: &buffer[..given.bytes] }))
    }

    /// The connections, to be closed.
    pub fn into_clients(self) -> Vec<Client<S>> {
        self.clients
    }

    /// What was put into `buffer`; `None` behind the last extent.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<Option<Given>, NbdError>> {
        if self.failed {
            return Poll::Ready(Err(NbdError::FailedBefore));
        }
        self.clients.iter_mut().for_each(|client| client.poll_send(cx));
        if self.in_flight == 0 || buffer.is_empty() {
            return Poll::Ready(Ok(None));
        }
        let turn = self.turn;
        let given = ready!(self.clients[turn].poll_payload(cx, buffer)).inspect_err(|_| self.failed = true)?;
        if given.last {
            self.in_flight -= 1;
            self.ask(turn);
            self.clients[turn].poll_send(cx);
            self.turn = (turn + 1) % self.clients.len();
        }
        Poll::Ready(Ok(Some(given)))
    }

    /// Asks `client` for what comes next on the disk, if anything is left.
    fn ask(&mut self, client: usize) {
        if let Some(extent) = self.unasked.next(&self.extents, self.request_size) {
            self.clients[client].request(extent);
            self.in_flight += 1;
        }
    }
}
