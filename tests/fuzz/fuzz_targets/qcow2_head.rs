//! The head of a qcow2 stream, in any pieces.
//!
//! The first byte is the mode: bit 0 asks for a difference, the rest gives the length of the pieces in which the stream is fed a
//! second time.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_disk::qcow2::{Content, Head, HeadParser, MAX_HEAD_LENGTH, MAX_VIRTUAL_SIZE, Parsed, Qcow2Error};

fuzz_target!(|data: &[u8]| {
    let Some((mode, stream)) = data.split_first() else { return };
    let content = if mode & 1 == 1 { Content::Difference } else { Content::Whole };
    let whole = read(stream, content, stream.len().max(1));
    assert_eq!(whole, read(stream, content, 1 + usize::from(mode >> 1)));
    let Ok((Some(head), taken)) = whole else { return };
    assert_eq!(head.length(), taken);
    assert!(head.virtual_size() <= MAX_VIRTUAL_SIZE && head.extents().end() <= head.virtual_size());
    for extent in head.extents().iter() {
        assert!(extent.offset % head.cluster_size() == 0);
        assert!(extent.end() % head.cluster_size() == 0 || extent.end() == head.virtual_size());
    }
    if content == Content::Whole {
        // A difference lists more, never less.
        let (other, _) = read(stream, Content::Difference, stream.len()).expect("the same tables");
        assert!(head.extents().without(other.expect("the same length").extents()).is_empty());
    }
});

/// The head, if the stream holds all of it, and the bytes that were taken.
fn read(stream: &[u8], content: Content, cut: usize) -> Result<(Option<Head>, u64), Qcow2Error> {
    let mut parser = HeadParser::new(content);
    let mut taken = 0;
    for mut piece in stream.chunks(cut) {
        let length = piece.len();
        let parsed = parser.feed(&mut piece)?;
        taken += (length - piece.len()) as u64;
        match parsed {
            Parsed::More(more) => {
                assert!(piece.is_empty() && more.wanted() > 0);
                assert!(more.fed() == taken && more.fed() + more.wanted() <= 2 * MAX_HEAD_LENGTH);
                parser = more;
            }
            Parsed::Head(head) => return Ok((Some(head), taken)),
        }
    }
    Ok((None, taken))
}
