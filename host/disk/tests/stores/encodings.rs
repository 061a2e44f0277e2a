//! Pieces written down and read back, and what is refused.

use bytes::Bytes;
use proptest::prelude::*;
use vmferry_disk::encoding::{Encoding, EncodingError, OVERHEAD, SealKey, decode, encode, open, seal};

const ALL: [Encoding; 4] = [Encoding::Identity, Encoding::Zstd, Encoding::Sealed, Encoding::ZstdSealed];

fn key() -> SealKey {
    SealKey::new(std::array::from_fn(|index| index as u8))
}

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits")).collect()
}

/// Made by Python's `blake3` and `cryptography`.
#[test]
fn what_was_sealed_once_opens_for_ever() {
    let sealed = "016465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f80818283\
                  184dd9cb7dccb221f3ee0de7b5eb5da078c60d34e0da8b73e60be7eaf6bd";
    assert_eq!(open(bytes_of(sealed), &key()).unwrap(), b"recovery point");
}

/// Made by Python's `zstandard`, with and without the length in the frame's header.
#[test]
fn frames_of_other_writers_are_read_up_to_the_bound() {
    let plain = "ab".repeat(40);
    for frame in ["28b52ffd20504d00001861626101001aea86", "28b52ffd00004d00001861626101001aea86"] {
        let frame = [Bytes::from(bytes_of(frame))];
        assert_eq!(decode(Encoding::Zstd, &frame, 80, None).unwrap(), plain);
        assert_eq!(decode(Encoding::Zstd, &frame, 79, None), Err(EncodingError::TooLong { most: 79 }));
    }
}

#[test]
fn identity_copies_nothing() {
    let bytes = Bytes::from(vec![7; 65536]);
    let encoded = encode(Encoding::Identity, &bytes, None).unwrap();
    let decoded = decode(Encoding::Identity, std::slice::from_ref(&encoded), 65536, None).unwrap();
    assert_eq!([encoded.as_ptr(), decoded.as_ptr()], [bytes.as_ptr(); 2]);
}

#[test]
fn the_same_bytes_are_never_sealed_the_same_way() {
    let [one, other] = [(); 2].map(|()| seal(b"name", &key()).unwrap());
    assert!(one != other && one.len() == 4 + OVERHEAD);
}

#[test]
fn a_bomb_is_refused_before_it_is_unpacked() {
    let bomb = encode(Encoding::Zstd, &Bytes::from(vec![0; 64 << 20]), None).unwrap();
    assert!(bomb.len() < 8192);
    assert_eq!(decode(Encoding::Zstd, &[bomb], 2 << 20, None), Err(EncodingError::TooLong { most: 2 << 20 }));
}

#[test]
fn what_is_not_one_frame_is_refused() {
    let frame = encode(Encoding::Zstd, &Bytes::from_static(b"one"), None).unwrap();
    let decoded = |pieces: &[Bytes]| decode(Encoding::Zstd, pieces, 100, None);
    assert_eq!(decoded(&[frame.clone(), frame.clone()]), Err(EncodingError::NotOneFrame));
    assert!(matches!(decoded(&[frame.slice(..frame.len() - 1)]), Err(EncodingError::Zstd(_))));
    assert!(matches!(decoded(&[]), Err(EncodingError::Zstd(_))));
}

#[test]
fn sealed_bytes_need_their_key_and_every_bit_of_them() {
    let sealed = seal(b"secret", &key()).unwrap();
    assert_eq!(open(sealed.clone(), &SealKey::new([9; 32])), Err(EncodingError::Forged));
    for at in 1..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert_eq!(open(changed, &key()), Err(EncodingError::Forged), "byte {at}");
    }
    assert_eq!(open(sealed[..OVERHEAD - 1].to_vec(), &key()), Err(EncodingError::SealedTooShort { length: 48 }));
    assert_eq!(open(sealed[..sealed.len() - 1].to_vec(), &key()), Err(EncodingError::Forged));
    assert_eq!(open(vec![2; 100], &key()), Err(EncodingError::UnknownVersion { found: 2 }));
    assert_eq!(open(Vec::new(), &key()), Err(EncodingError::SealedTooShort { length: 0 }));
    let without = encode(Encoding::ZstdSealed, &Bytes::new(), None);
    assert_eq!(without, Err(EncodingError::NoKey));
}

#[test]
fn a_key_is_not_printed() {
    assert_eq!(format!("{:?}", SealKey::new([0xab; 32])), "SealKey(…)");
}

/// Runs of equal bytes, as disks have them, and noise.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let run = prop_oneof![
        (any::<u8>(), 0..5000usize).prop_map(|(byte, length)| vec![byte; length]),
        proptest::collection::vec(any::<u8>(), 0..600),
    ];
    proptest::collection::vec(run, 0..6).prop_map(|runs| runs.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_encoded_decodes_however_it_is_cut(
        content in content(), cuts in proptest::collection::vec(0..4000usize, 0..5), short in 1..50usize,
    ) {
        let plain = Bytes::from(content);
        for encoding in ALL {
            let mut rest = encode(encoding, &plain, Some(&key())).unwrap();
            let mut pieces: Vec<Bytes> = cuts.iter().map(|cut| rest.split_to(rest.len().min(*cut))).collect();
            pieces.push(rest);
            prop_assert_eq!(&decode(encoding, &pieces, plain.len(), Some(&key())).unwrap(), &plain);
            if let Some(most) = plain.len().checked_sub(short) {
                let refused = decode(encoding, &pieces, most, Some(&key()));
                prop_assert_eq!(refused, Err(EncodingError::TooLong { most }));
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_within_the_bound(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let pieces = [Bytes::from(bytes)];
        for encoding in ALL {
            if let Ok(decoded) = decode(encoding, &pieces, 200, Some(&key())) {
                prop_assert!(decoded.len() <= 200);
            }
        }
    }
}
