//! From [`Value`] to Rust types: a serde deserializer that knows XAPI's habits.
//!
//! Integers, enums and references arrive as text, void as the empty string, and releases add members at
//! will: numbers are read from digits, enums from their names, `()` from `""` and nil, unknown members are skipped.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

use crate::value::{Value, format_date, parse_date};

/// A value that has not the form the caller expects: where in the value, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The member, from the outside in: `snapshot.VBDs[2]`. Empty for the value itself.
    pub path: String,
    /// What was found and what was expected.
    pub reason: String,
}

impl DecodeError {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { path: String::new(), reason: reason.into() }
    }

    pub(crate) fn inside(mut self, member: &str) -> Self {
        let separator = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{member}{separator}{}", self.path);
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }
}

/// Reads `value` as a `T`.
pub(crate) fn from_value<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, DecodeError> {
    T::deserialize(value)
}

impl Value {
    /// The number in an integer or in digits.
    fn number<N: std::str::FromStr + TryFrom<i64>>(&self, wanted: &'static str) -> Result<N, DecodeError> {
        let wrong = |found: &str| DecodeError::new(format!("{found} where {wanted} belongs"));
        match self {
            Self::Int(n) => N::try_from(*n).map_err(|_| wrong(&n.to_string())),
            Self::String(digits) => digits.trim().parse().map_err(|_| wrong("other text")),
            other => Err(wrong(other.kind())),
        }
    }

    fn float(&self) -> Result<f64, DecodeError> {
        match self {
            Self::Double(x) => Ok(*x),
            Self::Int(n) => Ok(*n as f64),
            Self::String(digits) => {
                digits.trim().parse().map_err(|_| DecodeError::new("other text where a number belongs"))
            }
            other => Err(DecodeError::new(format!("{} where a number belongs", other.kind()))),
        }
    }
}

/// The name under which a [`Value`] asks for itself. Serde has no date, so to that name a date is given as an
/// enum whose variant is its text, a form that no member on the wire can take.
const VALUE: &str = "$vmferry::value";

impl<'de> Deserializer<'de> for &'de Value {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self {
            Value::Nil => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Int(n) => visitor.visit_i64(*n),
            Value::Double(x) => visitor.visit_f64(*x),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::DateTime(date) => visitor.visit_string(date.to_string()),
            Value::Array(items) => visitor.visit_seq(Items { items: items.iter(), index: 0 }),
            Value::Struct(members) => visitor.visit_map(Members { members: members.iter(), member: None }),
        }
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_i64(self.number("an integer")?)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_u64(self.number("an integer that is not negative")?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_f64(self.float()?)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self {
            Value::Nil => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    /// XAPI answers the empty string where a method returns nothing.
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self {
            Value::Nil => visitor.visit_unit(),
            Value::String(text) if text.is_empty() => visitor.visit_unit(),
            other => Err(DecodeError::new(format!("{} where no value belongs", other.kind()))),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self {
            Value::DateTime(date) if name == VALUE => visitor.visit_enum(format_date(*date).into_deserializer()),
            _ if name == VALUE => self.deserialize_any(visitor),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let Value::String(name) = self else {
            return Err(DecodeError::new(format!("{} where the name of a choice belongs", self.kind())));
        };
        let name: StrDeserializer<'_, DecodeError> = name.as_str().into_deserializer();
        visitor.visit_enum(name)
    }

    forward_to_deserialize_any! {
        bool i128 u128 char str string bytes byte_buf seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, Value>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = DecodeError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, DecodeError> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(item).map(Some).map_err(|e| e.inside(&format!("[{index}]")))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Members<'de> {
    members: std::collections::btree_map::Iter<'de, String, Value>,
    member: Option<(&'de str, &'de Value)>,
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = DecodeError;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, DecodeError> {
        let Some((name, value)) = self.members.next() else { return Ok(None) };
        self.member = Some((name, value));
        seed.deserialize(StrDeserializer::<DecodeError>::new(name)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, DecodeError> {
        let (name, value) =
            self.member.take().ok_or_else(|| DecodeError::new("a value was asked for before its name"))?;
        seed.deserialize(value).map_err(|e| e.inside(name))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(VALUE, ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nil)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Nil)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Int(n))
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<Value, E> {
        i64::try_from(n).map(Value::Int).map_err(E::custom)
    }

    fn visit_f64<E>(self, x: f64) -> Result<Value, E> {
        Ok(Value::Double(x))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            members.insert(name, map.next_value()?);
        }
        Ok(Value::Struct(members))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, date: A) -> Result<Value, A::Error> {
        let (date, _) = date.variant::<String>()?;
        parse_date(&date).map(Value::DateTime).map_err(de::Error::custom)
    }
}

/// For sizes: XAPI's integers are signed, and a driver that cannot tell says -1, which reads as 0.
pub(crate) fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    i64::deserialize(deserializer).map(|n| u64::try_from(n).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Timestamp;

    fn text(s: &str) -> Value {
        Value::String(s.to_owned())
    }

    fn record(members: &[(&str, Value)]) -> Value {
        Value::Struct(members.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect())
    }

    #[derive(Debug, PartialEq, Deserialize)]
    enum Mode {
        #[serde(rename = "RO")]
        ReadOnly,
        #[serde(rename = "RW")]
        ReadWrite,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Sample {
        size: i64,
        count: u32,
        share: f64,
        mode: Mode,
        absent: Option<String>,
        config: BTreeMap<String, String>,
        list: Vec<String>,
        at: Timestamp,
        flag: bool,
    }

    fn sample() -> Value {
        record(&[
            ("size", text("-9223372036854775808")),
            ("count", Value::Int(7)),
            ("share", text("0.5")),
            ("mode", text("RW")),
            ("absent", Value::Nil),
            ("config", record(&[("a", text("b"))])),
            ("list", Value::Array(vec![text("x")])),
            ("at", Value::DateTime(Timestamp::UNIX_EPOCH)),
            ("flag", Value::Bool(true)),
            ("a member of a later release", Value::Array(vec![])),
        ])
    }

    #[test]
    fn digits_enums_maps_and_dates_are_read_and_unknown_members_are_skipped() {
        let read: Sample = from_value(&sample()).expect("decodes");
        assert_eq!(read.size, i64::MIN);
        assert_eq!((read.count, read.share, read.mode), (7, 0.5, Mode::ReadWrite));
        assert_eq!((read.absent, read.at, read.flag), (None, Timestamp::UNIX_EPOCH, true));
        assert_eq!(read.config["a"], "b");
    }

    #[test]
    fn a_date_that_came_as_text_is_still_a_date() {
        let at: Timestamp = from_value(&text("20260821T09:30:00Z")).expect("a date");
        assert_eq!(format_date(at), "20260821T09:30:00Z");
    }

    #[test]
    fn nothing_is_an_empty_string_or_nil() {
        from_value::<()>(&text("")).expect("empty");
        from_value::<()>(&Value::Nil).expect("nil");
        from_value::<()>(&text("OpaqueRef:1")).expect_err("a value is not nothing");
    }

    #[test]
    fn an_error_names_the_member_but_not_its_text() {
        let nested = record(&[("inner", Value::Array(vec![text("1"), text("hunter2")]))]);
        let error = from_value::<BTreeMap<String, Vec<i64>>>(&nested).expect_err("not a number");
        assert_eq!(error.to_string(), "inner[1]: other text where an integer belongs");
        from_value::<u64>(&Value::Int(-1)).expect_err("negative");
        from_value::<Mode>(&text("XX")).expect_err("no such choice");
    }

    #[test]
    fn a_value_reads_itself_without_loss() {
        let mut all = sample();
        if let Value::Struct(members) = &mut all {
            members.insert("double".to_owned(), Value::Double(1.5));
        }
        assert_eq!(from_value::<Value>(&all).expect("itself"), all);
    }

    #[test]
    fn an_unknown_size_is_zero() {
        #[derive(Deserialize)]
        struct Size(#[serde(deserialize_with = "bytes")] u64);
        assert_eq!(from_value::<Size>(&text("-1")).expect("reads").0, 0);
        assert_eq!(from_value::<Size>(&text("42")).expect("reads").0, 42);
    }
}
