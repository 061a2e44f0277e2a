//! Who holds a lease: this process, in a form that another process on the same machine can check.

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
        match start_time(pid) {
            Some(now_running) if now_running == start => Liveness::Unknown,
            _ => Liveness::Dead,
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

/// Clock ticks from boot to the start of a process: field 22 of `/proc/<pid>/stat`, counted after the command's
/// closing parenthesis because a command may hold spaces. A zombie has ended already.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
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
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
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
