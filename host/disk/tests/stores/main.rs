//! Facts about what passes between a disk's streams and a store that keeps its pieces.

mod chunks;
mod encodings;
mod model;
