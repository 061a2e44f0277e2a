//! The XAPI data model as a table: classes, fields, messages, enums.
//!
//! `schema.json` holds one class a line. A field is `[name, type, "ro" | "ctor" | "rw", default?]`, a
//! message `[name, result, [[parameter, type, false if optional], …], "removed"?]`; `implicit` lists which of
//! `create` and `destroy` take and drop a whole record. Field accessors are not listed, they follow from the fields.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde::Deserialize;
use serde_json::Value as Json;

use crate::error::{ApiError, ApiResult};
use crate::value::{EPOCH, Value, datetime, parse_datetime};

/// The one data model of the process.
pub(crate) static SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::load(include_str!("schema.json")).expect("schema.json is part of this crate"));

#[derive(Debug)]
pub(crate) struct Schema {
    classes: BTreeMap<String, Class>,
}

#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) name: String,
    pub(crate) fields: Vec<Field>,
    messages: BTreeMap<String, Message>,
    accessors: Accessors,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) kind: Type,
    pub(crate) access: Access,
    default: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Access {
    Ro,
    Ctor,
    Rw,
}

/// Which record accessors a class has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Accessors {
    #[default]
    All,
    /// No `get_all` and `get_all_records` (sessions are not listed to anybody).
    One,
    None,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Type {
    Void,
    String,
    Int,
    Bool,
    Float,
    DateTime,
    Ref(String),
    Enum(Arc<[String]>),
    Set(Box<Self>),
    Map(Box<Self>, Box<Self>),
    Record(String),
}

#[derive(Debug)]
pub(crate) struct Message {
    /// False for the login calls alone.
    pub(crate) takes_session: bool,
    /// Without the session.
    pub(crate) params: Vec<Parameter>,
    pub(crate) removed: bool,
    /// Field accessors cannot be called with `Async.`.
    pub(crate) has_async: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) kind: Type,
    pub(crate) required: bool,
}

#[derive(Deserialize)]
struct RawClass {
    fields: Vec<Vec<Json>>,
    messages: Vec<Vec<Json>>,
    enums: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    implicit: Vec<String>,
    #[serde(default)]
    accessors: Accessors,
}

type Enums = BTreeMap<String, Arc<[String]>>;

impl Schema {
    fn load(text: &str) -> Result<Self, String> {
        let raw: BTreeMap<String, RawClass> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let enums: Enums = raw
            .values()
            .flat_map(|class| &class.enums)
            .map(|(name, values)| (name.clone(), Arc::from(values.as_slice())))
            .collect();
        let classes = raw.into_iter().map(|(name, class)| Ok((name.clone(), Class::load(name, class, &enums)?)));
        Ok(Self { classes: classes.collect::<Result<_, String>>()? })
    }

    /// By the exact name.
    pub(crate) fn class(&self, name: &str) -> Option<&Class> {
        self.classes.get(name)
    }

    /// By the name in any case, as event subscriptions spell it.
    pub(crate) fn class_ignoring_case(&self, name: &str) -> Option<&Class> {
        self.classes.values().find(|class| class.name.eq_ignore_ascii_case(name))
    }

    pub(crate) fn classes(&self) -> impl Iterator<Item = &Class> {
        self.classes.values()
    }

    pub(crate) fn methods(&self) -> Vec<String> {
        self.classes
            .values()
            .flat_map(|class| {
                class
                    .messages
                    .iter()
                    .filter(|(_, message)| !message.removed)
                    .map(|(name, _)| format!("{}.{name}", class.name))
            })
            .collect()
    }
}

impl Class {
    fn load(name: String, raw: RawClass, enums: &Enums) -> Result<Self, String> {
        let fields: Vec<Field> = raw.fields.iter().map(|field| Field::load(field, enums)).collect::<Result<_, _>>()?;
        let mut class = Self { name, fields, messages: BTreeMap::new(), accessors: raw.accessors };
        class.derive_accessors();
        if raw.implicit.iter().any(|message| message == "create") {
            class.derive("create", &[("args", Type::Record(class.name.clone()))], true);
        }
        if raw.implicit.iter().any(|message| message == "destroy") {
            class.derive("destroy", &[("self", class.self_ref())], true);
        }
        for message in &raw.messages {
            let (name, message) = Message::load(message, enums)?;
            class.messages.insert(name, message);
        }
        Ok(class)
    }

    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    pub(crate) fn message(&self, name: &str) -> Option<&Message> {
        self.messages.get(name)
    }

    /// Sessions and users are kept, but nobody hears of them.
    pub(crate) fn has_events(&self) -> bool {
        self.accessors == Accessors::All
    }

    fn self_ref(&self) -> Type {
        Type::Ref(self.name.clone())
    }

    fn derive(&mut self, name: &str, params: &[(&str, Type)], has_async: bool) {
        let params = params
            .iter()
            .map(|(name, kind)| Parameter { name: (*name).to_owned(), kind: kind.clone(), required: true })
            .collect();
        let message = Message { takes_session: true, params, removed: false, has_async };
        self.messages.insert(name.to_owned(), message);
    }

    fn derive_accessors(&mut self) {
        if self.accessors == Accessors::None {
            return;
        }
        let this = self.self_ref();
        self.derive("get_record", &[("self", this.clone())], false);
        self.derive("get_by_uuid", &[("uuid", Type::String)], false);
        if self.accessors == Accessors::All {
            self.derive("get_all", &[], false);
            self.derive("get_all_records", &[], false);
        }
        let fields: Vec<(String, Type, Access)> =
            self.fields.iter().map(|field| (field.name.clone(), field.kind.clone(), field.access)).collect();
        for (name, kind, access) in fields {
            self.derive(&format!("get_{name}"), &[("self", this.clone())], false);
            if name == "name_label" && self.name != "pool" {
                self.derive("get_by_name_label", &[("label", Type::String)], false);
            }
            if access != Access::Rw {
                continue;
            }
            self.derive(&format!("set_{name}"), &[("self", this.clone()), ("value", kind.clone())], false);
            match kind {
                Type::Map(key, value) => {
                    let entry = [("self", this.clone()), ("key", (*key).clone()), ("value", *value)];
                    self.derive(&format!("add_to_{name}"), &entry, false);
                    self.derive(&format!("remove_from_{name}"), &[("self", this.clone()), ("key", *key)], false);
                }
                Type::Set(item) => {
                    let entry = [("self", this.clone()), ("value", *item)];
                    self.derive(&format!("add_{name}"), &entry, false);
                    self.derive(&format!("remove_{name}"), &entry, false);
                }
                _ => {}
            }
        }
    }
}

impl Field {
    fn load(raw: &[Json], enums: &Enums) -> Result<Self, String> {
        let [name, kind, access, default @ ..] = raw else {
            return Err(format!("field {raw:?}"));
        };
        let kind = Type::parse(text(kind)?, enums)?;
        let default = default.first().map(|default| kind.value_from_json(default.clone()));
        let access = serde_json::from_value(access.clone()).map_err(|error| error.to_string())?;
        Ok(Self { name: text(name)?.to_owned(), kind, access, default })
    }

    /// A record given to `create` must have this member.
    pub(crate) fn required(&self) -> bool {
        self.access != Access::Ro && self.default.is_none()
    }

    /// Whether something stands in where nothing was said.
    pub(crate) fn has_default(&self) -> bool {
        self.default.is_some()
    }

    /// What a new object holds when nothing was said.
    pub(crate) fn initial(&self) -> Value {
        self.default.clone().unwrap_or_else(|| self.kind.zero())
    }
}

impl Message {
    fn load(raw: &[Json], enums: &Enums) -> Result<(String, Self), String> {
        let [name, _result, params, state @ ..] = raw else {
            return Err(format!("message {raw:?}"));
        };
        let raw_params: Vec<Vec<Json>> = serde_json::from_value(params.clone()).map_err(|error| error.to_string())?;
        let mut params = Vec::new();
        for param in &raw_params {
            let [name, kind, required @ ..] = param.as_slice() else {
                return Err(format!("parameter {param:?}"));
            };
            let kind = Type::parse(text(kind)?, enums)?;
            params.push(Parameter { name: text(name)?.to_owned(), kind, required: required.is_empty() });
        }
        let takes_session = params.first().is_some_and(|param| param.name == "session_id");
        if takes_session {
            params.remove(0);
        }
        let message = Self { takes_session, params, removed: !state.is_empty(), has_async: true };
        Ok((text(name)?.to_owned(), message))
    }

    /// How many parameters the caller must give, the session not counted.
    pub(crate) fn required_params(&self) -> usize {
        self.params.iter().filter(|param| param.required).count()
    }
}

fn text(json: &Json) -> Result<&str, String> {
    json.as_str().ok_or_else(|| format!("{json} is no text"))
}

impl Type {
    fn parse(text: &str, enums: &Enums) -> Result<Self, String> {
        let text = text.strip_suffix(" option").unwrap_or(text);
        if let Some(map) = text.strip_suffix(" map") {
            let inner = map.trim_start_matches('(').trim_end_matches(')');
            let (key, value) = inner.split_once(" -> ").ok_or_else(|| format!("map {text}"))?;
            return Ok(Self::Map(Box::new(Self::parse(key, enums)?), Box::new(Self::parse(value, enums)?)));
        }
        if let Some(item) = text.strip_suffix(" set") {
            return Ok(Self::Set(Box::new(Self::parse(item, enums)?)));
        }
        if let Some(class) = text.strip_suffix(" ref") {
            return Ok(Self::Ref(class.to_owned()));
        }
        if let Some(class) = text.strip_suffix(" record") {
            return Ok(Self::Record(class.to_owned()));
        }
        if let Some(name) = text.strip_prefix("enum ") {
            return enums.get(name).cloned().map(Self::Enum).ok_or_else(|| format!("enum {name}"));
        }
        Ok(match text {
            "void" => Self::Void,
            "string" => Self::String,
            "int" => Self::Int,
            "bool" => Self::Bool,
            "float" => Self::Float,
            "datetime" => Self::DateTime,
            other => return Err(format!("type {other}")),
        })
    }

    fn zero(&self) -> Value {
        match self {
            Self::Void | Self::String => Value::void(),
            Self::Int => Value::Int(0),
            Self::Bool => Value::Bool(false),
            Self::Float => Value::Float(0.0),
            Self::DateTime => Value::DateTime(EPOCH.to_owned()),
            Self::Ref(_) => Value::null_ref(),
            Self::Enum(values) => Value::String(values.first().cloned().unwrap_or_default()),
            Self::Set(_) => Value::Array(Vec::new()),
            Self::Map(..) | Self::Record(_) => Value::empty_map(),
        }
    }

    fn value_from_json(&self, json: Json) -> Value {
        match (self, Value::from_json(json)) {
            (Self::DateTime, Value::String(text)) => Value::DateTime(text),
            (Self::Float, Value::Int(value)) => Value::Float(value as f64),
            (_, value) => value,
        }
    }

    /// Reads what a client sent as this type. `what` names the parameter or field in the error.
    pub(crate) fn coerce(&self, what: &str, value: Value) -> ApiResult<Value> {
        let wrong = || ApiError::new("FIELD_TYPE_ERROR", [what]);
        match (self, value) {
            (Self::Void, _) => Ok(Value::void()),
            (Self::String, Value::String(text)) => Ok(Value::String(text)),
            // A null reference may be spelled as nothing by careless clients; XAPI takes the string as it is.
            (Self::Ref(_), Value::String(text)) => Ok(Value::String(text)),
            (Self::Int, Value::Int(value)) => Ok(Value::Int(value)),
            (Self::Int, Value::String(text)) => text.trim().parse().map(Value::Int).map_err(|_| wrong()),
            // Not from a string: `<boolean>` is the only boolean.
            (Self::Bool, Value::Bool(value)) => Ok(Value::Bool(value)),
            (Self::Float, Value::Float(value)) => Ok(Value::Float(value)),
            (Self::Float, Value::Int(value)) => Ok(Value::Float(value as f64)),
            (Self::Float, Value::String(text)) => text.trim().parse().map(Value::Float).map_err(|_| wrong()),
            (Self::DateTime, Value::DateTime(text) | Value::String(text)) => {
                let at = parse_datetime(&text).ok_or_else(|| ApiError::new("INVALID_VALUE", [text]))?;
                Ok(datetime(at))
            }
            (Self::Enum(values), Value::String(text)) => match values.contains(&text) {
                true => Ok(Value::String(text)),
                false => Err(ApiError::new("INVALID_VALUE", [text])),
            },
            (Self::Set(item), Value::Array(items)) => {
                let items = items.into_iter().map(|value| item.coerce(what, value));
                Ok(Value::Array(items.collect::<ApiResult<_>>()?))
            }
            (Self::Map(_, kind), Value::Struct(members)) => {
                let members = members.into_iter().map(|(key, value)| Ok((key, kind.coerce(what, value)?)));
                Ok(Value::Struct(members.collect::<ApiResult<_>>()?))
            }
            (Self::Record(_), value @ Value::Struct(_)) => Ok(value),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required(class: &str) -> Vec<&'static str> {
        let class = SCHEMA.class(class).unwrap();
        class.fields.iter().filter(|field| field.required()).map(|field| field.name.as_str()).collect()
    }

    #[test]
    fn the_required_members_are_those_of_xapi() {
        assert_eq!(required("VM").len(), 25);
        assert_eq!(required("VDI"), ["SR", "virtual_size", "type", "sharable", "read_only", "other_config"]);
        assert_eq!(
            required("VIF"),
            ["device", "network", "VM", "MAC", "MTU", "other_config", "qos_algorithm_type", "qos_algorithm_params"]
        );
        assert_eq!(required("network"), ["other_config"]);
    }

    #[test]
    fn accessors_follow_from_the_fields() {
        let vdi = SCHEMA.class("VDI").unwrap();
        for present in
            ["get_uuid", "set_other_config", "add_to_other_config", "remove_from_sm_config", "add_tags", "create"]
        {
            assert!(vdi.message(present).is_some(), "{present}");
        }
        for absent in ["set_uuid", "set_location", "get_nothing", "add_VBDs"] {
            assert!(vdi.message(absent).is_none(), "{absent}");
        }
        assert!(SCHEMA.class("session").unwrap().message("get_all_records").is_none());
        assert!(SCHEMA.class("VM").unwrap().message("snapshot_with_quiesce").unwrap().removed);
    }

    #[test]
    fn a_type_takes_what_xapi_takes() {
        assert_eq!(Type::Int.coerce("n", Value::from("12")), Ok(Value::Int(12)));
        assert_eq!(Type::Int.coerce("n", Value::from("x")), Err(ApiError::new("FIELD_TYPE_ERROR", ["n"])));
        assert_eq!(Type::Bool.coerce("b", Value::from("1")), Err(ApiError::new("FIELD_TYPE_ERROR", ["b"])));
        let mode = SCHEMA.class("VBD").unwrap().field("mode").unwrap();
        assert_eq!(mode.kind.coerce("mode", Value::from("WO")), Err(ApiError::new("INVALID_VALUE", ["WO"])));
    }
}
