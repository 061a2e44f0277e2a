//! What the doctor says of pools that have everything, or lack one thing; and that nothing of it stays.

use crate::gc::settled;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use vmferry_engine::{DoctorLine, DoctorProbe, DoctorReport, DoctorRequest, DoctorVerdict, Engine, EngineError, Nbd};
use vmferry_model::report::Outcome;
use vmferry_scenarios::{World, endpoint};
use vmferry_store::Store;
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Ref, Session, params};
use xapi_sim::{Fault, FaultKind, FaultPoint, NbdPurpose, Sim, SimConfig, SrKind, SrSpec};

/// A pool and a vmferry that knows it as `dr`.
struct Ward {
    sim: Sim,
    store: Arc<Store>,
    folder: TempDir,
}

impl Ward {
    async fn new(config: SimConfig) -> Self {
        let sim = Sim::start(config).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path()).await.unwrap());
        Self { sim, store, folder }
    }

    fn engine(&self) -> Engine {
        let endpoints = BTreeMap::from([("dr".to_owned(), endpoint(&self.sim))]);
        Engine::new(endpoints, self.store.clone(), self.folder.path().join("digests"))
    }

    async fn ask(&self, sr: Option<String>) -> Result<DoctorReport, EngineError> {
        let engine = self.engine();
        let request = DoctorRequest { pool: "dr".to_owned(), tenant: "default".to_owned(), sr };
        let report = engine.doctor(&request, std::future::pending()).await;
        engine.close().await;
        report
    }

    async fn examine(&self) -> DoctorReport {
        self.ask(None).await.unwrap()
    }

    async fn session(&self) -> Session {
        Session::login(&endpoint(&self.sim), "scenario").await.unwrap()
    }

    /// The disks of the pool, base copies that wait for their collection included.
    fn disks(&self) -> Vec<String> {
        self.sim.records("VDI").iter().map(|disk| format!("{} {}", disk["name_label"], disk["uuid"])).collect()
    }
}

/// A pool with all that there is.
fn healthy() -> SimConfig {
    SimConfig { tls: true, nbd_purpose: Some(NbdPurpose::Nbd), ..SimConfig::default() }
}

#[track_caller]
fn line(report: &DoctorReport, probe: DoctorProbe) -> &DoctorLine {
    report.lines.iter().find(|line| line.probe == probe).unwrap_or_else(|| panic!("no {probe:?}: {report:#?}"))
}

/// The probes with any other verdict than `ok`, the redirect of a pool whose master sees everything aside.
fn not_ok(report: &DoctorReport) -> Vec<(DoctorProbe, DoctorVerdict)> {
    let other = report.lines.iter().filter(|line| line.verdict != DoctorVerdict::Ok);
    other.map(|line| (line.probe, line.verdict)).filter(|(probe, _)| *probe != DoctorProbe::Redirect).collect()
}

#[tokio::test]
async fn on_a_healthy_pool_everything_is_ok_and_nothing_is_left() {
    let ward = Ward::new(healthy()).await;
    let report = ward.examine().await;
    assert_eq!(not_ok(&report), [], "{report:#?}");
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert!(report.sr.as_ref().is_some_and(|sr| sr.contains(&ward.sim.default_sr()) && sr.contains("default")));
    assert!(line(&report, DoctorProbe::Encryption).seen.starts_with("TLSv1_2 with TLS_ECDHE"), "{report:#?}");
    assert!(report.lines.iter().all(|line| line.remedy.is_none()), "{report:#?}");
    assert_eq!(ward.disks(), [""; 0]);
    let counts = ward.sim.object_counts();
    for class in ["task", "session", "VBD"] {
        assert_eq!(counts.get(class).copied().unwrap_or(0), 0, "{class}");
    }
}

#[tokio::test]
async fn what_a_pool_lacks_is_named_with_its_remedy() {
    use DoctorProbe::{ChangedBlocks, DataDestroy, Encryption, Nbd, Qcow2Head};
    use DoctorVerdict::{Missing, NotTried};
    for (config, expected, words) in [
        (SimConfig { tls: false, ..healthy() }, vec![(Encryption, Missing)], "`https://`"),
        (SimConfig { nbd_purpose: None, ..healthy() }, vec![(Nbd, Missing)], "param-key=nbd"),
        (
            SimConfig { restrict_cbt: true, ..healthy() },
            vec![(ChangedBlocks, Missing), (DataDestroy, NotTried)],
            "restrict_cbt",
        ),
        (
            SimConfig { sr_kind: SrKind::Untracked, ..healthy() },
            vec![(ChangedBlocks, Missing), (DataDestroy, NotTried)],
            "VDI_CONFIG_CBT",
        ),
        (SimConfig { qcow2_streams: false, ..healthy() }, vec![(Qcow2Head, Missing)], "update the hosts"),
    ] {
        let ward = Ward::new(config).await;
        let report = ward.examine().await;
        assert_eq!(not_ok(&report), expected, "{report:#?}");
        assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
        let remedy = line(&report, expected[0].0).remedy.unwrap();
        assert!(remedy.contains(words), "{remedy}");
        assert_eq!(ward.disks(), [""; 0]);
    }
}

#[tokio::test]
async fn storage_without_differences_has_no_differential_export() {
    let ward = Ward::new(SimConfig { sr_kind: SrKind::Volumes, ..healthy() }).await;
    let report = ward.examine().await;
    assert_eq!(line(&report, DoctorProbe::BaseExport).verdict, DoctorVerdict::Missing, "{report:#?}");
    assert_eq!(line(&report, DoctorProbe::ParentUuid).verdict, DoctorVerdict::NotTried, "{report:#?}");
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    assert_eq!(ward.disks(), [""; 0]);
}

#[tokio::test]
async fn nbd_without_tls_works_and_is_told() {
    let ward = Ward::new(SimConfig { nbd_purpose: Some(NbdPurpose::InsecureNbd), ..healthy() }).await;
    let report = ward.examine().await;
    assert!(line(&report, DoctorProbe::Nbd).seen.contains("without TLS"), "{report:#?}");
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
}

#[tokio::test]
async fn a_full_sr_is_no_place_for_replicas() {
    let ward = Ward::new(SimConfig { sr_size: 1 << 20, ..healthy() }).await;
    let report = ward.examine().await;
    let disk = line(&report, DoctorProbe::ScratchDisk);
    assert_eq!((disk.verdict, disk.needed), (DoctorVerdict::Broken, true), "{report:#?}");
    assert_eq!(report.outcome, Outcome::Failed);
    let import = line(&report, DoctorProbe::VhdImport);
    assert_eq!(
        (import.verdict, import.seen.as_str()),
        (DoctorVerdict::NotTried, "there is no scratch disk to try it on")
    );
}

#[tokio::test]
async fn a_clock_that_is_ahead_is_told_and_does_not_make_the_doctor_lose_its_own_disks() {
    let ward = Ward::new(healthy()).await;
    ward.sim.advance_clock(Duration::from_secs(600));
    let report = ward.examine().await;
    assert_eq!(not_ok(&report), [(DoctorProbe::Clocks, DoctorVerdict::Broken)], "{report:#?}");
    let clocks = line(&report, DoctorProbe::Clocks);
    assert!(clocks.seen.contains("host1 is 600 s ahead") || clocks.seen.contains("host1 is 599 s ahead"), "{clocks:?}");
    assert!(clocks.remedy.is_some_and(|remedy| remedy.contains("NTP")));
}

/// The third import is the first in the `chunked` framing.
#[tokio::test]
async fn a_host_that_writes_chunked_wrongly_is_found_out_and_gets_vhd_from_then_on() {
    let ward = Ward::new(healthy()).await;
    ward.sim.inject(Fault { at: FaultPoint::Import, nth: 3, kind: FaultKind::FlipByte(1000) });
    let report = ward.examine().await;
    assert_eq!(not_ok(&report), [(DoctorProbe::Chunked, DoctorVerdict::Broken)], "{report:#?}");
    let chunked = line(&report, DoctorProbe::Chunked);
    assert!(chunked.seen.contains("from byte 988 on"), "{chunked:?}");
    assert!(!chunked.needed && report.outcome == Outcome::Partial);
}

#[tokio::test]
async fn a_run_need_not_try_what_the_doctor_has_tried() {
    let pools = || SimConfig { nbd_purpose: Some(NbdPurpose::InsecureNbd), ..SimConfig::default() };
    let mut world = World::between(pools(), pools()).await;
    world.job.reading.nbd = Nbd::Always;
    let engine = world.engine();
    let request = DoctorRequest { pool: "dr".to_owned(), tenant: "default".to_owned(), sr: None };
    engine.doctor(&request, std::future::pending()).await.unwrap();
    engine.close().await;
    world.target.clear_calls();
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    let exports = world.target.calls().iter().filter(|call| call.contains("export_raw_vdi")).count();
    assert_eq!(exports, 0, "nothing is read back on the target");
}

#[tokio::test]
async fn storage_that_only_a_member_sees_is_reached_by_redirect() {
    let ward = Ward::new(SimConfig { hosts: 2, ..healthy() }).await;
    let sr = ward.sim.add_sr_with(SrSpec {
        name: "of the member".to_owned(),
        size: 1 << 30,
        host: Some(1),
        ..SrSpec::default()
    });
    let report = ward.ask(Some(sr)).await.unwrap();
    let redirect = line(&report, DoctorProbe::Redirect);
    assert_eq!(redirect.verdict, DoctorVerdict::Ok, "{report:#?}");
    assert!(redirect.seen.starts_with("the master sent us on to "), "{redirect:?}");
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
}

#[tokio::test]
async fn an_sr_that_is_not_there_is_a_wrong_question() {
    let ward = Ward::new(healthy()).await;
    let error = ward.ask(Some("11111111-0000-4000-8000-000000000001".to_owned())).await.unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("xe sr-list"), "{error}");
}

#[tokio::test]
async fn a_pool_that_lets_nobody_in_has_its_line() {
    let ward = Ward::new(healthy()).await;
    let endpoints = BTreeMap::from([("dr".to_owned(), endpoint(&ward.sim).with_credentials("root", "wrong"))]);
    let engine = Engine::new(endpoints, ward.store.clone(), ward.folder.path().join("digests"));
    let request = DoctorRequest { pool: "dr".to_owned(), ..DoctorRequest::default() };
    let report = engine.doctor(&request, std::future::pending()).await.unwrap();
    assert_eq!(line(&report, DoctorProbe::Login).verdict, DoctorVerdict::Broken, "{report:#?}");
    assert_eq!(report.outcome, Outcome::Failed);
}

/// A pool with all that there is but TLS, whose many handshakes take long in a test.
fn plain() -> SimConfig {
    SimConfig { tls: false, nbd_purpose: Some(NbdPurpose::InsecureNbd), ..healthy() }
}

/// What the doctor finds there.
const PLAIN: [(DoctorProbe, DoctorVerdict); 1] = [(DoctorProbe::Encryption, DoctorVerdict::Missing)];

/// How many calls a doctor makes that nothing disturbs.
async fn calls_of_a_doctor() -> u32 {
    let ward = Ward::new(plain()).await;
    assert_eq!(not_ok(&ward.examine().await), PLAIN);
    let calls = ward.sim.calls().iter().filter(|call| !call.contains("raw_vdi")).count();
    assert!(calls > 60, "a doctor makes more calls than {calls}");
    u32::try_from(calls).unwrap()
}

/// The next doctor finds all well, and leaves nothing.
async fn assert_next_is_well(ward: &Ward, case: &str) {
    ward.sim.clear_faults();
    settled(&ward.sim).await;
    let next = ward.examine().await;
    assert_eq!(not_ok(&next), PLAIN, "{case}: {next:#?}");
    assert_eq!(ward.disks(), [""; 0], "{case}");
}

/// Whatever call fails, and however: nothing is left, or it is told and the next doctor removes it.
async fn a_fault_at_every_call(kind: FaultKind) {
    for nth in 1..=calls_of_a_doctor().await {
        let ward = Ward::new(plain()).await;
        ward.sim.inject(Fault { at: FaultPoint::Call("*".to_owned()), nth, kind: kind.clone() });
        let report = ward.ask(None).await;
        let told = !report.as_ref().is_ok_and(|report| not_ok(report) == PLAIN);
        assert!(told || ward.disks().is_empty(), "{kind:?} at call {nth}: {report:#?}");
        assert_next_is_well(&ward, &format!("{kind:?} at call {nth}")).await;
    }
}

#[tokio::test]
async fn a_call_that_fails_leaves_nothing_to_stay() {
    a_fault_at_every_call(FaultKind::ApiError("INTERNAL_ERROR".to_owned(), vec!["a fault".to_owned()])).await;
}

#[tokio::test]
async fn a_call_whose_answer_is_lost_leaves_nothing_to_stay() {
    a_fault_at_every_call(FaultKind::ReplyLost).await;
}

#[tokio::test]
async fn the_next_doctor_removes_what_a_killed_one_left() {
    for nth in 1..=calls_of_a_doctor().await {
        let ward = Ward::new(plain()).await;
        ward.sim.inject(Fault { at: FaultPoint::Call("*".to_owned()), nth, kind: FaultKind::StallAfter(0) });
        tokio::select! {
            // A call for events does not stall.
            _ = ward.ask(None) => {}
            () = ward.sim.wait_until_stalled() => {}
        }
        assert_next_is_well(&ward, &format!("killed after call {nth}")).await;
    }
}

#[tokio::test]
async fn broken_streams_are_told_and_leave_nothing() {
    for at in [FaultPoint::Import, FaultPoint::Export] {
        for nth in 1..=4 {
            let ward = Ward::new(healthy()).await;
            ward.sim.inject(Fault { at: at.clone(), nth, kind: FaultKind::CutAfter(1500) });
            let report = ward.examine().await;
            assert_ne!(not_ok(&report), [], "{at:?} {nth}: {report:#?}");
            assert_eq!(line(&report, DoctorProbe::CleanUp).verdict, DoctorVerdict::Ok, "{at:?} {nth}: {report:#?}");
            assert_eq!(ward.disks(), [""; 0], "{at:?} {nth}");
        }
    }
}

#[tokio::test]
async fn interrupted_it_removes_what_it_made() {
    let ward = Ward::new(healthy()).await;
    let at = FaultPoint::Call("VDI.list_changed_blocks".to_owned());
    ward.sim.inject(Fault { at, nth: 1, kind: FaultKind::StallAfter(0) });
    let engine = ward.engine();
    let request = DoctorRequest { pool: "dr".to_owned(), ..DoctorRequest::default() };
    let report = engine.doctor(&request, ward.sim.wait_until_stalled()).await.unwrap();
    engine.close().await;
    assert_eq!(line(&report, DoctorProbe::Nbd).verdict, DoctorVerdict::Ok, "{report:#?}");
    assert_eq!(line(&report, DoctorProbe::ChangedBlocks).seen, "it was interrupted");
    assert_eq!(line(&report, DoctorProbe::CleanUp).seen, "3 disks of this one removed");
    assert_eq!(ward.disks(), [""; 0]);
}

/// A doctor on another SR of the same pool is at work: it is no leftover. A copy that somebody made of its disk is his.
#[tokio::test]
async fn what_another_doctor_works_on_and_what_somebody_copied_stays() {
    let ward = Ward::new(healthy()).await;
    let session = ward.session().await;
    ward.sim.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::StallAfter(1024) });
    let working = ward.engine();
    let request = DoctorRequest { pool: "dr".to_owned(), ..DoctorRequest::default() };
    let copy = {
        let at_work = working.doctor(&request, std::future::pending());
        let meanwhile = async {
            ward.sim.wait_until_stalled().await;
            let before = ward.disks();
            assert_eq!(not_ok(&ward.examine().await), []);
            assert_eq!(ward.disks(), before, "the other one's disk is there");
            let disk = ward.sim.records("VDI")[0]["$ref"].as_str().unwrap().to_owned();
            session.call_async::<Ref<Vdi>>("VDI.clone", params![disk]).await.unwrap()
        };
        tokio::select! {
            report = at_work => panic!("it ended: {report:#?}"),
            copy = meanwhile => copy,
        }
    };
    ward.sim.clear_faults();
    let next = ward.examine().await;
    assert_eq!(line(&next, DoctorProbe::CleanUp).verdict, DoctorVerdict::Ok, "{next:#?}");
    let kept = session.get_record(&copy).await.unwrap();
    let managed = ward.sim.records("VDI").into_iter().filter(|disk| disk["managed"] == true);
    assert_eq!(managed.map(|disk| disk["uuid"].clone()).collect::<Vec<_>>(), [kept.uuid.as_str()]);
}
