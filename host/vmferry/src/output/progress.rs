//! Progress: bars on a terminal, lines elsewhere.

use super::units::Size;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmferry_engine::{DiskLabel, Progress};

/// Lines on standard error that leave bars intact, and the bars themselves.
#[derive(Clone)]
pub struct Screen {
    bars: MultiProgress,
    on_terminal: bool,
}

impl Screen {
    /// The screen this process has: bars if standard error is a terminal.
    pub fn of_this_process() -> Self {
        let on_terminal = io::stderr().is_terminal();
        let target = if on_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), on_terminal }
    }

    /// Whether somebody watches.
    pub fn is_terminal(&self) -> bool {
        self.on_terminal
    }

    /// Writes whole lines above the bars.
    pub fn line(&self, text: impl std::fmt::Display) {
        self.bars.suspend(|| super::say(text));
    }

    /// How to watch a run here.
    pub fn progress(&self) -> Arc<dyn Progress> {
        if self.on_terminal {
            Arc::new(Bars { screen: self.clone(), open: Mutex::default() })
        } else {
            Arc::new(Lines { open: Mutex::default() })
        }
    }
}

/// The log's way to standard error, above the bars.
impl Write for Screen {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.bars.suspend(|| io::stderr().lock().write(text))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

fn label(disk: &DiskLabel) -> String {
    format!("{} / {} → {}", disk.vm, disk.disk, disk.targets.join(", "))
}

/// A lock whose holder panicked still guards progress bars; they are worth no second panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Bars {
    screen: Screen,
    open: Mutex<HashMap<String, ProgressBar>>,
}

impl Progress for Bars {
    fn step(&self, vm: &str, text: &str) {
        self.screen.line(format_args!("{vm}: {text}"));
    }

    fn disk_started(&self, disk: &DiskLabel, total: u64) {
        let style = ProgressStyle::with_template(
            "  {prefix}  {bar:30.cyan/dim} {bytes:>10} / {total_bytes:<10} {bytes_per_sec:>12}  {eta}",
        );
        let bar = ProgressBar::new(total).with_prefix(label(disk));
        let bar = match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        lock(&self.open).insert(disk.disk_uuid.clone(), self.screen.bars.add(bar));
    }

    fn disk_advanced(&self, disk: &DiskLabel, bytes: u64) {
        if let Some(bar) = lock(&self.open).get(&disk.disk_uuid) {
            bar.inc(bytes);
        }
    }

    fn disk_finished(&self, disk: &DiskLabel, ok: bool) {
        let Some(bar) = lock(&self.open).remove(&disk.disk_uuid) else { return };
        // A bar that has done its work makes room: what stays of it is a line.
        bar.finish_and_clear();
        self.screen.bars.remove(&bar);
        self.screen.line(ended(disk, ok, bar.position()));
    }
}

/// What stays on the screen of a disk.
fn ended(disk: &DiskLabel, ok: bool, bytes: u64) -> String {
    let end = if ok { "done" } else { "broken off" };
    format!("{}: {end} after {}", label(disk), Size(bytes))
}

/// Part of a disk that has to pass before the next line: lines are for logs, which nobody watches.
const LINES_PER_DISK: u64 = 4;

struct Lines {
    open: Mutex<HashMap<String, Passed>>,
}

struct Passed {
    bytes: u64,
    total: u64,
}

impl Passed {
    /// Counts bytes; the percentage to tell if another part of the whole has passed. The end is told elsewhere.
    fn advance(&mut self, bytes: u64) -> Option<u64> {
        let part = |bytes: u64| bytes.saturating_mul(LINES_PER_DISK).checked_div(self.total).unwrap_or(0);
        let before = part(self.bytes);
        let after = part(self.bytes.saturating_add(bytes));
        self.bytes = self.bytes.saturating_add(bytes);
        (after > before && after < LINES_PER_DISK).then_some(after * 100 / LINES_PER_DISK)
    }
}

impl Progress for Lines {
    fn step(&self, vm: &str, text: &str) {
        super::say(format_args!("{vm}: {text}"));
    }

    fn disk_started(&self, disk: &DiskLabel, total: u64) {
        lock(&self.open).insert(disk.disk_uuid.clone(), Passed { bytes: 0, total });
        super::say(format_args!("{}: {} to send", label(disk), Size(total)));
    }

    fn disk_advanced(&self, disk: &DiskLabel, bytes: u64) {
        let percent = lock(&self.open).get_mut(&disk.disk_uuid).and_then(|passed| passed.advance(bytes));
        if let Some(percent) = percent {
            super::say(format_args!("{}: {percent} %", label(disk)));
        }
    }

    fn disk_finished(&self, disk: &DiskLabel, ok: bool) {
        let passed = lock(&self.open).remove(&disk.disk_uuid).map_or(0, |passed| passed.bytes);
        super::say(ended(disk, ok, passed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_told_once_per_part_whatever_the_pieces() {
        let mut passed = Passed { bytes: 0, total: 100 };
        let told: Vec<_> = std::iter::repeat_n(7, 15).filter_map(|piece| passed.advance(piece)).collect();
        assert_eq!(told, [25, 50, 75]);
        let mut at_once = Passed { bytes: 0, total: 100 };
        assert_eq!([at_once.advance(80), at_once.advance(20)], [Some(75), None]);
        let mut empty = Passed { bytes: 0, total: 0 };
        assert_eq!(empty.advance(0), None);
    }
}
