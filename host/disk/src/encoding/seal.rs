//! Sealed bytes: encrypted, and authenticated.
//!
//! ```text
//! byte 0     version: 1
//! byte 1     salt: 32 random bytes
//! byte 33    ciphertext, as long as what was sealed
//! end        tag, 16 bytes
//! ```
//!
//! AES-256-GCM with the version byte as additional data and a nonce of 12 zero bytes. That nonce is used once for each of its keys,
//! since the key is the message's own: BLAKE3 in its `derive_key` mode, with the context string
//! `vmferry 2026-11-26 sealed message 1`, of the 32 bytes of the key that was given followed by the 32 of the salt. A salt of that
//! length never comes twice, so a key may seal as many messages as it likes.
//!
//! Nothing is said of where the bytes belong: who stores them under names has to know them by digest, or seal the names with them.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, Zeroizing};

use super::EncodingError;

const VERSION: u8 = 1;
const CONTEXT: &str = "vmferry 2026-11-26 sealed message 1";
const SALT_LENGTH: usize = 32;
const TAG_LENGTH: usize = 16;
/// Where the ciphertext starts.
const HEADER_LENGTH: usize = 1 + SALT_LENGTH;

/// Bytes by which sealed ones are longer.
pub const OVERHEAD: usize = HEADER_LENGTH + TAG_LENGTH;

/// A key for sealing: 32 bytes that nobody can guess. It is never printed, and is wiped when it is dropped.
#[derive(Clone)]
pub struct SealKey([u8; 32]);

impl SealKey {
    /// A key of these bytes, which have to be random: they are not stretched.
    pub fn new(mut bytes: [u8; 32]) -> Self {
        let key = Self(bytes);
        bytes.zeroize();
        key
    }

    /// The key of the one message with this salt.
    fn of_message(&self, salt: &[u8]) -> Result<LessSafeKey, EncodingError> {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&self.0).update(salt);
        let key = Zeroizing::new(*hasher.finalize().as_bytes());
        hasher.zeroize();
        // Only its length could be wrong.
        UnboundKey::new(&AES_256_GCM, &*key).map(LessSafeKey::new).map_err(|_| EncodingError::NoKey)
    }
}

impl Drop for SealKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(…)")
    }
}

/// Encrypts and authenticates `plain`. The same bytes never give the same answer twice.
pub fn seal(plain: &[u8], key: &SealKey) -> Result<Vec<u8>, EncodingError> {
    let mut salt = [0; SALT_LENGTH];
    SystemRandom::new().fill(&mut salt).map_err(|_| EncodingError::NoRandomness)?;
    let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD);
    sealed.push(VERSION);
    sealed.extend_from_slice(&salt);
    sealed.extend_from_slice(plain);
    let key = key.of_message(&salt)?;
    let tag = key
        .seal_in_place_separate_tag(nonce(), Aad::from([VERSION]), &mut sealed[HEADER_LENGTH..])
        .map_err(|_| EncodingError::TooLongToSeal { length: plain.len() })?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// What [`seal`] was given. The bytes are decrypted where they are; nothing of them comes out unless all are authentic.
pub fn open(mut sealed: Vec<u8>, key: &SealKey) -> Result<Vec<u8>, EncodingError> {
    let length = sealed.len();
    match sealed.first() {
        Some(&found) if found != VERSION => return Err(EncodingError::UnknownVersion { found }),
        _ if length < OVERHEAD => return Err(EncodingError::SealedTooShort { length }),
        _ => {}
    }
    let key = key.of_message(&sealed[1..HEADER_LENGTH])?;
    key.open_within(nonce(), Aad::from([VERSION]), &mut sealed, HEADER_LENGTH..).map_err(|_| EncodingError::Forged)?;
    sealed.truncate(length - OVERHEAD);
    Ok(sealed)
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}
