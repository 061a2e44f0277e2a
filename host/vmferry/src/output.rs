//! What a person, or a program, gets to see.
//!
//! Results go to standard output: a table, or one JSON object. Everything else goes to standard error: progress,
//! warnings, errors, the log.

pub mod progress;
pub mod report;
pub mod table;
pub mod units;

use serde::Serialize;
use std::io::{self, Write};

/// Where results go, and in which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Tables and sentences.
    Text,
    /// One JSON object.
    Json,
}

impl Form {
    /// Prints a result: `text` makes the words for a person.
    pub fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self {
            Self::Text => out.write_all(text(value).as_bytes())?,
            Self::Json => {
                serde_json::to_writer_pretty(&mut out, value)?;
                out.write_all(b"\n")?;
            }
        }
        out.flush()
    }
}

/// Says something on standard error. Nobody is left to be told when that fails.
pub fn say(message: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}
