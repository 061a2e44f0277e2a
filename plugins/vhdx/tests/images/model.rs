//! A disk as a list of blocks, and the same as a file of either format.

use std::collections::BTreeMap;
use vmferry_vhdx::{Block, Disk, Guid, Image, MIB, Storage, WriteIds};

/// What each block that is not zero is filled with.
pub(crate) type Content = BTreeMap<u64, u8>;

/// What is asked of an image of either format.
pub(crate) trait AnyImage: Sized {
    /// Where its bytes are.
    type File: Storage;
    /// What qemu calls the format.
    const NAME: &str;
    /// Bytes of a block.
    const BLOCK: u64;

    /// Makes a disk without any block.
    fn make(file: Self::File, size: u64) -> Self;
    fn reopen(file: Self::File) -> Self;
    fn size(&self) -> u64;
    fn at(&self) -> &Self::File;
    fn places(&self) -> Vec<Block>;
    fn written_by(&self) -> WriteIds;
    /// Room for so many blocks, ready to be written to.
    fn room(&self, blocks: usize) -> Vec<u64>;
    fn change(&mut self, changes: &[(u64, Block)], ids: WriteIds);
    fn is_sound(&self) -> bool;
}

/// What both have under the same names.
macro_rules! of_either_format {
    () => {
        type File = F;

        fn reopen(file: F) -> Self {
            Self::open(file).expect("opened")
        }

        fn size(&self) -> u64 {
            self.disk().size
        }

        fn at(&self) -> &F {
            self.file()
        }

        fn places(&self) -> Vec<Block> {
            self.blocks(0..self.disk().blocks()).expect("blocks")
        }

        fn written_by(&self) -> WriteIds {
            self.ids()
        }

        fn change(&mut self, changes: &[(u64, Block)], ids: WriteIds) {
            self.commit(changes, ids).expect("committed");
        }

        fn is_sound(&self) -> bool {
            self.check().expect("read").is_empty()
        }
    };
}

impl<F: Storage> AnyImage for Image<F> {
    of_either_format!();
    const NAME: &str = "vhdx";
    const BLOCK: u64 = MIB;

    fn make(file: F, size: u64) -> Self {
        Self::create(file, disk(size), ids(0), "test").expect("made")
    }

    fn room(&self, blocks: usize) -> Vec<u64> {
        let mut space = self.space().expect("a sound file");
        let places = (0..blocks).map(|_| space.allocate(MIB)).collect();
        let end = self.file().length().expect("a length").max(space.end());
        self.file().set_length(end).expect("longer");
        places
    }
}

impl<F: Storage> AnyImage for vmferry_vhd::Image<F> {
    of_either_format!();
    const NAME: &str = "vpc";
    const BLOCK: u64 = vmferry_vhd::BLOCK_SIZE as u64;

    fn make(file: F, size: u64) -> Self {
        Self::create(file, size, 0, ids(0)).expect("made")
    }

    fn room(&self, blocks: usize) -> Vec<u64> {
        let mut space = self.space().expect("a sound file");
        let places: Vec<u64> = (0..blocks).map(|_| space.allocate().expect("room")).collect();
        places.iter().for_each(|at| self.make_room(*at).expect("ready"));
        places
    }
}

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

/// Changes the disk: `None` makes a block zeroes.
pub(crate) fn changes<I: AnyImage>(image: &I, delta: &BTreeMap<u64, Option<u8>>) -> Vec<(u64, Block)> {
    let mut room = image.room(delta.values().flatten().count()).into_iter();
    let place = |(block, fill): (&u64, &Option<u8>)| match fill {
        None => (*block, Block::Zero),
        Some(fill) => {
            let at = room.next().expect("room for each");
            let length = (image.size() - block * I::BLOCK).min(I::BLOCK);
            image.at().write_at(at, &vec![*fill; length as usize]).expect("written");
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
pub(crate) fn content<I: AnyImage>(image: &I) -> Content {
    let size = image.size();
    let mut content = Content::new();
    for (block, place) in (0..).zip(image.places()) {
        let Some(at) = place.offset() else { continue };
        let mut bytes = vec![0; (size - block * I::BLOCK).min(I::BLOCK) as usize];
        image.at().read_at(at, &mut bytes).expect("data");
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {block} is mixed");
        content.insert(block, bytes[0]);
    }
    content
}

/// The disk, byte by byte.
pub(crate) fn raw(content: &Content, size: u64, block_size: u64) -> Vec<u8> {
    let mut raw = vec![0; size as usize];
    for (block, fill) in content {
        let at = (block * block_size) as usize;
        let end = raw.len().min(at + block_size as usize);
        raw[at..end].fill(*fill);
    }
    raw
}
