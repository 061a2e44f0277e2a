//! `[job.NAME]`: which VMs go where, when, and what is kept.

use super::limit::{self, Limit};
use super::read::{Found, Section};
use super::{Named, References};
use crate::nearest;
use crate::problem::Problem;
use serde_json::Value;
use std::sync::Arc;
use uuid::Uuid;
use vmferry_engine::{ChainLimits, Nbd, Reading, Selection, SnapshotMode, Target, Throttle};

/// One job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Which VMs.
    pub select: Selection,
    /// The pools that it is replicated to.
    pub targets: Vec<Target>,
    /// The link that each of them is behind, in their order.
    pub links: Vec<Option<String>>,
    /// The targets that are stores. There is at least one target of either kind.
    pub stores: Vec<Store>,
    /// Whether digests are kept (the default), or the stream's structure is enough.
    pub digests: bool,
    /// How the source's disks are read.
    pub reading: Reading,
    /// What a VM's snapshot holds.
    pub snapshot: SnapshotMode,
    /// How long chains may be before a run makes them longer.
    pub chains: ChainLimits,
    /// How fast all of its transfers together may be.
    pub limit: Limit,
    /// The throttle that keeps to it.
    pub throttle: Option<Arc<Throttle>>,
    /// Decides when it runs; without one the daemon leaves it to `vmferry run`.
    pub schedule: Option<PluginUse>,
    /// Decides what is kept; without one everything is.
    pub retention: Option<PluginUse>,
    /// Who is told.
    pub notify: Vec<Subscription>,
    /// What becomes of a run that meets another one on the same VM.
    pub overlap: Overlap,
    /// Ids of the Xen Orchestra job whose chain this job continues.
    pub xo: Option<XoIds>,
}

/// A target that is a store.
#[derive(Clone, Debug)]
pub struct Store {
    /// Its name.
    pub name: String,
    /// What keeps the recovery points.
    pub keeper: PluginUse,
    /// Whether a VM counts as replicated only if it is stored here.
    pub required: bool,
    /// The link that it is behind.
    pub link: Option<String>,
    /// The throttles of that link.
    pub throttles: Vec<Arc<Throttle>>,
}

/// A plugin with the settings it gets.
#[derive(Clone, Debug)]
pub struct PluginUse {
    /// The plugin's name.
    pub plugin: String,
    /// Its settings, an object; the plugin checks them.
    pub with: Value,
    /// The key that names the plugin, and where it stands, for messages.
    pub named: Named,
}

/// A notifier and what it hears.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Who is told.
    pub notifier: PluginUse,
    /// Kinds of events; empty for all.
    pub on: Vec<String>,
}

/// What becomes of a run that meets another one on the same VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// It is skipped and recorded as such.
    Skip,
    /// It waits for the other one.
    Wait,
}

/// Ids of a Xen Orchestra job and its schedule.
#[derive(Clone, Copy, Debug)]
pub struct XoIds {
    /// The job's.
    pub job: Uuid,
    /// The schedule's.
    pub schedule: Uuid,
}

/// The kinds of events that notifiers hear.
const EVENTS: [&str; 8] =
    ["started", "succeeded", "partial", "failed", "skipped", "refused", "plugin-failed", RPO_VIOLATED];
/// Part of the vocabulary before anything sends it, so that configurations written for it stay valid.
const RPO_VIOLATED: &str = "rpo-violated";

const POWER_STATES: [(&str, &str); 4] =
    [("Running", "Running"), ("Halted", "Halted"), ("Suspended", "Suspended"), ("Paused", "Paused")];

pub(super) fn read(mut section: Section<'_>, references: &mut References) -> Option<Job> {
    let select = section.required_section("select", r#"{ pool = "prod", tags = ["erp"] }"#);
    let select = select.and_then(|select| read_selection(select, references));
    let Targets { pools: targets, links, stores } = read_targets(&mut section, references);
    let digests = section.word("integrity", &[("digest", true), ("structure", false)]);
    let reading = section.section("read").map_or_else(Reading::default, read_reading);
    let snapshot = section.word(
        "snapshot",
        &[("disks", SnapshotMode::Disks), ("offline", SnapshotMode::Offline), ("memory", SnapshotMode::Memory)],
    );
    let chains = section.section("chain").map_or_else(ChainLimits::default, read_chains);
    let limit = limit::read(&mut section);
    let schedule = section.section("schedule").and_then(|schedule| read_plugin(schedule, references));
    let retention = section.section("retention").and_then(|retention| read_plugin(retention, references));
    let notify = section.sections("notify").into_iter().filter_map(|one| read_subscription(one, references)).collect();
    let overlap = section.word("overlap", &[("skip", Overlap::Skip), ("wait", Overlap::Wait)]);
    let xo = section.section("xo").and_then(read_xo);
    section.finish();
    Some(Job {
        select: select?,
        targets,
        links,
        stores,
        throttle: limit.throttle(),
        limit,
        reading,
        snapshot: snapshot.map_or(SnapshotMode::Disks, |snapshot| snapshot.value),
        chains,
        digests: digests.is_none_or(|digests| digests.value),
        schedule,
        retention,
        notify,
        overlap: overlap.map_or(Overlap::Skip, |overlap| overlap.value),
        xo,
    })
}

fn read_selection(mut section: Section<'_>, references: &mut References) -> Option<Selection> {
    let pool = read_pool_name(&mut section, references);
    let errors_before = section.error_count();
    let vms = uuids(&mut section, "vms");
    let tags = values(section.strings("tags"));
    let power_states = read_power_states(&mut section);
    let (mut exclude_vms, mut exclude_tags) = (Vec::new(), Vec::new());
    if let Some(mut exclude) = section.section("exclude") {
        exclude_vms = uuids(&mut exclude, "vms");
        exclude_tags = values(exclude.strings("tags"));
        exclude.finish();
    }
    let is_empty = vms.is_empty() && tags.is_empty();
    if is_empty && section.error_count() == errors_before {
        let problem = Problem::new(format!("{}: it selects no VM", section.path)).at(section.place());
        section.error(problem.remedy(r#"add `tags = ["TAG"]` or `vms = ["UUID"]`"#));
    }
    section.finish();
    Some(Selection { pool: pool?, vms, tags, power_states, exclude_vms, exclude_tags })
}

fn read_power_states(section: &mut Section<'_>) -> Vec<String> {
    let states = section.strings("power_state");
    let known = states.iter().filter(|state| {
        let is_known = POWER_STATES.iter().any(|(name, _)| *name == state.value);
        if !is_known {
            let remedy = nearest::remedy(&state.value, POWER_STATES.iter().map(|(name, _)| *name));
            section.error(state.problem(format!("`{}` is no power state", state.value)).remedy(remedy));
        }
        is_known
    });
    known.map(|state| state.value.clone()).collect()
}

#[derive(Default)]
struct Targets {
    pools: Vec<Target>,
    links: Vec<Option<String>>,
    stores: Vec<Store>,
}

/// A target is a pool (`pool`, `sr`), or a store that a plugin keeps (`plugin`, `with`).
fn read_targets(section: &mut Section<'_>, references: &mut References) -> Targets {
    let mut targets = Targets::default();
    for mut one in section.required_sections("targets", r#"[{ name = "dr", pool = "dr", sr = "UUID" }]"#) {
        let name = one.required_string("name", "\"dr\"");
        let keeper = one.has("plugin").then(|| plugin_of(&mut one, references));
        let pool = keeper.is_none().then(|| {
            let pool = read_pool_name(&mut one, references);
            (pool, read_srs(&mut one), one.string_map("networks"))
        });
        let required = one.boolean("required").is_none_or(|required| required.value);
        let link = one.string("link");
        references.links.extend(link.as_ref().map(Named::from));
        let named = |name: &str| {
            targets.pools.iter().any(|other| other.name == name)
                || targets.stores.iter().any(|other| other.name == name)
        };
        if let Some(name) = &name
            && named(&name.value)
        {
            let what = format!("another target of this job is called `{}`", name.value);
            one.error(name.problem(what).remedy("give each target of a job its own name"));
        }
        one.finish();
        let link = link.map(|link| link.value);
        let throttles = Vec::new();
        match (name, keeper, pool) {
            (Some(name), Some(Some(keeper)), _) => {
                targets.stores.push(Store { name: name.value, keeper, required, link, throttles });
            }
            (Some(name), None, Some((Some(pool), Some(srs), networks))) => {
                targets.pools.push(Target { name: name.value, pool, srs, networks, required, throttles });
                targets.links.push(link);
            }
            _ => {}
        }
    }
    targets
}

/// `sr`, or `srs` where a replica may be on any of several.
fn read_srs(section: &mut Section<'_>) -> Option<Vec<String>> {
    let (has_one, has_several) = (section.has("sr"), section.has("srs"));
    let errors_before = section.error_count();
    let (one, several) = (section.string("sr"), section.strings("srs"));
    match (has_one, has_several) {
        (false, false) => section.missing("sr", "\"UUID of the storage repository\""),
        (true, true) => {
            let what = format!("{}: `sr` and `srs` both say where replicas go", section.path);
            let remedy = "keep `sr` for one storage repository, or `srs` for several of which each replica is on one";
            section.error(Problem::new(what).at(section.place()).remedy(remedy));
        }
        (false, true) if several.is_empty() && section.error_count() == errors_before => {
            let what = format!("{}: `srs` names no storage repository", section.path);
            section.error(Problem::new(what).at(section.place()).remedy("add the uuid of one, from `xe sr-list`"));
        }
        _ => {}
    }
    let mut srs: Vec<String> = Vec::new();
    for sr in one.into_iter().chain(several) {
        let twice = sr.problem("this storage repository is named already").remedy("name each once");
        match uuid(section, sr) {
            Some(sr) if srs.contains(&sr) => section.error(twice),
            sr => srs.extend(sr),
        }
    }
    (section.error_count() == errors_before).then_some(srs)
}

fn read_reading(mut section: Section<'_>) -> Reading {
    let mut reading = Reading::default();
    if let Some(nbd) = section.word("nbd", &[("auto", Nbd::Auto), ("always", Nbd::Always), ("never", Nbd::Never)]) {
        reading.nbd = nbd.value;
    }
    if let Some(found) = bounded(&mut section, "connections", 1..=16) {
        reading.connections = found as usize;
    }
    if let Some(found) = bounded(&mut section, "depth", 1..=256) {
        reading.pace.depth = found as u16;
    }
    if let Some(found) = section.size("request") {
        match u32::try_from(found.value) {
            Ok(size) if (64 << 10..=16 << 20).contains(&size) && size.is_multiple_of(512) => {
                reading.pace.request_size = size;
            }
            _ => section.error(
                found
                    .problem(format!("`{}` bytes is no size for a request", found.value))
                    .remedy("give 64KiB to 16MiB, in whole sectors of 512 bytes"),
            ),
        }
    }
    let cbt = section.word("cbt", &[("keep", false), ("enable", true)]);
    reading.enable_cbt = cbt.is_some_and(|cbt| cbt.value);
    section.finish();
    reading
}

fn read_chains(mut section: Section<'_>) -> ChainLimits {
    let mut chains = ChainLimits::default();
    if let Some(found) = bounded(&mut section, "max", 2..=29) {
        chains.max = found as usize;
    }
    if let Some(found) = bounded(&mut section, "wait_above", 1..=29) {
        chains.wait_above = found as usize;
    }
    section.finish();
    chains
}

fn bounded(section: &mut Section<'_>, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    let found = section.count(key)?;
    if range.contains(&found.value) {
        return Some(found.value);
    }
    let remedy = format!("give {} to {}", range.start(), range.end());
    section.error(found.problem(format!("{} is out of range", found.value)).remedy(remedy));
    None
}

fn read_pool_name(section: &mut Section<'_>, references: &mut References) -> Option<String> {
    let pool = section.required_string("pool", "\"NAME of a [pool.NAME]\"")?;
    references.pools.push(Named::from(&pool));
    Some(pool.value)
}

fn read_plugin(mut section: Section<'_>, references: &mut References) -> Option<PluginUse> {
    let plugin = plugin_of(&mut section, references);
    section.finish();
    plugin
}

fn plugin_of(section: &mut Section<'_>, references: &mut References) -> Option<PluginUse> {
    let with = section.json("with").map_or_else(|| Value::Object(serde_json::Map::new()), |with| with.value);
    let plugin = section.required_string("plugin", "\"NAME\"")?;
    let named = Named::from(&plugin);
    references.plugins.push(named.clone());
    Some(PluginUse { plugin: plugin.value, with, named })
}

fn read_subscription(mut section: Section<'_>, references: &mut References) -> Option<Subscription> {
    let notifier = plugin_of(&mut section, references);
    let on = section.strings("on");
    for kind in &on {
        if !EVENTS.contains(&kind.value.as_str()) {
            let remedy = nearest::remedy(&kind.value, EVENTS);
            section.error(kind.problem(format!("`{}` is not an event", kind.value)).remedy(remedy));
        } else if kind.value == RPO_VIOLATED {
            section.warn(kind.problem(format!("this version does not send `{RPO_VIOLATED}` yet")));
        }
    }
    section.finish();
    Some(Subscription { notifier: notifier?, on: values(on) })
}

fn read_xo(mut section: Section<'_>) -> Option<XoIds> {
    let mut id = |key: &'static str| {
        let found = section.required_string(key, "\"UUID\"")?;
        uuid(&section, found)?.parse().ok()
    };
    let (job, schedule) = (id("job"), id("schedule"));
    section.finish();
    Some(XoIds { job: job?, schedule: schedule? })
}

fn uuids(section: &mut Section<'_>, key: &'static str) -> Vec<String> {
    section.strings(key).into_iter().filter_map(|found| uuid(section, found)).collect()
}

/// XAPI compares uuids as text, in lower case with hyphens.
fn uuid(section: &Section<'_>, found: Found<String>) -> Option<String> {
    match Uuid::parse_str(&found.value) {
        Ok(uuid) => Some(uuid.to_string()),
        Err(_) => {
            let what = format!("`{}` is not a uuid", found.value);
            section.error(found.problem(what).remedy("copy it from `xe vm-list` or `xe sr-list`, 36 characters"));
            None
        }
    }
}

fn values(found: Vec<Found<String>>) -> Vec<String> {
    found.into_iter().map(|found| found.value).collect()
}
