//! What a delta costs that changes a disk file in place, beside one that is put into a copy of it: `in_place [MIB] [CHANGED] [ROUNDS]`.
//! A MiB that changes is one block of a VHDX, and half of one of a VHD.
//!
//! Rounds are interleaved, on a file system where it runs; each point is synced. Natively, without the sandbox around it.

#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::io::Cursor;
use std::rc::Rc;
use std::time::Instant;
use target_hyperv::{Format, Keeper, Points};
use vmferry_plugin_api::delta::{Checksum, Chunk, Delta, Encoding, Info, Kind, Payload};
use vmferry_plugin_api::files::Folder;
use vmferry_plugin_api::stream::Input;
use vmferry_plugin_api::target::{DiskReceipt, Draft};
use vmferry_plugin_api::{Error, ErrorCode};

const MIB: u64 = 1 << 20;

/// Blocks of a disk, all with the same bytes.
struct Blocks {
    info: Info,
    left: std::cell::RefCell<std::vec::IntoIter<u64>>,
    bytes: Rc<[u8]>,
}

struct Block(u64, Rc<[u8]>);

impl Delta for Blocks {
    fn info(&self) -> Info {
        self.info.clone()
    }

    fn next(&self) -> Result<Option<Box<dyn Chunk>>, Error> {
        let next = self.left.borrow_mut().next();
        let offset = |block| block * self.bytes.len() as u64;
        Ok(next.map(|block| Box::new(Block(offset(block), Rc::clone(&self.bytes))) as Box<dyn Chunk>))
    }
}

impl Chunk for Block {
    fn offset(&self) -> u64 {
        self.0
    }

    fn length(&self) -> u32 {
        self.1.len() as u32
    }

    fn is_zero(&self) -> bool {
        false
    }

    fn digest(&self) -> Vec<u8> {
        vec![1; 32]
    }

    fn encode(&self, _: &Encoding) -> Result<Box<dyn Payload>, Error> {
        Ok(Box::new(Self(self.0, Rc::clone(&self.1))))
    }
}

impl Payload for Block {
    fn length(&self) -> u64 {
        self.1.len() as u64
    }

    fn digest(&self) -> Vec<u8> {
        vec![1; 32]
    }

    fn checksum(&self, _: &Checksum) -> Result<Vec<u8>, Error> {
        Err(Error::with_code(ErrorCode::Unsupported, "nobody asks"))
    }

    fn body(&self) -> Result<Input, Error> {
        Ok(Input::double(Cursor::new(Rc::clone(&self.1)), "a block"))
    }
}

/// Makes a point in which these MiB of the disk are others; the seconds that it took.
fn keep(keeper: &Keeper<Folder>, number: u64, size: u64, changed: impl Iterator<Item = u64>) -> Result<f64, Error> {
    let block_size = u64::from(keeper.format.block_size());
    let mut blocks: Vec<u64> = changed.map(|mib| mib * MIB / block_size).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let base = (number > 0).then(|| format!("point-{}", number - 1));
    let draft = Draft {
        id: format!("point-{number}"),
        job: "bench".to_owned(),
        vm: "vm".to_owned(),
        name: "vm".to_owned(),
        taken_at: number as i64,
        base: base.clone(),
        metadata: "{}".to_owned(),
        extensions: Vec::new(),
    };
    let kind = base.map_or(Kind::Full, Kind::Delta);
    let (disk, content) = ("disk".to_owned(), draft.id.clone());
    let info = Info { disk, content, size, kind, expected_bytes: 0, extensions: Vec::new() };
    let bytes = vec![number as u8 + 1; block_size as usize].into();
    let started = Instant::now();
    let receipt = keeper.write_disk(&draft, &Blocks { info, left: blocks.into_iter().into(), bytes })?;
    keeper.commit(&draft, &[DiskReceipt { disk: "disk".to_owned(), receipt, digest: None }])?;
    Ok(started.elapsed().as_secs_f64())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let mut next = |default| numbers.next().unwrap_or(Ok(default));
    let (mibs, changed, rounds) = (next(1024)?.next_multiple_of(2), next(10)?, next(5)?);
    let mut sides = Vec::new();
    for (format, points) in [
        (Format::Vhdx, Points::Newest),
        (Format::Vhdx, Points::Differencing),
        (Format::Vhdx, Points::Copies),
        (Format::Vhd, Points::Newest),
        (Format::Vhd, Points::Copies),
    ] {
        let folder = tempfile::tempdir_in(".")?;
        let name = folder.path().to_str().ok_or("a path that is not UTF-8")?.to_owned();
        let keeper = Keeper { place: Folder::open(&name)?, name, points, format, grace: 0 };
        keep(&keeper, 0, mibs * MIB, 0..mibs)?;
        sides.push((folder, keeper, Vec::new()));
    }
    for round in 1..=rounds {
        for (_, keeper, seconds) in &mut sides {
            let delta = (0..changed).map(|index| (index * mibs / changed + round) % mibs);
            seconds.push(keep(keeper, round, mibs * MIB, delta)?);
            if keeper.points == Points::Copies {
                // As retention would; not measured.
                keeper.delete(&format!("point-{}", round - 1))?;
            }
        }
    }
    println!("{changed} of {mibs} MiB changed, {rounds} rounds, median of seconds (smallest to largest)");
    for (_, keeper, mut seconds) in sides {
        seconds.sort_by(f64::total_cmp);
        let (median, first, last) = (seconds[seconds.len() / 2], seconds[0], seconds[seconds.len() - 1]);
        println!("{:<18} {median:.3} ({first:.3} to {last:.3})", format!("{:?}, {:?}", keeper.format, keeper.points));
    }
    Ok(())
}
