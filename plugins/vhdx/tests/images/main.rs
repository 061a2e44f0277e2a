//! Whole files of both formats: against a model, against qemu-img, and after a crash at any write.

mod crashes;
mod model;
mod properties;
mod qemu;
mod vhd;
