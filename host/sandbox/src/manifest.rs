//! `plugin.toml`: what a plugin says about itself before any of its code runs.

use crate::convert;
use crate::grants::{Grants, HostPattern, PatternError};
use crate::limits::{Limits, WrittenLimits};
use serde::Deserialize;

/// Kinds of plugin that this host runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Decides when a job runs.
    Scheduler,
    /// Decides which recovery points stay.
    Retention,
    /// Tells somebody about events.
    Notifier,
    /// Keeps recovery points somewhere else.
    Target,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Scheduler, Self::Retention, Self::Notifier, Self::Target];

    /// The interface that a component of this kind exports, without its version.
    pub(crate) fn export(self) -> &'static str {
        match self {
            Self::Scheduler => "vmferry:plugin/schedule",
            Self::Retention => "vmferry:plugin/retain",
            Self::Notifier => "vmferry:plugin/notify",
            Self::Target => "vmferry:plugin/replicate",
        }
    }

    /// Whether the plugin only decides: deterministic, without any effect.
    pub(crate) fn is_policy(self) -> bool {
        matches!(self, Self::Scheduler | Self::Retention)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Scheduler => "scheduler",
            Self::Retention => "retention",
            Self::Notifier => "notifier",
            Self::Target => "target",
        })
    }
}

/// A manifest that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not TOML, a key missing, unknown or of the wrong type.
    #[error("{0}")]
    Malformed(String),
    /// A size or time that is none.
    #[error("{0}")]
    Limit(String),
    /// A server that is none.
    #[error("`grants.http`: {0}")]
    Pattern(#[from] PatternError),
    /// An id that could not be written in a configuration, a path or a log line without quotes.
    #[error("`id`: `{0}` is not a name of lower-case letters, digits and hyphens, at most 64")]
    Id(String),
    /// A version that could not, either.
    #[error("`version`: `{0}` is not a version of letters, digits, `.`, `+` and `-`, at most 64")]
    Version(String),
}

/// What a plugin says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its id: lower-case letters, digits and hyphens.
    pub id: String,
    /// Its version.
    pub version: String,
    /// Its kind.
    pub kind: Kind,
    /// One sentence about what it does.
    pub description: String,
    /// The component's file beside the manifest; without it the only `*.wasm` there.
    pub component: Option<String>,
    /// What it asks to be allowed.
    pub grants: Grants,
    /// How much it asks for.
    pub limits: Limits,
    /// JSON Schema of its settings, if it gives one.
    pub config: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: String,
    version: String,
    kind: Kind,
    description: String,
    component: Option<String>,
    #[serde(default)]
    grants: WrittenGrants,
    #[serde(default)]
    limits: WrittenLimits,
    config: Option<serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenGrants {
    http: Vec<String>,
    sign: Vec<String>,
    seal: Vec<String>,
    lock: bool,
    folders: bool,
    store: bool,
}

impl Manifest {
    /// Reads a `plugin.toml`.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let written: Written = toml::from_str(text).map_err(|error| ManifestError::Malformed(error.to_string()))?;
        if !is_id(&written.id) {
            return Err(ManifestError::Id(convert::text(&written.id)));
        }
        if !is_version(&written.version) {
            return Err(ManifestError::Version(convert::text(&written.version)));
        }
        let http =
            written.grants.http.iter().map(|pattern| pattern.parse()).collect::<Result<Vec<HostPattern>, _>>()?;
        Ok(Self {
            id: written.id,
            version: written.version,
            kind: written.kind,
            description: convert::text(&written.description),
            component: written.component,
            grants: Grants {
                http,
                sign: written.grants.sign,
                seal: written.grants.seal,
                lock: written.grants.lock,
                folders: if written.grants.folders { vec!["*".to_owned()] } else { Vec::new() },
                store: written.grants.store,
                private_addresses: false,
            },
            limits: written.limits.read().map_err(ManifestError::Limit)?,
            config: written.config,
        })
    }
}

pub(crate) fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !id.starts_with('-')
}

pub(crate) fn is_version(version: &str) -> bool {
    (1..=64).contains(&version.len())
        && version.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "id = 'retain-x'\nversion = '1.2.3'\nkind = 'retention'\ndescription = 'Keeps x.'\n";

    #[test]
    fn a_minimal_manifest_requests_nothing() {
        let manifest = Manifest::parse(MINIMAL).expect("minimal");
        assert_eq!(manifest.kind, Kind::Retention);
        assert_eq!(manifest.grants, Grants::default());
        assert_eq!(manifest.limits, Limits::default());
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let refusal = |text: &str| Manifest::parse(text).expect_err("wrong").to_string();
        assert!(refusal(&format!("{MINIMAL}colour = 'red'")).contains("unknown field `colour`"));
        assert!(refusal(&MINIMAL.replace("retention", "butler")).contains("unknown variant `butler`"));
        assert!(refusal(&MINIMAL.replace("retain-x", "Retain X")).contains("`Retain X`"));
        assert!(refusal(&MINIMAL.replace("'1.2.3'", "\"1.2\\n3\"")).contains("`version`: `1.2 3`"));
        assert!(refusal(&MINIMAL.replace("1.2.3", "")).contains("`version`: ``"));
        assert!(refusal(&MINIMAL.replace("1.2.3", &"1".repeat(65))).contains("`version`"));
        assert!(refusal(&format!("{MINIMAL}[grants]\nhttp = ['ops']")).contains("`grants.http`: `ops`"));
        assert!(refusal(&format!("{MINIMAL}[limits]\nmemory = '1 GB'")).contains("`limits.memory`: `1 GB`"));
        assert!(refusal("id = 'x'").contains("missing field"));
    }
}
