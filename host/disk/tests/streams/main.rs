//! Facts about whole streams: golden vectors, a byte-array model, damage, transfers, other programs.

mod damage;
mod golden;
mod lockstep;
mod model;
mod properties;
mod qemu;
