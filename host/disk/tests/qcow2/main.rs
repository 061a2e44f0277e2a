//! Facts about the heads of qcow2 streams.

mod model;
mod properties;
mod qemu;
#[path = "../support/qemu_img.rs"]
mod qemu_img;
mod refusals;
