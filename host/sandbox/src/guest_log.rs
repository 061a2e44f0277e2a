//! What guests say: the `log` interface and their standard output, into `tracing`, within bounds.

use crate::limits::{LOG_FIELDS, LOG_LINES_PER_MINUTE, LOG_OVERHEAD};
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// How many lines a use of a plugin may write per minute, over all its calls. Time is passed in.
#[derive(Debug)]
pub(crate) struct LineRate {
    minute_began: Instant,
    lines: u32,
    dropped: u64,
}

impl LineRate {
    pub(crate) fn new(now: Instant) -> Self {
        Self { minute_began: now, lines: 0, dropped: 0 }
    }

    /// Whether a line may pass now. The first line of a new minute learns how many the last one dropped.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        let mut dropped = 0;
        if now.saturating_duration_since(self.minute_began) >= Duration::from_secs(60) {
            dropped = self.dropped;
            *self = Self::new(now);
        }
        if self.lines == LOG_LINES_PER_MINUTE {
            self.dropped += 1;
            return None;
        }
        self.lines += 1;
        Some(dropped)
    }
}

/// Whose lines these are.
#[derive(Clone, Debug)]
pub(crate) struct Speaker {
    pub(crate) tenant: Arc<str>,
    pub(crate) plugin: Arc<str>,
    pub(crate) call: &'static str,
}

/// The log of one call.
#[derive(Clone)]
pub(crate) struct CallLog {
    speaker: Speaker,
    rate: Arc<Mutex<LineRate>>,
    /// Bytes that this call may still write.
    left: Arc<Mutex<u64>>,
    /// The beginning of what was written to standard error.
    said: Arc<Mutex<String>>,
}

/// How much of its standard error is kept for the message about a guest that trapped.
const LAST_WORDS: usize = 512;

impl CallLog {
    pub(crate) fn new(speaker: Speaker, rate: Arc<Mutex<LineRate>>, bytes: u64) -> Self {
        Self { speaker, rate, left: Arc::new(Mutex::new(bytes)), said: Arc::default() }
    }

    /// Writes one line, or drops it when the call or the minute has used its share.
    pub(crate) fn write(&self, level: tracing::Level, message: &str, fields: &[(String, String)]) {
        let fields = &fields[..fields.len().min(LOG_FIELDS)];
        if !self.take(cost(message, fields)) {
            return;
        }
        // A guest must not be able to break a line of the host's log in two.
        let message = message.escape_debug().to_string();
        let fields = named(fields);
        let Speaker { tenant, plugin, call } = &self.speaker;
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(target: "vmferry::plugin", $level, %tenant, %plugin, call, fields, "{message}")
            };
        }
        match level {
            tracing::Level::ERROR => line!(tracing::Level::ERROR),
            tracing::Level::WARN => line!(tracing::Level::WARN),
            tracing::Level::INFO => line!(tracing::Level::INFO),
            tracing::Level::DEBUG => line!(tracing::Level::DEBUG),
            tracing::Level::TRACE => line!(tracing::Level::TRACE),
        }
    }

    /// The beginning of what the guest wrote to its standard error, its lines joined.
    pub(crate) fn said_on_error(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_error_line(&self, line: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() + line.len() < LAST_WORDS {
            if !said.is_empty() {
                said.push(' ');
            }
            said.push_str(line.trim());
        }
    }

    /// Takes a line's cost from what the call may still write. Once that is spent every line is too large.
    fn take(&self, size: u64) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rest) = left.checked_sub(size) else {
            *left = 0;
            return false;
        };
        *left = rest;
        let passed = self.rate.lock().unwrap_or_else(PoisonError::into_inner).pass(Instant::now());
        if let Some(dropped @ 1..) = passed {
            let Speaker { tenant, plugin, .. } = &self.speaker;
            tracing::warn!(target: "vmferry::plugin", %tenant, %plugin, dropped, "log lines dropped in the last minute");
        }
        passed.is_some()
    }
}

/// What a line takes of its call's share. Nothing is free, or a guest could write it forever.
fn cost(message: &str, fields: &[(String, String)]) -> u64 {
    let fields = fields.iter().map(|(name, value)| LOG_OVERHEAD + name.len() + value.len());
    (LOG_OVERHEAD + message.len() + fields.sum::<usize>()) as u64
}

/// Named values on one line: `disk="3" "two words"="a\nb"`. A name is quoted where it could pass for more than one.
fn named(fields: &[(String, String)]) -> String {
    let is_plain = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    let one = |(name, value): &(String, String)| match is_plain(name) {
        true => format!("{name}={value:?}"),
        false => format!("{name:?}={value:?}"),
    };
    fields.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// A guest's standard output or error: whole lines go to its log.
#[derive(Clone)]
pub(crate) struct StdioToLog {
    log: CallLog,
    is_error: bool,
}

impl StdioToLog {
    pub(crate) fn output(log: CallLog) -> Self {
        Self { log, is_error: false }
    }

    pub(crate) fn errors(log: CallLog) -> Self {
        Self { log, is_error: true }
    }
}

impl IsTerminal for StdioToLog {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for StdioToLog {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // The interfaces that would ask for this one are not offered to guests.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(LineStream { to: self.clone(), line: Vec::new() })
    }
}

/// The longest line that is put together; a longer one is cut into pieces.
const LINE: usize = 4 << 10;

struct LineStream {
    to: StdioToLog,
    line: Vec<u8>,
}

impl LineStream {
    fn end_line(&mut self) {
        if !self.line.is_empty() {
            let line = String::from_utf8_lossy(&self.line);
            if self.to.is_error {
                self.to.log.note_error_line(&line);
            }
            self.to.log.write(tracing::Level::INFO, &line, &[]);
            self.line.clear();
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LineStream {
    async fn ready(&mut self) {}
}

impl OutputStream for LineStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        for byte in bytes {
            if byte == b'\n' || self.line.len() == LINE {
                self.end_line();
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(LINE)
    }
}

impl Drop for LineStream {
    fn drop(&mut self) {
        self.end_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off_for_the_rest_of_the_minute_and_counted() {
        let start = Instant::now();
        let mut rate = LineRate::new(start);
        for _ in 0..LOG_LINES_PER_MINUTE {
            assert_eq!(rate.pass(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(rate.pass(start + Duration::from_secs(59)), None);
        }
        assert_eq!(rate.pass(start + Duration::from_secs(60)), Some(7));
        assert_eq!(rate.pass(start + Duration::from_secs(61)), Some(0));
    }

    fn field(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    fn call_log(bytes: u64) -> CallLog {
        let speaker = Speaker { tenant: "".into(), plugin: "hook".into(), call: "handle" };
        CallLog::new(speaker, Arc::new(Mutex::new(LineRate::new(Instant::now()))), bytes)
    }

    #[test]
    fn nothing_is_free() {
        let log = call_log(1_000);
        let left = || *log.left.lock().expect("unpoisoned");
        log.write(tracing::Level::INFO, "", &[]);
        assert_eq!(left(), 984);
        log.write(tracing::Level::INFO, "four", &[field("", ""), field("name", "value")]);
        assert_eq!(left(), 984 - 16 - 4 - 16 - 16 - 9);
        log.write(tracing::Level::INFO, &"m".repeat(1_000), &[]);
        assert_eq!(left(), 0, "a line that does not fit spends the rest");
        let lines = || log.rate.lock().expect("unpoisoned").lines;
        let before = lines();
        log.write(tracing::Level::INFO, "", &[]);
        assert_eq!(lines(), before, "and nothing is written from then on");
    }

    #[test]
    fn a_line_has_so_many_values_and_no_more() {
        let log = call_log(10_000);
        log.write(tracing::Level::INFO, "", &vec![field("", ""); 100_000]);
        assert_eq!(*log.left.lock().expect("unpoisoned"), 10_000 - 16 * 33);
    }

    #[test]
    fn a_name_cannot_pass_for_another_value_or_another_line() {
        let fields = [field("disk.size", "3"), field("a\nERROR tenant=x b", "y\n"), field("", "")];
        assert_eq!(named(&fields), r#"disk.size="3" "a\nERROR tenant=x b"="y\n" ""="""#);
    }
}
