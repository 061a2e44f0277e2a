//! Who holds a lease: this process, in a form that another process on the same machine can check.

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use std::path::Path;

/// A process that may hold leases: `<boot>.<namespace>.<pid>.<start>`.
///
/// The boot id and the pid namespace say which machine (or container) the pid belongs to; the start time tells a
/// process from a later one with the same pid. A holder elsewhere, or from before a reboot, cannot be checked and
/// is taken for alive until its lease expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder(String);

/// What can be said about a holder from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// This very process.
    Own,
    /// It ran in this pid namespace and is gone.
    Dead,
    /// It runs, or cannot be checked from here.
    Unknown,
}

impl Holder {
    /// This process.
    pub(crate) fn this_process() -> Self {
        let pid = std::process::id();
        let place = place().unwrap_or_else(|| format!("elsewhere-{}", uuid::Uuid::new_v4().simple()));
        let start = start_time(pid).unwrap_or(0);
        Self(format!("{place}.{pid}.{start}"))
    }

    /// The holder named in a lease.
    pub(crate) fn named(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the process behind this holder still runs, as far as `this` process can tell.
    pub(crate) fn liveness(&self, this: &Self) -> Liveness {
        if self == this {
            return Liveness::Own;
        }
        let (Some((place, pid, start)), Some((here, ..))) = (self.parts(), this.parts()) else {
            return Liveness::Unknown;
        };
        if place != here {
            return Liveness::Unknown;
        }
        match process(pid) {
            Process::Gone => Liveness::Dead,
            Process::Started(at) if at != start => Liveness::Dead,
            Process::Started(_) | Process::Hidden => Liveness::Unknown,
        }
    }

    fn parts(&self) -> Option<(&str, u32, u64)> {
        let (rest, start) = self.0.rsplit_once('.')?;
        let (place, pid) = rest.rsplit_once('.')?;
        Some((place, pid.parse().ok()?, start.parse().ok()?))
    }
}

/// This boot of this kernel and this pid namespace; `None` where the kernel does not tell.
fn place() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let digits: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    Some(format!("{}.{digits}", boot.trim().replace('-', "")))
}

/// What there is to know of a process.
enum Process {
    /// It runs since then.
    Started(u64),
    /// There is no such process, or it has ended and only waits to be reaped.
    Gone,
    /// It runs, and more is not shown: `/proc` may be mounted with `hidepid`.
    Hidden,
}

fn process(pid: u32) -> Process {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Process::Gone };
    match (test_kill_process(id), start_time(pid)) {
        (Err(Errno::SRCH), _) => Process::Gone,
        (_, Some(start)) => Process::Started(start),
        (_, None) if is_zombie(pid) => Process::Gone,
        (_, None) => Process::Hidden,
    }
}

fn is_zombie(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| matches!(stat.split_whitespace().next(), Some("Z" | "X")))
}

/// `/proc/<pid>/stat` behind the closing parenthesis of the command, which may hold spaces.
fn stat(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.to_owned())
}

/// Clock ticks from boot to the start of a running process: field 22 of `/proc/<pid>/stat`.
fn start_time(pid: u32) -> Option<u64> {
    let stat = stat(pid)?;
    let mut fields = stat.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_is_not_dead_and_an_ended_one_is() {
        let this = Holder::this_process();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read _"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let place = place().unwrap();
        let holder = Holder(format!("{place}.{}.{}", child.id(), start_time(child.id()).unwrap()));
        assert_eq!(holder.liveness(&this), Liveness::Unknown);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(holder.liveness(&this), Liveness::Dead);
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let this = Holder::this_process();
        let pid = std::process::id();
        let earlier = Holder(format!("{}.{pid}.{}", place().unwrap(), start_time(pid).unwrap() - 1));
        assert_eq!(earlier.liveness(&this), Liveness::Dead);
        assert_eq!(this.liveness(&this), Liveness::Own);
    }

    #[test]
    fn a_holder_elsewhere_cannot_be_checked() {
        let this = Holder::this_process();
        for elsewhere in ["otherboot.1.2.3", "nonsense", ""] {
            assert_eq!(Holder::named(elsewhere).liveness(&this), Liveness::Unknown, "{elsewhere}");
        }
    }
}
