//! Disk data on its way to or from a target, as handles: the bytes stay with the host. Natively a test makes the data and looks
//! at what came back, see [`double`].

use crate::bindings::target::vmferry::plugin::delta as wit;
use crate::stream::{Input, Output};
use crate::{Error, ErrorCode};

#[cfg(not(target_arch = "wasm32"))]
pub mod double;

pub use wit::{Checksum, Encoding, Info, Kind};

/// The changed data of one disk.
pub trait Delta {
    /// What it is about.
    fn info(&self) -> Info;

    /// The next chunk in ascending order, none at the end. Fails with `unavailable` when the source broke off: give up.
    ///
    /// Chunks and payloads that are held at one time have a limit together, 64 MiB unless the host says otherwise; beyond it
    /// this fails with `limit`.
    fn next(&self) -> Result<Option<Box<dyn Chunk>>, Error>;
}

/// One changed piece of a disk.
pub trait Chunk {
    /// Where it lies on the disk, in bytes: a multiple of the plugin's chunk size.
    fn offset(&self) -> u64;

    /// Its length in bytes: the chunk size, or less at the end of the disk.
    fn length(&self) -> u32;

    /// Whether it is all zeroes.
    fn is_zero(&self) -> bool;

    /// BLAKE3 of the bytes as they are on the disk: 32 bytes, computed by the host.
    fn digest(&self) -> Vec<u8>;

    /// The chunk's bytes, written down in this way.
    fn encode(&self, encoding: &Encoding) -> Result<Box<dyn Payload>, Error>;
}

/// A chunk's bytes, ready to be sent: its length is known before the first byte leaves.
pub trait Payload {
    /// Length in bytes.
    fn length(&self) -> u64;

    /// BLAKE3 of the bytes as encoded: 32 bytes.
    fn digest(&self) -> Vec<u8>;

    /// Another check sum of the bytes as encoded.
    fn checksum(&self, algorithm: &Checksum) -> Result<Vec<u8>, Error>;

    /// The bytes from the beginning. May be called again, for a second attempt, as long as the payload is held.
    fn body(&self) -> Result<Input, Error>;
}

/// Where a disk's stored bytes go when they are read back. The host decodes and checks them.
pub trait Restore {
    /// A stream for `length` encoded bytes, which decode to the disk's content from `offset` on. Where `digest` is given, the
    /// decoded bytes have to have this BLAKE3. At most 8 MiB at a time, encoded and decoded.
    fn put(&self, offset: u64, length: u64, encoding: &Encoding, digest: Option<&[u8]>) -> Result<Output, Error>;

    /// Takes back a stream of [`put`](Self::put) that has all its bytes, and hands them on. When they are not good,
    /// [`Error::is_damaged`] says so; any other failure means that nobody waits for them any more: give up.
    fn finish(&self, output: Output) -> Result<(), Error>;

    /// Puts `length` encoded bytes from a stream.
    fn put_from(
        &self,
        offset: u64,
        encoding: &Encoding,
        digest: Option<&[u8]>,
        input: &Input,
        length: u64,
    ) -> Result<(), Error> {
        let output = self.put(offset, length, encoding, digest)?;
        output.splice_all(input, length)?;
        self.finish(output)
    }
}

impl Delta for wit::Delta {
    fn info(&self) -> Info {
        self.info()
    }

    fn next(&self) -> Result<Option<Box<dyn Chunk>>, Error> {
        Ok(self.next()?.map(|chunk| Box::new(chunk) as Box<dyn Chunk>))
    }
}

impl Chunk for wit::Chunk {
    fn offset(&self) -> u64 {
        self.offset()
    }

    fn length(&self) -> u32 {
        self.length()
    }

    fn is_zero(&self) -> bool {
        self.is_zero()
    }

    fn digest(&self) -> Vec<u8> {
        self.digest()
    }

    fn encode(&self, encoding: &Encoding) -> Result<Box<dyn Payload>, Error> {
        Ok(Box::new(self.encode(encoding)?))
    }
}

impl Payload for wit::Payload {
    fn length(&self) -> u64 {
        self.length()
    }

    fn digest(&self) -> Vec<u8> {
        self.digest()
    }

    fn checksum(&self, algorithm: &Checksum) -> Result<Vec<u8>, Error> {
        self.checksum(algorithm)
    }

    fn body(&self) -> Result<Input, Error> {
        Ok(Input::of_host(self.body()?, "a chunk"))
    }
}

impl Restore for wit::Restore {
    fn put(&self, offset: u64, length: u64, encoding: &Encoding, digest: Option<&[u8]>) -> Result<Output, Error> {
        Ok(Output::of_host(self.put(offset, length, encoding, digest)?, "what is restored"))
    }

    fn finish(&self, output: Output) -> Result<(), Error> {
        match output.into_host() {
            Some(stream) => self.finish(stream),
            None => Err(Error::with_code(ErrorCode::Unsupported, "the stream is none of this `put`")),
        }
    }
}
