//! What the plugin keeps: against a model, after a crash at any write, and as qemu-img reads it.

mod crashes;
mod folder;
mod model;
mod points;
mod properties;
mod qemu;
