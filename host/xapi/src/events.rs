//! What changes in a pool, as it changes: `event.from`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::error::Error;
use crate::params;
use crate::records::Record;
use crate::reference::Ref;
use crate::session::Session;
use crate::value::Value;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// It is there: it was made, or the stream of events has just begun.
    Add,
    /// It changed.
    Mod,
    /// It is gone.
    Del,
}

/// One object that changed. In one batch an object appears once, with its newest state.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Event {
    /// Class of the object, in lower case.
    pub class: String,
    /// What happened.
    pub operation: Operation,
    /// The object.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The object's record; absent when it is gone.
    pub snapshot: Option<Value>,
}

impl Event {
    /// The object as a record, if it is of class `T` and still there.
    pub fn record<T: Record>(&self) -> Option<Result<(Ref<T>, T), Error>> {
        if !self.class.eq_ignore_ascii_case(T::CLASS) {
            return None;
        }
        let fields = self.snapshot.as_ref()?.as_struct()?.clone();
        let record = T::from_fields(fields).map_err(|e| Error::decode("event.from", e.inside("snapshot")));
        Some(record.map(|record| (Ref::new(self.reference.as_str()), record)))
    }
}

#[derive(Deserialize)]
struct Batch {
    events: Vec<Event>,
    token: String,
    #[serde(default)]
    valid_ref_counts: BTreeMap<String, i64>,
}

/// A position in a pool's stream of events. The position is the client's, so nothing is left behind on the pool.
#[derive(Debug)]
pub struct Events {
    session: Session,
    classes: Vec<String>,
    /// Empty at the beginning, which gives every existing object as [`Operation::Add`].
    token: String,
    counts: BTreeMap<String, i64>,
}

impl Events {
    /// The next changes; empty if there were none within `timeout`.
    ///
    /// After an error the next batch begins anew, with every object that exists: a master that restarted counts
    /// differently. Objects that are not in such a batch are gone.
    pub async fn next(&mut self, timeout: Duration) -> Result<Vec<Event>, Error> {
        let token = std::mem::take(&mut self.token);
        // The answer has to come before the call itself is given up.
        let seconds = timeout.min(self.session.rpc_timeout() / 2).as_secs_f64();
        let batch: Batch = self.session.call("event.from", params![&self.classes, token, seconds]).await?;
        self.token = batch.token;
        self.counts = batch.valid_ref_counts;
        Ok(batch.events)
    }

    /// How many objects of each class (lower case) existed at the last batch. A cache that holds another number has
    /// missed deletions that the server no longer remembered.
    pub fn counts(&self) -> &BTreeMap<String, i64> {
        &self.counts
    }
}

impl Session {
    /// Follows classes (`vm`, `task`, `*`) or single objects (`task/OpaqueRef:…`) from their present state on.
    pub fn events(&self, classes: impl IntoIterator<Item = impl Into<String>>) -> Events {
        let classes = classes.into_iter().map(Into::into).collect();
        Events { session: self.clone(), classes, token: String::new(), counts: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;
    use crate::records::{Vdi, Vm};

    #[test]
    fn an_event_gives_its_record_to_the_right_class_only() {
        let snapshot = Value::Struct(BTreeMap::from([("uuid".to_owned(), Value::String("u-1".to_owned()))]));
        let event = Value::Struct(BTreeMap::from([
            ("id".to_owned(), Value::String("17".to_owned())),
            ("timestamp".to_owned(), Value::String("0.0".to_owned())),
            ("class".to_owned(), Value::String("vm".to_owned())),
            ("operation".to_owned(), Value::String("mod".to_owned())),
            ("ref".to_owned(), Value::String("OpaqueRef:1".to_owned())),
            ("snapshot".to_owned(), snapshot),
        ]));
        let event: Event = decode::from_value(&event).expect("an event");
        assert_eq!(event.operation, Operation::Mod);
        let (vm, record) = event.record::<Vm>().expect("a VM").expect("reads");
        assert_eq!((vm.as_str(), record.uuid.as_str()), ("OpaqueRef:1", "u-1"));
        assert!(event.record::<Vdi>().is_none());
    }
}
