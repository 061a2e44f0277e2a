//! Faults on demand: where, at which use, and what goes wrong.

use serde::Deserialize;

use crate::error::ApiError;

/// One fault, armed once. After it has struck it is gone, a stall excepted, which lasts until
/// [`Sim::clear_faults`](crate::Sim::clear_faults).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Fault {
    /// What it waits for.
    pub at: FaultPoint,
    /// Which matching use it hits; 1 is the next one.
    #[serde(default = "next_use")]
    pub nth: u32,
    /// What goes wrong then.
    pub kind: FaultKind,
}

/// Where a fault strikes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultPoint {
    /// `GET /export_raw_vdi` and `/export`, where it is not answered by a redirect
    Export,
    /// `PUT /import_raw_vdi` and `/import`, where it is not answered by a redirect
    Import,
    /// An NBD connection that asks for its export. Bytes are those of payload on this one connection; a kind that is not
    /// about bytes closes it.
    Nbd,
    /// A method, as a pattern in which `*` stands for any text. It is compared with the whole name and with the
    /// name without `Async.`, so `VM.snapshot` hits both forms.
    Call(String),
    /// Any method that may change something: none of `get_*`, `list_*` and `event.from`.
    Write,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The connection ends (FIN) after so many bytes of the body; the task fails as after a broken connection. What
    /// the peer sends after that is answered by RST, as TCP does. At a call: like `CloseWithoutAnswer`.
    CutAfter(u64),
    /// The connection is reset (RST) after so many bytes of the body; the last of them may be lost on the way. At a call:
    /// like `CloseWithoutAnswer`.
    ResetAfter(u64),
    /// The work fails after so many bytes of the body: a 500 and its page go into the same socket behind them, and the task fails
    /// with `VDI_IO_ERROR`. With the number of all bytes it fails when everything seems done. At a call: nothing.
    FailAfter(u64),
    /// An export goes on behind its last byte, with zeroes, until the peer goes away. Anywhere else: nothing.
    Endless,
    /// The transfer stops moving after so many bytes of the body until the faults are cleared or the peer goes away. At
    /// a call the number means nothing: an `Async.` call shows its operation in `current_operations` and waits, any
    /// other call is done and answered only after the faults are cleared.
    StallAfter(u64),
    /// The byte at this place of the body travels with all its bits inverted, and nobody notices. At a call: nothing.
    FlipByte(u64),
    /// The request is answered by 500 and a page; nothing is done.
    Http500,
    /// The call fails with this code and these parameters; a transfer is answered by 200 and its task fails.
    ApiError(String, Vec<String>),
    /// `ApiError` with the code of a full SR.
    SrFull,
    /// The caller's session is gone: `SESSION_INVALID`, or 401 at a transfer.
    SessionLost,
    /// The connection is closed without an answer; nothing is done.
    CloseWithoutAnswer,
    /// The call or transfer is done, and then the connection is closed without an answer.
    ReplyLost,
}

fn next_use() -> u32 {
    1
}

impl FaultKind {
    /// After how many bytes it strikes, for the kinds that count them.
    pub(crate) fn strikes_at(&self) -> Option<u64> {
        match self {
            Self::CutAfter(at) | Self::ResetAfter(at) | Self::FailAfter(at) | Self::StallAfter(at) => Some(*at),
            _ => None,
        }
    }

    /// The error that a call or a task ends with, for the kinds that are one.
    pub(crate) fn api_error(&self) -> Option<ApiError> {
        match self {
            Self::ApiError(code, params) => Some(ApiError::new(code.as_str(), params.iter().map(String::as_str))),
            Self::SrFull => Some(ApiError::sr_full()),
            _ => None,
        }
    }
}

/// One use of something that faults can strike.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use<'a> {
    Export,
    Import,
    Nbd,
    Call(&'a str),
}

#[derive(Debug, Default)]
pub(crate) struct Faults {
    armed: Vec<Fault>,
}

impl Faults {
    pub(crate) fn arm(&mut self, fault: Fault) {
        self.armed.push(fault);
    }

    /// Disarms all; says how many have not struck.
    pub(crate) fn clear(&mut self) -> usize {
        std::mem::take(&mut self.armed).len()
    }

    /// Counts this use and returns the fault it meets, if any.
    pub(crate) fn strike(&mut self, used: Use<'_>) -> Option<FaultKind> {
        let mut struck = None;
        for (position, fault) in self.armed.iter_mut().enumerate().filter(|(_, fault)| fault.at.matches(used)) {
            fault.nth = fault.nth.saturating_sub(1);
            if fault.nth == 0 && struck.is_none() {
                struck = Some(position);
            }
        }
        Some(self.armed.remove(struck?).kind)
    }
}

impl FaultPoint {
    fn matches(&self, used: Use<'_>) -> bool {
        match (self, used) {
            (Self::Export, Use::Export) | (Self::Import, Use::Import) | (Self::Nbd, Use::Nbd) => true,
            (Self::Call(pattern), Use::Call(method)) => {
                glob(pattern, method) || method.strip_prefix("Async.").is_some_and(|method| glob(pattern, method))
            }
            (Self::Write, Use::Call(method)) => {
                !["*.get_*", "*.list_*", "event.from"].iter().any(|reading| glob(reading, method))
            }
            _ => false,
        }
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| glob(after, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_the_nth_use_and_only_that() {
        let mut faults = Faults::default();
        faults.arm(Fault { at: FaultPoint::Call("VM.*".into()), nth: 2, kind: FaultKind::Http500 });
        assert_eq!(faults.strike(Use::Call("Async.VM.snapshot")), None);
        assert_eq!(faults.strike(Use::Call("VDI.create")), None);
        assert_eq!(faults.strike(Use::Export), None);
        assert_eq!(faults.strike(Use::Call("VM.start")), Some(FaultKind::Http500));
        assert_eq!(faults.strike(Use::Call("VM.start")), None);
    }

    #[test]
    fn writes_are_told_from_reads() {
        for (method, writes) in [
            ("VM.get_record", false),
            ("VDI.list_changed_blocks", false),
            ("event.from", false),
            ("VM.add_to_other_config", true),
            ("Async.VDI.destroy", true),
            ("session.login_with_password", true),
        ] {
            assert_eq!(FaultPoint::Write.matches(Use::Call(method)), writes, "{method}");
        }
    }

    #[test]
    fn two_faults_at_one_use_strike_one_after_the_other() {
        let mut faults = Faults::default();
        for kind in [FaultKind::Http500, FaultKind::SrFull] {
            faults.arm(Fault { at: FaultPoint::Import, nth: 1, kind });
        }
        assert_eq!(faults.strike(Use::Import), Some(FaultKind::Http500));
        assert_eq!(faults.strike(Use::Import), Some(FaultKind::SrFull));
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("VM.*", "VM.start", true),
            ("*.get_*", "VDI.get_uuid", true),
            ("VM.*", "VDI.x", false),
            ("a*b", "ab", true),
            ("a*b", "aXc", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn faults_are_read_from_json() {
        let fault: Fault =
            serde_json::from_str(r#"{"at":{"call":"VM.start"},"kind":{"api_error":["X",["p"]]}}"#).unwrap();
        assert_eq!(fault.nth, 1);
        assert_eq!(fault.kind.api_error(), Some(ApiError::new("X", ["p"])));
        let fault: Fault = serde_json::from_str(r#"{"at":"import","nth":3,"kind":{"cut_after":10}}"#).unwrap();
        assert_eq!(fault, Fault { at: FaultPoint::Import, nth: 3, kind: FaultKind::CutAfter(10) });
        let fault: Fault = serde_json::from_str(r#"{"at":"nbd","kind":"endless"}"#).unwrap();
        assert_eq!(fault, Fault { at: FaultPoint::Nbd, nth: 1, kind: FaultKind::Endless });
    }
}
