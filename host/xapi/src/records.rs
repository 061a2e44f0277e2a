//! Objects of a pool as typed records.
//!
//! A record has fields for what replication reads, and the whole of what the host sent in `raw`, so that an object
//! can be made again from it. A member that a host does not send takes its default: releases differ.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::decode::{self, DecodeError};
use crate::reference::Ref;
use crate::value::{IntoValue, Timestamp, Value};

mod compute;
mod network;
mod storage;

pub use compute::{DomainType, Host, Pool, PowerState, Task, TaskStatus, Vm, VmGuestMetrics};
pub use network::{LockingMode, Network, Pif, Vif};
pub use storage::{OnBoot, Pbd, Sr, Vbd, VbdMode, VbdType, Vdi, VdiType};

/// A map of the datamodel, such as `other_config`.
pub type StringMap = BTreeMap<String, String>;

/// A class of XAPI objects.
pub trait Record: DeserializeOwned {
    /// The name of the class in calls, such as `VM`; events spell it in lower case.
    const CLASS: &'static str;

    /// Reads a record from its members and keeps them in `raw`.
    fn from_fields(fields: BTreeMap<String, Value>) -> Result<Self, DecodeError>;

    /// The object's uuid, which outlives restarts and is what people and other pools know.
    fn uuid(&self) -> &str;
}

/// Implements [`Record`] for a struct that derives `Deserialize` with `#[serde(remote = "Self")]`, and with it the
/// trait `Deserialize` itself.
macro_rules! record {
    ($type:ident, $class:literal) => {
        impl Record for $type {
            const CLASS: &'static str = $class;

            fn from_fields(fields: BTreeMap<String, Value>) -> Result<Self, DecodeError> {
                let fields = Value::Struct(fields);
                let mut record = Self::deserialize(&fields)?;
                if record.uuid.is_empty() {
                    return Err(DecodeError::new(concat!("a record of class ", $class, " without a uuid")));
                }
                if let Value::Struct(fields) = fields {
                    record.raw = fields;
                }
                Ok(record)
            }

            fn uuid(&self) -> &str {
                &self.uuid
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let fields = BTreeMap::deserialize(deserializer)?;
                Self::from_fields(fields).map_err(serde::de::Error::custom)
            }
        }
    };
}

/// Defines an enum of the datamodel. A value that a later release adds is kept as `Other`.
macro_rules! wire_enum {
    (
        $(#[$meta:meta])* $type:ident {
            $(#[$first_meta:meta])* $first:ident = $first_text:literal,
            $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $type {
            $(#[$first_meta])*
            #[default]
            $first,
            $($(#[$variant_meta])* $variant,)*
            /// A value that this client has no name for.
            Other(String),
        }

        impl $type {
            /// The value as XAPI writes it.
            pub fn as_str(&self) -> &str {
                match self {
                    Self::$first => $first_text,
                    $(Self::$variant => $text,)*
                    Self::Other(text) => text,
                }
            }
        }

        impl From<&str> for $type {
            fn from(text: &str) -> Self {
                match text {
                    $first_text => Self::$first,
                    $($text => Self::$variant,)*
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer).map(|text| Self::from(text.as_str()))
            }
        }

        impl IntoValue for $type {
            fn into_value(self) -> Value {
                Value::String(self.as_str().to_owned())
            }
        }
    };
}

use {record, wire_enum};

#[cfg(test)]
mod tests {
    use super::*;

    fn record_with(members: &[(&str, &str)]) -> BTreeMap<String, Value> {
        members.iter().map(|(k, v)| ((*k).to_owned(), Value::String((*v).to_owned()))).collect()
    }

    #[test]
    fn a_record_keeps_everything_and_fills_in_what_a_host_does_not_send() {
        let fields = record_with(&[
            ("uuid", "u-1"),
            ("name_label", "erp"),
            ("power_state", "Crashed"),
            ("a_field_of_tomorrow", "x"),
        ]);
        let vm = Vm::from_fields(fields.clone()).expect("reads");
        assert_eq!(vm.power_state, PowerState::Other("Crashed".to_owned()));
        assert_eq!(vm.raw, fields);
        assert!(vm.snapshot_of.is_null());
        assert_eq!(vm.snapshot_time, Timestamp::UNIX_EPOCH);
        let again: Vm = decode::from_value(&Value::Struct(fields)).expect("as an answer of a call");
        assert_eq!(again.raw, vm.raw);
    }

    #[test]
    fn a_record_without_a_uuid_is_an_error() {
        let error = Vdi::from_fields(record_with(&[("name_label", "disk")])).expect_err("no uuid");
        assert_eq!(error.to_string(), "a record of class VDI without a uuid");
    }

    #[test]
    fn a_bad_member_is_named() {
        let error = Vdi::from_fields(record_with(&[("uuid", "u"), ("virtual_size", "big")])).expect_err("not a size");
        assert_eq!(error.path, "virtual_size");
    }

    #[test]
    fn enums_travel_both_ways() {
        assert_eq!(PowerState::from("Suspended").into_value(), Value::String("Suspended".to_owned()));
        assert_eq!(VbdMode::from("RW"), VbdMode::ReadWrite);
        assert_eq!(VdiType::from("tomorrow").as_str(), "tomorrow");
    }
}
