//! Does a component fit the world it claims? Asked before it is linked, so that the answer can name the difference.

use crate::convert;
use crate::manifest::Kind;
use wasmtime::component::Component;

/// The version of the contract that this host serves.
const VERSION: &str = "0.1.0";

/// WASI that any guest brings along; a policy gets a sterile one.
const WASI: &[&str] = &["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/"];

/// A component that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It imports what its kind never gets.
    #[error("it imports `{import}`, which a {kind} cannot have: {reason}")]
    NotForKind {
        /// The import.
        import: String,
        /// The kind.
        kind: Kind,
        /// Why not.
        reason: &'static str,
    },
    /// It imports what a later host will offer.
    #[error("it imports `{import}`, which is part of the contract and not offered by this host yet")]
    NotOfferedYet {
        /// The import.
        import: String,
    },
    /// It imports what nobody offers.
    #[error(
        "it imports `{import}`, which this host does not know; it offers the `{kind}` world of vmferry:plugin@{VERSION}"
    )]
    Unknown {
        /// The import.
        import: String,
        /// The kind.
        kind: Kind,
    },
    /// It was built against another version of the contract.
    #[error(
        "it was built for `{found}`, this host serves version {VERSION}; build it again against this host's `wit/`"
    )]
    Version {
        /// The interface with its version.
        found: String,
    },
    /// It exports another kind's interface.
    #[error("it is a {found}, not a {expected}")]
    OtherKind {
        /// What its exports say.
        found: Kind,
        /// What its manifest says.
        expected: Kind,
    },
    /// It exports no kind's interface.
    #[error("it exports no plugin interface; a plugin exports one of {}", exports())]
    NoPlugin,
    /// The names are right and the types differ.
    #[error("its types differ from vmferry:plugin@{VERSION}: {0}; build it again against this host's `wit/`")]
    Types(String),
}

fn exports() -> String {
    Kind::ALL.map(|kind| format!("`{}@{VERSION}`", kind.export())).join(", ")
}

/// The kind that a component's exports tell.
pub(crate) fn kind_of(component: &Component) -> Result<Kind, Misfit> {
    let ty = component.component_type();
    let mut other_version = None;
    for (name, _) in ty.exports(component.engine()) {
        for kind in Kind::ALL {
            if let Some(version) = name.strip_prefix(kind.export()).and_then(|rest| rest.strip_prefix('@')) {
                if version == VERSION {
                    return Ok(kind);
                }
                other_version = Some(convert::text(name));
            }
        }
    }
    Err(other_version.map_or(Misfit::NoPlugin, |found| Misfit::Version { found }))
}

/// Whether the component, which claims to be of this kind, is one and asks for no more than its kind gets.
pub(crate) fn check(component: &Component, kind: Kind) -> Result<(), Misfit> {
    let found = kind_of(component)?;
    if found != kind {
        return Err(Misfit::OtherKind { found, expected: kind });
    }
    component.component_type().imports(component.engine()).try_for_each(|(import, _)| check_import(import, kind))
}

fn check_import(import: &str, kind: Kind) -> Result<(), Misfit> {
    let own = || convert::text(import);
    if let Some(rest) = import.strip_prefix("vmferry:plugin/") {
        let (name, version) = rest.split_once('@').unwrap_or((rest, ""));
        if version != VERSION {
            return Err(Misfit::Version { found: own() });
        }
        return match (name, kind) {
            ("types" | "log", _) | ("store" | "sign", Kind::Notifier | Kind::Target) => Ok(()),
            ("seal" | "lock" | "delta", Kind::Target) => Ok(()),
            ("xapi" | "mail", Kind::Notifier) => Err(Misfit::NotOfferedYet { import: own() }),
            ("store" | "sign" | "xapi" | "mail", Kind::Scheduler | Kind::Retention) => {
                Err(Misfit::NotForKind { import: own(), kind, reason: "a policy decides from its input alone" })
            }
            ("seal" | "lock" | "delta", _) => {
                Err(Misfit::NotForKind { import: own(), kind, reason: "it belongs to the `target` world" })
            }
            ("xapi" | "mail", Kind::Target) => {
                Err(Misfit::NotForKind { import: own(), kind, reason: "it belongs to the `notifier` world" })
            }
            _ => Err(Misfit::Unknown { import: own(), kind }),
        };
    }
    if WASI.iter().any(|allowed| import.starts_with(allowed)) {
        return Ok(());
    }
    if import.starts_with("wasi:http/") {
        return match (kind.is_policy(), import.starts_with("wasi:http/incoming-handler")) {
            (false, false) => Ok(()),
            (true, _) => {
                Err(Misfit::NotForKind { import: own(), kind, reason: "a policy decides from its input alone" })
            }
            (false, true) => Err(Misfit::Unknown { import: own(), kind }),
        };
    }
    if import.starts_with("wasi:sockets/") {
        return Err(Misfit::NotForKind {
            import: own(),
            kind,
            reason: "sockets are given to no plugin; notifiers and targets can use `wasi:http/outgoing-handler`",
        });
    }
    Err(Misfit::Unknown { import: own(), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_gets_the_log_and_plain_wasi_and_nothing_else() {
        for import in ["vmferry:plugin/log@0.1.0", "wasi:cli/environment@0.2.3", "wasi:clocks/wall-clock@0.2.12"] {
            assert_eq!(check_import(import, Kind::Scheduler), Ok(()));
        }
        for import in [
            "wasi:http/outgoing-handler@0.2.0",
            "wasi:sockets/tcp@0.2.0",
            "vmferry:plugin/store@0.1.0",
            "acme:x/y@1.0.0",
        ] {
            let misfit = check_import(import, Kind::Retention).expect_err(import);
            assert!(misfit.to_string().contains(import), "{misfit}");
        }
    }

    #[test]
    fn a_long_name_is_cut() {
        let misfit = check_import(&"a".repeat(100_000), Kind::Notifier).expect_err("unknown");
        assert!(misfit.to_string().len() < 5_000);
    }

    #[test]
    fn a_notifier_is_told_what_comes_later() {
        for import in ["vmferry:plugin/store@0.1.0", "vmferry:plugin/sign@0.1.0", "wasi:http/types@0.2.12"] {
            assert_eq!(check_import(import, Kind::Notifier), Ok(()));
        }
        let misfit = check_import("vmferry:plugin/mail@0.1.0", Kind::Notifier).expect_err("not hosted");
        assert!(misfit.to_string().contains("not offered by this host yet"), "{misfit}");
        assert!(matches!(check_import("vmferry:plugin/log@0.2.0", Kind::Notifier), Err(Misfit::Version { .. })));
        assert!(matches!(check_import("wasi:sockets/tcp@0.2.0", Kind::Notifier), Err(Misfit::NotForKind { .. })));
    }
}
