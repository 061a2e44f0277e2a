//! Plugins that misbehave, one fact each, as components for tests.
//!
//! Their sources are in `programs/examples`; a file added there is built and embedded without further ado.

static GUESTS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// The component of the program `programs/examples/<name>.rs`.
///
/// # Panics
///
/// If there is no such program: a test has misspelt it.
pub fn get(name: &str) -> &'static [u8] {
    match GUESTS.iter().find(|(found, _)| *found == name) {
        Some((_, component)) => component,
        None => panic!("no guest `{name}`; there are: {}", names().collect::<Vec<_>>().join(", ")),
    }
}

/// The names of all programs.
pub fn names() -> impl Iterator<Item = &'static str> {
    GUESTS.iter().map(|(name, _)| *name)
}

/// A `plugin.toml` for a guest. All guests call themselves `misbehaving-guests`, after their crate.
pub fn manifest(kind: &str, more: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("id = 'misbehaving-guests'\nversion = '{version}'\nkind = '{kind}'\ndescription = 'A guest.'\n{more}")
}
