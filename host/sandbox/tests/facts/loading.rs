//! What is no plugin, and how it is told.

use crate::house::{SANDBOX, package, refusal};
use std::time::{Duration, Instant};
use vmferry_model::plugin::PluginFailure;
use vmferry_sandbox::{Kind, LoadFailure, MAX_COMPONENT, Misfit, Package, PackageError, Sandbox, Settings};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{LiftLowerAbi, ManglingAndAbi, Resolve};

fn bytes(component: impl Into<Vec<u8>>) -> Package {
    let manifest = vmferry_test_guests::manifest("scheduler", "");
    Package::from_parts("test", &manifest, component.into()).expect("a package")
}

/// A scheduler whose core module has these lines on top; its exports do nothing but trap.
fn handmade(lines: &str) -> Package {
    let mut resolve = Resolve::default();
    let (contract, _) = resolve.push_dir("../../wit").expect("the contract");
    let world = resolve.select_world(&[contract], Some("scheduler")).expect("the world");
    let abi = ManglingAndAbi::Legacy(LiftLowerAbi::Sync);
    let text = wasmprinter::print_bytes(wit_component::dummy_module(&resolve, world, abi)).expect("text");
    let end = text.rfind(')').expect("a module");
    let mut module = wat::parse_str(format!("{}{lines})", &text[..end])).expect("a module");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("metadata");
    bytes(ComponentEncoder::default().module(&module).expect("a core module").encode().expect("a component"))
}

#[tokio::test]
async fn what_is_no_component_is_told_what_it_is() {
    assert!(matches!(refusal(&bytes("#!/bin/sh\n")).await, LoadFailure::NotWasm));
    assert!(matches!(refusal(&bytes("")).await, LoadFailure::NotWasm));
    let module = wat::parse_str("(module)").expect("a module");
    assert!(matches!(refusal(&bytes(module)).await, LoadFailure::CoreModule));
}

#[tokio::test]
async fn a_damaged_component_is_refused_wherever_it_is_damaged() {
    let whole = vmferry_test_guests::get("remembers");
    for cut in [9, 100, whole.len() / 2, whole.len() - 1] {
        let failure = refusal(&bytes(&whole[..cut])).await;
        assert!(matches!(failure, LoadFailure::Invalid(_) | LoadFailure::Misfit(_)), "cut at {cut}: {failure}");
    }
    let mut flipped = whole.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle..middle + 64].fill(0xff);
    assert!(SANDBOX.load(&bytes(flipped)).await.is_err());
}

#[tokio::test]
async fn what_is_too_large_is_not_looked_at() {
    let manifest = vmferry_test_guests::manifest("scheduler", "");
    let error = Package::from_parts("test", &manifest, vec![0; MAX_COMPONENT + 1]).expect_err("too large");
    assert!(matches!(error, PackageError::TooLarge { .. }));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("large.wasm");
    std::fs::File::create(&path).expect("a file").set_len(MAX_COMPONENT as u64 + 1).expect("a length");
    assert!(matches!(Package::from_path(&path).expect_err("too large"), PackageError::TooLarge { .. }));
}

#[tokio::test]
async fn a_component_of_another_world_is_refused_by_name() {
    let LoadFailure::Misfit(misfit) = refusal(&package("remembers", "retention", "")).await else { panic!("loaded") };
    assert_eq!(misfit, Misfit::OtherKind { found: Kind::Scheduler, expected: Kind::Retention });
    assert_eq!(misfit.to_string(), "it is a scheduler, not a retention");

    let empty = wat::parse_str("(component)").expect("a component");
    let LoadFailure::Misfit(misfit) = refusal(&bytes(empty)).await else { panic!("loaded") };
    assert!(misfit.to_string().contains("`vmferry:plugin/schedule@0.1.0`"), "{misfit}");
}

#[tokio::test]
async fn a_policy_that_imports_the_network_is_refused_with_the_import() {
    let LoadFailure::Misfit(misfit) = refusal(&package("policy_with_http", "scheduler", "")).await else {
        panic!("loaded")
    };
    assert!(misfit.to_string().contains("`wasi:http/"), "{misfit}");
    assert!(misfit.to_string().contains("a scheduler cannot have"), "{misfit}");
}

#[tokio::test]
async fn types_that_differ_under_the_right_name_are_told() {
    let lookalike = r#"(component
        (type $answer (func (result string)))
        (core module $m (func (export "f") (result i32) unreachable) (memory (export "memory") 1))
        (core instance $i (instantiate $m))
        (func $f (type $answer) (canon lift (core func $i "f") (memory (core memory $i "memory"))))
        (instance $own (export "describe" (func $f)))
        (export "vmferry:plugin/schedule@0.1.0" (instance $own)))"#;
    let LoadFailure::Misfit(Misfit::Types(text)) = refusal(&bytes(wat::parse_str(lookalike).expect("text"))).await
    else {
        panic!("loaded")
    };
    assert!(text.contains("describe") || text.contains("validate-config"), "{text}");
}

#[tokio::test]
async fn an_older_contract_is_told_by_its_version() {
    let old = r#"(component (instance $i) (export "vmferry:plugin/schedule@0.0.9" (instance $i)))"#;
    let LoadFailure::Misfit(misfit) = refusal(&bytes(wat::parse_str(old).expect("text"))).await else {
        panic!("loaded")
    };
    assert!(matches!(&misfit, Misfit::Version { found } if found == "vmferry:plugin/schedule@0.0.9"), "{misfit}");
}

#[tokio::test]
async fn a_plugin_that_cannot_introduce_itself_is_not_used() {
    let LoadFailure::Describe(error) = refusal(&package("panics_in_describe", "scheduler", "")).await else {
        panic!("loaded")
    };
    assert_eq!(error.call, "describe");
    assert!(matches!(&error.failure, PluginFailure::Trap(words) if words.contains("who am I?")), "{error}");
}

#[tokio::test]
async fn manifest_and_component_have_to_agree() {
    let manifest = vmferry_test_guests::manifest("scheduler", "").replace("misbehaving-guests", "somebody-else");
    let package = Package::from_parts("test", &manifest, vmferry_test_guests::get("remembers")).expect("a package");
    let failure = refusal(&package).await;
    assert!(
        matches!(&failure, LoadFailure::Disagree { manifest, component }
        if manifest.starts_with("somebody-else") && component.starts_with("misbehaving-guests")),
        "{failure}"
    );
}

#[tokio::test]
async fn what_a_component_says_of_itself_stays_on_its_line() {
    let clean = |text: &str| !text.contains(['\n', '\u{202e}']);
    let failure = refusal(&package("poses_as_another", "scheduler", "")).await;
    assert!(matches!(&failure, LoadFailure::Disagree { component, .. } if clean(component)), "{failure}");
    let odd = wat::parse_str(r#"(component (import "odd\nname \u{202e}" (func)))"#).expect("text");
    let failure = refusal(&bytes(odd)).await.to_string();
    assert!(failure.contains("odd name") && clean(&failure), "{failure}");
    // Without a manifest there is nothing to compare it with.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("poses.wasm");
    std::fs::write(&path, vmferry_test_guests::get("poses_as_another")).expect("written");
    let failure = refusal(&Package::from_path(&path).expect("a package")).await;
    assert!(matches!(&failure, LoadFailure::Version(version) if clean(version)), "{failure}");
}

#[tokio::test]
async fn a_start_that_never_ends_is_ended() {
    let begun = Instant::now();
    let failure = refusal(&handmade("(func $endless (loop (br 0))) (start $endless)")).await;
    let LoadFailure::Describe(error) = failure else { panic!("{failure}") };
    assert!(matches!(error.failure, PluginFailure::Timeout(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_table_that_grows_beyond_its_limit_is_refused_by_name() {
    let grows = "(table $grown 1 funcref)
        (func $grow (if (i32.eq (table.grow $grown (ref.null func) (i32.const 50000)) (i32.const -1)) (then unreachable)))
        (start $grow)";
    let failure = refusal(&handmade(grows)).await;
    let LoadFailure::Describe(error) = failure else { panic!("{failure}") };
    assert!(matches!(&error.failure, PluginFailure::Limit { setting, .. } if setting == "table_elements"), "{error}");
}

#[tokio::test]
async fn memory_is_counted_over_all_memories() {
    // Each of the two is below the limit of 64 MiB, their sum is not.
    let failure = refusal(&handmade("(memory $a 600) (memory $b 600)")).await;
    let LoadFailure::Describe(error) = failure else { panic!("{failure}") };
    assert!(matches!(&error.failure, PluginFailure::Limit { setting, .. } if setting == "memory"), "{error}");
}

#[tokio::test]
async fn a_component_alone_goes_by_its_files_name_and_its_exports_tell_its_kind() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("my_rule.wasm");
    std::fs::write(&path, vmferry_test_guests::get("answers_nonsense")).expect("written");
    let plugin = SANDBOX.load(&Package::from_path(&path).expect("a package")).await.expect("a plugin");
    assert_eq!((plugin.id().name.as_str(), plugin.kind()), ("my-rule", Kind::Retention));
    assert!(plugin.manifest().is_none());
}

#[tokio::test]
async fn a_folder_needs_a_manifest_and_one_component() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = Package::from_folder(folder.path()).expect_err("no manifest").to_string();
    assert!(error.contains("plugin.toml"), "{error}");
    std::fs::write(folder.path().join("plugin.toml"), vmferry_test_guests::manifest("scheduler", "")).expect("written");
    assert!(matches!(Package::from_folder(folder.path()), Err(PackageError::NoComponent(_))));
    std::fs::write(folder.path().join("a.wasm"), vmferry_test_guests::get("remembers")).expect("written");
    let package = Package::from_folder(folder.path()).expect("a package");
    SANDBOX.load(&package).await.expect("a plugin");
    std::fs::write(folder.path().join("b.wasm"), b"").expect("written");
    assert!(matches!(Package::from_folder(folder.path()), Err(PackageError::SeveralComponents(_))));
}

#[tokio::test]
async fn compiled_code_is_kept_and_a_damaged_file_is_compiled_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("compiled");
    let settings = Settings { compile_cache: Some(cache.clone()) };
    let package = package("remembers", "scheduler", "");
    let files = || -> Vec<_> {
        std::fs::read_dir(&cache).expect("the cache").map(|entry| entry.expect("an entry").path()).collect()
    };
    for _ in 0..2 {
        Sandbox::new(&settings).expect("a sandbox").load(&package).await.expect("a plugin");
        assert_eq!(files().len(), 1);
    }
    let kept = std::fs::read(&files()[0]).expect("kept");
    for damaged in [kept[..kept.len() / 2].to_vec(), Vec::new(), [&[0; 32], &kept[32..]].concat()] {
        std::fs::write(&files()[0], damaged).expect("written");
        Sandbox::new(&settings).expect("a sandbox").load(&package).await.expect("a plugin");
        assert_eq!(std::fs::read(&files()[0]).expect("kept again").len(), kept.len());
    }
}

#[test]
fn a_cache_that_others_can_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o770)).expect("set");
    let settings = Settings { compile_cache: Some(folder.path().to_owned()) };
    let error = Sandbox::new(&settings).expect_err("open to others").to_string();
    assert!(error.contains("mode 0700") && error.contains("0770"), "{error}");
}
