//! `vmferry plan`: what a run would send, and why.

use super::{Workplace, engine_failure, print};
use crate::cli::JobAndVm;
use crate::exit::Exit;
use crate::output::{report, say};
use crate::problem::Failure;

pub(super) async fn plan(at: &Workplace, arguments: &JobAndVm) -> Result<Exit, Failure> {
    let job = at.job(&arguments.job).await?;
    let plan = at.close(at.engine.plan(&job, arguments.vm.as_deref()).await).await;
    let plan = plan.map_err(|error| engine_failure(&error, &job.name))?;
    for warning in report::plan_warnings(&plan) {
        say(warning.as_warning());
    }
    let problems = report::plan_problems(&plan);
    for problem in &problems {
        say(problem);
    }
    print(at.form, &plan, report::plan)?;
    Ok(if problems.is_empty() { Exit::Done } else { Exit::Failed })
}
