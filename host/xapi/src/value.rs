//! XML-RPC values and the way into them: [`Value`], [`IntoValue`], [`params!`](crate::params).

use std::collections::BTreeMap;

pub use jiff::Timestamp;

use crate::xmlrpc;

/// One XML-RPC value, as it stands on the wire.
///
/// XAPI sends integers, references, enums and text without a type tag, so all of them arrive as
/// [`Value::String`]; what a member means is decided by the type it is read into (see
/// [`Session::call`](crate::Session::call)).
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `<nil/>`.
    Nil,
    /// `<boolean>`; XAPI reads anything but `1` as false.
    Bool(bool),
    /// `<int>`, `<i4>` or `<i8>`. Sent as digits without an integer tag, as XAPI itself does.
    Int(i64),
    /// `<double>`.
    Double(f64),
    /// `<string>` or untagged text: text, reference, enum or integer.
    String(String),
    /// `<dateTime.iso8601>`, whole seconds. "Never" is the Unix epoch.
    DateTime(Timestamp),
    /// A set or list.
    Array(Vec<Self>),
    /// A map or record.
    Struct(BTreeMap<String, Self>),
}

impl Value {
    /// The text of a [`Value::String`].
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The members of a [`Value::Struct`].
    pub fn as_struct(&self) -> Option<&BTreeMap<String, Self>> {
        match self {
            Self::Struct(members) => Some(members),
            _ => None,
        }
    }

    /// `<value>…</value>`, as files of XAPI's carry it.
    pub fn to_xml(&self) -> Result<String, XmlError> {
        let mut text = String::new();
        xmlrpc::encode_value(self, &mut text).map_err(|error| XmlError(error.to_string()))?;
        Ok(text)
    }

    /// Reads `<value>…</value>`. Nesting is bounded, and integers that XAPI wrote stay text.
    pub fn from_xml(text: &str) -> Result<Self, XmlError> {
        xmlrpc::decode_value(text).map_err(|error| XmlError(error.to_string()))
    }

    /// The name of the kind of value, for messages that must not show the value itself.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Double(_) => "a double",
            Self::String(_) => "a string",
            Self::DateTime(_) => "a date",
            Self::Array(_) => "an array",
            Self::Struct(_) => "a struct",
        }
    }
}

/// A value that XML cannot carry, or XML that is no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct XmlError(String);

/// What can be a parameter of a call. Implemented for text, numbers, dates, references, enums of the
/// API, vectors and string-keyed maps of these.
pub trait IntoValue {
    /// The value as it is sent.
    fn into_value(self) -> Value;
}

/// Builds the parameters of a call: `params![&vm, "a name", 5i64, true]`.
#[macro_export]
macro_rules! params {
    () => { ::std::vec::Vec::<$crate::Value>::new() };
    ($($value:expr),+ $(,)?) => {
        ::std::vec![$($crate::IntoValue::into_value($value)),+]
    };
}

impl IntoValue for Value {
    fn into_value(self) -> Value {
        self
    }
}

impl<T: IntoValue + Clone> IntoValue for &T {
    fn into_value(self) -> Value {
        self.clone().into_value()
    }
}

impl IntoValue for &str {
    fn into_value(self) -> Value {
        Value::String(self.to_owned())
    }
}

impl IntoValue for String {
    fn into_value(self) -> Value {
        Value::String(self)
    }
}

impl IntoValue for bool {
    fn into_value(self) -> Value {
        Value::Bool(self)
    }
}

impl IntoValue for i64 {
    fn into_value(self) -> Value {
        Value::Int(self)
    }
}

impl IntoValue for i32 {
    fn into_value(self) -> Value {
        Value::Int(self.into())
    }
}

impl IntoValue for u32 {
    fn into_value(self) -> Value {
        Value::Int(self.into())
    }
}

/// XAPI reads integers as digits, so a size is sent as they are; above 2^63 XAPI refuses it.
impl IntoValue for u64 {
    fn into_value(self) -> Value {
        i64::try_from(self).map_or_else(|_| Value::String(self.to_string()), Value::Int)
    }
}

impl IntoValue for f64 {
    fn into_value(self) -> Value {
        Value::Double(self)
    }
}

impl IntoValue for Timestamp {
    fn into_value(self) -> Value {
        Value::DateTime(self)
    }
}

impl<T: IntoValue> IntoValue for Vec<T> {
    fn into_value(self) -> Value {
        Value::Array(self.into_iter().map(IntoValue::into_value).collect())
    }
}

impl<T: IntoValue + Clone> IntoValue for &[T] {
    fn into_value(self) -> Value {
        self.to_vec().into_value()
    }
}

impl<T: IntoValue, const N: usize> IntoValue for [T; N] {
    fn into_value(self) -> Value {
        Value::Array(self.into_iter().map(IntoValue::into_value).collect())
    }
}

impl<K: Into<String>, T: IntoValue> IntoValue for BTreeMap<K, T> {
    fn into_value(self) -> Value {
        Value::Struct(self.into_iter().map(|(k, v)| (k.into(), v.into_value())).collect())
    }
}

/// Parses the dates XAPI sends, `20260821T09:30:00Z`, and those it takes: with hyphens, with an offset,
/// without a zone (which means UTC).
pub(crate) fn parse_date(text: &str) -> Result<Timestamp, jiff::Error> {
    text.parse::<Timestamp>().or_else(|_| {
        let civil: jiff::civil::DateTime = text.trim_end_matches('Z').parse()?;
        Ok(civil.to_zoned(jiff::tz::TimeZone::UTC)?.timestamp())
    })
}

/// The form every release of XAPI takes: no hyphens, colons kept, whole seconds, UTC.
pub(crate) fn format_date(date: Timestamp) -> String {
    date.strftime("%Y%m%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_every_form_xapi_takes_and_written_in_the_one_it_sends() {
        for text in [
            "20260821T09:30:00Z",
            "2026-08-21T09:30:00Z",
            "20260821T09:30:00",
            "20260821T11:30:00+02:00",
            "2026-08-21T09:30:00",
        ] {
            let date = parse_date(text).expect(text);
            assert_eq!(format_date(date), "20260821T09:30:00Z", "{text}");
        }
        assert_eq!(parse_date("19700101T00:00:00Z").expect("never"), Timestamp::UNIX_EPOCH);
        parse_date("yesterday").expect_err("not a date");
    }

    #[test]
    fn parameters_take_owned_and_borrowed_values() {
        let map = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let name = "name".to_owned();
        let values = params![&name, "text", 5i64, true, &map, vec!["x"], 7u64];
        assert_eq!(values.len(), 7);
        assert_eq!(values[4], Value::Struct(BTreeMap::from([("a".to_owned(), Value::String("b".to_owned()))])));
        assert_eq!(u64::MAX.into_value(), Value::String(u64::MAX.to_string()));
        assert!(params![].is_empty());
    }
}
