//! Tells notifiers what happened. A notifier that fails becomes a warning in the report, nothing else.

use crate::job::Subscription;
use futures_util::FutureExt;
use futures_util::future::join_all;
use vmferry_model::event::{Event, Severity};
use vmferry_model::report::{Outcome, RunReport};

/// The event of a run's end, with its whole report.
pub(crate) fn ended(report: &RunReport) -> Event {
    let severity = match report.outcome {
        Outcome::Succeeded | Outcome::Skipped => Severity::Info,
        Outcome::Partial | Outcome::Refused => Severity::Warning,
        Outcome::Failed => Severity::Error,
    };
    Event {
        kind: report.outcome.to_string(),
        time: report.ended_at,
        severity,
        job: Some(report.job.clone()),
        vm: None,
        run: Some(report.run.clone()),
        detail: serde_json::to_value(report).unwrap_or_default(),
    }
}

/// The event of a run's start.
pub(crate) fn started(job: &str, run: &str, time: jiff::Timestamp) -> Event {
    Event {
        kind: "started".to_owned(),
        time,
        severity: Severity::Info,
        job: Some(job.to_owned()),
        vm: None,
        run: Some(run.to_owned()),
        detail: serde_json::Value::Null,
    }
}

/// Hands an event to everybody who asked for its kind. Answers with one warning per notifier that failed.
pub(crate) async fn tell(subscriptions: &[Subscription], event: &Event) -> Vec<String> {
    let told = subscriptions.iter().filter(|to| to.on.is_empty() || to.on.contains(&event.kind)).map(|to| {
        async move {
            let failed = to.notifier.handle(event).await.err()?;
            tracing::warn!(notifier = to.name, event = event.kind, error = %failed, "notifier failed");
            Some(format!("event {:?} did not reach {}: {failed}", event.kind, to.name))
        }
        .boxed()
    });
    join_all(told).await.into_iter().flatten().collect()
}
