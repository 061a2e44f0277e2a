//! Builds the components and writes the table that embeds them.

use std::fmt::Write;
use std::path::Path;
use vmferry_guest_build::{Components, build};

/// The plugins that come with the program. The example is among them: it has to work, and it can be tried.
const PLUGINS: &[&str] = &[
    "schedule-interval",
    "retain-count",
    "notify-webhook",
    "target-repository",
    "target-s3",
    "target-hyperv",
    "example-retain-weekdays",
    "example-target-folder",
];

fn main() {
    if let Err(error) = embed() {
        for line in error.to_string().lines() {
            println!("cargo::error={line}");
        }
    }
}

fn embed() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let here = std::env::current_dir()?;
    let plugins = here.parent().ok_or("the bundle has no folder above it")?;
    let workspace = plugins.parent().ok_or("the plugins have no folder above them")?;
    let output = build(workspace, Components::Packages(PLUGINS))?;

    let mut table = "&[\n".to_owned();
    for plugin in &output.components {
        let folder = plugins.join(&plugin.name);
        let manifest = folder.join("plugin.toml");
        println!("cargo::rerun-if-changed={}", manifest.display());
        println!("cargo::rerun-if-changed={}", folder.join("Cargo.toml").display());
        writeln!(
            table,
            "Bundled {{ id: {:?}, manifest: include_str!({:?}), component: include_bytes!({:?}) }},",
            plugin.name, manifest, plugin.component
        )?;
    }
    table.push(']');
    for source in &output.sources {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let out = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    std::fs::write(Path::new(&out).join("bundled.rs"), table)?;
    Ok(())
}
