//! The bytes of the protocol, all big-endian.
//!
//! ```text
//! server   greeting       "NBDMAGIC" · "IHAVEOPT" · flags u16
//! client                  flags u32
//! client   option         "IHAVEOPT" · option u32 · length u32 · data
//! server   option reply   magic u64 · option u32 · type u32 · length u32 · data
//! server   export         size u64 · flags u16 · 124 zero bytes unless both sides waived them
//! client   request        magic u32 · flags u16 · command u16 · cookie u64 · offset u64 · length u32
//! server   simple reply   magic u32 · error u32 · cookie u64 · data unless error
//! ```

use super::{Errno, NbdError};
use crate::extent::Extent;

pub(super) const GREETING: usize = 18;
pub(super) const OPTION_REPLY: usize = 20;
pub(super) const EXPORT: usize = 10;
/// Zero bytes behind an export's description.
pub(super) const EXPORT_PADDING: usize = 124;
pub(super) const REQUEST: usize = 28;
pub(super) const REPLY: usize = 16;

const GREETING_MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const COMMAND_READ: u16 = 0;
const COMMAND_DISCONNECT: u16 = 2;

const REPLY_ACK: u32 = 1;

/// An option that a client may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientOption {
    ExportName,
    StartTls,
}

impl ClientOption {
    const fn to_wire(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::StartTls => 5,
        }
    }
}

/// What both sides waive, as the greeting and our answer to it settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// No zero bytes follow an export's description.
    pub(super) no_zeroes: bool,
}

impl Agreed {
    /// The flags that answer a greeting.
    pub(super) fn client_flags(self) -> [u8; 4] {
        let flags = FIXED_NEWSTYLE | if self.no_zeroes { NO_ZEROES } else { 0 };
        u32::from(flags).to_be_bytes()
    }
}

pub(super) fn decode_greeting(raw: &[u8; GREETING]) -> Result<Agreed, NbdError> {
    let magic = bytes_at(raw, 0);
    if magic != *GREETING_MAGIC {
        return Err(NbdError::NotNbd { found: magic });
    }
    let flags = u16::from_be_bytes(bytes_at(raw, 16));
    if bytes_at(raw, 8) != *OPTION_MAGIC || flags & FIXED_NEWSTYLE == 0 {
        return Err(NbdError::NotNewstyle);
    }
    Ok(Agreed { no_zeroes: flags & NO_ZEROES != 0 })
}

/// An option with its data, of which a client never has more than a name.
pub(super) fn encode_option(option: ClientOption, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    [OPTION_MAGIC.as_slice(), &option.to_wire().to_be_bytes(), &length.to_be_bytes(), data].concat()
}

/// An answer to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OptionReply {
    reply: u32,
    /// Bytes of text or the like that follow.
    pub(super) data_length: u32,
}

impl OptionReply {
    pub(super) fn decode(raw: &[u8; OPTION_REPLY], asked: ClientOption) -> Result<Self, NbdError> {
        if u64::from_be_bytes(bytes_at(raw, 0)) != OPTION_REPLY_MAGIC {
            return Err(NbdError::BadOptionReply { what: "it does not start with the magic number" });
        }
        if u32::from_be_bytes(bytes_at(raw, 8)) != asked.to_wire() {
            return Err(NbdError::BadOptionReply { what: "it is for an option that was not asked for" });
        }
        Ok(Self { reply: u32::from_be_bytes(bytes_at(raw, 12)), data_length: u32::from_be_bytes(bytes_at(raw, 16)) })
    }

    /// The type of the reply if it is not the plain yes.
    pub(super) fn refusal(self) -> Option<u32> {
        (self.reply != REPLY_ACK).then_some(self.reply)
    }
}

/// The size of an export, by its description.
pub(super) fn decode_export(raw: &[u8; EXPORT]) -> u64 {
    u64::from_be_bytes(bytes_at(raw, 0))
}

/// A read of at most `u32::MAX` bytes.
pub(super) fn encode_read(cookie: u64, extent: Extent) -> [u8; REQUEST] {
    encode_request(COMMAND_READ, cookie, extent)
}

pub(super) fn encode_disconnect() -> [u8; REQUEST] {
    encode_request(COMMAND_DISCONNECT, 0, Extent { offset: 0, length: 0 })
}

fn encode_request(command: u16, cookie: u64, extent: Extent) -> [u8; REQUEST] {
    let mut raw = [0; REQUEST];
    raw[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    raw[6..8].copy_from_slice(&command.to_be_bytes());
    raw[8..16].copy_from_slice(&cookie.to_be_bytes());
    raw[16..24].copy_from_slice(&extent.offset.to_be_bytes());
    raw[24..].copy_from_slice(&(extent.length as u32).to_be_bytes());
    raw
}

/// The start of a reply. One with an error carries no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SimpleReply {
    pub(super) cookie: u64,
    pub(super) error: Option<Errno>,
}

impl SimpleReply {
    /// The reply, or what stands in place of its magic number.
    pub(super) fn decode(raw: &[u8; REPLY]) -> Result<Self, u32> {
        let magic = u32::from_be_bytes(bytes_at(raw, 0));
        if magic != REPLY_MAGIC {
            return Err(magic);
        }
        let error = Errno::from_wire(u32::from_be_bytes(bytes_at(raw, 4)));
        Ok(Self { cookie: u64::from_be_bytes(bytes_at(raw, 8)), error })
    }
}

/// The `N` bytes at `at`, which the caller knows to be inside of `raw`.
fn bytes_at<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(flags: u16) -> [u8; GREETING] {
        let mut raw = *b"NBDMAGICIHAVEOPT\0\0";
        raw[16..].copy_from_slice(&flags.to_be_bytes());
        raw
    }

    #[test]
    fn a_greeting_settles_the_flags() {
        let answer = |flags| decode_greeting(&greeting(flags)).unwrap().client_flags();
        assert_eq!([answer(1), answer(3)], [[0, 0, 0, 1], [0, 0, 0, 3]]);
        assert!(matches!(decode_greeting(&greeting(2)), Err(NbdError::NotNewstyle)));
        assert!(
            matches!(decode_greeting(b"SSH-2.0-OpenSSH_9."), Err(NbdError::NotNbd { found }) if found == *b"SSH-2.0-")
        );
        let oldstyle = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0";
        assert!(matches!(decode_greeting(oldstyle), Err(NbdError::NotNewstyle)));
    }

    /// Bytes as the protocol's document has them.
    #[test]
    fn options_and_requests_have_their_bytes() {
        assert_eq!(encode_option(ClientOption::StartTls, &[]), b"IHAVEOPT\0\0\0\x05\0\0\0\0");
        assert_eq!(encode_option(ClientOption::ExportName, b"/x"), b"IHAVEOPT\0\0\0\x01\0\0\0\x02/x");
        let read = encode_read(0x0102, Extent { offset: 0x1_0000_0200, length: 0x8000 });
        let expected = b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\x01\x02\0\0\0\x01\0\0\x02\0\0\0\x80\0";
        assert_eq!(&read, expected);
        assert_eq!(encode_disconnect()[..8], *b"\x25\x60\x95\x13\0\0\0\x02");
    }

    #[test]
    fn replies_are_told_from_noise() {
        let ack = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0";
        let decode = |raw, asked| OptionReply::decode(raw, asked);
        assert_eq!(decode(ack, ClientOption::StartTls).unwrap().refusal(), None);
        assert!(matches!(decode(ack, ClientOption::ExportName), Err(NbdError::BadOptionReply { .. })));
        assert!(matches!(decode(&[0; OPTION_REPLY], ClientOption::StartTls), Err(NbdError::BadOptionReply { .. })));
        let policy = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\x80\0\0\x02\0\0\0\x09";
        let reply = decode(policy, ClientOption::StartTls).unwrap();
        assert_eq!((reply.refusal(), reply.data_length), (Some(0x8000_0002), 9));

        let good = b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x07";
        assert_eq!(SimpleReply::decode(good), Ok(SimpleReply { cookie: 7, error: None }));
        let refused = b"\x67\x44\x66\x98\0\0\0\x16\0\0\0\0\0\0\0\x07";
        assert_eq!(SimpleReply::decode(refused), Ok(SimpleReply { cookie: 7, error: Some(Errno::Invalid) }));
        assert_eq!(SimpleReply::decode(b"\x66\x8e\x33\xef\0\0\0\0\0\0\0\0\0\0\0\x07"), Err(0x668e_33ef));
    }
}
