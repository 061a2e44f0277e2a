//! Facts about what passes between a disk's streams and a store that keeps its pieces.

mod chunks;
mod encodings;
mod images;
mod model;
mod parts;
#[path = "../support/qemu_img.rs"]
mod qemu_img;
mod restored;
