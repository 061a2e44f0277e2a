//! Facts about reading a disk by NBD: over a scripted server, and over servers that nobody here wrote.

mod handshake;
mod peers;
mod reading;
mod server;
mod streams;
