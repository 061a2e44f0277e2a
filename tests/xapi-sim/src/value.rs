//! A value as XAPI knows it, independent of the encoding on the wire.

use std::collections::BTreeMap;

use serde_json::{Map, Number};

/// The null reference.
pub(crate) const NULL_REF: &str = "OpaqueRef:NULL";

/// "Never", as XAPI writes it.
pub(crate) const EPOCH: &str = "19700101T00:00:00Z";

/// References and enum values are strings, as they are on the wire.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    /// Used by `valid_ref_counts` of `event.from` alone; the one integer that XML carries with a type tag.
    Int32(i32),
    Float(f64),
    String(String),
    /// `YYYYMMDDTHH:MM:SSZ`
    DateTime(String),
    Array(Vec<Self>),
    Struct(BTreeMap<String, Self>),
}

impl Value {
    pub(crate) fn void() -> Self {
        Self::String(String::new())
    }

    pub(crate) fn null_ref() -> Self {
        Self::String(NULL_REF.to_owned())
    }

    pub(crate) fn empty_map() -> Self {
        Self::Struct(BTreeMap::new())
    }

    pub(crate) fn strings<I, S>(items: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self::Array(items.into_iter().map(|item| Self::String(item.into())).collect())
    }

    pub(crate) fn map<I, K, V>(entries: I) -> Self
    where
        I: IntoIterator<Item = (K, V)>,
        K: Into<String>,
        V: Into<Self>,
    {
        Self::Struct(entries.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// The text of a string, date or reference; empty for anything else.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::String(text) | Self::DateTime(text) => text,
            _ => "",
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Self::Nil => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) => Json::Number((*value).into()),
            Self::Int32(value) => Json::Number((*value).into()),
            Self::Float(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
            Self::String(text) | Self::DateTime(text) => Json::String(text.clone()),
            Self::Array(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Self::Struct(members) => {
                let members = members.iter().map(|(key, value)| (key.clone(), value.to_json()));
                Json::Object(members.collect::<Map<_, _>>())
            }
        }
    }

    pub(crate) fn from_json(json: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match json {
            Json::Null => Self::Nil,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(number) => match number.as_i64() {
                Some(value) => Self::Int(value),
                None => Self::Float(number.as_f64().unwrap_or_default()),
            },
            Json::String(text) => Self::String(text),
            Json::Array(items) => Self::Array(items.into_iter().map(Self::from_json).collect()),
            Json::Object(members) => {
                Self::Struct(members.into_iter().map(|(key, value)| (key, Self::from_json(value))).collect())
            }
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

/// The same form on every host: no hyphens, colons kept, whole seconds.
pub(crate) fn datetime(at: jiff::Timestamp) -> Value {
    Value::DateTime(at.strftime("%Y%m%dT%H:%M:%SZ").to_string())
}

/// Accepts what XAPI accepts: with or without hyphens and offset; a missing zone means UTC.
pub(crate) fn parse_datetime(text: &str) -> Option<jiff::Timestamp> {
    if let Ok(at) = text.parse() {
        return Some(at);
    }
    let bare = text.strip_suffix('Z').unwrap_or(text);
    ["%Y%m%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y%m%dT%H%M%S"].iter().find_map(|format| {
        let civil = jiff::civil::DateTime::strptime(format, bare).ok()?;
        Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_no_hyphens_and_are_read_with_or_without_them() {
        let at: jiff::Timestamp = "2026-11-21T19:48:01Z".parse().unwrap();
        assert_eq!(datetime(at), Value::DateTime("20261121T19:48:01Z".into()));
        for text in ["20261121T19:48:01Z", "2026-11-21T19:48:01", "20261121T19:48:01", "2026-11-21T20:48:01+01:00"] {
            assert_eq!(parse_datetime(text), Some(at), "{text}");
        }
        assert_eq!(parse_datetime("yesterday"), None);
    }
}
