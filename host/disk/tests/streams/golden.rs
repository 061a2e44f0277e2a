//! Streams written by the library that XAPI uses, and by qemu-img (`q.vhd`). The disk has 16 MiB;
//! base, child and sib hold 2, 4 and 3 sectors of one byte value each; child and sib are children
//! of base.

use std::io::Read;

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use vmferry_disk::vhd::{DiskType, NewDisk, Parent, Writer};

use crate::model;

struct Vector {
    name: &'static str,
    blocks: &'static [u32],
    onto: Option<&'static str>,
    gives: &'static str,
    bytes: u64,
}

const fn vector(
    name: &'static str,
    blocks: &'static [u32],
    onto: Option<&'static str>,
    gives: &'static str,
    bytes: u64,
) -> Vector {
    Vector { name, blocks, onto, gives, bytes }
}

const VECTORS: [Vector; 10] = [
    vector("base.vhd", &[0, 2], None, "base.raw", 4_198_400),
    vector("child.vhd", &[0, 4], Some("base.raw"), "child.raw", 4_198_400),
    vector("full.out", &[0, 2, 4], None, "child.raw", 6_296_064),
    vector("delta.out", &[0, 4], Some("base.raw"), "child.raw", 4_198_400),
    vector("hyb.out", &[0, 4], Some("base.raw"), "child.raw", 4_198_400),
    vector("sd.out", &[0, 3, 4], Some("sib.raw"), "child.raw", 6_296_064),
    vector("back.out", &[0, 4], Some("child.raw"), "base.raw", 4_198_400),
    vector("same.out", &[], Some("child.raw"), "child.raw", 3072),
    vector("q.vhd", &[0, 2, 4], None, "child.raw", 6_295_552),
    vector("rv.out", &[0, 2, 4], None, "child.raw", 6_296_064),
];

const DISKS: [(&str, &str); 3] = [
    ("base.raw", "d34f73b98dd6f313deb38e319d9cb58f67e252e6d4b3bcdffdace1b8b711eeb6"),
    ("child.raw", "2056f8e2a5029f2610b51e8567056c32109e7b6c6d7987348c5462f4e0b53fc8"),
    ("sib.raw", "96584e3ccbf079e4cf1a84db9bdadad6cb8552332223b9e4e2bcd1a4e8945556"),
];

fn unpack(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{name}.gz", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).expect("a whole gzip file");
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_vector_reads_to_its_disk() {
    for Vector { name, blocks, onto, gives, bytes } in VECTORS {
        let stream = unpack(name);
        let head = model::head_of(&stream).expect(name);
        assert_eq!(head.block_numbers().collect::<Vec<_>>(), blocks, "{name}");
        assert_eq!(head.used_blocks() as usize, blocks.len(), "{name}");
        assert_eq!(head.changed_bytes(), blocks.len() as u64 * (2 << 20), "{name}");
        assert_eq!(head.stream_length(), bytes, "{name}");
        assert_eq!(head.virtual_size(), 16 << 20, "{name}");
        let disk_type = if onto.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
        assert_eq!(head.disk_type(), disk_type, "{name}");

        let mut disk = onto.map_or_else(|| vec![0; 16 << 20], unpack);
        let report = model::apply(&stream, &mut disk).expect(name);
        let (_, expected) = DISKS.iter().find(|(disk, _)| *disk == gives).expect("a known disk");
        assert_eq!(sha256(&disk), *expected, "{name}");
        assert_eq!(report.blocks as usize, blocks.len(), "{name}");
        let partial = if name == "child.vhd" { 2 } else { 0 };
        assert_eq!(report.partial_blocks, partial, "{name}");
    }
}

/// The id of each stream is random and the parent is a file that the exporter knew, so these are
/// taken from the vector; every other byte, both checksums included, is ours.
#[test]
fn every_export_is_written_byte_for_byte() {
    let ours = VECTORS.iter().filter(|vector| !["child.vhd", "q.vhd"].contains(&vector.name));
    for Vector { name, blocks, gives, .. } in ours {
        let expected = unpack(name);
        let head = model::head_of(&expected).expect(name);
        let (footer, header) = (head.footer(), head.header());
        let parent = (head.disk_type() == DiskType::Differencing).then(|| Parent {
            unique_id: header.parent_id,
            timestamp: header.parent_timestamp,
            path: String::from_utf16(&header.parent_name).expect("a path"),
        });
        let disk =
            NewDisk { virtual_size: head.virtual_size(), unique_id: footer.unique_id, creator: *b"caml", parent };
        let writer = Writer::new(&disk, blocks).expect(name);
        assert_eq!(writer.head().stream_length(), expected.len() as u64, "{name}");
        let written = model::render(&writer, &unpack(gives));
        let differs = written.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!((differs, written.len()), (None, expected.len()), "{name}");
    }
}
