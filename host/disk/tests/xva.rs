//! Facts about XVA files.

use std::fs::File;
use std::io::Write;

use bytes::Bytes;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::xva::{Archive, BLOCK, CHUNK, Checksum, MAX_CHUNK, Piece, Reader, Writer, XvaError};

const METADATA: &[u8] = b"<value>a VM</value>";

/// A tar member as hosts write it, built without the writer.
fn member(name: &str, body: &[u8]) -> Vec<u8> {
    member_of(name, body.len() as u64, body)
}

/// One whose header promises `length` bytes.
fn member_of(name: &str, length: u64, body: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    for (at, text) in [(100, "0000000"), (108, "0000000"), (116, "0000000"), (136, "00000000000"), (156, "0")] {
        block[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    block[124..135].copy_from_slice(format!("{length:011o}").as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    block[148..155].copy_from_slice(format!("{sum:07o}").as_bytes());
    block.extend(body);
    block.resize(block.len().next_multiple_of(BLOCK), 0);
    block
}

/// A chunk and its checksum.
fn chunk(name: &str, bytes: &[u8], checksum: Checksum) -> Vec<u8> {
    let suffix = match checksum {
        Checksum::XxHash => "xxhash",
        Checksum::Sha1 => "checksum",
    };
    [member(name, bytes), member(&format!("{name}.{suffix}"), checksum.of(bytes).as_bytes())].concat()
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let ova = member("ova.xml", METADATA);
    [&[ova], members, &[vec![0; 2 * BLOCK]]].concat().concat()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 + 1).collect()
}

fn write(disks: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), METADATA).expect("a new archive");
    for (id, disk) in disks {
        writer.begin(id, disk.len() as u64).expect("a new disk");
        writer.put(0, disk).expect("inside of the disk");
    }
    writer.finish().expect("a whole archive")
}

/// Names and lengths of the members, by nothing but what a tar is.
fn members(archive: &[u8]) -> Vec<(String, u64)> {
    let (mut members, mut at) = (Vec::new(), 0);
    while archive[at] != 0 {
        let header = &archive[at..at + BLOCK];
        let name = String::from_utf8(header[..100].to_vec()).expect("a name");
        let length = std::str::from_utf8(&header[124..135]).expect("digits");
        let length = u64::from_str_radix(length, 8).expect("octal");
        members.push((name.trim_end_matches('\0').to_owned(), length));
        at += BLOCK + length.next_multiple_of(BLOCK as u64) as usize;
    }
    members
}

/// All that a reader gives.
fn read(archive: &[u8]) -> Result<Vec<(String, Piece)>, XvaError> {
    let mut reader = Reader::open(archive)?;
    let mut pieces = Vec::new();
    while let Some(piece) = reader.next_piece()? {
        pieces.push(piece);
    }
    assert_eq!(reader.metadata(), METADATA);
    Ok(pieces)
}

/// All that an archive gives when it is asked for each of its chunks.
fn read_parts(bytes: &[u8]) -> Result<Vec<(String, Piece)>, XvaError> {
    let archive = Archive::open(file(bytes))?;
    assert_eq!(archive.metadata(), METADATA);
    let mut pieces = Vec::new();
    for disk in archive.disks() {
        for Extent { mut offset, length } in disk.extents().iter() {
            let end = offset + length;
            while offset < end {
                let piece = archive.chunk(disk, offset)?.expect("an extent has chunks");
                offset = piece.offset + piece.bytes.len() as u64;
                pieces.push((disk.id.clone(), piece));
            }
        }
    }
    Ok(pieces)
}

/// The disk that the pieces make, where nothing else is in it.
fn put_together(pieces: &[(String, Piece)], id: &str) -> Vec<u8> {
    let mut disk = Vec::new();
    for (_, piece) in pieces.iter().filter(|(of, _)| of == id) {
        assert!(piece.offset >= disk.len() as u64, "pieces ascend");
        disk.resize(piece.offset as usize, 0);
        disk.extend(&piece.bytes);
    }
    disk
}

#[test]
fn headers_are_those_of_hosts() {
    let archive = write(&[("Ref:3", &pattern(512))]);
    let header: Vec<&[u8]> = archive[..BLOCK].split(|byte| *byte == 0).filter(|field| !field.is_empty()).collect();
    let header: Vec<_> = header.into_iter().map(String::from_utf8_lossy).collect();
    assert_eq!(header, ["ova.xml", "0000000", "0000000", "0000000", "00000000023", "00000000000", "0006012", "0"]);
    assert_eq!(archive[..BLOCK], member("ova.xml", METADATA)[..BLOCK]);
    assert_eq!(archive[archive.len() - 2 * BLOCK..], [0; 2 * BLOCK]);
}

#[test]
fn checksums_are_written_as_hosts_do() {
    assert_eq!(Checksum::XxHash.of(b""), "EF46DB3751D8E999");
    assert_eq!(Checksum::XxHash.of(b"abc"), "44BC2CF5AD770999");
    assert_eq!(Checksum::Sha1.of(b"abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
}

#[test]
fn chunks_of_zeroes_are_left_out_but_for_the_first_and_the_last() {
    let mut disk = vec![0; 5 * CHUNK as usize + 512];
    disk[2 * CHUNK as usize + 7] = 1;
    let archive = write(&[("Ref:12", &disk)]);
    let chunks: Vec<_> = members(&archive).into_iter().filter(|(name, _)| name.starts_with("Ref")).collect();
    let of = |number: u64, length: u64| {
        [(format!("Ref:12/{number:08}"), length), (format!("Ref:12/{number:08}.xxhash"), 16)]
    };
    assert_eq!(chunks, [of(0, CHUNK), of(2, CHUNK), of(5, 512)].concat());
    let (pieces, parts) = (read(&archive).expect("whole"), read_parts(&archive).expect("whole"));
    assert_eq!((put_together(&pieces, "Ref:12"), pieces), (disk, parts));
}

#[test]
fn hosts_count_gaps_in_the_first_length_of_all_so_a_short_one_allows_none() {
    let (short, long) = (pattern(1024), vec![0; 4 * CHUNK as usize]);
    let archive = write(&[("Ref:1", &short), ("Ref:2", &long)]);
    assert_eq!(members(&archive).len(), 1 + 2 + 8, "all chunks of the second disk are there");
    assert_eq!(put_together(&read(&archive).expect("whole"), "Ref:2"), long);
}

#[test]
fn a_sign_of_life_uses_a_number_up_and_moves_nothing() {
    let (first, second, last) = (pattern(1024), vec![3; 1024], vec![4; 512]);
    let xva = archive(&[
        chunk("Ref:7/00000000", &first, Checksum::XxHash),
        chunk("Ref:7/00000001", &[], Checksum::XxHash),
        chunk("Ref:7/00000002", &second, Checksum::Sha1),
        chunk("Ref:7/00000004", &[], Checksum::XxHash),
        chunk("Ref:7/00000005", &last, Checksum::XxHash),
    ]);
    let disk = [&first[..], &second, &[0; 1024], &last].concat();
    assert_eq!(put_together(&read(&xva).expect("whole"), "Ref:7"), disk);
    assert_eq!(put_together(&read_parts(&xva).expect("whole"), "Ref:7"), disk);
    let archive = Archive::open(file(&xva)).expect("whole");
    assert_eq!(archive.disk("Ref:7").expect("the disk").length, disk.len() as u64);
    assert_eq!(archive.disks()[0].extents(), Extents::from_iter([(0, 2048), (3072, 512)].map(extent)));
    assert!(archive.chunk(&archive.disks()[0], 2048).expect("a gap").is_none());
}

fn extent((offset, length): (u64, u64)) -> Extent {
    Extent { offset, length }
}

#[test]
fn a_table_of_checksums_at_the_end_is_passed_over() {
    let xva = archive(&[chunk("Ref:7/00000000", &pattern(512), Checksum::Sha1), member("checksum.xml", b"<value/>")]);
    assert_eq!(read(&xva).expect("whole").len(), 1);
    assert_eq!(read_parts(&xva).expect("whole").len(), 1);
}

#[test]
fn what_is_no_whole_xva_is_refused_with_a_reason() {
    let check = |bytes: &[u8], expected: Expect| {
        let error = read(bytes).expect_err("refused").to_string();
        expected.assert_eq(&error);
        if !error.contains("checksum of chunk Ref:1") {
            assert_eq!(read_parts(bytes).expect_err("refused").to_string(), error);
        }
    };
    let sound = chunk("Ref:1/00000000", &pattern(512), Checksum::XxHash);
    let mut damaged = archive(std::slice::from_ref(&sound));
    damaged[3 * BLOCK + 5] ^= 1;
    check(
        b"",
        expect!["the XVA ends at byte 0, before its last member is whole: it was cut off; copy or export it again"],
    );
    check(
        &[b"\x1f\x8b\x08".to_vec(), vec![1; BLOCK]].concat(),
        expect!["the file is compressed with gzip: unpack it first, for example `gunzip < FILE > FILE.xva`"],
    );
    check(
        &[b"\x28\xb5\x2f\xfd".to_vec(), vec![1; BLOCK]].concat(),
        expect!["the file is compressed with zstd: unpack it first, for example `unzstd < FILE > FILE.xva`"],
    );
    check(&[7; 2 * BLOCK], expect!["byte 0: no header of a tar member: it is no XVA, or damaged here"]);
    check(&[0; 2 * BLOCK], expect!["byte 0: the XVA ends where ova.xml belongs"]);
    check(&member("vm.vhd", b"x"), expect![[r#"byte 0: "vm.vhd" where ova.xml belongs"#]]);
    check(
        &member_of("ova.xml", 1 << 30, b"x"),
        expect!["byte 0: ova.xml of 1073741824 bytes, at most 16777216 are read"],
    );
    check(
        &damaged,
        expect![
            "byte 1024: the checksum of chunk Ref:1/00000000 is wrong: the XVA is damaged; copy or export it again"
        ],
    );
    check(
        &archive(&[member("Ref:1/00000000", &pattern(512))]),
        expect!["byte 2048: the XVA ends where the checksum of chunk Ref:1/00000000 belongs"],
    );
    check(
        &archive(&[member("Ref:1/00000000", b""), sound.clone()]),
        expect![[r#"byte 1536: "Ref:1/00000000" where the checksum of Ref:1/00000000 belongs"#]],
    );
    check(
        &archive(&[sound.clone(), sound.clone()]),
        expect![[r#"byte 3072: "Ref:1/00000000" where a chunk with a larger number belongs"#]],
    );
    check(
        &archive(&[sound.clone(), chunk("Ref:0/00000000", b"", Checksum::XxHash)]),
        expect![[r#"byte 3072: "Ref:0/00000000" where a disk whose name comes later as text belongs"#]],
    );
    check(&archive(&[member("../Ref:1", b"")]), expect![[r#"byte 1024: "../Ref:1" where a chunk of a disk belongs"#]]);
    check(
        &archive(&[member_of("Ref:1/0", MAX_CHUNK + 1, b"")]),
        expect!["byte 1024: a chunk of 16777217 bytes, at most 16777216 are read"],
    );
    let far = chunk("Ref:1/999999999999", &pattern(512), Checksum::XxHash);
    let large = chunk("Ref:1/00000000", &vec![1; MAX_CHUNK as usize], Checksum::XxHash);
    check(&archive(&[large, far]), expect!["byte 16779776: chunk Ref:1/999999999999 would lie beyond any disk"]);
    check(
        &archive(&[sound, member("checksum.xml", b""), member("more", b"")]),
        expect![[r#"byte 3584: "more" where the end belongs"#]],
    );
}

#[test]
fn what_would_make_no_xva_is_not_written() {
    let mut writer = Writer::new(Vec::new(), METADATA).expect("a new archive");
    writer.put(0, &[1]).expect_err("no disk");
    writer.begin("Ref:1", 0).expect_err("hosts look for chunks of a disk that has some");
    writer.begin("Ref:1", 100).expect_err("no whole sectors");
    writer.begin("Ref:10", CHUNK).expect("a disk");
    writer.put(CHUNK - 1, &[1, 2]).expect_err("beyond the end");
    writer.put(u64::MAX, &[1, 2]).expect_err("beyond the end");
    writer.put(512, &[1, 2]).expect("inside");
    writer.put(513, &[1, 2]).expect_err("backwards");
    writer.begin("Ref:10", CHUNK).expect_err("twice");
    writer.begin("Ref:1", CHUNK).expect_err("before the other as text");
    writer.begin("Ref:9", CHUNK).expect("behind it");
    let whole = writer.finish().expect("a whole archive");
    assert_eq!(put_together(&read(&whole).expect("whole"), "Ref:9").len() as u64, CHUNK);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_put_is_read(
        sizes in proptest::collection::vec(1..9000u64, 1..4),
        put in proptest::collection::vec((0..8000u64, 1..3000u64), 0..5), piece in 1..3000u32,
    ) {
        let put: Extents = put.iter().map(|(from, count)| extent((from * 512, count * 512))).collect();
        let source = Bytes::from(pattern(11_000 * 512));
        let mut writer = Writer::new(Vec::new(), METADATA).unwrap();
        let mut disks = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let mut disk = vec![0; (size * 512) as usize];
            writer.begin(&format!("Ref:{index}"), size * 512).unwrap();
            for Extent { offset, length } in put.clone().clipped(size * 512).split(piece * 512) {
                let range = offset as usize..(offset + length) as usize;
                writer.put(offset, &source[range.clone()]).unwrap();
                disk[range.clone()].copy_from_slice(&source[range]);
            }
            disks.push(disk);
        }
        let whole = writer.finish().unwrap();
        let pieces = read(&whole).unwrap();
        for (index, disk) in disks.iter().enumerate() {
            prop_assert!(put_together(&pieces, &format!("Ref:{index}")) == *disk, "disk {}", index);
        }
        prop_assert!(pieces == read_parts(&whole).unwrap());
    }

    #[test]
    fn a_cut_or_damaged_archive_is_refused(at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut whole = write(&[("Ref:1", &pattern(700 * 512)), ("Ref:2", &pattern(3 * 512))]);
        prop_assert!(read(&whole[..at.index(whole.len() - BLOCK)]).is_err());
        prop_assert!(read_parts(&whole[..at.index(whole.len() - BLOCK)]).is_err());
        let sound = read(&whole).unwrap();
        let at = at.index(whole.len() - 2 * BLOCK);
        whole[at] ^= 1 << bit;
        // Padding and what a VM is have no checksum.
        if let Ok(mut reader) = Reader::open(&whole[..]) {
            let mut pieces = Vec::new();
            while let Ok(Some(piece)) = reader.next_piece() {
                pieces.push(piece);
            }
            prop_assert!(sound.starts_with(&pieces), "nothing wrong is given");
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut xva = member("ova.xml", b"");
        xva.extend(&bytes);
        for bytes in [&xva, &bytes] {
            if let Ok(mut reader) = Reader::open(&bytes[..]) {
                while let Ok(Some(_)) = reader.next_piece() {}
            }
            let _ = Archive::open(file(bytes));
        }
    }
}
