//! `vmferry failover`: start from a replica.

use super::{Workplace, engine_failure, print};
use crate::cli::CloneArgs;
use crate::exit::Exit;
use crate::problem::Failure;
use vmferry_engine::{CloneNetwork, CloneReport, CloneRequest};

pub(super) async fn clone(at: &Workplace, arguments: &CloneArgs) -> Result<Exit, Failure> {
    let job = at.job(&arguments.job)?;
    let request = CloneRequest {
        vm: arguments.vm.clone(),
        point: arguments.point.clone(),
        target: arguments.target.clone(),
        network: network(arguments.network.as_deref()),
        start: !arguments.no_start,
        name: None,
    };
    let clone = at.close(at.engine.clone_point(&job, &request).await).await;
    let clone = clone.map_err(|error| engine_failure(&error, &job.name))?;
    print(at.form, &clone, text)?;
    Ok(Exit::Done)
}

fn network(argument: Option<&str>) -> CloneNetwork {
    match argument {
        None => CloneNetwork::AsReplica,
        Some("none") => CloneNetwork::None,
        Some(name) => CloneNetwork::Named(name.to_owned()),
    }
}

pub(crate) fn text(clone: &CloneReport) -> String {
    let state = if clone.started { "started" } else { "not started" };
    format!(
        "VM {} \"{}\" on target {}, as of {}, from recovery point {}; {state}\n",
        clone.vm, clone.name, clone.target, clone.taken_at, clone.point
    )
}
