//! Which calls may be repeated, and when: after a connection failed, and while a host has no place for them.

use std::time::Duration;

/// Pauses between attempts: long enough together to outlast a dropped connection or a short network fault, short
/// enough that a run learns soon that a host is gone.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(8)];

/// Pauses while a host has too many tasks: together a minute, in which a queue of short ones gets shorter.
const PAUSES_WHILE_FULL: [Duration; 6] = [
    Duration::from_millis(500),
    Duration::from_millis(1500),
    Duration::from_secs(4),
    Duration::from_secs(9),
    Duration::from_secs(15),
    Duration::from_secs(30),
];

/// Whether a call has the same effect made once or twice, so that it may be repeated when nobody knows whether the
/// first one arrived. Reads have: `get_*`, `list_*`, and `event.from`, whose position is the client's token. As a
/// task (`Async.*`) even a read leaves an object behind, so it has not.
pub(crate) fn is_idempotent(method: &str) -> bool {
    match method.split_once('.') {
        Some(("Async" | "InternalAsync", _)) | None => false,
        Some(("event", "from")) => true,
        Some((_, call)) => call.starts_with("get_") || call.starts_with("list_"),
    }
}

/// The pause before attempt `attempt` (the first repetition is 1); `None` when it was tried often enough.
pub(crate) fn pause_before(attempt: usize) -> Option<Duration> {
    PAUSES.get(attempt.checked_sub(1)?).copied()
}

/// The same while the host answers `TOO_MANY_PENDING_TASKS`: it has not begun with the call, so every call may be repeated.
pub(crate) fn pause_while_full(attempt: usize) -> Option<Duration> {
    PAUSES_WHILE_FULL.get(attempt.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_are_repeated() {
        for read in
            ["VM.get_record", "SR.get_all_records", "VDI.list_changed_blocks", "event.from", "host.get_servertime"]
        {
            assert!(is_idempotent(read), "{read}");
        }
        for write in [
            "VM.snapshot",
            "VM.add_to_other_config",
            "VM.set_name_label",
            "Async.VM.get_record",
            "session.login_with_password",
            "task.create",
            "get_record",
        ] {
            assert!(!is_idempotent(write), "{write}");
        }
    }

    #[test]
    fn attempts_are_bounded() {
        assert_eq!(pause_before(0), None);
        assert_eq!(pause_before(1), Some(PAUSES[0]));
        assert_eq!(pause_before(PAUSES.len() + 1), None);
        assert_eq!(pause_while_full(PAUSES_WHILE_FULL.len() + 1), None);
        assert_eq!(PAUSES_WHILE_FULL.iter().sum::<Duration>(), Duration::from_secs(60));
    }
}
