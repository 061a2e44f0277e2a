//! Facts about the sandbox, each shown with a plugin that tries the opposite.

mod address_book;
mod bundled;
mod house;
mod limits;
mod loading;
mod network;
mod repository;
mod rights;
mod sterile;
mod target_faults;
mod targets;
