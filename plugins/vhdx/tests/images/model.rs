//! A disk as a list of blocks, and the same as a file.

use std::collections::BTreeMap;
use vmferry_vhdx::{Block, Disk, Guid, Image, MIB, Storage, WriteIds};

/// What each block that is not zero is filled with.
pub(crate) type Content = BTreeMap<u64, u8>;

pub(crate) fn disk(size: u64) -> Disk {
    Disk {
        size,
        block_size: MIB as u32,
        id: Guid::new(0xd15c),
        logical_sector: 512,
        physical_sector: 4096,
        parent: None,
    }
}

pub(crate) fn ids(number: u128) -> WriteIds {
    WriteIds { file: Guid::new(0xf000 + number), data: Guid::new(0xda00 + number) }
}

/// Puts the bytes of a block into the file as a caller has to: short at the end of the disk, room for it whole.
fn put(image: &Image<impl Storage>, at: u64, block: u64, fill: u8) {
    let length = (image.disk().size - block * MIB).min(MIB);
    image.file().write_at(at, &vec![fill; length as usize]).expect("written");
    let end = image.file().length().expect("a length").max(at + MIB);
    image.file().set_length(end).expect("longer");
}

/// Changes the disk: `None` makes a block zeroes.
pub(crate) fn changes(image: &Image<impl Storage>, delta: &BTreeMap<u64, Option<u8>>) -> Vec<(u64, Block)> {
    let mut space = image.space().expect("a sound file");
    let place = |(block, fill): (&u64, &Option<u8>)| match fill {
        None => (*block, Block::Zero),
        Some(fill) => {
            let at = space.allocate(MIB);
            put(image, at, *block, *fill);
            (*block, Block::Present(at))
        }
    };
    delta.iter().map(place).collect()
}

pub(crate) fn apply(content: &mut Content, delta: &BTreeMap<u64, Option<u8>>) {
    for (block, fill) in delta {
        match fill {
            Some(fill) => content.insert(*block, *fill),
            None => content.remove(block),
        };
    }
}

/// What the file holds, as its reader sees it. Every block is one byte over and over.
pub(crate) fn content(image: &Image<impl Storage>) -> Content {
    let size = image.disk().size;
    let mut content = Content::new();
    for (block, place) in (0..).zip(image.blocks(0..image.disk().blocks()).expect("blocks")) {
        let Some(at) = place.offset() else { continue };
        let mut bytes = vec![0; (size - block * MIB).min(MIB) as usize];
        image.file().read_at(at, &mut bytes).expect("data");
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {block} is mixed");
        content.insert(block, bytes[0]);
    }
    content
}

/// The disk, byte by byte.
pub(crate) fn raw(content: &Content, size: u64) -> Vec<u8> {
    let mut raw = vec![0; size as usize];
    for (block, fill) in content {
        let at = (block * MIB) as usize;
        let end = raw.len().min(at + MIB as usize);
        raw[at..end].fill(*fill);
    }
    raw
}
