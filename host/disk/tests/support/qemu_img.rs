//! qemu-img as an independent reader and writer.

use std::ffi::OsStr;
use std::process::Command;

/// Whether qemu-img is there. Where the environment demands peers, it has to be.
#[expect(clippy::print_stderr, reason = "a skipped test should say so")]
pub(crate) fn is_missing() -> bool {
    if Command::new("qemu-img").arg("--version").output().is_ok() {
        return false;
    }
    let required = std::env::var_os("VMFERRY_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(!required, "qemu-img is required here; install the package qemu-utils");
    eprintln!("skipped: there is no qemu-img");
    true
}

/// Runs it; it has to succeed.
pub(crate) fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
