//! Facts about whole streams: golden vectors, a byte-array model, damage, transfers, other programs.

mod chunked;
mod damage;
#[cfg(target_os = "linux")]
mod faults;
mod golden;
mod lockstep;
mod model;
mod properties;
mod qemu;
#[path = "../support/qemu_img.rs"]
mod qemu_img;
#[cfg(target_os = "linux")]
mod relay;
mod tcp;
mod throttle;
