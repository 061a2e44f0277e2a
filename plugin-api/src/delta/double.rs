//! Disk data of a test.
//!
//! Digests and check sums are real. Compressing and encrypting only mark the bytes, so that a plugin's tests need no codec.

use super::{Checksum, Encoding, Info};
use crate::seal;
use crate::stream::{Input, Output};
use crate::{Error, ErrorCode};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::Cursor;
use std::rc::Rc;

/// The changed data of one disk. What is not given is no chunk.
pub struct Delta {
    info: Info,
    chunks: RefCell<VecDeque<Chunk>>,
    breaks_off: Cell<bool>,
}

/// One chunk of it.
#[derive(Clone)]
pub struct Chunk {
    offset: u64,
    bytes: Rc<[u8]>,
}

/// A chunk's bytes as encoded.
pub struct Payload {
    bytes: Rc<[u8]>,
}

/// Keeps what is put. Make it of the disk's size for `read`.
#[derive(Default)]
pub struct Restore {
    disk: RefCell<Vec<u8>>,
    open: RefCell<Vec<Open>>,
}

struct Open {
    offset: u64,
    length: u64,
    encoding: Encoding,
    digest: Option<Vec<u8>>,
    bytes: Rc<RefCell<Vec<u8>>>,
}

impl Delta {
    /// These chunks, each by its offset in bytes, in ascending order.
    pub fn new(info: Info, chunks: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Self {
        let chunks = chunks.into_iter().map(|(offset, bytes)| Chunk { offset, bytes: bytes.into() }).collect();
        Self { info, chunks: RefCell::new(chunks), breaks_off: Cell::new(false) }
    }

    /// The same, but the source breaks off where the end would be.
    pub fn breaking_off(self) -> Self {
        self.breaks_off.set(true);
        self
    }
}

impl super::Delta for Delta {
    fn info(&self) -> Info {
        self.info.clone()
    }

    fn next(&self) -> Result<Option<Box<dyn super::Chunk>>, Error> {
        match self.chunks.borrow_mut().pop_front() {
            Some(chunk) => Ok(Some(Box::new(chunk))),
            None if self.breaks_off.get() => {
                Err(Error { retry_after: None, ..Error::unavailable("the source broke off", 0) })
            }
            None => Ok(None),
        }
    }
}

impl super::Chunk for Chunk {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn is_zero(&self) -> bool {
        self.bytes.iter().all(|byte| *byte == 0)
    }

    fn digest(&self) -> Vec<u8> {
        blake3(&self.bytes)
    }

    fn encode(&self, encoding: &Encoding) -> Result<Box<dyn super::Payload>, Error> {
        Ok(Box::new(Payload { bytes: encode(encoding, &self.bytes)?.into() }))
    }
}

impl super::Payload for Payload {
    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn digest(&self) -> Vec<u8> {
        blake3(&self.bytes)
    }

    fn checksum(&self, algorithm: &Checksum) -> Result<Vec<u8>, Error> {
        use sha2::{Digest, Sha256};
        match algorithm {
            Checksum::Crc32c => Ok(crc32c::crc32c(&self.bytes).to_be_bytes().to_vec()),
            Checksum::Sha256 => Ok(Sha256::digest(&self.bytes).to_vec()),
            Checksum::Other(name) => {
                Err(Error::with_code(ErrorCode::Unsupported, format!("nobody computes the check sum `{name}` here")))
            }
        }
    }

    fn body(&self) -> Result<Input, Error> {
        Ok(Input::double(Cursor::new(self.bytes.clone()), "a chunk"))
    }
}

impl Restore {
    /// For a disk of this size in bytes.
    pub fn of_size(size: usize) -> Self {
        Self { disk: RefCell::new(vec![0; size]), open: RefCell::default() }
    }

    /// The disk as it is restored so far.
    pub fn disk(&self) -> Vec<u8> {
        self.disk.borrow().clone()
    }
}

impl super::Restore for Restore {
    fn put(&self, offset: u64, length: u64, encoding: &Encoding, digest: Option<&[u8]>) -> Result<Output, Error> {
        let bytes = Rc::default();
        let output = Output::collecting(Rc::clone(&bytes), "what is restored");
        let digest = digest.map(<[u8]>::to_vec);
        self.open.borrow_mut().push(Open { offset, length, encoding: encoding.clone(), digest, bytes });
        Ok(output)
    }

    fn finish(&self, output: Output) -> Result<(), Error> {
        let mut all = self.open.borrow_mut();
        let at = output.collected().and_then(|bytes| all.iter().position(|open| Rc::ptr_eq(&open.bytes, bytes)));
        let Some(at) = at else {
            return Err(Error::with_code(ErrorCode::Unsupported, "the stream is none of this `put`"));
        };
        let Open { offset, length, encoding, digest, bytes } = all.swap_remove(at);
        let encoded = bytes.take();
        if encoded.len() as u64 != length {
            return Err(Error::damaged(format!("{} bytes came of {length}", encoded.len())));
        }
        let plain = decode(&encoding, &encoded)?;
        if digest.is_some_and(|digest| digest != blake3(&plain)) {
            return Err(Error::damaged("the bytes are not what their digest says"));
        }
        let mut disk = self.disk.borrow_mut();
        let end = offset as usize + plain.len();
        if disk.len() < end {
            disk.resize(end, 0);
        }
        disk[offset as usize..end].copy_from_slice(&plain);
        Ok(())
    }
}

fn blake3(bytes: &[u8]) -> Vec<u8> {
    blake3::hash(bytes).as_bytes().to_vec()
}

/// What stands before bytes that would be a Zstandard frame.
const ZSTD: &[u8] = b"zstd:";

fn encode(encoding: &Encoding, plain: &[u8]) -> Result<Vec<u8>, Error> {
    match encoding {
        Encoding::Identity => Ok(plain.to_vec()),
        Encoding::Zstd => Ok([ZSTD, plain].concat()),
        Encoding::Sealed(key) => seal::seal(key, plain),
        Encoding::ZstdSealed(key) => seal::seal(key, &encode(&Encoding::Zstd, plain)?),
        Encoding::Other(name) => Err(unknown(name)),
    }
}

fn decode(encoding: &Encoding, encoded: &[u8]) -> Result<Vec<u8>, Error> {
    match encoding {
        Encoding::Identity => Ok(encoded.to_vec()),
        Encoding::Zstd => match encoded.strip_prefix(ZSTD) {
            Some(plain) => Ok(plain.to_vec()),
            None => Err(Error::damaged("this is no Zstandard frame")),
        },
        Encoding::Sealed(key) => seal::open(key, encoded),
        Encoding::ZstdSealed(key) => decode(&Encoding::Zstd, &seal::open(key, encoded)?),
        Encoding::Other(name) => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Error {
    Error::with_code(ErrorCode::Unsupported, format!("nobody knows the encoding `{name}` here"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::{Delta as _, Kind, Restore as _};

    fn delta(chunks: Vec<(u64, Vec<u8>)>) -> Delta {
        let info = Info {
            disk: "disk".to_owned(),
            content: "content".to_owned(),
            size: 10,
            kind: Kind::Full,
            expected_bytes: 10,
            extensions: Vec::new(),
        };
        Delta::new(info, chunks)
    }

    #[test]
    fn what_was_encoded_is_restored_and_what_was_changed_is_damaged() {
        seal::double::add_key("backup");
        let delta = delta(vec![(4, b"abc".to_vec())]);
        let chunk = delta.next().expect("there").expect("one");
        for encoding in [Encoding::Identity, Encoding::Zstd, Encoding::ZstdSealed("backup".to_owned())] {
            let payload = chunk.encode(&encoding).expect("encoded");
            let restore = Restore::of_size(10);
            let put = |digest: &[u8]| {
                restore.put_from(4, &encoding, Some(digest), &payload.body().expect("bytes"), payload.length())
            };
            put(&chunk.digest()).expect("restored");
            assert_eq!(restore.disk(), b"\0\0\0\0abc\0\0\0");
            assert!(put(&[0; 32]).expect_err("another digest").is_damaged());
        }
        assert!(delta.next().expect("no failure").is_none());
    }

    #[test]
    fn a_source_breaks_off_after_its_chunks() {
        let delta = delta(vec![(0, vec![1])]).breaking_off();
        assert!(delta.next().is_ok_and(|chunk| chunk.is_some()));
        assert_eq!(delta.next().err().map(|error| error.code), Some(ErrorCode::Unavailable));
    }
}
