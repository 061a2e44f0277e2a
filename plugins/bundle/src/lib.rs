//! The plugins that come with the program, as components.

/// One plugin: what `plugin.toml` says, and its component.
#[derive(Clone, Copy, Debug)]
pub struct Bundled {
    /// The plugin's id.
    pub id: &'static str,
    /// The text of its `plugin.toml`.
    pub manifest: &'static str,
    /// The component's bytes.
    pub component: &'static [u8],
}

static ALL: &[Bundled] = include!(concat!(env!("OUT_DIR"), "/bundled.rs"));

/// All of them.
pub fn all() -> &'static [Bundled] {
    ALL
}

/// The one with this id.
pub fn get(id: &str) -> Option<&'static Bundled> {
    ALL.iter().find(|plugin| plugin.id == id)
}
