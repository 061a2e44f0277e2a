//! Reading TOML so that every complaint names the key, the place and the remedy.
//!
//! A [`Section`] hands out its keys one by one, each with the type it must have. What is wrong is noted and
//! reading goes on, so that an operator sees everything at once. [`Section::finish`] then complains about the
//! keys that nobody asked for.

use crate::nearest;
use crate::problem::Problem;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// One file of the configuration.
pub(super) struct Source {
    /// As the operator named it.
    path: PathBuf,
    text: String,
}

impl Source {
    pub(super) fn new(path: PathBuf, text: String) -> Self {
        Self { path, text }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Relative paths in a file start at its folder.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    /// `file:line:column`, both counted from one, the column in characters.
    pub(super) fn place(&self, offset: usize) -> String {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        format!("{}:{line}:{column}", self.path.display())
    }
}

/// What was noted so far, over all files.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) errors: RefCell<Vec<Problem>>,
    pub(super) warnings: RefCell<Vec<Problem>>,
}

/// A value with the key that holds it.
#[derive(Clone, Debug)]
pub(super) struct Found<T> {
    pub(super) value: T,
    /// The key's full path: `job.erp.targets[0].sr`.
    pub(super) key: String,
    /// `file:line:column` of the value.
    pub(super) place: String,
}

impl<T> Found<T> {
    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Found<U> {
        Found { value: f(self.value), key: self.key, place: self.place }
    }

    /// What is wrong with this value.
    pub(super) fn problem(&self, what: impl std::fmt::Display) -> Problem {
        Problem::new(format!("{}: {what}", self.key)).at(&self.place)
    }
}

/// A table whose keys are being asked for.
pub(super) struct Section<'a> {
    pub(super) path: String,
    pub(super) source: &'a Source,
    notes: &'a Notes,
    start: usize,
    rest: BTreeMap<&'a str, (usize, &'a Spanned<DeValue<'a>>)>,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub(super) fn new(
        path: String,
        source: &'a Source,
        notes: &'a Notes,
        table: &'a DeTable<'a>,
        start: usize,
    ) -> Self {
        let rest = table.iter().map(|(key, value)| (key.get_ref().as_ref(), (key.span().start, value))).collect();
        Self { path, source, notes, start, rest, known: Vec::new() }
    }

    pub(super) fn place(&self) -> String {
        self.source.place(self.start)
    }

    pub(super) fn error(&self, problem: Problem) {
        self.notes.errors.borrow_mut().push(problem);
    }

    /// Complaints so far: a caller that compares two counts knows whether what lies between was in order.
    pub(super) fn error_count(&self) -> usize {
        self.notes.errors.borrow().len()
    }

    pub(super) fn warn(&self, problem: Problem) {
        self.notes.warnings.borrow_mut().push(problem);
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Hands out a key's raw value; a key handed out is a known one.
    fn take(&mut self, key: &'static str) -> Option<Found<&'a Spanned<DeValue<'a>>>> {
        self.known.push(key);
        let (_, value) = self.rest.remove(key)?;
        Some(self.found(self.key(key), value.span(), value))
    }

    fn found<T>(&self, key: String, span: Range<usize>, value: T) -> Found<T> {
        Found { value, key, place: self.source.place(span.start) }
    }

    fn wrong_type(&self, found: &Found<&Spanned<DeValue<'_>>>, expected: &str) {
        self.error(found.problem(format!("expected {expected}, found {}", name_of(found.value.get_ref()))));
    }

    /// Whether a key is there and was not asked for yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.rest.contains_key(key)
    }

    /// A string that has to be there. `example` shows a good value.
    pub(super) fn required_string(&mut self, key: &'static str, example: &str) -> Option<Found<String>> {
        if !self.has(key) {
            self.missing(key, example);
        }
        self.string(key)
    }

    /// A table that has to be there. `example` shows a good value.
    pub(super) fn required_section(&mut self, key: &'static str, example: &str) -> Option<Self> {
        if !self.has(key) {
            self.missing(key, example);
        }
        self.section(key)
    }

    /// Complains that a key is missing. `example` shows a good value.
    pub(super) fn missing(&self, key: &str, example: &str) {
        let what = format!("{}: `{key}` is missing", self.path);
        self.error(Problem::new(what).at(self.place()).remedy(format!("add `{key} = {example}`")));
    }

    pub(super) fn string(&mut self, key: &'static str) -> Option<Found<String>> {
        let found = self.take(key)?;
        self.as_string(found)
    }

    fn as_string(&self, found: Found<&Spanned<DeValue<'a>>>) -> Option<Found<String>> {
        let DeValue::String(text) = found.value.get_ref() else {
            self.wrong_type(&found, "a string");
            return None;
        };
        let text = text.clone().into_owned();
        Some(found.map(|_| text))
    }

    /// Whether `key` is this string; it is not taken.
    pub(super) fn is_string(&self, key: &str, text: &str) -> bool {
        matches!(self.rest.get(key).map(|(_, value)| value.get_ref()), Some(DeValue::String(found)) if found == text)
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<Found<bool>> {
        let found = self.take(key)?;
        let DeValue::Boolean(value) = *found.value.get_ref() else {
            self.wrong_type(&found, "`true` or `false`");
            return None;
        };
        Some(found.map(|_| value))
    }

    /// A whole number from zero on.
    pub(super) fn count(&mut self, key: &'static str) -> Option<Found<u64>> {
        let found = self.take(key)?;
        let value = match found.value.get_ref() {
            DeValue::Integer(value) => u64::from_str_radix(value.as_str(), value.radix()).ok(),
            _ => None,
        };
        let Some(value) = value else {
            self.wrong_type(&found, "a whole number from 0 on");
            return None;
        };
        Some(found.map(|_| value))
    }

    /// A span of time, written `30s`, `500ms` or `1h 30m`.
    pub(super) fn duration(&mut self, key: &'static str) -> Option<Found<std::time::Duration>> {
        let found = self.string(key)?;
        let parsed = found.value.parse::<jiff::SignedDuration>().ok().and_then(|value| value.try_into().ok());
        let Some(value) = parsed else {
            let what = format!("`{}` is not a span of time", found.value);
            self.error(found.problem(what).remedy("write it like `30s`, `500ms` or `1h 30m`"));
            return None;
        };
        Some(found.map(|_| value))
    }

    /// A size in bytes, written `64MiB` or as a number.
    pub(super) fn size(&mut self, key: &'static str) -> Option<Found<u64>> {
        match self.rest.get(key).map(|(_, value)| value.get_ref()) {
            Some(DeValue::Integer(_)) => return self.count(key),
            Some(DeValue::String(_)) | None => {}
            Some(_) => {
                let found = self.take(key)?;
                self.wrong_type(&found, "a size such as \"64MiB\"");
                return None;
            }
        }
        let found = self.string(key)?;
        let Some(value) = parse_size(&found.value) else {
            let what = format!("`{}` is not a size", found.value);
            self.error(
                found.problem(what).remedy("write it like `64MiB`, `512KiB` or `1GiB`, or as a number of bytes"),
            );
            return None;
        };
        Some(found.map(|_| value))
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&'static str, T)]) -> Option<Found<T>> {
        let found = self.string(key)?;
        let Some((_, value)) = words.iter().find(|(word, _)| *word == found.value) else {
            let what = format!("`{}` is not one of its values", found.value);
            let remedy = nearest::remedy(&found.value, words.iter().map(|(word, _)| *word));
            self.error(found.problem(what).remedy(remedy));
            return None;
        };
        Some(found.map(|_| *value))
    }

    /// A list of strings; a missing list is an empty one.
    pub(super) fn strings(&mut self, key: &'static str) -> Vec<Found<String>> {
        let items = self.items(key, "a list of strings");
        items.into_iter().filter_map(|item| self.as_string(item)).collect()
    }

    /// A list of tables; a missing list is an empty one.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let items = self.items(key, "a list of tables");
        items.into_iter().filter_map(|item| self.as_section(item)).collect()
    }

    /// A list of at least one table. `example` shows a good value.
    pub(super) fn required_sections(&mut self, key: &'static str, example: &str) -> Vec<Self> {
        let is_empty =
            |value: &Spanned<DeValue<'_>>| matches!(value.get_ref(), DeValue::Array(items) if items.is_empty());
        if self.rest.get(key).is_none_or(|(_, value)| is_empty(value)) {
            self.missing(key, example);
        }
        self.sections(key)
    }

    fn items(&mut self, key: &'static str, expected: &str) -> Vec<Found<&'a Spanned<DeValue<'a>>>> {
        let Some(found) = self.take(key) else { return Vec::new() };
        let DeValue::Array(array) = found.value.get_ref() else {
            self.wrong_type(&found, expected);
            return Vec::new();
        };
        let array: &DeArray<'_> = array;
        let items = array.iter().enumerate();
        items.map(|(n, item)| self.found(format!("{}[{n}]", found.key), item.span(), item)).collect()
    }

    /// A table within this one.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Self> {
        let found = self.take(key)?;
        self.as_section(found)
    }

    fn as_section(&self, found: Found<&'a Spanned<DeValue<'a>>>) -> Option<Self> {
        let DeValue::Table(table) = found.value.get_ref() else {
            self.wrong_type(&found, "a table");
            return None;
        };
        Some(Section::new(found.key, self.source, self.notes, table, found.value.span().start))
    }

    /// The tables under a key whose names the operator chose: `[pool.prod]`, `[pool.dr]`.
    pub(super) fn named_sections(&mut self, key: &'static str) -> Vec<(Found<String>, Self)> {
        let Some(mut parent) = self.section(key) else { return Vec::new() };
        let entries = std::mem::take(&mut parent.rest);
        let sections = entries.into_iter().filter_map(|(name, (start, value))| {
            let found = parent.found(parent.key(name), value.span(), value);
            let mut section = parent.as_section(found)?;
            section.start = start;
            let name = parent.found(section.path.clone(), start..start, name.to_owned());
            Some((name, section))
        });
        sections.collect()
    }

    /// A table of strings whose keys the operator chose.
    pub(super) fn string_map(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let Some(mut section) = self.section(key) else { return BTreeMap::new() };
        let entries = std::mem::take(&mut section.rest);
        let strings = entries.into_iter().filter_map(|(name, (_, value))| {
            let found = section.found(section.key(name), value.span(), value);
            Some((name.to_owned(), section.as_string(found)?.value))
        });
        strings.collect()
    }

    /// Settings that are somebody else's to check, as JSON.
    pub(super) fn json(&mut self, key: &'static str) -> Option<Found<serde_json::Value>> {
        let found = self.take(key)?;
        let DeValue::Table(_) = found.value.get_ref() else {
            self.wrong_type(&found, "a table");
            return None;
        };
        let value = to_json(found.value.get_ref());
        Some(found.map(|_| value))
    }

    /// Complains about keys that nobody asked for.
    pub(super) fn finish(self) {
        for (key, (start, _)) in &self.rest {
            let what = if self.path.is_empty() {
                format!("unknown section `{key}`")
            } else {
                format!("{}: unknown key `{key}`", self.path)
            };
            let remedy = nearest::remedy(key, self.known.iter().copied());
            self.error(Problem::new(what).at(self.source.place(*start)).remedy(remedy));
        }
    }
}

fn name_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// TOML's values as JSON. Dates and the numbers that JSON does not have (`inf`, `nan`) become strings.
fn to_json(value: &DeValue<'_>) -> serde_json::Value {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => number.into(),
            Err(_) => number.to_string().into(),
        },
        DeValue::Float(number) => {
            let parsed = number.as_str().parse().ok().and_then(serde_json::Number::from_f64);
            parsed.map_or_else(|| number.as_str().into(), serde_json::Value::Number)
        }
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Datetime(date) => date.to_string().into(),
        DeValue::Array(items) => items.iter().map(|item| to_json(item.get_ref())).collect(),
        DeValue::Table(table) => {
            let entries = table.iter();
            entries.map(|(key, value)| (key.get_ref().to_string(), to_json(value.get_ref()))).collect()
        }
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_size("64MiB"), Some(64 << 20));
        assert_eq!(parse_size("3 KiB"), Some(3072));
        assert_eq!(parse_size("17"), Some(17));
        for wrong in ["", "MiB", "64MB", "-1", "1.5GiB", "99999999999999999999", "18446744073709551615KiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        let source = Source::new("a.toml".into(), "x = 1\nä = \"ö\" # c\n".to_owned());
        assert_eq!(source.place(0), "a.toml:1:1");
        assert_eq!(source.place(source.text().find('#').unwrap()), "a.toml:2:9");
    }
}
