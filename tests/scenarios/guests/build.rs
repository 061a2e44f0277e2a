//! Builds every program in `programs/examples` and writes the table that embeds them.

use std::fmt::Write;
use std::path::Path;
use vmferry_guest_build::{Components, build};

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
    let programs = here.join("programs");
    let folder = programs.join("examples");
    println!("cargo::rerun-if-changed={}", folder.display());
    println!("cargo::rerun-if-changed={}", programs.join("Cargo.toml").display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().and_then(|stem| stem.to_str()).ok_or("a program's name is not UTF-8")?;
            names.push(name.to_owned());
        }
    }
    names.sort();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let workspace = here.ancestors().nth(3).ok_or("no folder above")?;
    let output = build(workspace, Components::Examples { package: "misbehaving-guests", names: &names })?;

    let mut table = "&[\n".to_owned();
    for guest in &output.components {
        writeln!(table, "({:?}, include_bytes!({:?})),", guest.name, guest.component)?;
    }
    table.push(']');
    for source in &output.sources {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let out = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    std::fs::write(Path::new(&out).join("guests.rs"), table)?;
    Ok(())
}
