//! Makes the seeds of `vhd_scan` from the golden vectors of `host/disk`.

use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use vmferry_disk::vhd::{Footer, Head, HeadParser, Header, MIN_BLOCK_SIZE, Parsed, Scan};

fn main() -> Result<(), Box<dyn Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let seeds = here.join("seeds/vhd_scan");
    fs::create_dir_all(&seeds)?;
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
