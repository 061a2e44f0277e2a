//! A typed XAPI client for XCP-ng and XenServer: calls, sessions, events, tasks and raw disk streams.
//!
//! ```no_run
//! use tokio::io::AsyncReadExt;
//! use vmferry_xapi::records::{Vbd, VbdType, Vm};
//! use vmferry_xapi::{Endpoint, Session, Trust};
//!
//! # async fn example() -> anyhow::Result<()> {
//! let pin = Trust::parse_pin("3f:…").ok_or_else(|| anyhow::anyhow!("64 hexadecimal digits are needed"))?;
//! let pool = Endpoint::parse("https://root:pass%23word@xen1.company.tld")?.with_trust(pin);
//! let session = Session::login(&pool, "my-backup").await?;
//!
//! for (_, vm) in session.get_all_records::<Vm>().await? {
//!     if !vm.is_real() {
//!         continue;
//!     }
//!     println!("{} is {}", vm.name_label, vm.power_state);
//!     for drive in &vm.vbds {
//!         let drive: Vbd = session.get_record(drive).await?;
//!         if drive.kind != VbdType::Disk || drive.currently_attached {
//!             continue;
//!         }
//!         let mut disk = session.export_vdi(&drive.vdi, None, "export of a disk").await?;
//!         let mut buffer = vec![0; 1 << 20];
//!         while disk.read(&mut buffer).await? > 0 {}
//!         println!("{} bytes of VHD", disk.received());
//!         disk.finish().await?; // the end of the data alone proves nothing
//!     }
//! }
//! session.logout().await?;
//! # Ok(())
//! # }
//! ```
//!
//! From the outside in:
//!
//! - [`Endpoint`], [`Credentials`], [`Trust`], [`StreamNetwork`]: which pool, who, which certificate is believed, and which network
//!   disk streams take.
//! - [`Session`]: calls ([`call`](Session::call), [`call_async`](Session::call_async)), objects
//!   ([`get_all_records`](Session::get_all_records)), [`Events`].
//! - [`Export`] and [`Import`]: VHD streams of disks and `chunked` ones into disks, with back-pressure and no copy on
//!   disk.
//! - [`Session::nbd_clients`]: connections to read disks by NBD; [`Session::list_changed_blocks`] says what to read.
//! - [`records`]: the classes of the API that replication touches, typed and whole.
//! - [`Value`], [`IntoValue`], [`params!`]: everything else the API has.
//! - [`Error`], [`ApiError`], [`Retry`]: what went wrong, with which object, and whether to try again.
//!
//! Passwords and session references appear in no error, log line or `Debug` output.

mod api_error;
mod cbt;
mod connection;
mod decode;
mod diagnosis;
mod endpoint;
mod error;
mod events;
#[doc(hidden)]
pub mod fuzz;
mod nbd;
pub mod records;
mod reference;
mod retry;
mod route;
mod rpc;
mod session;
mod stream;
mod tasks;
mod text;
mod tls;
mod value;
mod xmlrpc;

pub use api_error::ApiError;
pub use connection::Connection;
pub use decode::DecodeError;
pub use diagnosis::Encryption;
pub use endpoint::{Credentials, Endpoint, EndpointError, StreamNetwork};
pub use error::{Error, Retry};
pub use events::{Event, Events, Operation};
pub use nbd::{NbdCause, NbdClient, NbdConnections, NbdFailure, NbdServerInfo, NbdUnavailable};
pub use records::Record;
pub use reference::Ref;
pub use rpc::fits_in_a_call;
pub use session::Session;
pub use stream::{Export, Import};
pub use tls::Trust;
pub use value::{IntoValue, Timestamp, Value, XmlError};
