//! Bytes that a store gives back: refused, or no more than was asked for. What was written by us comes back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_disk::encoding::{Encoding, EncodingError, SealKey, decode, encode};

const ALL: [Encoding; 4] = [Encoding::Identity, Encoding::Zstd, Encoding::Sealed, Encoding::ZstdSealed];

fuzz_target!(|input: &[u8]| {
    let Some(([mode, most, cut], bytes)) = input.split_first_chunk::<3>() else { return };
    let (encoding, most, key) = (ALL[usize::from(mode & 3)], usize::from(*most) * 64, SealKey::new([7; 32]));
    let cut = (usize::from(*cut) * 64).min(bytes.len());
    let pieces = [&bytes[..cut], &bytes[cut..]].map(|piece| piece.to_vec().into());
    if let Ok(decoded) = decode(encoding, &pieces, most, Some(&key)) {
        assert!(decoded.len() <= most);
    }
    // As if these bytes had been sealed by somebody with the key, so that what is inside is reached.
    if let (Encoding::ZstdSealed, Ok(sealed)) = (encoding, encode(Encoding::Sealed, &bytes.to_vec().into(), Some(&key)))
    {
        if let Ok(decoded) = decode(encoding, &[sealed], most, Some(&key)) {
            assert!(decoded.len() <= most);
        }
    }
    let plain = bytes.to_vec().into();
    let encoded = encode(encoding, &plain, Some(&key)).expect("a key and memory");
    let back = decode(encoding, &[encoded], most, Some(&key));
    let wanted = if plain.len() > most { Err(EncodingError::TooLong { most }) } else { Ok(plain) };
    assert_eq!(back, wanted);
});
