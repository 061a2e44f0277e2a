//! The pool's database: one table a class, references kept consistent on both sides, and a generation
//! number on everything, from which `event.from` answers.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::error::{ApiError, ApiResult};
use crate::schema::{Class, SCHEMA};
use crate::value::{NULL_REF, Value, datetime};

/// A many-to-one field and the set on the other side that XAPI derives from it:
/// (class, field, other class, its set).
const RELATIONS: &[(&str, &str, &str, &str)] = &[
    ("VBD", "VDI", "VDI", "VBDs"),
    ("VBD", "VM", "VM", "VBDs"),
    ("VIF", "VM", "VM", "VIFs"),
    ("VIF", "network", "network", "VIFs"),
    ("VDI", "SR", "SR", "VDIs"),
    ("VDI", "snapshot_of", "VDI", "snapshots"),
    ("VM", "snapshot_of", "VM", "snapshots"),
    ("VM", "parent", "VM", "children"),
    ("VM", "resident_on", "host", "resident_VMs"),
    ("VM", "appliance", "VM_appliance", "VMs"),
    ("VTPM", "VM", "VM", "VTPMs"),
    ("console", "VM", "VM", "consoles"),
    ("PBD", "SR", "SR", "PBDs"),
    ("PBD", "host", "host", "PBDs"),
    ("PIF", "network", "network", "PIFs"),
    ("PIF", "host", "host", "PIFs"),
    ("host_cpu", "host", "host", "host_CPUs"),
    ("task", "subtask_of", "task", "subtasks"),
];

/// Deletions older than these are forgotten; clients find out by `valid_ref_counts`.
const REMEMBERED_DELETIONS: usize = 10_000;

pub(crate) type Fields = BTreeMap<String, Value>;

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) fields: Fields,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

#[derive(Debug)]
pub(crate) struct Deletion {
    pub(crate) class: &'static str,
    pub(crate) reference: String,
    pub(crate) created: u64,
    pub(crate) deleted: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Db {
    tables: BTreeMap<&'static str, BTreeMap<String, Row>>,
    pub(crate) deletions: Vec<Deletion>,
    /// Grows with every change.
    pub(crate) generation: u64,
    /// Grows with every message; the second half of an event token.
    pub(crate) messages: u64,
}

impl Row {
    pub(crate) fn get(&self, field: &str) -> &Value {
        self.fields.get(field).unwrap_or(&Value::Nil)
    }

    pub(crate) fn str(&self, field: &str) -> &str {
        self.get(field).as_str()
    }

    pub(crate) fn string(&self, field: &str) -> String {
        self.str(field).to_owned()
    }

    pub(crate) fn bool(&self, field: &str) -> bool {
        *self.get(field) == Value::Bool(true)
    }

    pub(crate) fn int(&self, field: &str) -> i64 {
        match self.get(field) {
            Value::Int(value) => *value,
            _ => 0,
        }
    }

    pub(crate) fn map(&self, field: &str) -> BTreeMap<String, Value> {
        match self.get(field) {
            Value::Struct(members) => members.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// One entry of a map of strings.
    pub(crate) fn entry(&self, field: &str, key: &str) -> Option<&str> {
        match self.get(field) {
            Value::Struct(members) => members.get(key).map(Value::as_str),
            _ => None,
        }
    }

    pub(crate) fn list(&self, field: &str) -> Vec<String> {
        match self.get(field) {
            Value::Array(items) => items.iter().map(|item| item.as_str().to_owned()).collect(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn record(&self) -> Value {
        Value::Struct(self.fields.clone())
    }
}

impl Db {
    /// The class under its static name. Callers in this crate name classes that exist.
    fn class(name: &str) -> ApiResult<&'static Class> {
        SCHEMA.class(name).ok_or_else(|| ApiError::internal(format!("no class {name}")))
    }

    pub(crate) fn table(&self, class: &str) -> impl Iterator<Item = (&String, &Row)> {
        self.tables.get(class).into_iter().flatten()
    }

    pub(crate) fn refs(&self, class: &str) -> Vec<String> {
        self.table(class).map(|(reference, _)| reference.clone()).collect()
    }

    pub(crate) fn count(&self, class: &str) -> usize {
        self.tables.get(class).map_or(0, BTreeMap::len)
    }

    pub(crate) fn find(&self, class: &str, reference: &str) -> Option<&Row> {
        self.tables.get(class)?.get(reference)
    }

    pub(crate) fn get(&self, class: &str, reference: &str) -> ApiResult<&Row> {
        self.find(class, reference).ok_or_else(|| ApiError::handle_invalid(class, reference))
    }

    pub(crate) fn by_uuid(&self, class: &str, uuid: &str) -> ApiResult<String> {
        self.table(class)
            .find(|(_, row)| row.str("uuid") == uuid)
            .map(|(reference, _)| reference.clone())
            .ok_or_else(|| ApiError::new("UUID_INVALID", [class, uuid]))
    }

    /// As HTTP parameters allow: a reference or a uuid.
    pub(crate) fn by_ref_or_uuid(&self, class: &str, id: &str) -> ApiResult<String> {
        match self.find(class, id) {
            Some(_) => Ok(id.to_owned()),
            None => self.by_uuid(class, id).map_err(|_| ApiError::handle_invalid(class, id)),
        }
    }

    /// A new object: what is not in `fields` gets the default of its class. The uuid is new unless given.
    pub(crate) fn insert(&mut self, class: &str, mut fields: Fields) -> ApiResult<String> {
        let class = Self::class(class)?;
        let reference = format!("OpaqueRef:{}", Uuid::new_v4());
        fields.entry("uuid".to_owned()).or_insert_with(|| Value::String(Uuid::new_v4().to_string()));
        for field in &class.fields {
            fields.entry(field.name.clone()).or_insert_with(|| field.initial());
        }
        self.generation += 1;
        if class.name == "message" {
            self.messages += 1;
        }
        let row = Row { fields, created: self.generation, modified: self.generation };
        let pointers: Vec<(&str, String)> =
            relations_of(&class.name).map(|relation| (relation.1, row.string(relation.1))).collect();
        self.tables.entry(&class.name).or_default().insert(reference.clone(), row);
        for (field, target) in pointers {
            self.link(&class.name, field, &reference, &target);
        }
        Ok(reference)
    }

    pub(crate) fn remove(&mut self, class: &str, reference: &str) -> ApiResult<Row> {
        let class = Self::class(class)?;
        let row = self
            .tables
            .get_mut(class.name.as_str())
            .and_then(|table| table.remove(reference))
            .ok_or_else(|| ApiError::handle_invalid(&class.name, reference))?;
        for relation in relations_of(&class.name) {
            self.unlink(&class.name, relation.1, reference, row.str(relation.1));
        }
        self.generation += 1;
        self.deletions.push(Deletion {
            class: &class.name,
            reference: reference.to_owned(),
            created: row.created,
            deleted: self.generation,
        });
        if self.deletions.len() > REMEMBERED_DELETIONS {
            self.deletions.drain(..REMEMBERED_DELETIONS / 2);
        }
        Ok(row)
    }

    pub(crate) fn set(&mut self, class: &str, reference: &str, field: &str, value: impl Into<Value>) -> ApiResult<()> {
        let value = value.into();
        let old = self.get(class, reference)?.get(field).clone();
        if old == value {
            return Ok(());
        }
        let related = relations_of(class).any(|relation| relation.1 == field);
        if related {
            self.unlink(class, field, reference, old.as_str());
        }
        let target = value.as_str().to_owned();
        self.change(class, reference, |fields| {
            fields.insert(field.to_owned(), value);
        });
        if related {
            self.link(class, field, reference, &target);
        }
        Ok(())
    }

    pub(crate) fn set_entry(
        &mut self,
        class: &str,
        reference: &str,
        field: &str,
        key: &str,
        value: impl Into<Value>,
    ) -> ApiResult<()> {
        let mut map = self.get(class, reference)?.map(field);
        map.insert(key.to_owned(), value.into());
        self.set(class, reference, field, Value::Struct(map))
    }

    pub(crate) fn remove_entry(&mut self, class: &str, reference: &str, field: &str, key: &str) -> ApiResult<()> {
        let mut map = self.get(class, reference)?.map(field);
        map.remove(key);
        self.set(class, reference, field, Value::Struct(map))
    }

    /// Tells subscribers of an object although nothing about it changed.
    pub(crate) fn touch(&mut self, class: &str, reference: &str) {
        self.change(class, reference, |_| {});
    }

    fn change(&mut self, class: &str, reference: &str, change: impl FnOnce(&mut Fields)) {
        let Some(row) = self.tables.get_mut(class).and_then(|table| table.get_mut(reference)) else {
            return;
        };
        self.generation += 1;
        row.modified = self.generation;
        change(&mut row.fields);
    }

    fn link(&mut self, class: &str, field: &str, reference: &str, target: &str) {
        self.change_back_reference(class, field, target, |items| {
            items.insert(reference.to_owned());
        });
    }

    fn unlink(&mut self, class: &str, field: &str, reference: &str, target: &str) {
        self.change_back_reference(class, field, target, |items| {
            items.remove(reference);
        });
    }

    /// A dead target is left alone: `snapshot_of` outlives what it points to.
    fn change_back_reference(
        &mut self,
        class: &str,
        field: &str,
        target: &str,
        edit: impl FnOnce(&mut BTreeSet<String>),
    ) {
        let Some(&(_, _, other, set)) = relations_of(class).find(|relation| relation.1 == field) else {
            return;
        };
        let Some(row) = self.find(other, target).filter(|_| target != NULL_REF) else {
            return;
        };
        let mut items: BTreeSet<String> = row.list(set).into_iter().collect();
        edit(&mut items);
        self.change(other, target, |fields| {
            fields.insert(set.to_owned(), Value::strings(items));
        });
    }

    /// A task in its first state. Its reference is what `Async.` calls return.
    pub(crate) fn create_task(
        &mut self,
        label: &str,
        description: &str,
        host: &str,
        now: jiff::Timestamp,
    ) -> ApiResult<String> {
        self.insert(
            "task",
            Fields::from([
                ("name_label".to_owned(), label.into()),
                ("name_description".to_owned(), description.into()),
                ("created".to_owned(), datetime(now)),
                ("status".to_owned(), "pending".into()),
                ("resident_on".to_owned(), host.into()),
                ("type".to_owned(), "<none/>".into()),
            ]),
        )
    }

    /// Ends a task. One that was destroyed meanwhile, or has ended before, is left alone.
    pub(crate) fn finish_task(&mut self, task: &str, outcome: Result<String, &ApiError>, now: jiff::Timestamp) {
        let Some(row) = self.find("task", task) else {
            return;
        };
        if row.str("status") != "pending" && row.str("status") != "cancelling" {
            return;
        }
        self.change("task", task, |fields| {
            fields.insert("progress".to_owned(), Value::Float(1.0));
            fields.insert("finished".to_owned(), datetime(now));
            match outcome {
                Ok(result) => {
                    fields.insert("result".to_owned(), result.into());
                    fields.insert("status".to_owned(), "success".into());
                }
                Err(error) => {
                    let status = if error.code == "TASK_CANCELLED" { "cancelled" } else { "failure" };
                    fields.insert("error_info".to_owned(), Value::strings(error.description()));
                    fields.insert("status".to_owned(), status.into());
                }
            }
        });
    }
}

fn relations_of(
    class: &str,
) -> impl Iterator<Item = &'static (&'static str, &'static str, &'static str, &'static str)> {
    RELATIONS.iter().filter(move |relation| relation.0 == class)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields<const N: usize>(entries: [(&str, Value); N]) -> Fields {
        entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    #[test]
    fn every_relation_names_fields_that_exist() {
        for (class, field, other, set) in RELATIONS {
            assert!(SCHEMA.class(class).unwrap().field(field).is_some(), "{class}.{field}");
            assert!(SCHEMA.class(other).unwrap().field(set).is_some(), "{other}.{set}");
        }
    }

    #[test]
    fn both_sides_of_a_relation_follow_each_other() {
        let mut db = Db::default();
        let vm = db.insert("VM", Fields::new()).unwrap();
        let vbd = db.insert("VBD", fields([("VM", vm.as_str().into())])).unwrap();
        assert_eq!(db.get("VM", &vm).unwrap().list("VBDs"), [vbd.as_str()]);
        let before = db.get("VM", &vm).unwrap().modified;
        db.remove("VBD", &vbd).unwrap();
        assert!(db.get("VM", &vm).unwrap().list("VBDs").is_empty());
        assert!(db.get("VM", &vm).unwrap().modified > before, "the other side is told");
        assert_eq!(db.remove("VBD", &vbd).unwrap_err(), ApiError::handle_invalid("VBD", &vbd));
    }
}
