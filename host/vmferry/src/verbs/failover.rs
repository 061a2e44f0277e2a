//! `vmferry failover`: start from a replica.

use super::{Workplace, engine_failure, print};
use crate::cli::{Check, CloneArgs, StartArgs};
use crate::exit::Exit;
use crate::output::progress::Screen;
use crate::problem::{Failure, Problem};
use std::time::Duration;
use vmferry_engine::{
    CloneReport, CloneRequest, GuestCheck, GuestReport, GuestWait, NetworkChoice, StartReport, StartRequest,
};

pub(super) async fn clone(at: &Workplace, arguments: &CloneArgs, screen: &Screen) -> Result<Exit, Failure> {
    let what = &arguments.what;
    let job = at.job_on_pools(&what.job)?;
    let check = |check| match check {
        Some(Check::Metrics) => GuestCheck::Metrics,
        None => GuestCheck::Reports,
    };
    let wait = |seconds| GuestWait { patience: Duration::from_secs(seconds), check: check(arguments.check) };
    let request = CloneRequest {
        vm: what.vm.clone(),
        point: what.point.clone(),
        target: what.target.clone(),
        network: network(what.network.as_deref()),
        new_macs: arguments.new_macs,
        auto_start: what.auto_start,
        start: !arguments.no_start,
        resume: arguments.resume,
        guest: arguments.wait_guest.map(wait),
        remove_after: arguments.remove_after,
        name: None,
    };
    let clone = at.close(at.engine.clone_point(&job, &request).await).await;
    let clone = clone.map_err(|error| engine_failure(&error, &job.name))?;
    warn(&clone.warnings, screen);
    let failed = clone.guest.as_ref().and_then(|guest| guest.error.as_ref());
    if let Some(error) = failed {
        screen.line(Problem::new(error.as_str()).at(format!("clone {} of recovery point {}", clone.vm, clone.point)));
    }
    print(at.form, &clone, clone_text)?;
    let done = failed.is_none() && clone.removed == request.remove_after && clone.started == request.start;
    Ok(if done { Exit::Done } else { Exit::Failed })
}

pub(super) async fn start(at: &Workplace, arguments: &StartArgs, screen: &Screen) -> Result<Exit, Failure> {
    let what = &arguments.what;
    let job = at.job_on_pools(&what.job)?;
    let request = StartRequest {
        vm: what.vm.clone(),
        point: what.point.clone(),
        target: what.target.clone(),
        network: network(what.network.as_deref()),
        force: arguments.force,
        auto_start: what.auto_start,
    };
    let started = at.close(at.engine.start_replica(&job, &request).await).await;
    let started = started.map_err(|error| match error.is_locked() {
        true => remedied(
            engine_failure(&error, &job.name),
            "--force stops that run and starts from the last whole recovery point",
        ),
        false => engine_failure(&error, &job.name),
    })?;
    warn(&started.warnings, screen);
    print(at.form, &started, start_text)?;
    Ok(Exit::Done)
}

fn remedied(mut failure: Failure, remedy: &str) -> Failure {
    for problem in &mut failure.problems {
        problem.remedy.get_or_insert_with(|| remedy.to_owned());
    }
    failure
}

fn warn(warnings: &[String], screen: &Screen) {
    for warning in warnings {
        screen.line(Problem::new(warning.as_str()).as_warning());
    }
}

fn network(argument: Option<&str>) -> NetworkChoice {
    match argument {
        None => NetworkChoice::AsReplica,
        Some("none") => NetworkChoice::None,
        Some(name) => NetworkChoice::Named(name.to_owned()),
    }
}

pub(crate) fn clone_text(clone: &CloneReport) -> String {
    let state = if clone.started { "started" } else { "not started" };
    let guest = clone.guest.as_ref().map_or_else(String::new, guest_text);
    let removed = if clone.removed { "; removed" } else { "" };
    format!(
        "VM {} \"{}\" on target {}, as of {}, from recovery point {}; {state}{guest}{removed}\n",
        clone.vm, clone.name, clone.target, clone.taken_at, clone.point
    )
}

fn guest_text(guest: &GuestReport) -> String {
    let state = if guest.up { "up" } else { "not up" };
    let addresses = if guest.addresses.is_empty() { "no address".to_owned() } else { guest.addresses.join(", ") };
    format!("; guest {state} after {:.1} s, {addresses}", guest.seconds)
}

fn start_text(started: &StartReport) -> String {
    let state = match (started.already_running, started.disks_replaced) {
        (true, _) => "it ran already",
        (false, true) => "started on clones of the point's disks",
        (false, false) => "started",
    };
    let taken_at = started.taken_at.map_or_else(String::new, |at| format!(", as of {at}"));
    format!(
        "replica {} \"{}\" on target {}{taken_at}, from recovery point {}; {state}; runs leave it alone from now on\n",
        started.vm, started.name, started.target, started.point
    )
}
