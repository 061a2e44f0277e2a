//! What a host answers: the head of a disk stream's response, or an XML-RPC body.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_xapi::fuzz;

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((mode, rest)) if mode % 2 == 0 => fuzz::response_head(rest),
        Some((_, rest)) => fuzz::xmlrpc_response(rest),
        None => {}
    }
});
