//! What can be wrong with a plan and with a stream. `at` is always the byte of the stream.

/// The ranges cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A range reaches beyond the disk.
    #[error("the plan ends at byte {end}, but the disk has only {disk_size} bytes")]
    BeyondDisk {
        /// First byte behind the last range.
        end: u64,
        /// Size of the disk in bytes.
        disk_size: u64,
    },
    /// Disks are read and written in sectors of 512 bytes.
    #[error("the plan has a range of {length} bytes from byte {offset} on, which are not whole sectors")]
    NotSectors {
        /// First byte of the range.
        offset: u64,
        /// Its bytes.
        length: u64,
    },
}

/// The bytes are not the stream that was planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what each means; offsets are bytes of the disk")]
pub enum ChunkedError {
    #[error("byte {at}: a frame for disk byte {offset} without data in it")]
    EmptyFrame { at: u64, offset: u64 },
    #[error("byte {at}: a frame for disk byte {offset}, but {} was to come", place(*.expected))]
    OutOfPlace { at: u64, offset: u64, expected: Option<u64> },
    #[error(
        "byte {at}: a frame of {length} bytes for disk byte {offset}, but the planned range ends at disk byte {end}"
    )]
    TooLong { at: u64, offset: u64, length: u64, end: u64 },
    #[error("byte {at}: disk byte {offset} was left out, which is not the edge of 64 KiB")]
    LeftOutInside { at: u64, offset: u64 },
    #[error("byte {at}: the end, but disk byte {offset} and what is behind it did not come")]
    Missing { at: u64, offset: u64 },
    #[error("byte {at}: the stream goes on behind its end marker")]
    TrailingBytes { at: u64 },
    #[error("byte {at}: the stream ends here, without an end marker")]
    Truncated { at: u64 },
}

fn place(expected: Option<u64>) -> String {
    expected.map_or_else(|| "nothing".to_owned(), |offset| format!("disk byte {offset}"))
}
