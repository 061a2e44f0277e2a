//! Makes the seeds: of `vhd_scan` from the golden vectors of `host/disk`, of the others by hand.

use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flate2::read::GzDecoder;
use vmferry_disk::encoding::{Encoding, SealKey, encode};
use vmferry_disk::vhd::{Footer, Head, HeadParser, Header, MIN_BLOCK_SIZE, Parsed, Scan};
use vmferry_disk::xva::Writer;

fn main() -> Result<(), Box<dyn Error>> {
    vhd_scan()?;
    cbt_bitmap()?;
    chunked_scan()?;
    encoding()?;
    qcow2_head()?;
    xva_reader()?;
    nbd_client()
}

/// The folder of a target's seeds.
fn seeds(target: &str) -> Result<PathBuf, Box<dyn Error>> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&seeds)?;
    Ok(seeds)
}

/// A frame with its length and one without, frames that hold too much, and what they are sealed in.
fn encoding() -> Result<(), Box<dyn Error>> {
    let seeds = seeds("encoding")?;
    let key = SealKey::new([7; 32]);
    let plain = Bytes::from(b"ab".repeat(400));
    let encodings = [
        ("identity", Encoding::Identity),
        ("zstd", Encoding::Zstd),
        ("sealed", Encoding::Sealed),
        ("zstd-sealed", Encoding::ZstdSealed),
    ];
    for (mode, (name, encoding)) in encodings.into_iter().enumerate() {
        let encoded = encode(encoding, &plain, Some(&key))?;
        for (suffix, most) in [("", 13), ("-short", 12)] {
            fs::write(seeds.join(format!("{name}{suffix}")), [&[mode as u8, most, 1], &encoded[..]].concat())?;
        }
    }
    let without_length = b"\x28\xb5\x2f\xfd\x00\x00\x4d\x00\x00\x18\x61\x62\x61\x01\x00\x1a\xea\x86";
    fs::write(seeds.join("zstd-without-length"), [&[1, 2, 0], &without_length[..]].concat())?;
    Ok(())
}

/// Sparse, full and empty bitmaps, for disks that end anywhere in the last byte.
fn cbt_bitmap() -> Result<(), Box<dyn Error>> {
    let seeds = seeds("cbt_bitmap")?;
    let bitmaps: [(&str, &[u8]); 4] =
        [("none", &[]), ("empty", &[0; 9]), ("full", &[0xff; 5]), ("sparse", b"\x80\0\x01\x18")];
    for (name, bitmap) in bitmaps {
        let short: u64 = bitmap.len() as u64 * 65_000;
        fs::write(seeds.join(name), [&short.to_le_bytes(), bitmap].concat())?;
    }
    Ok(())
}

/// Two ranges, in one frame each and in frames of a sector, with and without what may be left out.
fn chunked_scan() -> Result<(), Box<dyn Error>> {
    let seeds = seeds("chunked_scan")?;
    // Sectors 1 and 2, and sectors 4 to 6.
    let ranges = [0x11, 0x12, 0, 0];
    let frames: [(&str, u8, &[(u64, u32)]); 4] = [
        ("whole", 0b0100, &[(1, 2), (4, 3)]),
        ("sectors", 0b0110, &[(1, 1), (2, 1), (4, 1), (5, 1), (6, 1)]),
        ("part", 0b0101, &[(4, 3)]),
        ("empty", 0b0111, &[]),
    ];
    for (name, mode, frames) in frames {
        let mut seed = [&[mode, 40], &ranges[..]].concat();
        for (sector, sectors) in frames {
            seed.extend((sector * 512).to_le_bytes());
            seed.extend((sectors * 512).to_le_bytes());
            seed.resize(seed.len() + *sectors as usize * 512, 0xd0);
        }
        seed.extend([0; 12]);
        fs::write(seeds.join(name), seed)?;
    }
    Ok(())
}

/// Two disks with a gap, as they are and to be repaired; signs of life and old checksums, of which none is right before the repair.
fn xva_reader() -> Result<(), Box<dyn Error>> {
    let seeds = seeds("xva_reader")?;
    let mut disk = vec![0; 1024];
    disk[1023] = 7;
    let mut writer = Writer::new(Vec::new(), b"<value/>")?;
    for id in ["Ref:1", "Ref:2"] {
        writer.begin(id, disk.len() as u64)?;
        writer.put(0, &disk)?;
    }
    let written = writer.finish()?;
    let member = |name: &str, length: usize| {
        let mut block = vec![0; 512 + length.next_multiple_of(512)];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{length:011o}").as_bytes());
        block
    };
    let mut rough = member("ova.xml", 0);
    for (number, length) in [(0, 512), (1, 0), (3, 512)] {
        let name = format!("Ref:1/{number:08}");
        rough.extend(member(&name, length));
        rough.extend(member(&format!("{name}.checksum"), 40));
    }
    rough.extend([0; 1024]);
    for (name, mode, xva) in [("written", 0, &written), ("written-repaired", 1, &written), ("rough", 1, &rough)] {
        fs::write(seeds.join(name), [&[mode], xva.as_slice()].concat())?;
    }
    Ok(())
}

/// Clusters of 512 bytes: two L2 tables in reverse order, with data and zeroes; no L1 table; version 2.
fn qcow2_head() -> Result<(), Box<dyn Error>> {
    let seeds = seeds("qcow2_head")?;
    let image = |version: u32, size: u64, l1: &[u64], l2: [&[(usize, u64)]; 2]| -> Vec<u8> {
        let mut stream = vec![0; 512];
        let mut put = |at: usize, bytes: &[u8]| stream[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &version.to_be_bytes());
        put(20, &9u32.to_be_bytes());
        put(24, &size.to_be_bytes());
        put(36, &(l1.len() as u32).to_be_bytes());
        put(40, &512u64.to_be_bytes());
        stream.extend(l1.iter().flat_map(|entry| entry.to_be_bytes()));
        stream.resize(1024, 0);
        for used in l2 {
            let mut table = [0; 64];
            used.iter().for_each(|(index, entry)| table[*index] = *entry);
            stream.extend(table.iter().flat_map(|entry: &u64| entry.to_be_bytes()));
        }
        stream
    };
    let l1 = [1536 | 1 << 63, 0, 1024 | 1 << 63];
    let l2: [&[(usize, u64)]; 2] = [&[(0, 2048), (1, 1)], &[(5, 2560 | 1 << 63), (6, 3072 | 1)]];
    for (name, mode, image) in [
        ("whole", 0, image(3, 90_112, &l1, l2)),
        ("difference", 0x15, image(3, 90_112, &l1, l2)),
        ("empty", 2, image(3, 0, &[], [&[], &[]])),
        ("version-2", 0, image(2, 90_112, &l1, [&[(0, 2048)], &[(63, 2560)]])),
    ] {
        fs::write(seeds.join(name), [&[mode], &*image].concat())?;
    }
    Ok(())
}

/// A good server as it is and without its handshake, one that upgrades to TLS, one that answers backwards.
fn nbd_client() -> Result<(), Box<dyn Error>> {
    let seeds = seeds("nbd_client")?;
    let export = [&65536u64.to_be_bytes()[..], &[0, 3], &[0; 124]].concat();
    let greeting = b"NBDMAGICIHAVEOPT\0\x01";
    let tls = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0";
    let replies = |cookies: &[u64]| -> Vec<u8> {
        let reply = |cookie: &u64| [b"\x67\x44\x66\x98\0\0\0\0", &cookie.to_be_bytes()[..], &[0xd0; 512]].concat();
        cookies.iter().flat_map(reply).collect()
    };
    // Extents 0, 1 and 2 are six requests, of which four are under way.
    let seed = |mode: u8, says: &[&[u8]]| [&[mode, 0b111], says.concat().as_slice()].concat();
    fs::write(seeds.join("good"), seed(0xfc, &[greeting, &export, &replies(&[0, 1, 2, 3, 4, 5])]))?;
    fs::write(seeds.join("good-cut"), seed(0x08, &[greeting, &export, &replies(&[0, 1, 2, 3, 4, 5])]))?;
    fs::write(seeds.join("opened"), seed(0xfd, &[&replies(&[0, 1, 2, 3, 4, 5])]))?;
    fs::write(seeds.join("backwards"), seed(0x09, &[&replies(&[3, 2, 1, 0, 5, 4])]))?;
    fs::write(seeds.join("tls"), seed(0xfe, &[greeting, tls, &export]))?;
    let refused = [b"\x67\x44\x66\x98\0\0\0\x05", &1u64.to_be_bytes()[..]].concat();
    fs::write(seeds.join("refused"), seed(0xfc, &[greeting, &export, &replies(&[0]), &refused]))?;
    Ok(())
}

fn vhd_scan() -> Result<(), Box<dyn Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let seeds = seeds("vhd_scan")?;
    for entry in fs::read_dir(here.join("../../host/disk/tests/golden"))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).ok_or("an odd file name")?;
        if name.ends_with(".raw") {
            continue;
        }
        let mut stream = Vec::new();
        GzDecoder::new(File::open(&path)?).read_to_end(&mut stream)?;
        let condensed = condense(&stream)?;
        fs::write(seeds.join(format!("{name}-01")), [&[1], &*shrink(&stream)?].concat())?;
        // Repaired and byte by byte; as it is and in large pieces.
        for mode in [0b11, 0b1111_1110] {
            let mut seed = vec![mode];
            seed.extend_from_slice(&condensed);
            fs::write(seeds.join(format!("{name}-{mode:02x}")), seed)?;
        }
    }
    Ok(())
}

/// The stream without the data of its blocks and without gaps.
fn condense(stream: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let head = head_of(stream)?;
    let mut condensed = head.raw().to_vec();
    let mut scan = Scan::new(&head);
    while scan.remaining() > 0 {
        scan.skip(scan.opaque())?;
        if scan.opaque() == 0 && scan.remaining() > 0 {
            let at = stream.len() - usize::try_from(scan.remaining())?;
            let sector = &stream[at..at + 512];
            scan.feed(sector, &mut |_| {})?;
            condensed.extend_from_slice(sector);
        }
    }
    scan.finish()?;
    Ok(condensed)
}

/// The same blocks in the smallest size, each with other gaps in its bitmap: short enough to be a
/// seed with its payload.
fn shrink(stream: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let head = head_of(stream)?;
    let size = u64::from(head.header().table_entries) * u64::from(MIN_BLOCK_SIZE);
    let footer = Footer { virtual_size: size, ..head.footer().clone() }.encode();
    let header = Header { block_size: MIN_BLOCK_SIZE, ..head.header().clone() };
    let table = usize::try_from(header.table_offset)?;
    let mut small = head.raw().to_vec();
    small[..512].copy_from_slice(&footer);
    small[512..1536].copy_from_slice(&header.encode());
    for block in head.block_numbers() {
        let entry = u32::try_from(small.len() / 512)?;
        let at = table + 4 * usize::try_from(block)?;
        small[at..at + 4].copy_from_slice(&entry.to_be_bytes());
        let number = u8::try_from(block)?;
        small.extend_from_slice(&[0xff << number; 512]);
        small.resize(small.len() + usize::try_from(MIN_BLOCK_SIZE)?, number);
    }
    small.extend_from_slice(&footer);
    Ok(small)
}

fn head_of(stream: &[u8]) -> Result<Head, Box<dyn Error>> {
    match HeadParser::new().feed(&mut &*stream)? {
        Parsed::Head(head) => Ok(head),
        Parsed::More(_) => Err("no whole head".into()),
    }
}
