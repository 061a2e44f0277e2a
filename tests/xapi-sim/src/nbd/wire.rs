//! The NBD wire as far as it is spoken here. All numbers are big-endian. No I/O.
//!
//! ```text
//! server  "NBDMAGIC" "IHAVEOPT" flags u16            greeting
//! client  flags u32
//! client  "IHAVEOPT" option u32, length u32, data    option, any number of them
//! server  magic u64, option u32, reply u32, length u32, data
//! server  size u64, flags u16, 124 zeroes            after EXPORT_NAME, instead of a reply
//! client  magic u32, flags u16, command u16, cookie u64, offset u64, length u32
//! server  magic u32, error u32, cookie u64, data     simple reply; data after a read without error alone
//! ```

pub(super) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// Fixed newstyle, and no more: the zeroes behind the export's information are not left out.
const GLOBAL_FLAGS: u16 = 1;
/// HAS_FLAGS and READ_ONLY: no flush, no multi-conn.
const TRANSMISSION_FLAGS: u16 = 3;

pub(super) const OPTION_HEADER: usize = 16;
pub(super) const REQUEST: usize = 28;

/// Longer data of an option is no name and no request for information.
pub(super) const MAX_OPTION_DATA: u32 = 4096;

pub(super) mod option {
    pub(in super::super) const EXPORT_NAME: u32 = 1;
    pub(in super::super) const ABORT: u32 = 2;
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const STARTTLS: u32 = 5;
}

pub(super) mod reply {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const ERR_UNSUP: u32 = 0x8000_0001;
    pub(in super::super) const ERR_POLICY: u32 = 0x8000_0002;
    pub(in super::super) const ERR_INVALID: u32 = 0x8000_0003;
    pub(in super::super) const ERR_TLS_REQD: u32 = 0x8000_0005;
}

pub(super) mod command {
    pub(in super::super) const READ: u16 = 0;
    pub(in super::super) const WRITE: u16 = 1;
    pub(in super::super) const DISC: u16 = 2;
}

pub(super) mod errno {
    pub(in super::super) const NONE: u32 = 0;
    pub(in super::super) const EPERM: u32 = 1;
    pub(in super::super) const EINVAL: u32 = 22;
}

pub(super) fn greeting() -> Vec<u8> {
    [b"NBDMAGIC".as_slice(), &OPTION_MAGIC.to_be_bytes(), &GLOBAL_FLAGS.to_be_bytes()].concat()
}

/// (magic, option, length of its data)
pub(super) fn decode_option(raw: &[u8; OPTION_HEADER]) -> (u64, u32, u32) {
    (u64_at(raw, 0), u32_at(raw, 8), u32_at(raw, 12))
}

/// No reply of this server carries data.
pub(super) fn option_reply(option: u32, reply: u32) -> Vec<u8> {
    [OPTION_REPLY_MAGIC.to_be_bytes().as_slice(), &option.to_be_bytes(), &reply.to_be_bytes(), &0u32.to_be_bytes()]
        .concat()
}

pub(super) fn export_information(size: u64) -> Vec<u8> {
    [size.to_be_bytes().as_slice(), &TRANSMISSION_FLAGS.to_be_bytes(), &[0; 124]].concat()
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Request {
    /// `None` when it does not begin like one.
    pub(super) fn decode(raw: &[u8; REQUEST]) -> Option<Self> {
        (u32_at(raw, 0) == REQUEST_MAGIC).then(|| Self {
            command: u16::from_be_bytes([raw[6], raw[7]]),
            cookie: u64_at(raw, 8),
            offset: u64_at(raw, 16),
            length: u32_at(raw, 24),
        })
    }

    pub(super) fn reply(&self, error: u32) -> Vec<u8> {
        [SIMPLE_REPLY_MAGIC.to_be_bytes().as_slice(), &error.to_be_bytes(), &self.cookie.to_be_bytes()].concat()
    }
}

/// `/<VDI uuid>?session_id=<session>` as (uuid, session).
pub(super) fn parse_export_name(name: &str) -> Option<(String, String)> {
    let (path, query) = name.split_once('?')?;
    let session = query.split('&').find_map(|pair| pair.strip_prefix("session_id="))?;
    let session = percent_encoding::percent_decode_str(session).decode_utf8().ok()?;
    Some((path.strip_prefix('/').unwrap_or(path).to_owned(), session.into_owned()))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_answered_field_by_field() {
        let mut raw = [0; REQUEST];
        raw[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        raw[7] = 1;
        raw[15] = 9;
        raw[22] = 2;
        raw[26] = 4;
        let request = Request { command: command::WRITE, cookie: 9, offset: 512, length: 1024 };
        assert_eq!(Request::decode(&raw), Some(request));
        let reply = Request::decode(&raw).unwrap().reply(errno::EPERM);
        assert_eq!(reply, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9]);
        raw[0] = 0;
        assert_eq!(Request::decode(&raw), None);
    }

    #[test]
    fn an_export_is_named_by_disk_and_session() {
        let named = |uuid: &str, session: &str| Some((uuid.to_owned(), session.to_owned()));
        assert_eq!(parse_export_name("/u?session_id=OpaqueRef:s"), named("u", "OpaqueRef:s"));
        assert_eq!(parse_export_name("/u?x=1&session_id=OpaqueRef%3As"), named("u", "OpaqueRef:s"));
        for bad in ["", "/u", "/u?session=s", "default"] {
            assert_eq!(parse_export_name(bad), None, "{bad}");
        }
    }
}
