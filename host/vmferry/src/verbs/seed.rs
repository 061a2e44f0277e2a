//! `vmferry seed`: begin with a copy that somebody brought, on whatever way.

use super::{Workplace, engine_failure, form, load, print};
use crate::cli::{Common, Seed, SeedAdopt, SeedExport, SeedForget, SeedImport, SeedPair};
use crate::compose;
use crate::config::secret::Secret;
use crate::exit::Exit;
use crate::output::progress::Screen;
use crate::output::units::Size;
use crate::problem::{Failure, Problem};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use vmferry_engine::{Engine, JobIds, SeedExportRequest, SeedImportRequest, SeedReport, SeedRequest};
use vmferry_store::Store;
use vmferry_xapi::{Endpoint, Trust};

/// A copy for a job that no configuration has to know of.
pub(super) async fn pair(common: &Common, arguments: SeedPair, screen: &Screen) -> Result<Exit, Failure> {
    let source = endpoint("source", &arguments.source, arguments.source_certificate, arguments.source_ca.as_deref())?;
    let target = endpoint("target", &arguments.target, arguments.target_certificate, arguments.target_ca.as_deref())?;
    // Both sides' digests are compared on disk, and of no use afterwards to anybody but a job that is configured.
    let folder = tempfile::tempdir().map_err(|error| Failure::because(format_args!("temporary folder: {error}")))?;
    let store = match common.config {
        Some(_) => compose::store(&load(common)?).await?,
        None => Store::open(folder.path()).await.map_err(Failure::because)?,
    };
    let endpoints = BTreeMap::from([("source".to_owned(), source), ("target".to_owned(), target)]);
    let engine = Engine::new(endpoints, Arc::new(store.clone()), store.digest_dir());
    let pair = vmferry_engine::SeedPair {
        source: "source".to_owned(),
        snapshot: arguments.snapshot,
        target: "target".to_owned(),
        copy: arguments.copy,
        ids: JobIds { job: arguments.job, schedule: arguments.schedule },
        tenant: compose::TENANT.to_owned(),
    };
    let report = engine.adopt_pair(&pair, screen.progress().as_ref()).await;
    engine.close().await;
    let report = report.map_err(|error| engine_failure(&error, &arguments.job.to_string()))?;
    print(form(common), &report, text)?;
    Ok(Exit::Done)
}

/// A pool by its URL, which holds user and password.
fn endpoint(side: &str, url: &Secret, pin: Option<Trust>, ca: Option<&Path>) -> Result<Endpoint, Failure> {
    let refuse = |what: String| Failure::usage(Problem::new(what).at(format!("URL of the {side}")));
    let endpoint = Endpoint::parse(url.reveal()).map_err(|error| refuse(error.to_string()))?;
    if !endpoint.has_credentials() {
        return Err(refuse("it has no user and password; write https://USER:PASSWORD@HOST".to_owned()));
    }
    let trust = match (pin, ca) {
        (Some(pin), _) => pin,
        (None, Some(file)) => {
            let pem = std::fs::read(file);
            Trust::CaPem(pem.map_err(|error| refuse(format!("{}: {error}", file.display())))?)
        }
        (None, None) => Trust::System,
    };
    Ok(endpoint.with_trust(trust))
}

/// A copy for a job of the configuration.
pub(super) async fn of_job(at: &Workplace, verb: Seed, screen: &Screen) -> Result<Exit, Failure> {
    match verb {
        Seed::Adopt(arguments) => adopt(at, &arguments, screen).await,
        Seed::Export(arguments) => export(at, arguments, screen).await,
        Seed::Import(arguments) => import(at, arguments, screen).await,
        Seed::Forget(arguments) => forget(at, &arguments).await,
    }
}

async fn export(at: &Workplace, arguments: SeedExport, screen: &Screen) -> Result<Exit, Failure> {
    let job = at.job(&arguments.job).await?;
    let request = SeedExportRequest { vm: arguments.vm, snapshot: arguments.snapshot, to: arguments.to };
    let report = at.close(at.engine.export_seed(&job, &request, &screen.progress()).await).await;
    let report = report.map_err(|error| engine_failure(&error, &job.name))?;
    print(at.form, &report, |report| export_text(report, &job.name))?;
    Ok(Exit::Done)
}

fn export_text(report: &vmferry_engine::SeedExport, job: &str) -> String {
    let vmferry_engine::SeedExport { name, folder, taken_at, disks, .. } = report;
    let folder = folder.display();
    let mut text = format!("VM {name} as of {taken_at} is in {folder}\n");
    for disk in disks {
        let _ = writeln!(text, "  disk {} ({}): {}", disk.name, disk.disk, Size(disk.bytes));
    }
    let _ = writeln!(
        text,
        "carry it to the target, then: vmferry seed import {job} --from {folder}\nuntil then do not run the job for this VM: a run copies it \
         in full"
    );
    text
}

async fn import(at: &Workplace, arguments: SeedImport, screen: &Screen) -> Result<Exit, Failure> {
    let job = at.job(&arguments.job).await?;
    let request = SeedImportRequest { from: arguments.from, target: arguments.target };
    let report = at.close(at.engine.import_seed(&job, &request, &screen.progress()).await).await;
    let report = report.map_err(|error| engine_failure(&error, &job.name))?;
    for warning in &report.warnings {
        screen.line(Problem::new(warning.as_str()).as_warning());
    }
    print(at.form, &report, |report| {
        let vmferry_engine::SeedImport { vm, target, replica, point, taken_at, .. } = report;
        format!(
            "VM {replica} is the replica of VM {vm} on target {target}, with recovery point {point} of {taken_at}\n"
        )
    })?;
    Ok(Exit::Done)
}

async fn forget(at: &Workplace, arguments: &SeedForget) -> Result<Exit, Failure> {
    let job = at.job(&arguments.job).await?;
    let forgotten = at.close(at.engine.forget_seed(&job, &arguments.vm).await).await;
    let forgotten = forgotten.map_err(|error| engine_failure(&error, &job.name))?;
    print(at.form, &serde_json::json!({ "snapshots": forgotten }), |_| match forgotten.len() {
        0 => "no snapshot was kept for media\n".to_owned(),
        _ => format!("not kept for media any more: {}\n", forgotten.join(", ")),
    })?;
    Ok(Exit::Done)
}

async fn adopt(at: &Workplace, arguments: &SeedAdopt, screen: &Screen) -> Result<Exit, Failure> {
    let job = at.job(&arguments.job).await?;
    let request = SeedRequest {
        snapshot: arguments.snapshot.clone(),
        copy: arguments.copy.clone(),
        target: arguments.target.clone(),
        for_others: false,
    };
    let progress = screen.progress();
    let report = at.close(at.engine.adopt_seed(&job, &request, progress.as_ref()).await).await;
    let report = report.map_err(|error| engine_failure(&error, &job.name))?;
    print(at.form, &report, text)?;
    Ok(Exit::Done)
}

fn text(report: &SeedReport) -> String {
    let SeedReport { vm, target, replica, point, taken_at, disks } = report;
    let mut text = format!(
        "VM {replica} is the replica of VM {vm} on target {target}, with recovery point {point} of {taken_at}\n"
    );
    for disk in disks {
        let what = match disk.different_bytes {
            0 => "equal".to_owned(),
            bytes => format!("{} differ, the next run sends them", Size(bytes)),
        };
        let _ = writeln!(text, "  disk {} (copy {}): {what}", disk.disk, disk.copy);
    }
    text
}
