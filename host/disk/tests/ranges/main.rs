//! Facts about ranges of a disk on their way: extents, bitmaps of changed blocks, the `chunked` framing.

mod cbt;
mod chunked;
mod extents;
mod model;
mod resync;
