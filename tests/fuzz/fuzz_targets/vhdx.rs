//! A VHDX file, by what is different in it from a sound one of three blocks.
//!
//! The first byte is the mode: bit 0 has the checksums made right again, bit 1 gives the log to be replayed. Then patches: the place (of
//! seven), two bytes of offset from there, one of length, the bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_vhdx::{Block, Disk, Guid, Image, MIB, MemoryFile, Storage, WriteIds, recover};

/// Headers, region tables, log, metadata table, metadata items, BAT.
const PLACES: [u64; 7] = [64 << 10, 128 << 10, 192 << 10, MIB, 2 * MIB, (2 * MIB) + (64 << 10), 3 * MIB];
const LOG: u64 = MIB;

fuzz_target!(|data: &[u8]| {
    let Some((mode, mut patches)) = data.split_first() else { return };
    let file = sound();
    if mode & 2 == 2 {
        // A log that counts: the change was made, and nobody says that it was.
        let log = Guid::new(0xf1e).to_wire();
        let mut entry = vec![0; 4096];
        file.read_at(LOG, &mut entry).expect("inside");
        for place in [PLACES[0], PLACES[1]] {
            file.write_at(place + 48, &log).expect("inside");
        }
        entry[32..48].copy_from_slice(&log);
        file.write_at(LOG, &entry).expect("inside");
    }
    while let [place, low, high, length, rest @ ..] = patches {
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        let offset = u64::from(u16::from_le_bytes([*low, *high]));
        file.write_at(PLACES[usize::from(*place) % PLACES.len()] + offset, bytes).expect("inside");
        patches = rest;
    }
    if mode & 1 == 1 {
        for (place, length) in [(PLACES[0], 4096), (PLACES[1], 4096), (PLACES[2], 65536), (256 << 10, 65536)] {
            seal(&file, place, length);
        }
        let mut length = [0; 4];
        file.read_at(LOG + 8, &mut length).expect("inside");
        seal(&file, LOG, (u32::from_le_bytes(length) as usize).clamp(64, MIB as usize));
    }
    let recovered = recover(&file);
    let Ok(image) = Image::open(&file) else { return };
    assert!(!matches!(recovered, Ok(true)) || matches!(recover(&file), Ok(false)), "the log is empty afterwards");
    let blocks = image.disk().blocks();
    let found = image.blocks(0..blocks.min(8));
    let faults = image.check();
    if let Ok(space) = image.space() {
        assert!(space.end() <= file.length().expect("a length").next_multiple_of(MIB).max(space.end()));
        let sound = |fault: &vmferry_vhdx::VhdxError| matches!(fault, vmferry_vhdx::VhdxError::PartialBlock { .. });
        assert!(faults.is_ok_and(|faults| faults.iter().all(sound)), "both look for the same");
        let length = file.length().expect("a length");
        for at in found.expect("all blocks were read").into_iter().filter_map(Block::offset) {
            assert!(at % MIB == 0 && at + u64::from(image.disk().block_size) <= length);
        }
    }
});

/// A file of three blocks, one of them zero, that was changed once by its log.
fn sound() -> MemoryFile {
    let disk = Disk {
        size: 3 * MIB,
        block_size: MIB as u32,
        id: Guid::new(1),
        logical_sector: 512,
        physical_sector: 4096,
        parent: None,
    };
    let ids = WriteIds { file: Guid::new(2), data: Guid::new(3) };
    let mut image = Image::create(MemoryFile::default(), disk, ids, "fuzz").expect("made");
    image.file().set_length(6 * MIB).expect("longer");
    let changes = [(0, Block::Present(4 * MIB)), (1, Block::Zero), (2, Block::Present(5 * MIB))];
    image.commit(&changes, ids).expect("committed");
    image.into_file()
}

/// Makes the CRC-32C of a structure right.
fn seal(file: &MemoryFile, place: u64, length: usize) {
    let mut raw = vec![0; length];
    if file.read_at(place, &mut raw).is_err() {
        return;
    }
    raw[4..8].fill(0);
    let crc = raw.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { 0x82f6_3b78 ^ (crc >> 1) } else { crc >> 1 })
    });
    file.write_at(place + 4, &(!crc).to_le_bytes()).expect("inside");
}
