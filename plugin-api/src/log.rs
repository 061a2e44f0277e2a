//! Lines for the host's log. Natively they are kept for the test to look at.

use crate::bindings::host::vmferry::plugin::log::Level;

/// Something failed.
pub fn error(message: impl AsRef<str>) {
    write(&Level::Error, message.as_ref());
}

/// Something is not as it should be, and work goes on.
pub fn warn(message: impl AsRef<str>) {
    write(&Level::Warn, message.as_ref());
}

/// What an operator may want to know.
pub fn info(message: impl AsRef<str>) {
    write(&Level::Info, message.as_ref());
}

/// What a developer wants to know.
pub fn debug(message: impl AsRef<str>) {
    write(&Level::Debug, message.as_ref());
}

#[cfg(target_arch = "wasm32")]
fn write(level: &Level, message: &str) {
    crate::bindings::host::vmferry::plugin::log::write(level, message, &[]);
}

#[cfg(not(target_arch = "wasm32"))]
fn write(level: &Level, message: &str) {
    double::LINES.with_borrow_mut(|lines| lines.push(format!("{level:?}: {message}")));
}

/// What a test sees.
#[cfg(not(target_arch = "wasm32"))]
pub mod double {
    use std::cell::RefCell;

    thread_local! {
        pub(super) static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    /// Takes the lines written so far on this thread, as `Info: message`.
    pub fn take_lines() -> Vec<String> {
        LINES.take()
    }
}
