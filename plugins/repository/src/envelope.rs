//! How everything but chunks is wrapped: said what it is, checked, and encrypted where the repository is.
//!
//! ```text
//! 0   4  "VMFR"
//! 4   1  kind
//! 5   1  version, 1
//! 6   1  1 if sealed, else 0
//! 7   1  0
//! 8   4  length of the body
//! 12     body
//! ```
//!
//! A plain body is the content and 32 bytes of BLAKE3 over the eight bytes before the length, the subject's length as one varint, the
//! subject and the content. A sealed body is pieces: a length of four bytes and so many sealed bytes, which open to the same digest
//! without content, the piece's number (4 bytes), 1 if it is the last (1 byte), and up to 1 MiB of the content.
//!
//! The subject is the name under which the reader looked, so an object that somebody renamed is no other one.

use crate::names::Digest;
use crate::storage::{Storage, get};
use crate::wire::{Malformed, Reader, Writer};
use vmferry_plugin_api::{Error, ErrorCode, seal};

const MAGIC: [u8; 4] = *b"VMFR";
const VERSION: u8 = 1;
pub(crate) const HEADER: usize = 12;
const CHECK: usize = 32;
/// Content in one sealed piece: a host takes and gives lists of a few MiB at most.
const PIECE: usize = 1 << 20;
/// No envelope is longer; a length beyond is damage, and no room is made for it.
const LONGEST: usize = 32 << 20;
/// What one reads of an object whose envelope's length is not known yet: most envelopes whole.
const FIRST_READ: u64 = 32 << 10;

/// What an envelope is around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Table = 1,
    PointHead = 2,
    PointBody = 3,
    Draft = 4,
    Batch = 5,
    Index = 6,
    Damage = 7,
}

/// Whether and with what key everything is encrypted.
#[derive(Clone, Debug)]
pub(crate) struct Sealing(pub(crate) Option<String>);

impl Sealing {
    /// Wraps `content`.
    pub(crate) fn wrap(&self, kind: Kind, subject: &str, content: &[u8]) -> Result<Vec<u8>, Error> {
        let head = [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], kind as u8, VERSION, u8::from(self.0.is_some()), 0];
        let mut envelope = Writer(head.to_vec());
        envelope.raw(&[0; 4]);
        match &self.0 {
            None => {
                envelope.raw(content);
                envelope.raw(&check(&head, subject, content));
            }
            Some(key) => {
                let check = check(&head, subject, &[]);
                let count = content.len().div_ceil(PIECE).max(1);
                for number in 0..count {
                    let piece = &content[number * PIECE..content.len().min((number + 1) * PIECE)];
                    let mut plain = check.to_vec();
                    plain.extend_from_slice(&(number as u32).to_le_bytes());
                    plain.push(u8::from(number + 1 == count));
                    plain.extend_from_slice(piece);
                    let sealed = seal::seal(key, &plain)?;
                    envelope.raw(&(sealed.len() as u32).to_le_bytes());
                    envelope.raw(&sealed);
                }
            }
        }
        let mut envelope = envelope.0;
        let body = envelope.len() - HEADER;
        if body > LONGEST {
            return Err(Error::with_code(
                ErrorCode::Limit,
                format!(
                    "{subject} would take {body} bytes, more than {LONGEST}; use a larger chunk size for disks as large"
                ),
            ));
        }
        envelope[8..HEADER].copy_from_slice(&(body as u32).to_le_bytes());
        Ok(envelope)
    }

    /// What is in an envelope at the beginning of `bytes`, which may go on behind it.
    pub(crate) fn unwrap(&self, kind: Kind, subject: &str, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let damaged = |problem: Malformed| damaged(subject, problem);
        let length = length(bytes).map_err(damaged)?;
        let head: [u8; 8] = Reader::new(bytes).array().map_err(damaged)?;
        let mut reader = Reader::new(bytes);
        let body = reader.take(HEADER).and_then(|_| reader.take(length - HEADER)).map_err(damaged)?;
        if head[4] != kind as u8 {
            return Err(Error::damaged(format!("{subject} is damaged: it is something else than its name says")));
        }
        match (head[6], &self.0) {
            (0, None) => {
                let split = body.len().checked_sub(CHECK);
                let (content, found) =
                    split.map(|at| body.split_at(at)).ok_or(reader.malformed("the end")).map_err(damaged)?;
                if found != check(&head, subject, content) {
                    return Err(Error::damaged(format!("{subject} is damaged: its check sum is wrong")));
                }
                Ok(content.to_vec())
            }
            (1, Some(key)) => self.open(key, &check(&head, subject, &[]), body, subject),
            _ => Err(Error::damaged(format!(
                "{subject} is damaged: either it is encrypted or the repository is, not both"
            ))),
        }
    }

    fn open(&self, key: &str, check: &Digest, body: &[u8], subject: &str) -> Result<Vec<u8>, Error> {
        let damaged = |problem: Malformed| damaged(subject, problem);
        let mut content = Vec::new();
        let mut body = Reader::new(body);
        for number in 0_u32.. {
            let length = body.u32().map_err(damaged)? as usize;
            let sealed = body.take(length).map_err(damaged)?;
            let plain = seal::open(key, sealed).map_err(|error| about(subject, error))?;
            let mut piece = Reader::new(&plain);
            let (found, at, last) = (|| Ok((piece.array::<CHECK>()?, piece.u32()?, piece.u8()?)))().map_err(damaged)?;
            if found != *check || at != number {
                return Err(Error::damaged(format!("{subject} is damaged: it is made of pieces of others")));
            }
            content.extend_from_slice(&plain[plain.len() - piece.left()..]);
            if last == 1 {
                body.finish().map_err(damaged)?;
                return Ok(content);
            }
        }
        Err(Error::damaged(format!("{subject} is damaged: it has no end")))
    }

    /// The content of an envelope that an object has at `offset`, and where the envelope ends; `None` when there is no object.
    pub(crate) fn read(
        &self,
        storage: &dyn Storage,
        name: &str,
        offset: u64,
        kind: Kind,
        subject: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, Error> {
        let Some(mut bytes) = get(storage, name, offset, FIRST_READ)? else { return Ok(None) };
        let length = length(&bytes).map_err(|problem| damaged(subject, problem))?;
        if let Some(missing) = length.checked_sub(bytes.len()).filter(|missing| *missing > 0) {
            let Some(rest) = get(storage, name, offset + bytes.len() as u64, missing as u64)? else { return Ok(None) };
            bytes.extend_from_slice(&rest);
        }
        Ok(Some((self.unwrap(kind, subject, &bytes)?, offset + length as u64)))
    }
}

/// The length of the envelope that `bytes` begin with, if its header is one.
fn length(bytes: &[u8]) -> Result<usize, Malformed> {
    let mut reader = Reader::new(bytes);
    let head: [u8; 8] = reader.array()?;
    if head[..4] != MAGIC || head[7] != 0 {
        return Err(Malformed { what: "something that is not vmferry's", at: 0 });
    }
    if head[5] != VERSION {
        return Err(Malformed { what: "a version that this program is too old for", at: 5 });
    }
    match reader.u32()? as usize {
        length if length <= LONGEST => Ok(HEADER + length),
        _ => Err(Malformed { what: "an impossible length", at: 8 }),
    }
}

fn check(head: &[u8; 8], subject: &str, content: &[u8]) -> Digest {
    let mut length = Writer::default();
    length.varint(subject.len() as u64);
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(&length.0).update(subject.as_bytes()).update(content);
    *hasher.finalize().as_bytes()
}

pub(crate) fn damaged(subject: &str, problem: Malformed) -> Error {
    Error::damaged(format!("{subject} is damaged: {problem}"))
}

/// The same failure, which says what it is about.
fn about(subject: &str, error: Error) -> Error {
    if error.is_damaged() {
        Error { message: format!("{subject} is damaged: {}", error.message), ..error }
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn both() -> [Sealing; 2] {
        seal::double::add_key("key");
        [Sealing(None), Sealing(Some("key".to_owned()))]
    }

    #[test]
    fn what_is_wrapped_comes_back_under_its_kind_and_name_alone() {
        for sealing in both() {
            for content in [&b""[..], b"content", &vec![7; 2 * PIECE], &vec![8; 2 * PIECE + 1]] {
                let envelope = sealing.wrap(Kind::Index, "index/a", content).expect("wrapped");
                assert_eq!(sealing.unwrap(Kind::Index, "index/a", &envelope).expect("whole"), content);
                assert!(sealing.unwrap(Kind::Index, "index/b", &envelope).expect_err("renamed").is_damaged());
                assert!(sealing.unwrap(Kind::Batch, "index/a", &envelope).expect_err("another kind").is_damaged());
                let cut = &envelope[..envelope.len() - 1];
                assert!(sealing.unwrap(Kind::Index, "index/a", cut).expect_err("cut").is_damaged());
            }
        }
    }

    #[test]
    fn a_plain_envelope_is_none_of_an_encrypted_repository_and_the_reverse() {
        let [plain, sealed] = both();
        let envelope = plain.wrap(Kind::Draft, "a", b"content").expect("wrapped");
        assert!(sealed.unwrap(Kind::Draft, "a", &envelope).expect_err("plain").is_damaged());
        let envelope = sealed.wrap(Kind::Draft, "a", b"content").expect("wrapped");
        assert!(plain.unwrap(Kind::Draft, "a", &envelope).expect_err("sealed").is_damaged());
    }

    proptest! {
        #[test]
        fn anything_is_refused_without_a_panic(bytes: Vec<u8>, whole: bool) {
            for sealing in both() {
                let mut bytes = bytes.clone();
                if whole {
                    let body = (bytes.len() as u32).to_le_bytes();
                    let head = [&b"VMFR"[..], &[4, 1, u8::from(sealing.0.is_some()), 0], &body].concat();
                    bytes.splice(0..0, head);
                }
                prop_assert!(sealing.unwrap(Kind::Draft, "a", &bytes).expect_err("not ours").is_damaged());
            }
        }

        #[test]
        fn no_changed_byte_goes_unseen(at in 0_usize..60, bit in 0_u8..8) {
            let sealing = Sealing(None);
            let mut envelope = sealing.wrap(Kind::Draft, "a", b"some content").expect("wrapped");
            let at = at % envelope.len();
            envelope[at] ^= 1 << bit;
            prop_assert!(sealing.unwrap(Kind::Draft, "a", &envelope).is_err());
        }
    }
}
