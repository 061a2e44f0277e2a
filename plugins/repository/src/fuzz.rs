//! What the fuzz target of this crate calls: every parser at once.

use crate::draft::DraftDisk;
use crate::envelope::{Kind, Sealing};
use crate::index::Hooks;
use crate::map::{Root, decode_page, encode_page, page_count, runs, slots};
use crate::names::PackId;
use crate::points::Body;
use crate::repository::Batch;
use crate::table::Table;
use crate::wire::{Reader, Writer};

/// Has every parser read `bytes`, as they are and as what is in a whole envelope. What a parser takes, it writes down again.
pub fn parse(bytes: &[u8]) {
    let sealing = Sealing(None);
    for kind in [Kind::Table, Kind::PointBody, Kind::Index] {
        if let Ok(content) = sealing.unwrap(kind, "subject", bytes) {
            let again = sealing.wrap(kind, "subject", &content).expect("short");
            assert_eq!(again, bytes[..again.len()]);
        }
    }
    let chunk_size = 64 << 10;
    if let Ok(table) = Table::decode(bytes) {
        assert_eq!(table.encode(), bytes);
    }
    let own = PackId::from_bytes([255; 20]);
    if let Ok(page) = decode_page(bytes, own) {
        let neat = runs(&slots(&page));
        assert_eq!(slots(&neat), slots(&page));
        assert_eq!(decode_page(&encode_page(&neat), own).as_ref(), Ok(&neat));
    }
    if let Ok(root) = Root::decode(&mut Reader::new(bytes), chunk_size) {
        assert_eq!(root.pages.len() as u64, page_count(root.size, chunk_size));
        let mut out = Writer::default();
        root.encode(&mut out);
        assert_eq!(Root::decode(&mut Reader::new(&out.0), chunk_size), Ok(root));
    }
    if let Ok(body) = Body::decode(bytes, chunk_size) {
        assert_eq!(Body::decode(&body.encode(), chunk_size), Ok(body));
    }
    if let Ok(disk) = DraftDisk::decode(bytes, chunk_size) {
        assert_eq!(DraftDisk::decode(&disk.encode(), chunk_size), Ok(disk));
    }
    if let Ok(hooks) = Hooks::decode(&mut Reader::new(bytes)) {
        assert_eq!(Hooks::decode(&mut Reader::new(&hooks.encode())), Ok(hooks));
    }
    if let Ok(batch) = Batch::decode(String::new(), bytes) {
        let again = Batch::decode(String::new(), &Batch::encode(batch.at, &batch.packs));
        assert!(again.is_ok_and(|again| (again.at, again.packs) == (batch.at, batch.packs)));
    }
}
