//! Facts about what passes between a disk's streams and a store that keeps its pieces.

mod encodings;
