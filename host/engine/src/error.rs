//! What stops a run, a VM or a target: what happened, on which object, and what to do.

use jiff::Timestamp;
use vmferry_model::plugin::PluginError;
use vmferry_model::report::Outcome;

/// What stopped the work on one VM, or on one of its targets.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another run works on this VM.
    #[error("VM {vm} is being worked on by {holder}{}; wait for it, or let its lease expire if that run is gone", until(.expires.as_ref()))]
    Locked {
        /// The VM, source or replica.
        vm: String,
        /// Who holds the lease.
        holder: String,
        /// When the lease ends by itself.
        expires: Option<Timestamp>,
    },
    /// Somebody took the lease over while this run still worked.
    #[error("the lease of VM {vm} was taken over (now: {}); this run stopped before its commit, the last recovery point is as it was", .found.as_deref().unwrap_or("none"))]
    LeaseLost {
        /// The VM, source or replica.
        vm: String,
        /// What stands on it now.
        found: Option<String>,
    },
    /// A policy said no.
    #[error("the scheduler refused the plan: {reason}")]
    Refused {
        /// In its words.
        reason: String,
    },
    /// A policy said not now.
    #[error("the scheduler deferred the plan until {until}: {reason}")]
    Deferred {
        /// When to try again.
        until: Timestamp,
        /// In its words.
        reason: String,
    },
    /// A policy could not be asked.
    #[error("{0}; no byte was moved")]
    Plugin(#[from] PluginError),
    /// A store could not do its part.
    #[error("{0}; the recovery points that it had are as they were")]
    Store(PluginError),
    /// A snapshot that could go was taken for somebody's own.
    #[error(
        "snapshot {snapshot} cannot be destroyed: that is blocked ({text}); remove the block, and the next run removes the snapshot"
    )]
    DestroyBlocked {
        /// uuid of the snapshot VM.
        snapshot: String,
        /// Why, in the words of whoever blocked it.
        text: String,
    },
    /// An object that the configuration names is not there.
    #[error("{class} {name} is not in pool {pool}; {remedy}")]
    NotFound {
        /// XAPI class.
        class: &'static str,
        /// uuid or name as configured.
        name: String,
        /// The pool it was looked up in.
        pool: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The VM moves to another host or pool just now.
    #[error("VM {vm} is being migrated ({operation}); it is replicated by the first run after that")]
    Migrating {
        /// The source VM.
        vm: String,
        /// What XAPI calls it.
        operation: String,
    },
    /// A source VM that was shut down for its snapshot is still off.
    #[error(
        "VM {vm} was shut down for its snapshot and could not be started again: {why}; start it, or let the next run or `vmferry gc` try"
    )]
    LeftStopped {
        /// The source VM.
        vm: String,
        /// What XAPI said.
        why: String,
    },
    /// The VM is a replica that this job makes.
    #[error("VM {vm} is a replica made by this very job; remove it from the job's selection")]
    OwnReplica {
        /// The VM.
        vm: String,
    },
    /// Something stands in the way; each obstacle says what to do.
    #[error("{}", .0.join("; "))]
    Obstacles(Vec<String>),
    /// Chains are long, and the storage has not coalesced them yet; nobody has to do anything but wait.
    #[error("{}", .0.join("; "))]
    Uncoalesced(Vec<String>),
    /// A call failed.
    #[error(transparent)]
    Xapi(#[from] vmferry_xapi::Error),
    /// The pool could not be logged in to.
    #[error("pool {pool}: {source}")]
    Pool {
        /// The pool's name in the configuration.
        pool: String,
        /// Why.
        source: vmferry_xapi::Error,
    },
    /// The stream of a disk broke.
    #[error("transfer of disk {disk}: {message}")]
    Transfer {
        /// The source disk.
        disk: String,
        /// Which side, and why.
        message: String,
    },
    /// Every target failed, so there was nobody left to read for.
    #[error("no target is left to go on with; each of them tells why")]
    NoTargetLeft,
    /// What XAPI answered contradicts itself.
    #[error("{what} {object} is not as it should be: {why}")]
    Inconsistent {
        /// Class.
        what: &'static str,
        /// uuid or reference.
        object: String,
        /// What is wrong.
        why: String,
    },
    /// Media that carry a first copy could not be written, or are not what was written.
    #[error("{0}")]
    Media(String),
    /// The digest table could not be kept.
    #[error(transparent)]
    Digests(vmferry_disk::digest::TableError),
}

/// An error with everything behind it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

fn until(expires: Option<&Timestamp>) -> String {
    expires.map(|at| format!(" until {at}")).unwrap_or_default()
}

impl RunError {
    /// How a VM ends that stopped for this.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Locked { .. } | Self::Migrating { .. } => Outcome::Skipped,
            Self::Refused { .. } | Self::Deferred { .. } | Self::Uncoalesced(_) => Outcome::Refused,
            _ => Outcome::Failed,
        }
    }
}

/// What keeps a question from being answered.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The question names something that does not exist.
    #[error("{0}")]
    Usage(String),
    /// It would do harm, or asks for more than the question said.
    #[error("{0}")]
    Refused(String),
    /// The answer could not be had.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl EngineError {
    /// Whether another run holds what the question is about.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Run(RunError::Locked { .. }))
    }

    /// Whether the question was wrong, rather than the world.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_) | Self::Run(RunError::NotFound { .. } | RunError::OwnReplica { .. }))
    }
}

impl From<vmferry_xapi::Error> for EngineError {
    fn from(error: vmferry_xapi::Error) -> Self {
        Self::Run(error.into())
    }
}
