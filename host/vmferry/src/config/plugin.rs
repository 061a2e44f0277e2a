//! `[plugin.NAME]`: where a plugin comes from, what it may do and how much it may use.

use super::read::{Found, Section};
use super::{Named, References, credential};
use std::path::{Path, PathBuf};
use vmferry_sandbox::{Credential, Grants, HostPattern, Limits};

/// What the operator says about a plugin. A plugin gets the intersection of this with what its manifest asks for.
#[derive(Clone, Debug, Default)]
pub struct Plugin {
    /// A folder with `plugin.toml` and a component, or a component alone; without one, the bundled plugin of that name.
    pub path: Option<PathBuf>,
    /// What it may do.
    pub grants: Grants,
    /// How much it may use; what is not set keeps the sandbox's default.
    pub limits: Limits,
    /// What is added to its requests, which it never sees.
    pub credentials: Vec<Credential>,
}

pub(super) fn read(
    mut section: Section<'_>,
    references: &mut References,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Option<Plugin> {
    let path = section.string("path").map(|path| section.source.resolve(&path.value));
    let grants = section.section("grants").map(|grants| read_grants(grants, references)).unwrap_or_default();
    let limits = section.section("limits").map(read_limits).unwrap_or_default();
    let credentials = section.sections("credentials");
    let credentials = credentials.into_iter().filter_map(|one| credential::read(one, environment)).collect();
    section.finish();
    Some(Plugin { path, grants, limits, credentials })
}

fn read_grants(mut section: Section<'_>, references: &mut References) -> Grants {
    let mut http: Vec<HostPattern> = Vec::new();
    for server in section.strings("http") {
        match server.value.parse() {
            Ok(pattern) => http.push(pattern),
            Err(error) => section.error(server.problem(error)),
        }
    }
    let sign = section.strings("sign");
    references.keys.extend(sign.iter().filter(|name| name.value != "*").map(Named::from));
    let seal = section.strings("seal");
    references.seal_keys.extend(seal.iter().filter(|name| name.value != "*").map(Named::from));
    let mut folders = Vec::new();
    for folder in section.strings("folders") {
        match Path::new(&folder.value).is_absolute() {
            true => folders.push(folder.value),
            false => section.error(folder.problem("a folder is granted by its absolute path: `/mnt/backup`")),
        }
    }
    let lock = section.boolean("lock").is_some_and(|allowed| allowed.value);
    let private_addresses = section.boolean("private_addresses").is_some_and(|allowed| allowed.value);
    section.finish();
    let names = |found: Vec<Found<String>>| found.into_iter().map(|name| name.value).collect();
    Grants { http, sign: names(sign), seal: names(seal), lock, folders, private_addresses, ..Grants::default() }
}

fn read_limits(mut section: Section<'_>) -> Limits {
    let limits = Limits {
        timeout: section.duration("timeout").map(|timeout| timeout.value),
        stall: section.duration("stall").map(|stall| stall.value),
        cpu: section.duration("cpu").map(|cpu| cpu.value),
        held: section.size("held").map(|held| held.value),
        http_body: section.size("http_body").map(|body| body.value),
        memory: section.size("memory").map(|memory| memory.value),
        store: section.size("store").map(|store| store.value),
        log: section.size("log").map(|log| log.value),
        table_elements: section.count("table_elements").map(|elements| elements.value),
        host_objects: section.count("host_objects").map(|objects| objects.value),
    };
    section.finish();
    limits
}
