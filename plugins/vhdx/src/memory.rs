//! A file in memory, for tests.

use crate::Storage;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;

const PAGE: u64 = 4096;
/// Longer than any disk file; beyond it a length is taken for nonsense, as file systems do.
const LONGEST: u64 = 1 << 47;

/// A sparse file in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryFile {
    pages: RefCell<BTreeMap<u64, Box<[u8; PAGE as usize]>>>,
    length: Cell<u64>,
}

impl MemoryFile {
    /// Runs through the parts of `length` bytes at `offset` that are in one page each.
    fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = offset + done as u64;
            let start = (at % PAGE) as usize;
            let part = (PAGE as usize - start).min(length - done);
            done += part;
            (part > 0).then(|| (at / PAGE, start, done - part..done))
        })
    }
}

impl Storage for MemoryFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.length.get()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let pages = self.pages.borrow();
        for (page, start, range) in Self::parts(offset, buffer.len()) {
            let length = range.len();
            match pages.get(&page) {
                Some(page) => buffer[range].copy_from_slice(&page[start..start + length]),
                None => buffer[range].fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= LONGEST);
        let end = end.ok_or(io::ErrorKind::FileTooLarge)?;
        let mut pages = self.pages.borrow_mut();
        for (page, start, range) in Self::parts(offset, bytes.len()) {
            if !pages.contains_key(&page) && bytes[range.clone()].iter().all(|byte| *byte == 0) {
                continue;
            }
            let page = pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[start..start + range.len()].copy_from_slice(&bytes[range]);
        }
        self.length.set(self.length.get().max(end));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.length.get())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if length > LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut pages = self.pages.borrow_mut();
        pages.split_off(&length.div_ceil(PAGE));
        if let Some(page) = pages.get_mut(&(length / PAGE)) {
            page[(length % PAGE) as usize..].fill(0);
        }
        self.length.set(length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_is_zero_afterwards() {
        let file = MemoryFile::default();
        file.write_at(4090, b"across two pages").expect("written");
        file.set_length(4093).expect("cut");
        file.set_length(9000).expect("longer");
        let mut read = [1; 8];
        file.read_at(4090, &mut read).expect("read");
        assert_eq!(&read, b"acr\0\0\0\0\0");
        assert!(file.read_at(8999, &mut [0; 2]).is_err());
    }
}
