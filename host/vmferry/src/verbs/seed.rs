//! `vmferry seed`: begin with a copy that somebody brought.

use super::{Workplace, engine_failure, form, load, print};
use crate::cli::{Common, SeedAdopt, SeedPair};
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
use vmferry_engine::{Engine, JobIds, SeedReport, SeedRequest};
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

pub(super) async fn adopt(at: &Workplace, arguments: &SeedAdopt, screen: &Screen) -> Result<Exit, Failure> {
    let job = at.job(&arguments.job)?;
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
