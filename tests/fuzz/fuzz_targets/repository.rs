//! What is in the objects of a repository, and the envelopes around it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| vmferry_repository::fuzz::parse(data));
