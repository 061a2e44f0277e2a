//! Facts about the heads of qcow2 streams.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod model;
mod properties;
mod qemu;
#[path = "../support/qemu_img.rs"]
mod qemu_img;
mod refusals;
