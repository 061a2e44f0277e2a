//! How pieces of a disk are written down by a store: as they are, compressed, encrypted, or both.
//!
//! ```text
//! identity      the bytes
//! zstd          one Zstandard frame of the bytes (RFC 8878), which says how many they are
//! sealed        the bytes, sealed: see `seal`
//! zstd-sealed   one Zstandard frame of the bytes, sealed
//! ```
//!
//! What comes back is bounded: a frame that claims, or holds, more than it may is refused before there is room made for it. A
//! Zstandard frame carries no check sum, since whoever stores pieces knows their digests.

mod error;
mod seal;

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};
use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, compress_bound, find_frame_compressed_size, get_error_name, get_frame_content_size,
};

pub use error::EncodingError;
pub use seal::{OVERHEAD, SealKey, open, seal};

/// The compression level: higher ones cost several times as much for a few percent less.
const LEVEL: i32 = 3;

/// How a piece's bytes are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As they are on the disk.
    Identity,
    /// One Zstandard frame.
    Zstd,
    /// Encrypted and authenticated.
    Sealed,
    /// A Zstandard frame, encrypted and authenticated.
    ZstdSealed,
}

impl Encoding {
    /// Whether it takes a key.
    pub fn is_sealed(self) -> bool {
        matches!(self, Self::Sealed | Self::ZstdSealed)
    }
}

/// Writes `bytes` down. A sealed encoding takes the `key`, the others do not look at it. [`Encoding::Identity`] gives the same
/// bytes, not a copy.
pub fn encode(encoding: Encoding, bytes: &Bytes, key: Option<&SealKey>) -> Result<Bytes, EncodingError> {
    let key = || key.ok_or(EncodingError::NoKey);
    match encoding {
        Encoding::Identity => Ok(bytes.clone()),
        Encoding::Zstd => compressed(bytes, |frame| Ok(Bytes::copy_from_slice(frame))),
        Encoding::Sealed => Ok(seal(bytes, key()?)?.into()),
        Encoding::ZstdSealed => {
            let key = key()?;
            compressed(bytes, |frame| Ok(seal(frame, key)?.into()))
        }
    }
}

/// Reads what [`encode`] wrote, cut into `pieces` anywhere. More than `most` bytes are refused. One piece of
/// [`Encoding::Identity`] comes back as it is, not as a copy.
pub fn decode(
    encoding: Encoding,
    pieces: &[Bytes],
    most: usize,
    key: Option<&SealKey>,
) -> Result<Bytes, EncodingError> {
    let key = || key.ok_or(EncodingError::NoKey);
    let plain = match encoding {
        Encoding::Identity => joined(pieces),
        Encoding::Zstd => return decompressed(&joined(pieces), most),
        Encoding::Sealed => open(pieces.concat(), key()?)?.into(),
        Encoding::ZstdSealed => return decompressed(&open(pieces.concat(), key()?)?, most),
    };
    if plain.len() > most {
        return Err(EncodingError::TooLong { most });
    }
    Ok(plain)
}

fn joined(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [piece] => piece.clone(),
        pieces => {
            let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
            pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            whole.freeze()
        }
    }
}

/// What compressing needs and need not be made anew each time.
struct Compressor {
    context: CCtx<'static>,
    frame: Vec<u8>,
}

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// Hands one frame of `bytes` to `take`. How long it gets is known only afterwards, so it is made in memory that is kept.
fn compressed<T>(bytes: &[u8], take: impl FnOnce(&[u8]) -> Result<T, EncodingError>) -> Result<T, EncodingError> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let Compressor { context, frame } = match kept {
            Some(compressor) => compressor,
            None => {
                let mut context = CCtx::try_create().ok_or(EncodingError::NoMemory)?;
                context.set_parameter(CParameter::CompressionLevel(LEVEL)).map_err(zstd_failed)?;
                kept.insert(Compressor { context, frame: Vec::new() })
            }
        };
        frame.clear();
        frame.reserve(compress_bound(bytes.len()));
        context.compress2(frame, bytes).map_err(zstd_failed)?;
        take(frame)
    })
}

/// The bytes of `frame`, which has to be one frame and nothing else.
fn decompressed(frame: &[u8], most: usize) -> Result<Bytes, EncodingError> {
    if find_frame_compressed_size(frame).map_err(zstd_failed)? != frame.len() {
        return Err(EncodingError::NotOneFrame);
    }
    let claimed = get_frame_content_size(frame).map_err(|_| EncodingError::NotOneFrame)?;
    let length = match claimed.map(usize::try_from) {
        Some(Ok(length)) if length <= most => length,
        Some(_) => return Err(EncodingError::TooLong { most }),
        // Another writer's: how long it gets, only its end tells.
        None => most,
    };
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let context = match kept {
            Some(context) => context,
            None => kept.insert(DCtx::try_create().ok_or(EncodingError::NoMemory)?),
        };
        let mut bytes = Vec::with_capacity(length);
        context.decompress(&mut bytes, frame).map_err(|code| match claimed {
            None if get_error_name(code) == TOO_SMALL => EncodingError::TooLong { most },
            _ => zstd_failed(code),
        })?;
        Ok(bytes.into())
    })
}

/// The library's name for a frame that holds more than there is room for; it exports no code for it.
const TOO_SMALL: &str = "Destination buffer is too small";

fn zstd_failed(code: usize) -> EncodingError {
    EncodingError::Zstd(get_error_name(code))
}
