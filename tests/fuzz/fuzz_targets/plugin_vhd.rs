//! A VHD file, by what is different in it from a sound one of three blocks.
//!
//! The first byte is the mode: bit 0 has the checksums made right again. Then patches: the place (of five), two bytes of offset from
//! there, one of length, the bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_vhd::{BLOCK_SIZE, Block, Guid, Image, MemoryFile, SECTOR, Storage, VhdError, WriteIds, written_by};

/// Footer, header, stamp, BAT, footer at the end.
const PLACES: [u64; 5] = [0, 512, 1536, 2048, 2 * (4096 + BLOCK_SIZE as u64)];
const IDS: WriteIds = WriteIds { file: Guid::new(2), data: Guid::new(3) };

fuzz_target!(|data: &[u8]| {
    let Some((mode, mut patches)) = data.split_first() else { return };
    let file = sound();
    while let [place, low, high, length, rest @ ..] = patches {
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        let offset = u64::from(u16::from_le_bytes([*low, *high]));
        file.write_at(PLACES[usize::from(*place) % PLACES.len()] + offset, bytes).expect("inside");
        patches = rest;
    }
    if mode & 1 == 1 {
        for (place, length, at) in [(0, 512, 64), (512, 1024, 36), (1536, 512, 24), (PLACES[4], 512, 64)] {
            seal(&file, place, length, at);
        }
    }
    let written = written_by(&file);
    let Ok(mut image) = Image::open(&file) else { return };
    assert_eq!(written.expect("whoever opens it reads that"), image.ids());
    let blocks = image.disk().blocks();
    let found = image.blocks(0..blocks.min(8)).expect("the BAT is in the file");
    let faults = image.check();
    let Ok(mut space) = image.space() else { return };
    let partial = |fault: &VhdError| matches!(fault, VhdError::PartialBlock { .. });
    assert!(faults.is_ok_and(|faults| faults.iter().all(partial)), "both look for the same");
    let (length, size) = (file.length().expect("a length"), u64::from(image.disk().block_size));
    for at in found.into_iter().filter_map(Block::offset) {
        assert!(at % SECTOR == 0 && at + size <= length);
    }
    // What it has room for is nobody's, so a change can be made twice and is there.
    let Ok(at) = space.allocate() else { return };
    if size <= BLOCK_SIZE.into() {
        image.make_room(at).expect("inside");
        image.close(space.end()).expect("inside");
        for _ in 0..2 {
            image.commit(&[(blocks - 1, Block::Present(at))], IDS).expect("inside");
            assert_eq!(image.blocks(blocks - 1..blocks).expect("the BAT"), [Block::Present(at)]);
            assert!(image.space().is_ok());
        }
    }
});

/// A file of three blocks, one of them zero.
fn sound() -> MemoryFile {
    let mut image = Image::create(MemoryFile::default(), 3 * u64::from(BLOCK_SIZE), 0, IDS).expect("made");
    let mut space = image.space().expect("empty");
    let places = [0, 2].map(|block| (block, space.allocate().expect("room")));
    for (_, at) in places {
        image.make_room(at).expect("room");
    }
    image.commit(&places.map(|(block, at)| (block, Block::Present(at))), IDS).expect("committed");
    image.into_file()
}

/// Makes the checksum of a structure right, which stands at its byte `at`.
fn seal(file: &MemoryFile, place: u64, length: usize, at: usize) {
    let mut raw = vec![0; length];
    if file.read_at(place, &mut raw).is_err() {
        return;
    }
    raw[at..at + 4].fill(0);
    let sum = !raw.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    file.write_at(place + at as u64, &sum.to_be_bytes()).expect("inside");
}
