//! How much a plugin may use.
//!
//! Three voices: the manifest asks, the operator grants, and defaults stand in where the operator said nothing.
//! [`Budget::settle`] hears them all and gives one answer, or names the line to add to the configuration.

use crate::manifest::Kind;
use serde::Deserialize;
use std::time::Duration;

/// Limits that somebody set, the rest left open. Sizes are bytes.
///
/// In an operator's hands these are grants; in a manifest they are requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Wall time of one call, waiting for the network included. Default: 2 s for policies, 15 s for notifiers, 60 s for
    /// targets. A call waits for its turn at most as long again, and all attempts of a notifier together have twice this
    /// time. A target's calls that check its settings have this limit. All others go on while they make progress, which
    /// [`stall`](Self::stall) limits; 360 times this, six hours, is what they may take without moving disk data.
    pub timeout: Option<Duration>,
    /// How long a target's call may go without any progress: disk data on its way, something done to a file, a server that
    /// answers or takes a piece. Waiting for the source does not count, and a sync may take ten minutes. Default 60 s.
    pub stall: Option<Duration>,
    /// CPU time of one call, to within a tick of 10 ms. Default: 2 s, for targets 60 s, of which only those calls have such a
    /// limit that check its settings.
    pub cpu: Option<Duration>,
    /// Disk data that a call makes the host hold for it: chunks, payloads, pieces that are put. Default 64 MiB.
    pub held: Option<u64>,
    /// The body of one request of a target, and of one answer. Default 1 GiB.
    pub http_body: Option<u64>,
    /// All linear memories of one instance together. Default 64 MiB, for targets 128 MiB; at most [`MAX_MEMORY`].
    pub memory: Option<u64>,
    /// What the plugin may keep in its store: keys and values, per tenant. Default 256 KiB.
    pub store: Option<u64>,
    /// What one call may write to the log, its standard output included. Default 64 KiB.
    pub log: Option<u64>,
    /// Entries of all function tables together. Default 20,000, which guests with an interpreter stay below; at most
    /// [`MAX_TABLE_ELEMENTS`].
    pub table_elements: Option<u64>,
    /// Host objects held at a time: streams, requests, timers. Default 16 for policies, 256 for notifiers, 4,096 for
    /// targets, which is also the most: [`MAX_HOST_OBJECTS`].
    pub host_objects: Option<u64>,
}

/// The most memory that one instance can be granted: the size of the slots that are set aside for instances. Large
/// enough for guests that bring an interpreter along.
pub const MAX_MEMORY: u64 = 256 << 20;

/// Log lines per minute and use of a plugin, over all its calls; what exceeds them is dropped and counted.
pub(crate) const LOG_LINES_PER_MINUTE: u32 = 1_000;

/// Linear memories per instance: one is normal, a composed component has one per part.
pub(crate) const MAX_MEMORIES: u32 = 4;

/// Function tables per instance, for the same reason.
pub(crate) const MAX_TABLES: u32 = 8;

/// The most function table entries that one instance can be granted: the size of the slots set aside.
pub const MAX_TABLE_ELEMENTS: u64 = 100_000;

/// The most host objects that one instance can be granted.
pub const MAX_HOST_OBJECTS: u64 = 4_096;

/// Files, folders, listings and streams of one call that are open at a time. A repository has a handful.
pub(crate) const OPEN_FILES: usize = 512;

/// Core instances per component: the guest, its adapters and the glue between them.
pub(crate) const MAX_CORE_INSTANCES: u32 = 32;

/// Bytes a guest may hand to the host in one call of a host function; the host copies them before it looks.
pub(crate) const HOSTCALL_BYTES: usize = 8 << 20;

/// The same for a target, whose answers may list a million ranges of a disk.
pub(crate) const TARGET_HOSTCALL_BYTES: usize = 64 << 20;

/// How long a target's call may work without moving disk data, in times its `timeout`: a merge of disk files or a collection goes over
/// whatever a store holds, and begins anew when it is ended.
pub(crate) const WORK: u32 = 360;

/// How long a sync may take: a busy storage server needs minutes for gigabytes.
pub(crate) const SYNC: Duration = Duration::from_secs(600);

/// Calls of all targets that move disk data at a time; more wait, and with them their sources.
pub(crate) const TRANSFERS: u32 = 64;

/// Those of one tenant: however long they last, there are as many for others. What is held up with a file system that does not answer
/// counts as well.
pub(crate) const TENANT_TRANSFERS: usize = TRANSFERS as usize / 2;

/// Other calls of one tenant that run at a time, over all its plugins of one kind of work: half of those that there are slots for.
pub(crate) const TENANT_CALLS: usize = 16;

/// The longest text of a plugin that goes into a report: a reason, a rule, an error message.
pub(crate) const MAX_TEXT: usize = 4 << 10;

/// The largest component. Guests with an interpreter have 18 MB.
pub const MAX_COMPONENT: usize = 32 << 20;

/// Calls into one use of a plugin that run at a time; more wait for their turn.
pub(crate) const CALLS_AT_A_TIME: usize = 4;

/// HTTP requests of one call that are under way at a time.
pub(crate) const HTTP_CONNECTIONS: usize = 4;

/// The largest request body of a notifier, and the largest response body.
pub(crate) const HTTP_BODY: usize = 1 << 20;

/// The size of all headers of one message.
pub(crate) const HTTP_HEADERS: usize = 16 << 10;

/// The longest method of a request.
pub(crate) const HTTP_METHOD: usize = 64;

/// The longest authority of a request: a name has at most 253 bytes, and a user may stand before it.
pub(crate) const HTTP_AUTHORITY: usize = 1 << 10;

/// The longest path of a request with its query.
pub(crate) const HTTP_PATH: usize = 16 << 10;

/// The largest piece of a request body that a guest writes at once. Two of them wait in the host until the body is
/// read, which for a request that is never sent is the end of the call.
pub(crate) const HTTP_PIECE: usize = 64 << 10;

/// The largest piece of a streamed request body: what a guest splices at once.
pub(crate) const HTTP_STREAMED_PIECE: usize = 1 << 20;

/// Request bodies of one call that are taken in large pieces; a call that begins more writes in small ones.
pub(crate) const HTTP_SWIFT_BODIES: usize = 16;

/// A small piece: what `blocking-write-and-flush` takes at most, so that the usual way to write costs no more.
pub(crate) const HTTP_SMALL_PIECE: usize = 4 << 10;

/// Name lookups under way for one use of a plugin.
pub(crate) const LOOKUPS: usize = 4;

/// The same for all plugins of one tenant.
pub(crate) const TENANT_LOOKUPS: usize = 8;

/// Name lookups under way for all plugins. Each keeps one of the threads that the process has for whatever blocks.
pub(crate) const ALL_LOOKUPS: usize = 32;

/// How often one call may use its store.
pub(crate) const STORE_OPERATIONS: u32 = 100;

/// How often one call may take and renew locks, beside once for each second that it runs: a transfer renews for hours.
pub(crate) const LOCK_OPERATIONS: u64 = 100;

/// What a call may have sealed or opened at once. It is copied, and its thread cannot be ended meanwhile.
pub(crate) const SEAL: usize = 8 << 20;

/// The largest amount of random bytes that a guest may ask for at once.
pub(crate) const RANDOM_BYTES: u64 = 64 << 10;

/// Named values per log line; more are left out.
pub(crate) const LOG_FIELDS: usize = 32;

/// What a log line costs beyond its text, and each of its named values: what the host writes around them.
pub(crate) const LOG_OVERHEAD: usize = 16;

/// How long a server may take to accept a connection.
pub(crate) const HTTP_CONNECT: Duration = Duration::from_secs(5);

/// How long a target's server may keep silent while it is waited for. Less than what a call without progress gets, so
/// that the guest can ask again.
pub(crate) const HTTP_SILENCE: Duration = Duration::from_secs(30);

/// How long a connection is kept for another request of the call.
pub(crate) const HTTP_KEPT: Duration = Duration::from_secs(20);

/// Servers to which one call keeps connections.
pub(crate) const HTTP_SERVERS: usize = 16;

/// What one use of a plugin may use: every field settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) timeout: Duration,
    pub(crate) stall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) held: u64,
    pub(crate) http_body: u64,
    pub(crate) memory: u64,
    pub(crate) store: u64,
    pub(crate) log: u64,
    pub(crate) table_elements: u64,
    pub(crate) host_objects: u64,
}

impl Budget {
    /// What a plugin of this kind gets when nobody says anything.
    pub(crate) fn default_for(kind: Kind) -> Self {
        let policy = Self {
            timeout: Duration::from_secs(2),
            stall: Duration::from_secs(60),
            cpu: Duration::from_secs(2),
            held: 64 << 20,
            http_body: 1 << 30,
            memory: 64 << 20,
            store: 256 << 10,
            log: 64 << 10,
            table_elements: 20_000,
            host_objects: 16,
        };
        match kind {
            Kind::Scheduler | Kind::Retention => policy,
            Kind::Notifier => Self { timeout: Duration::from_secs(15), host_objects: 256, ..policy },
            Kind::Target => Self {
                timeout: Duration::from_secs(60),
                cpu: Duration::from_secs(60),
                memory: 128 << 20,
                host_objects: MAX_HOST_OBJECTS,
                ..policy
            },
        }
    }

    /// The operator's word where there is one, the default elsewhere; a manifest that asks for more is refused with
    /// the setting to raise.
    pub(crate) fn settle(kind: Kind, requested: &Limits, granted: &Limits) -> Result<Self, Unsettled> {
        let default = Self::default_for(kind);
        let settled = Self {
            timeout: given("timeout", time, default.timeout, requested.timeout, granted.timeout)?,
            stall: given("stall", time, default.stall, requested.stall, granted.stall)?,
            cpu: given("cpu", time, default.cpu, requested.cpu, granted.cpu)?,
            held: given("held", size, default.held, requested.held, granted.held)?,
            http_body: given("http_body", size, default.http_body, requested.http_body, granted.http_body)?,
            memory: given("memory", size, default.memory, requested.memory, granted.memory)?,
            store: given("store", size, default.store, requested.store, granted.store)?,
            log: given("log", size, default.log, requested.log, granted.log)?,
            table_elements: given(
                "table_elements",
                count,
                default.table_elements,
                requested.table_elements,
                granted.table_elements,
            )?,
            host_objects: given(
                "host_objects",
                count,
                default.host_objects,
                requested.host_objects,
                granted.host_objects,
            )?,
        };
        at_most("memory", size, settled.memory, MAX_MEMORY)?;
        at_most("table_elements", count, settled.table_elements, MAX_TABLE_ELEMENTS)?;
        at_most("host_objects", count, settled.host_objects, MAX_HOST_OBJECTS)?;
        Ok(settled)
    }
}

/// A limit that cannot be as somebody wants it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsettled {
    #[error(
        "it asks for `{setting} = {wanted}` and is given {given}; raise `limits.{setting}` for it if it needs more"
    )]
    TooLittle { setting: &'static str, wanted: String, given: String },
    #[error("`limits.{setting} = {wanted}` is more than any plugin can have; the most is {most}")]
    TooMuch { setting: &'static str, wanted: String, most: String },
}

fn given<T: Ord + Copy>(
    setting: &'static str,
    show: fn(T) -> String,
    default: T,
    requested: Option<T>,
    granted: Option<T>,
) -> Result<T, Unsettled> {
    let given = granted.unwrap_or(default);
    match requested {
        Some(wanted) if wanted > given => {
            Err(Unsettled::TooLittle { setting, wanted: show(wanted), given: show(given) })
        }
        _ => Ok(given),
    }
}

fn at_most(setting: &'static str, show: fn(u64) -> String, wanted: u64, most: u64) -> Result<(), Unsettled> {
    if wanted > most {
        return Err(Unsettled::TooMuch { setting, wanted: show(wanted), most: show(most) });
    }
    Ok(())
}

/// A size for a message.
pub(crate) fn bytes(size: u64) -> String {
    match size {
        b if b > 0 && b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b if b > 0 && b % (1 << 10) == 0 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

/// A size as it is written in the configuration.
fn size(size: u64) -> String {
    format!("\"{}\"", bytes(size))
}

/// A time as it is written in the configuration.
fn time(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("\"{}s\"", duration.as_secs())
    } else {
        format!("\"{}ms\"", duration.as_millis())
    }
}

fn count(count: u64) -> String {
    count.to_string()
}

/// `[limits]` of a manifest, as written: `timeout = "20s"`, `memory = "128 MiB"`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenLimits {
    timeout: Option<String>,
    stall: Option<String>,
    cpu: Option<String>,
    held: Option<String>,
    http_body: Option<String>,
    memory: Option<String>,
    store: Option<String>,
    log: Option<String>,
    table_elements: Option<u64>,
    host_objects: Option<u64>,
}

impl WrittenLimits {
    pub(crate) fn read(&self) -> Result<Limits, String> {
        Ok(Limits {
            timeout: read("timeout", self.timeout.as_deref(), read_time)?,
            stall: read("stall", self.stall.as_deref(), read_time)?,
            cpu: read("cpu", self.cpu.as_deref(), read_time)?,
            held: read("held", self.held.as_deref(), read_size)?,
            http_body: read("http_body", self.http_body.as_deref(), read_size)?,
            memory: read("memory", self.memory.as_deref(), read_size)?,
            store: read("store", self.store.as_deref(), read_size)?,
            log: read("log", self.log.as_deref(), read_size)?,
            table_elements: self.table_elements,
            host_objects: self.host_objects,
        })
    }
}

fn read<T>(key: &str, text: Option<&str>, reader: fn(&str) -> Option<T>) -> Result<Option<T>, String> {
    let Some(text) = text else { return Ok(None) };
    match reader(text) {
        Some(value) => Ok(Some(value)),
        None => Err(format!(
            "`limits.{key}`: `{text}` is neither a time (`500ms`, `20s`) nor a size (`64 KiB`, `128 MiB`) that fits here"
        )),
    }
}

fn read_time(text: &str) -> Option<Duration> {
    if let Some(millis) = text.strip_suffix("ms") {
        return Some(Duration::from_millis(millis.trim().parse().ok()?));
    }
    Some(Duration::from_secs(text.strip_suffix('s')?.trim().parse().ok()?))
}

fn read_size(text: &str) -> Option<u64> {
    let (number, shift) = if let Some(number) = text.strip_suffix("MiB") {
        (number, 20)
    } else if let Some(number) = text.strip_suffix("KiB") {
        (number, 10)
    } else {
        (text.strip_suffix('B')?, 0)
    };
    number.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(mebibytes: u64) -> Limits {
        Limits { memory: Some(mebibytes << 20), ..Limits::default() }
    }

    #[test]
    fn without_a_word_a_plugin_gets_the_default_of_its_kind() {
        let settle = |kind| Budget::settle(kind, &Limits::default(), &Limits::default()).expect("defaults fit");
        assert_eq!(settle(Kind::Scheduler).timeout, Duration::from_secs(2));
        assert_eq!(settle(Kind::Notifier).timeout, Duration::from_secs(15));
    }

    #[test]
    fn a_manifest_that_asks_for_more_needs_the_operators_word() {
        let refused = Budget::settle(Kind::Retention, &memory(128), &Limits::default()).expect_err("more than default");
        assert_eq!(
            refused.to_string(),
            "it asks for `memory = \"128 MiB\"` and is given \"64 MiB\"; raise `limits.memory` for it if it needs more"
        );
        let budget = Budget::settle(Kind::Retention, &memory(128), &memory(200)).expect("granted");
        assert_eq!(budget.memory, 200 << 20);
    }

    #[test]
    fn nobody_gets_more_memory_than_there_are_slots_for() {
        let refused = Budget::settle(Kind::Retention, &Limits::default(), &memory(512)).expect_err("above every slot");
        assert_eq!(
            refused.to_string(),
            "`limits.memory = \"512 MiB\"` is more than any plugin can have; the most is \"256 MiB\""
        );
    }

    #[test]
    fn limits_are_read_as_people_write_them() {
        let written: WrittenLimits =
            toml::from_str("timeout = '20s'\ncpu = '500ms'\nmemory = '128 MiB'\nstore = '4KiB'\nlog = '9 B'")
                .expect("well-formed");
        assert_eq!(
            written.read().expect("right"),
            Limits {
                timeout: Some(Duration::from_secs(20)),
                cpu: Some(Duration::from_millis(500)),
                memory: Some(128 << 20),
                store: Some(4 << 10),
                log: Some(9),
                ..Limits::default()
            }
        );
        let wrong: WrittenLimits = toml::from_str("memory = 'much'").expect("well-formed");
        assert!(wrong.read().expect_err("no size").contains("`limits.memory`: `much`"));
    }
}
