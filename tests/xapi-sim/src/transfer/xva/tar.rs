//! As much of tar as xapi has: names up to 100 bytes, no owners, no dates.

pub(super) const BLOCK: usize = 512;

/// A header, and the zeroes that belong behind the body.
pub(super) fn header(name: &str, length: usize) -> ([u8; BLOCK], Vec<u8>) {
    let mut block = [0; BLOCK];
    let fields: [(usize, String); 7] = [
        (0, name.to_owned()),
        (100, "0000000".to_owned()),
        (108, "0000000".to_owned()),
        (116, "0000000".to_owned()),
        (124, format!("{length:011o}")),
        (136, "00000000000".to_owned()),
        // The sum is made with spaces in its own place.
        (148, " ".repeat(8)),
    ];
    for (at, text) in &fields {
        block[*at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    block[156] = b'0';
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
    (block, vec![0; length.next_multiple_of(BLOCK) - length])
}

/// Name and length of a member; `None` for a block of zeroes.
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Option<(String, usize)>, String> {
    if block == &[0; BLOCK] {
        return Ok(None);
    }
    let text = |from: usize, to: usize| {
        let field = block[from..to].split(|byte| *byte == 0 || *byte == b' ').next().unwrap_or_default();
        String::from_utf8_lossy(field).into_owned()
    };
    let octal = |from, to| u32::from_str_radix(&text(from, to), 8).map_err(|error| error.to_string());
    let mut summed = *block;
    summed[148..156].fill(b' ');
    if octal(148, 156)? != summed.iter().map(|byte| u32::from(*byte)).sum::<u32>() {
        return Err("Tar.Header.Checksum_mismatch".to_owned());
    }
    Ok(Some((text(0, 100), octal(124, 136)? as usize)))
}
