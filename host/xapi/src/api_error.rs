//! The errors XAPI answers with: a code and parameters, turned into values once, here.

use std::borrow::Cow;

use crate::error::Retry;

/// The storage manager's numbers that mean something of their own.
const BACKEND_NO_SPACE: u32 = 44;
const BACKEND_CHAIN_TOO_LONG: u32 = 109;
const BACKEND_CHANGES_UNKNOWN: u32 = 460;

/// An error of the XAPI datamodel, with its parameters.
///
/// The codes that replication meets have variants; every other is [`ApiError::Other`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// A login at a pool member. [`Session::login`](crate::Session::login) follows it.
    #[error("this host is a pool member; log in at its master {master}")]
    HostIsSlave {
        /// Address of the master.
        master: String,
    },
    /// The session has expired or was dropped. Sessions are logged in again by themselves, once per call.
    #[error("the session is no longer valid, and a new one was refused as well; check for a limit on sessions")]
    SessionInvalid,
    /// Wrong user or password.
    #[error("user \"{user}\" is refused ({message}); check user and password, and percent-encode them in a URL")]
    AuthenticationFailed {
        /// The user that tried.
        user: String,
        /// The host's own words.
        message: String,
    },
    /// The user is known but has no role here.
    #[error("user \"{user}\" may not log in ({message}); give it a role on the pool")]
    AuthorizationFailed {
        /// The user that tried.
        user: String,
        /// The host's own words.
        message: String,
    },
    /// The role of the user does not allow the call.
    #[error("the user's role lacks the permission {permission}; give it a role that has it")]
    PermissionDenied {
        /// The permission that is missing, such as `vm.snapshot`.
        permission: String,
    },
    /// The object does not exist, or no longer.
    #[error("there is no {class} {handle}; it was deleted or belongs to another pool")]
    HandleInvalid {
        /// Class of the object.
        class: String,
        /// The reference that leads nowhere.
        handle: String,
    },
    /// No object has this uuid.
    #[error("there is no {class} with the uuid {uuid}; check the uuid and the pool")]
    UuidInvalid {
        /// Class of the object.
        class: String,
        /// The uuid asked for.
        uuid: String,
    },
    /// A map has this key already. `add_to_*` never overwrites, which makes it the pool's one atomic claim.
    #[error("{field} of {class} {uuid} has the key \"{key}\" already; remove it first")]
    MapDuplicateKey {
        /// Class of the object.
        class: String,
        /// Name of the map.
        field: String,
        /// The object.
        uuid: String,
        /// The key that exists.
        key: String,
    },
    /// `blocked_operations` forbids it.
    #[error("the operation is blocked on {object}: {text}")]
    OperationBlocked {
        /// Reference of the VM.
        object: String,
        /// What the person who blocked it left as the reason.
        text: String,
    },
    /// The operation is not allowed now.
    #[error("not allowed: {reason}")]
    OperationNotAllowed {
        /// XAPI's reason.
        reason: String,
    },
    /// A disk is in use. XAPI sends none, one or two of the members.
    #[error("{} is in use{}; wait for the other operation, or detach it",
        .vdi.as_ref().map_or(Cow::Borrowed("a disk"), |vdi| format!("the disk {vdi}").into()),
        .operation.as_ref().map_or_else(String::new, |operation| format!(" ({operation})")))]
    VdiInUse {
        /// Reference of the disk; absent when the storage manager reports it.
        vdi: Option<String>,
        /// The operation that was refused.
        operation: Option<String>,
    },
    /// The disk is not on the storage where it should be.
    #[error("the disk {vdi} is not available; scan its storage repository")]
    VdiNotAvailable {
        /// Reference of the disk.
        vdi: String,
    },
    /// Reading or writing a disk failed, which is also what a transfer ends with when its connection is cut.
    #[error("disk input or output failed ({text}); check the host's storage and the connection")]
    VdiIoError {
        /// XAPI's words.
        text: String,
    },
    /// No space.
    #[error("the storage repository is full ({text}); free space or choose another")]
    SrFull {
        /// The storage manager's number, if it reported it; else XAPI did.
        backend: Option<u32>,
        /// What was asked for and what is there.
        text: String,
    },
    /// The storage manager failed.
    #[error("the storage manager failed{}: {text}", .code.map_or_else(String::new, |code| format!(" with error {code}")))]
    SrBackendFailure {
        /// Its error number.
        code: Option<u32>,
        /// Its message.
        text: String,
    },
    /// The disk has too many snapshots or uncoalesced parents (the limit is 30).
    #[error("the disk's snapshot chain is too long ({text}); delete snapshots and let the host coalesce")]
    SnapshotChainTooLong {
        /// The storage manager's message.
        text: String,
    },
    /// Changed blocks of a disk are not known between two snapshots: they are unrelated, or tracking was off for a while.
    #[error("the changed blocks are not known ({text}); copy the disk's difference by another way")]
    ChangesUnknown {
        /// The storage manager's message.
        text: String,
    },
    /// The VM is not in the power state that the call needs.
    #[error("the VM {vm} is {actual}, the call needs {expected}")]
    VmBadPowerState {
        /// Reference of the VM.
        vm: String,
        /// What is needed, lower case.
        expected: String,
        /// What is, lower case.
        actual: String,
    },
    /// Another operation has the object.
    #[error("another operation{} is under way on {class} {object}; try again when it is done",
        .operation.as_ref().map_or_else(String::new, |operation| format!(" ({operation})")))]
    OtherOperationInProgress {
        /// Class of the object.
        class: String,
        /// Reference of the object.
        object: String,
        /// The other operation; older releases do not tell.
        operation: Option<String>,
    },
    /// A licence is missing.
    #[error("the pool's licence does not include {feature}")]
    LicenceRestriction {
        /// The feature.
        feature: String,
    },
    /// The host does not know the call.
    #[error("the host does not know the call {method}; it needs a newer release")]
    MethodUnknown {
        /// The call.
        method: String,
    },
    /// The call has too few or too many parameters; the session is not counted.
    #[error("{method} takes {expected} parameters on this host, {received} were sent")]
    MessageParameterCountMismatch {
        /// The call.
        method: String,
        /// What the host takes.
        expected: String,
        /// What it got.
        received: String,
    },
    /// The host has too many tasks.
    #[error("the host has too many pending tasks; try again later")]
    TooManyPendingTasks,
    /// The host is too busy.
    #[error("the host is too busy; try again later")]
    TooBusy,
    /// The host starts.
    #[error("the host is still booting; try again later")]
    HostStillBooting,
    /// A host of the pool does not answer.
    #[error("the host {host} cannot be reached by its pool; check that it is up")]
    HostUnreachable {
        /// The wire code: `HOST_OFFLINE` or `CANNOT_CONTACT_HOST`.
        code: String,
        /// Reference of the host.
        host: String,
    },
    /// The task was cancelled.
    #[error("the task {task} was cancelled")]
    TaskCancelled {
        /// Reference of the task.
        task: String,
    },
    /// Differences from a disk were asked for that is kept as something else than VHD. XAPI sends it as an internal error.
    #[error("the host knows no differences from this disk ({message})")]
    BaseIsNoVhd {
        /// The exception's text.
        message: String,
    },
    /// Something XAPI did not foresee.
    #[error("the host failed inside: {message}")]
    Internal {
        /// The exception's text.
        message: String,
    },
    /// Any other code.
    #[error("the host answers {code}{}", list(.params))]
    Other {
        /// The code as XAPI names it.
        code: String,
        /// Its parameters.
        params: Vec<String>,
    },
}

fn list(params: &[String]) -> String {
    if params.is_empty() { String::new() } else { format!(" ({})", params.join(", ")) }
}

impl ApiError {
    /// From the list that stands in `ErrorDescription` and in a task's `error_info`: the code, then its parameters.
    /// Missing parameters read as empty: releases differ in how many they send.
    pub fn from_wire(code: &str, params: &[String]) -> Self {
        let param = |n: usize| params.get(n).cloned().unwrap_or_default();
        let optional = |n: usize| params.get(n).filter(|p| !p.is_empty()).cloned();
        match code {
            "HOST_IS_SLAVE" => Self::HostIsSlave { master: param(0) },
            "SESSION_INVALID" => Self::SessionInvalid,
            "SESSION_AUTHENTICATION_FAILED" => Self::AuthenticationFailed { user: param(0), message: param(1) },
            "SESSION_AUTHORIZATION_FAILED" => Self::AuthorizationFailed { user: param(0), message: param(1) },
            "RBAC_PERMISSION_DENIED" => Self::PermissionDenied { permission: param(0) },
            "HANDLE_INVALID" => Self::HandleInvalid { class: param(0), handle: param(1) },
            "UUID_INVALID" => Self::UuidInvalid { class: param(0), uuid: param(1) },
            "MAP_DUPLICATE_KEY" => {
                Self::MapDuplicateKey { class: param(0), field: param(1), uuid: param(2), key: param(3) }
            }
            "OPERATION_BLOCKED" => Self::OperationBlocked { object: param(0), text: param(1) },
            "OPERATION_NOT_ALLOWED" => Self::OperationNotAllowed { reason: param(0) },
            "VDI_IN_USE" => Self::VdiInUse { vdi: optional(0), operation: optional(1) },
            "VDI_NOT_AVAILABLE" => Self::VdiNotAvailable { vdi: param(0) },
            "VDI_IO_ERROR" => Self::VdiIoError { text: param(0) },
            "SR_FULL" => Self::SrFull { backend: None, text: format!("requested {}, at most {}", param(0), param(1)) },
            "VM_BAD_POWER_STATE" => Self::VmBadPowerState { vm: param(0), expected: param(1), actual: param(2) },
            "OTHER_OPERATION_IN_PROGRESS" => {
                Self::OtherOperationInProgress { class: param(0), object: param(1), operation: optional(2) }
            }
            "LICENCE_RESTRICTION" => Self::LicenceRestriction { feature: param(0) },
            "MESSAGE_METHOD_UNKNOWN" => Self::MethodUnknown { method: param(0) },
            "MESSAGE_PARAMETER_COUNT_MISMATCH" => {
                Self::MessageParameterCountMismatch { method: param(0), expected: param(1), received: param(2) }
            }
            "TOO_MANY_PENDING_TASKS" => Self::TooManyPendingTasks,
            "TOO_BUSY" => Self::TooBusy,
            "HOST_STILL_BOOTING" => Self::HostStillBooting,
            "HOST_OFFLINE" | "CANNOT_CONTACT_HOST" => Self::HostUnreachable { code: code.to_owned(), host: param(0) },
            "TASK_CANCELLED" => Self::TaskCancelled { task: param(0) },
            "INTERNAL_ERROR" if param(0).contains("base VDI is not a vhd") => Self::BaseIsNoVhd { message: param(0) },
            "INTERNAL_ERROR" => Self::Internal { message: param(0) },
            _ => match code.strip_prefix("SR_BACKEND_FAILURE") {
                Some(number) => Self::from_backend(number, params),
                None => Self::Other { code: code.to_owned(), params: params.to_vec() },
            },
        }
    }

    /// `SR_BACKEND_FAILURE_nn ["", text, stderr]`, the real form of storage errors, or the same without a number.
    fn from_backend(number: &str, params: &[String]) -> Self {
        let code = number.strip_prefix('_').and_then(|n| n.parse().ok());
        let said = params.iter().skip(1).chain(params.first()).find(|text| !text.trim().is_empty());
        let text = said.cloned().unwrap_or_else(|| "no message".to_owned());
        match code {
            Some(BACKEND_NO_SPACE) => Self::SrFull { backend: code, text },
            Some(BACKEND_CHAIN_TOO_LONG) => Self::SnapshotChainTooLong { text },
            Some(BACKEND_CHANGES_UNKNOWN) => Self::ChangesUnknown { text },
            _ => Self::SrBackendFailure { code, text },
        }
    }

    /// The code as XAPI names it, such as `VDI_IN_USE`.
    pub fn code(&self) -> Cow<'_, str> {
        let backend = |code: u32| Cow::Owned(format!("SR_BACKEND_FAILURE_{code}"));
        Cow::Borrowed(match self {
            Self::HostIsSlave { .. } => "HOST_IS_SLAVE",
            Self::SessionInvalid => "SESSION_INVALID",
            Self::AuthenticationFailed { .. } => "SESSION_AUTHENTICATION_FAILED",
            Self::AuthorizationFailed { .. } => "SESSION_AUTHORIZATION_FAILED",
            Self::PermissionDenied { .. } => "RBAC_PERMISSION_DENIED",
            Self::HandleInvalid { .. } => "HANDLE_INVALID",
            Self::UuidInvalid { .. } => "UUID_INVALID",
            Self::MapDuplicateKey { .. } => "MAP_DUPLICATE_KEY",
            Self::OperationBlocked { .. } => "OPERATION_BLOCKED",
            Self::OperationNotAllowed { .. } => "OPERATION_NOT_ALLOWED",
            Self::VdiInUse { .. } => "VDI_IN_USE",
            Self::VdiNotAvailable { .. } => "VDI_NOT_AVAILABLE",
            Self::VdiIoError { .. } => "VDI_IO_ERROR",
            Self::SrFull { backend: Some(code), .. } => return backend(*code),
            Self::SrFull { backend: None, .. } => "SR_FULL",
            Self::SrBackendFailure { code: Some(code), .. } => return backend(*code),
            Self::SrBackendFailure { code: None, .. } => "SR_BACKEND_FAILURE",
            Self::SnapshotChainTooLong { .. } => return backend(BACKEND_CHAIN_TOO_LONG),
            Self::ChangesUnknown { .. } => return backend(BACKEND_CHANGES_UNKNOWN),
            Self::VmBadPowerState { .. } => "VM_BAD_POWER_STATE",
            Self::OtherOperationInProgress { .. } => "OTHER_OPERATION_IN_PROGRESS",
            Self::LicenceRestriction { .. } => "LICENCE_RESTRICTION",
            Self::MethodUnknown { .. } => "MESSAGE_METHOD_UNKNOWN",
            Self::MessageParameterCountMismatch { .. } => "MESSAGE_PARAMETER_COUNT_MISMATCH",
            Self::TooManyPendingTasks => "TOO_MANY_PENDING_TASKS",
            Self::TooBusy => "TOO_BUSY",
            Self::HostStillBooting => "HOST_STILL_BOOTING",
            Self::TaskCancelled { .. } => "TASK_CANCELLED",
            Self::BaseIsNoVhd { .. } | Self::Internal { .. } => "INTERNAL_ERROR",
            Self::HostUnreachable { code, .. } | Self::Other { code, .. } => code,
        })
    }

    /// Whether the same call may succeed later without anybody doing something about it.
    pub fn retry(&self) -> Retry {
        match self {
            Self::SessionInvalid
            | Self::VdiInUse { .. }
            | Self::VdiNotAvailable { .. }
            | Self::VdiIoError { .. }
            | Self::SrBackendFailure { .. }
            | Self::SnapshotChainTooLong { .. }
            | Self::OtherOperationInProgress { .. }
            | Self::TooManyPendingTasks
            | Self::TooBusy
            | Self::HostStillBooting
            | Self::HostUnreachable { .. } => Retry::Later,
            _ => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(code: &str, params: &[&str], expected: Expect) {
        let params: Vec<String> = params.iter().map(|p| (*p).to_owned()).collect();
        let error = ApiError::from_wire(code, &params);
        expected.assert_eq(&format!("{:?}: {error}", error.retry()));
        assert_eq!(error.code(), code, "the code survives");
    }

    #[test]
    fn texts_say_what_on_which_object_and_what_next() {
        check(
            "VDI_IN_USE",
            &["OpaqueRef:1", "destroy"],
            expect!["Later: the disk OpaqueRef:1 is in use (destroy); wait for the other operation, or detach it"],
        );
        check(
            "VDI_IN_USE",
            &["OpaqueRef:1"],
            expect!["Later: the disk OpaqueRef:1 is in use; wait for the other operation, or detach it"],
        );
        check("VDI_IN_USE", &[], expect!["Later: a disk is in use; wait for the other operation, or detach it"]);
        check(
            "SR_BACKEND_FAILURE_44",
            &["", "There is insufficient space", ""],
            expect![
                "Never: the storage repository is full (There is insufficient space); free space or choose another"
            ],
        );
        check(
            "SR_BACKEND_FAILURE_109",
            &["", "The snapshot chain is too long", ""],
            expect![
                "Later: the disk's snapshot chain is too long (The snapshot chain is too long); delete snapshots and let the host coalesce"
            ],
        );
        check(
            "SR_BACKEND_FAILURE_460",
            &["", "Source and target VDI are unrelated", ""],
            expect![
                "Never: the changed blocks are not known (Source and target VDI are unrelated); copy the disk's difference by another way"
            ],
        );
        check(
            "SR_BACKEND_FAILURE_47",
            &["", "", "SR not available"],
            expect!["Later: the storage manager failed with error 47: SR not available"],
        );
        check("SR_BACKEND_FAILURE", &["1", "", ""], expect!["Later: the storage manager failed: 1"]);
        check(
            "SR_FULL",
            &["10", "5"],
            expect!["Never: the storage repository is full (requested 10, at most 5); free space or choose another"],
        );
        check(
            "MAP_DUPLICATE_KEY",
            &["VM", "other_config", "u-1", "vmferry:lease"],
            expect![[r#"Never: other_config of VM u-1 has the key "vmferry:lease" already; remove it first"#]],
        );
        check(
            "OPERATION_BLOCKED",
            &["OpaqueRef:1", "a replica"],
            expect!["Never: the operation is blocked on OpaqueRef:1: a replica"],
        );
        check(
            "SESSION_AUTHENTICATION_FAILED",
            &["root", "Authentication failure"],
            expect![[
                r#"Never: user "root" is refused (Authentication failure); check user and password, and percent-encode them in a URL"#
            ]],
        );
        check(
            "OTHER_OPERATION_IN_PROGRESS",
            &["VM", "OpaqueRef:1"],
            expect!["Later: another operation is under way on VM OpaqueRef:1; try again when it is done"],
        );
        check(
            "OTHER_OPERATION_IN_PROGRESS",
            &["VM", "OpaqueRef:1", "snapshot", "OpaqueRef:2"],
            expect!["Later: another operation (snapshot) is under way on VM OpaqueRef:1; try again when it is done"],
        );
        check(
            "CANNOT_CONTACT_HOST",
            &["OpaqueRef:h"],
            expect!["Later: the host OpaqueRef:h cannot be reached by its pool; check that it is up"],
        );
        check("VBD_CDS_MUST_BE_READONLY", &[], expect!["Never: the host answers VBD_CDS_MUST_BE_READONLY"]);
        check(
            "VDI_TOO_SMALL",
            &["OpaqueRef:1", "10"],
            expect!["Never: the host answers VDI_TOO_SMALL (OpaqueRef:1, 10)"],
        );
    }
}
