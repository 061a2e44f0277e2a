//! Accessors that follow from a field: `get_`, `set_`, `add_to_`, `remove_from_`, `add_`, `remove_`, and the
//! lookups of a class.

use super::Args;
use crate::error::{ApiError, ApiResult};
use crate::schema::{Class, Field, Type};
use crate::state::State;
use crate::value::Value;

pub(super) fn run(state: &mut State, class: &Class, message: &str, args: &Args) -> ApiResult<Value> {
    let name = class.name.as_str();
    let db = &state.db;
    match message {
        "get_all" => return Ok(Value::strings(db.refs(name))),
        "get_all_records" => {
            return Ok(Value::map(db.table(name).map(|(reference, row)| (reference.clone(), row.record()))));
        }
        "get_record" => return Ok(db.get(name, args.text(0))?.record()),
        "get_by_uuid" => return db.by_uuid(name, args.text(0)).map(Value::String),
        "get_by_name_label" => {
            let label = args.text(0);
            let named = db.table(name).filter(|(_, row)| row.str("name_label") == label);
            return Ok(Value::strings(named.map(|(reference, _)| reference)));
        }
        _ => {}
    }
    let unimplemented = || ApiError::new("NOT_IMPLEMENTED", [format!("{name}.{message}")]);
    let (verb, field) = accessor(class, message).ok_or_else(unimplemented)?;
    access(state, name, verb, field, args)
}

#[derive(Clone, Copy)]
enum Verb {
    Get,
    Set,
    AddTo,
    RemoveFrom,
    Add,
    Remove,
}

/// Messages that are declared by hand count too where they look and type-check like an accessor of a field.
fn accessor<'a>(class: &'a Class, message: &str) -> Option<(Verb, &'a Field)> {
    let verbs = [
        ("get_", Verb::Get),
        ("set_", Verb::Set),
        ("add_to_", Verb::AddTo),
        ("remove_from_", Verb::RemoveFrom),
        ("add_", Verb::Add),
        ("remove_", Verb::Remove),
    ];
    let (verb, field) =
        verbs.into_iter().find_map(|(prefix, verb)| Some((verb, class.field(message.strip_prefix(prefix)?)?)))?;
    let params: Vec<&Type> = class.message(message)?.params.iter().map(|param| &param.kind).collect();
    let fits = match (verb, &field.kind, params.as_slice()) {
        (Verb::Get, _, [_]) => true,
        (Verb::Set, kind, [_, value]) => *value == kind,
        (Verb::AddTo, Type::Map(_, kind), [_, _, value]) => *value == kind.as_ref(),
        (Verb::RemoveFrom, Type::Map(..), [_, _]) => true,
        (Verb::Add | Verb::Remove, Type::Set(kind), [_, value]) => *value == kind.as_ref(),
        _ => false,
    };
    fits.then_some((verb, field))
}

fn access(state: &mut State, class: &str, verb: Verb, field: &Field, args: &Args) -> ApiResult<Value> {
    let (this, name) = (args.text(0), field.name.as_str());
    let row = state.db.get(class, this)?;
    match verb {
        Verb::Get => return Ok(row.get(name).clone()),
        Verb::Set => state.db.set(class, this, name, args.value(1))?,
        Verb::AddTo => {
            let key = args.text(1);
            if row.entry(name, key).is_some() {
                let uuid = row.string("uuid");
                return Err(ApiError::new("MAP_DUPLICATE_KEY", [class, name, &uuid, key]));
            }
            state.db.set_entry(class, this, name, key, args.value(2))?;
        }
        // Removing what is not there is fine.
        Verb::RemoveFrom => state.db.remove_entry(class, this, name, args.text(1))?,
        Verb::Add | Verb::Remove => {
            let item = args.text(1);
            let mut items: Vec<String> = row.list(name).into_iter().filter(|other| other != item).collect();
            if matches!(verb, Verb::Add) {
                items.push(item.to_owned());
            }
            state.db.set(class, this, name, Value::strings(items))?;
        }
    }
    // What was blocked or unblocked shows only after the next thing that happens to the VM.
    if class == "VM" && name != "blocked_operations" {
        super::vm::update_allowed_operations(state, this)?;
    }
    Ok(Value::void())
}
