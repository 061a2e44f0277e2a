//! The suite for real pools (see `CONTRIBUTING.md`), and the proof that it works.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "what was found is to be read, and a suite that nobody asked for says so")]

use vmferry_scenarios::live::Live;
use xapi_sim::{Fault, FaultKind, FaultPoint, NbdPurpose, Sim, SimConfig};

fn tell(line: String) {
    eprintln!("{line}");
}

#[tokio::test]
async fn the_pools_that_the_environment_names_are_replicated_between() {
    match Live::of(|name| std::env::var(name).ok()).unwrap() {
        Some(live) => live.run(&tell).await.unwrap(),
        None => tell("no real pool was asked for: VMFERRY_LIVE_SOURCE and VMFERRY_LIVE_TARGET are not set".to_owned()),
    }
}

async fn pool() -> Sim {
    let config = SimConfig { tls: true, nbd_purpose: Some(NbdPurpose::Nbd), ..SimConfig::default() };
    Sim::start(config).await.unwrap()
}

/// What the environment would say of two simulated pools.
fn live(source: &Sim, target: &Sim) -> Live {
    let environment = |name: &str| {
        let (side, pool) = match name.strip_prefix("VMFERRY_LIVE_")? {
            side if side.starts_with("SOURCE") => (side, source),
            side => (side, target),
        };
        match side.trim_start_matches("SOURCE").trim_start_matches("TARGET") {
            "" => Some(pool.url().replace("https://", "https://root:password@")),
            "_PIN" => pool.certificate_sha256(),
            "_SR" => Some(pool.default_sr()),
            _ => None,
        }
    };
    Live::of(environment).unwrap().unwrap()
}

#[track_caller]
fn assert_nothing_is_left(pool: &Sim, case: &str) {
    let vms = pool.records("VM").into_iter().filter(|vm| vm["is_control_domain"] == false);
    assert_eq!(vms.count() + pool.records("VDI").len(), 0, "{case}");
    assert_eq!(pool.object_counts().get("session").copied().unwrap_or(0), 0, "{case}");
}

#[tokio::test]
async fn the_suite_works_between_simulated_pools_and_leaves_nothing() {
    let (source, target) = (pool().await, pool().await);
    live(&source, &target).run(&tell).await.unwrap();
    live(&source, &source).run(&tell).await.expect("within one pool");
    for pool in [&source, &target] {
        assert_nothing_is_left(pool, "after a good one");
    }
}

/// The first four imports of a pool are the doctor's.
#[tokio::test]
async fn a_suite_that_fails_leaves_nothing_either() {
    for (on_target, at, nth) in [
        (false, FaultPoint::Import, 5),
        (false, FaultPoint::Call("VM.snapshot".to_owned()), 1),
        (true, FaultPoint::Import, 5),
        (true, FaultPoint::Import, 7),
        (true, FaultPoint::Call("VM.clone".to_owned()), 1),
    ] {
        let (source, target) = (pool().await, pool().await);
        let kind = match at {
            FaultPoint::Import => FaultKind::CutAfter(5000),
            _ => FaultKind::ApiError("INTERNAL_ERROR".to_owned(), vec!["a fault".to_owned()]),
        };
        let case = format!("{at:?} {nth}");
        if on_target { &target } else { &source }.inject(Fault { at, nth, kind });
        let failed = live(&source, &target).run(&|_| ()).await;
        assert!(failed.is_err(), "{case}");
        for pool in [&source, &target] {
            assert_nothing_is_left(pool, &case);
        }
    }
}

#[test]
fn half_of_an_environment_is_a_mistake() {
    let half = |name: &str| (name == "VMFERRY_LIVE_SOURCE").then(|| "https://root:secret@xen1".to_owned());
    let error = Live::of(half).err().unwrap().to_string();
    assert!(error.contains("VMFERRY_LIVE_TARGET") && !error.contains("secret"), "{error}");
    assert!(Live::of(|_| None).unwrap().is_none());
}
