//! The configuration: TOML files read into values, with every complaint at once.
//!
//! [`load`] reads one file and the `conf.d/*.toml` beside it. Nothing here talks to a pool or runs a plugin.
//!
//! - [`pool`]: `[pool.NAME]`, where a pool is and how to log in;
//! - [`job`]: `[job.NAME]`, which VMs go where, when, and what is kept;
//! - [`limit`]: how fast, for a job or a `[link.NAME]`;
//! - [`plugin`]: `[plugin.NAME]`, where a plugin comes from and what it may do;
//! - [`secret`]: passwords and keys, which never print;
//! - `credential`: what the host adds to a plugin's requests;
//! - `read`: the reader that knows where each key stands.

mod credential;
pub mod job;
pub mod limit;
pub mod plugin;
pub mod pool;
mod read;
pub mod secret;

use crate::nearest;
use crate::problem::Problem;
use read::{Found, Notes, Section, Source};
use secret::{Given, Secret};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use toml::de::DeTable;
use vmferry_sandbox::SealKey;

/// Where the store is unless `store.path` says otherwise.
pub const DEFAULT_STORE: &str = "/var/lib/vmferry";

/// Everything that was configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// The files it was read from, the main file first.
    pub files: Vec<PathBuf>,
    /// The folder of the state store.
    pub store: PathBuf,
    /// Pools by name.
    pub pools: BTreeMap<String, pool::Pool>,
    /// Jobs by name.
    pub jobs: BTreeMap<String, job::Job>,
    /// What is said about plugins, by name; a bundled plugin need not be mentioned.
    pub plugins: BTreeMap<String, plugin::Plugin>,
    /// Keys that plugins may sign with, by name.
    pub keys: BTreeMap<String, Secret>,
    /// Keys that plugins may seal with, by name.
    pub seal_keys: BTreeMap<String, SealKey>,
    /// Limits of links that targets are behind, by name.
    pub links: BTreeMap<String, limit::Limit>,
    /// What is allowed and should not be.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// The job of that name; an unknown one is answered with the nearest name and a list.
    pub fn job(&self, name: &str) -> Result<&job::Job, Problem> {
        self.jobs.get(name).ok_or_else(|| {
            let place = self.files.first().map(|file| file.display().to_string()).unwrap_or_default();
            Problem::new(format!("there is no job `{name}`"))
                .at(place)
                .remedy(nearest::remedy(name, self.jobs.keys().map(String::as_str)))
        })
    }
}

/// A name that stands in the configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The key that holds it: `job.erp.schedule.plugin`.
    pub key: String,
    /// `file:line:column`.
    pub place: String,
}

impl From<&Found<String>> for Named {
    fn from(found: &Found<String>) -> Self {
        Self { name: found.value.clone(), key: found.key.clone(), place: found.place.clone() }
    }
}

/// Names that have to exist, looked up when everything is read.
#[derive(Default)]
struct References {
    pools: Vec<Named>,
    links: Vec<Named>,
    plugins: Vec<Named>,
    keys: Vec<Named>,
    seal_keys: Vec<Named>,
}

/// What the configuration depends on beside its files.
pub struct Surroundings<'a> {
    /// Looks up an environment variable.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// The plugins that are part of the program.
    pub bundled: &'a [&'a str],
}

/// Reads a configuration, or says everything that is wrong with it.
pub fn load(main: &Path, surroundings: &Surroundings<'_>) -> Result<Config, Vec<Problem>> {
    let sources = read_files(main).map_err(|problem| vec![problem])?;
    let notes = Notes::default();
    let mut draft = Draft::default();
    for source in &sources {
        match DeTable::parse(source.text()) {
            Ok(table) => {
                let root = Section::new(String::new(), source, &notes, table.get_ref(), 0);
                draft.read(root, surroundings);
            }
            Err(error) => notes.errors.borrow_mut().push(syntax_error(source, &error)),
        }
    }
    draft.look_up(&notes, surroundings.bundled);
    let errors = notes.errors.into_inner();
    if !errors.is_empty() {
        return Err(errors);
    }
    let links = values(draft.links);
    let throttles: BTreeMap<&String, _> = links.iter().map(|(name, limit)| (name, limit.throttle())).collect();
    let mut jobs = values(draft.jobs);
    for job in jobs.values_mut() {
        let of_link = |link: &Option<String>| {
            let throttle = link.as_ref().and_then(|link| throttles.get(link)?.clone());
            throttle.into_iter().collect::<Vec<_>>()
        };
        for (target, link) in job.targets.iter_mut().zip(&job.links) {
            target.throttles = of_link(link);
        }
        for store in &mut job.stores {
            store.throttles = of_link(&store.link);
        }
    }
    Ok(Config {
        files: sources.iter().map(|source| source.path().to_owned()).collect(),
        store: draft.store.map_or_else(|| DEFAULT_STORE.into(), |store| store.value),
        pools: values(draft.pools),
        jobs,
        links,
        plugins: values(draft.plugins),
        keys: values(draft.keys),
        seal_keys: values(draft.seal_keys),
        warnings: notes.warnings.into_inner(),
    })
}

/// The main file, then `conf.d/*.toml` beside it by name.
fn read_files(main: &Path) -> Result<Vec<Source>, Problem> {
    let folder = main.parent().unwrap_or(Path::new("")).join("conf.d");
    let mut parts = Vec::new();
    if folder.is_dir() {
        let entries = std::fs::read_dir(&folder).map_err(|error| unreadable(&folder, &error))?;
        for entry in entries {
            let path = entry.map_err(|error| unreadable(&folder, &error))?.path();
            if path.extension() == Some(OsStr::new("toml")) {
                parts.push(path);
            }
        }
        parts.sort();
    }
    let files = std::iter::once(main.to_owned()).chain(parts);
    let read = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Source::new(path, text)),
        Err(error) => Err(unreadable(&path, &error)),
    };
    files.map(read).collect()
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(format!("the configuration cannot be read: {error}"))
        .at(path.display().to_string())
        .remedy("name the right file with `--config FILE`; `vmferry demo --keep` writes one to look at")
}

fn syntax_error(source: &Source, error: &toml::de::Error) -> Problem {
    let place = source.place(error.span().map_or(0, |span| span.start));
    Problem::new(format!("not TOML: {}", error.message().trim().replace('\n', ", "))).at(place)
}

/// An entry and the place where it was first seen.
struct Entry<T> {
    place: String,
    /// `None` when it is there and wrong: the complaint is made, and references to it are not complained about.
    value: Option<T>,
}

type Entries<T> = BTreeMap<String, Entry<T>>;

fn values<T>(entries: Entries<T>) -> BTreeMap<String, T> {
    entries.into_iter().filter_map(|(name, entry)| Some((name, entry.value?))).collect()
}

/// What was read so far, over all files.
#[derive(Default)]
struct Draft {
    store: Option<Found<PathBuf>>,
    pools: Entries<pool::Pool>,
    jobs: Entries<job::Job>,
    plugins: Entries<plugin::Plugin>,
    keys: Entries<Secret>,
    seal_keys: Entries<SealKey>,
    links: Entries<limit::Limit>,
    references: References,
}

impl Draft {
    fn read(&mut self, mut root: Section<'_>, surroundings: &Surroundings<'_>) {
        for (name, section) in root.named_sections("pool") {
            add(&root, &mut self.pools, name, || pool::read(section, surroundings.environment));
        }
        for (name, section) in root.named_sections("job") {
            add(&root, &mut self.jobs, name, || job::read(section, &mut self.references));
        }
        for (name, section) in root.named_sections("plugin") {
            add(&root, &mut self.plugins, name, || {
                plugin::read(section, &mut self.references, surroundings.environment)
            });
        }
        for (name, mut section) in root.named_sections("link") {
            add(&root, &mut self.links, name, || {
                let limit = limit::read(&mut section);
                section.finish();
                Some(limit)
            });
        }
        for (name, section) in root.named_sections("key") {
            add(&root, &mut self.keys, name, || read_key(section, surroundings.environment));
        }
        for (name, section) in root.named_sections("seal_key") {
            add(&root, &mut self.seal_keys, name, || read_seal_key(section, surroundings.environment));
        }
        if let Some(section) = root.section("store") {
            self.read_store(section);
        }
        root.finish();
    }

    fn read_store(&mut self, mut section: Section<'_>) {
        if let Some(path) = section.string("path") {
            let folder = section.source.resolve(&path.value);
            let path = path.map(|_| folder);
            match &self.store {
                Some(first) => section.error(twice(&path.key, &path.place, &first.place)),
                None => self.store = Some(path),
            }
        }
        section.finish();
    }

    /// Complains about names that stand for nothing.
    fn look_up(&self, notes: &Notes, bundled: &[&str]) {
        let check = |references: &[Named], what: &str, known: &[&str]| {
            for one in references.iter().filter(|one| !known.contains(&one.name.as_str())) {
                let problem = Problem::new(format!("{}: there is no {what} `{}`", one.key, one.name)).at(&one.place);
                notes.errors.borrow_mut().push(problem.remedy(nearest::remedy(&one.name, known.iter().copied())));
            }
        };
        let pools: Vec<_> = self.pools.keys().map(String::as_str).collect();
        check(&self.references.pools, "pool", &pools);
        let links: Vec<_> = self.links.keys().map(String::as_str).collect();
        check(&self.references.links, "link", &links);
        let keys: Vec<_> = self.keys.keys().map(String::as_str).collect();
        check(&self.references.keys, "key", &keys);
        let seal_keys: Vec<_> = self.seal_keys.keys().map(String::as_str).collect();
        check(&self.references.seal_keys, "seal_key", &seal_keys);
        let own = self.plugins.keys().map(String::as_str).filter(|name| !bundled.contains(name));
        let plugins: Vec<_> = bundled.iter().copied().chain(own).collect();
        check(&self.references.plugins, "plugin", &plugins);
        for (name, entry) in &self.plugins {
            let has_no_path = entry.value.as_ref().is_some_and(|plugin| plugin.path.is_none());
            if has_no_path && !bundled.contains(&name.as_str()) {
                let near = nearest::nearest(name, bundled.iter().copied());
                let near = near.map(|near| format!("; did you mean `plugin.{near}`?")).unwrap_or_default();
                let problem = Problem::new(format!("plugin.{name}: no plugin of this name is part of the program"));
                let remedy = format!("add `path = \"FOLDER OR FILE\"`{near}");
                notes.errors.borrow_mut().push(problem.at(&entry.place).remedy(remedy));
            }
        }
    }
}

/// Files are equal among each other: what two of them say about the same name is a contradiction, not an override.
fn add<T>(root: &Section<'_>, entries: &mut Entries<T>, name: Found<String>, read: impl FnOnce() -> Option<T>) {
    if let Some(first) = entries.get(&name.value) {
        root.error(twice(&name.key, &name.place, &first.place));
        return;
    }
    entries.insert(name.value, Entry { place: name.place, value: read() });
}

fn twice(key: &str, place: &str, first: &str) -> Problem {
    Problem::new(format!("{key} is given twice")).at(place).remedy(format!("keep this one or the one at {first}"))
}

const KEY: secret::Keys = secret::Keys { noun: "key", inline: "secret", file: "secret_file", env: "secret_env" };

fn read_key(mut section: Section<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<Secret> {
    let key = read_secret(&mut section, environment);
    section.finish();
    key
}

/// A key that data is sealed with has to be random: it is not stretched.
fn read_seal_key(mut section: Section<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<SealKey> {
    let text = read_secret(&mut section, environment);
    let key = text.as_ref().and_then(|text| seal_key(text.reveal()));
    if text.is_some() && key.is_none() {
        let what = format!("{}: the key is not 64 hexadecimal digits", section.path);
        let remedy = "make one with `openssl rand -hex 32`, and keep a copy elsewhere: what it sealed is lost with it";
        section.error(Problem::new(what).at(section.place()).remedy(remedy));
    }
    section.finish();
    key
}

fn read_secret(section: &mut Section<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<Secret> {
    match secret::read(section, &KEY, environment) {
        Given::Secret(key) => Some(key),
        Given::Wrong => None,
        Given::Nothing => {
            section.missing("secret_file", "\"secrets/key\"");
            None
        }
    }
}

fn seal_key(text: &str) -> Option<SealKey> {
    let mut bytes = [0; 32];
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(high? << 4 | low?).ok()?;
    }
    Some(SealKey::new(bytes))
}
