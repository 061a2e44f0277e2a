//! `event.from`: what changed since a token.

use std::collections::BTreeMap;

use super::Args;
use crate::db::Db;
use crate::error::{ApiError, ApiResult};
use crate::schema::SCHEMA;
use crate::state::State;
use crate::value::Value;

pub(super) fn run(state: &mut State, message: &str, args: &Args) -> Option<ApiResult<Value>> {
    match message {
        "inject" => Some(inject(state, args.text(0), args.text(1))),
        "get_current_id" => Some(Ok(Value::Int(i64::try_from(state.db.generation).unwrap_or(i64::MAX)))),
        _ => None,
    }
}

/// Tells subscribers of an object. The token is one before the event, so that `event.from` with it returns the event.
fn inject(state: &mut State, class: &str, reference: &str) -> ApiResult<Value> {
    let class = SCHEMA
        .class_ignoring_case(class)
        .map(|class| class.name.as_str())
        .filter(|class| state.db.find(class, reference).is_some())
        .ok_or_else(|| ApiError::handle_invalid(class, reference))?;
    let token = Token::now(&state.db);
    state.db.touch(class, reference);
    Ok(Value::String(token.to_string()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    generation: u64,
    messages: u64,
}

impl Token {
    /// Before everything: every object is new to its holder.
    const START: Self = Self { generation: 0, messages: 0 };

    fn now(db: &Db) -> Self {
        Self { generation: db.generation, messages: db.messages }
    }

    fn parse(text: &str) -> ApiResult<Self> {
        if text.is_empty() {
            return Ok(Self::START);
        }
        let parts = text.split_once(',').and_then(|(generation, messages)| {
            Some(Self { generation: generation.parse().ok()?, messages: messages.parse().ok()? })
        });
        parts.ok_or_else(|| ApiError::new("EVENT_FROM_TOKEN_PARSE_FAILURE", [text]))
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:020},{:020}", self.generation, self.messages)
    }
}

/// What a client wants to hear of.
#[derive(Debug)]
enum Subscription {
    All,
    Class(&'static str),
    Object(&'static str, String),
    /// A class that does not exist has no events.
    Nothing,
}

impl Subscription {
    fn parse(text: &str) -> ApiResult<Self> {
        if text == "*" {
            return Ok(Self::All);
        }
        let class = |name: &str| SCHEMA.class_ignoring_case(name).map(|class| class.name.as_str());
        match text.split('/').collect::<Vec<_>>().as_slice() {
            [name] => Ok(class(name).map_or(Self::Nothing, Self::Class)),
            [name, reference] => {
                Ok(class(name).map_or(Self::Nothing, |class| Self::Object(class, (*reference).to_owned())))
            }
            _ => Err(ApiError::new("EVENT_SUBSCRIPTION_PARSE_FAILURE", [text])),
        }
    }

    fn covers_class(&self, class: &str) -> bool {
        match self {
            Self::All => true,
            Self::Class(name) | Self::Object(name, _) => *name == class,
            Self::Nothing => false,
        }
    }

    fn covers(&self, class: &str, reference: &str) -> bool {
        match self {
            Self::Object(name, object) => *name == class && object == reference,
            other => other.covers_class(class),
        }
    }
}

/// A waiting `event.from`.
#[derive(Debug)]
pub(crate) struct Wait {
    subscriptions: Vec<Subscription>,
    since: Token,
    /// In seconds, as the client gave it.
    pub(crate) timeout: f64,
}

impl Wait {
    pub(crate) fn new(args: &Args) -> ApiResult<Self> {
        let subscriptions = args.list(0).iter().map(|text| Subscription::parse(text)).collect::<ApiResult<_>>()?;
        Ok(Self { subscriptions, since: Token::parse(args.text(1))?, timeout: args.float(2) })
    }

    /// Only then are events not held back to be told together.
    pub(crate) fn tasks_only(&self) -> bool {
        self.subscriptions
            .iter()
            .all(|subscription| matches!(subscription, Subscription::Class("task") | Subscription::Object("task", _)))
    }

    fn covers(&self, class: &str, reference: &str) -> bool {
        self.subscriptions.iter().any(|subscription| subscription.covers(class, reference))
    }

    fn classes(&self) -> impl Iterator<Item = &'static str> {
        let classes = SCHEMA.classes().filter(|class| class.has_events()).map(|class| class.name.as_str());
        classes.filter(|class| self.subscriptions.iter().any(|subscription| subscription.covers_class(class)))
    }

    pub(crate) fn has_events(&self, db: &Db) -> bool {
        let changed = self.classes().any(|class| {
            db.table(class)
                .any(|(reference, row)| row.modified > self.since.generation && self.covers(class, reference))
        });
        changed || self.deletions(db).next().is_some()
    }

    fn deletions<'a>(&'a self, db: &'a Db) -> impl Iterator<Item = &'a crate::db::Deletion> {
        db.deletions.iter().filter(|deletion| {
            deletion.deleted > self.since.generation
                && deletion.created <= self.since.generation
                && SCHEMA.class(deletion.class).is_some_and(crate::schema::Class::has_events)
                && self.covers(deletion.class, &deletion.reference)
        })
    }

    /// Additions, then changes, then deletions; an object appears once, with its newest record.
    pub(crate) fn answer(&self, db: &Db) -> Value {
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        for class in self.classes() {
            for (reference, row) in db.table(class).filter(|(reference, _)| self.covers(class, reference)) {
                if row.created > self.since.generation {
                    added.push((row.created, event(row.created, class, "add", reference, Some(row.record()))));
                } else if row.modified > self.since.generation {
                    changed.push((row.modified, event(row.modified, class, "mod", reference, Some(row.record()))));
                }
            }
        }
        added.sort_by_key(|(generation, _)| *generation);
        changed.sort_by_key(|(generation, _)| *generation);
        let deleted = self
            .deletions(db)
            .map(|deletion| event(deletion.deleted, deletion.class, "del", &deletion.reference, None));
        let events = added.into_iter().chain(changed).map(|(_, event)| event).chain(deleted);
        let counts: BTreeMap<String, Value> = self
            .classes()
            .map(|class| (class.to_lowercase(), Value::Int32(i32::try_from(db.count(class)).unwrap_or(i32::MAX))))
            .collect();
        Value::map([
            ("events", Value::Array(events.collect())),
            ("valid_ref_counts", Value::Struct(counts)),
            ("token", Value::String(Token::now(db).to_string())),
        ])
    }
}

fn event(id: u64, class: &str, operation: &str, reference: &str, snapshot: Option<Value>) -> Value {
    let mut members = BTreeMap::from([
        ("id".to_owned(), Value::String(id.to_string())),
        ("timestamp".to_owned(), Value::from("0.0")),
        ("class".to_owned(), Value::String(class.to_lowercase())),
        ("operation".to_owned(), Value::from(operation)),
        ("ref".to_owned(), Value::from(reference)),
    ]);
    if let Some(snapshot) = snapshot {
        members.insert("snapshot".to_owned(), snapshot);
    }
    Value::Struct(members)
}
