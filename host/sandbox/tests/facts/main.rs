//! Facts about the sandbox, each shown with a plugin that tries the opposite.

mod address_book;
mod bundled;
mod house;
mod hyperv;
mod limits;
mod loading;
mod network;
mod released;
mod rights;
mod sterile;
mod target_faults;
mod targets;
