//! Which recovery points go: the retention plugin's choice, minus what the host vetoes.

use crate::error::RunError;
use crate::lane::Lane;
use crate::snapshot;
use crate::view::{self, Identity, Point};
use jiff::Timestamp;
use vmferry_model::plugin::{Judgement, PluginError, PluginFailure, PluginId, PointView, Retention};

/// Asks the plugin and destroys what it drops. A plugin that fails, or answers nonsense, drops nothing.
pub(crate) async fn retain(
    lane: &mut Lane<'_>,
    identity: &Identity,
    retention: &dyn Retention,
    now: Timestamp,
) -> Result<(), RunError> {
    let mut points: Vec<Point> = lane.view.points().cloned().collect();
    points.reverse();
    let newest = points.last().map(|point| point.uuid.clone());
    // Damaged ones do not count as kept. Once there is a newer one, nobody can want them unless he holds them.
    let (damaged, points): (Vec<Point>, Vec<Point>) = points.into_iter().partition(Point::is_damaged);
    let superseded = damaged.iter().filter(|point| !point.held && newest.as_ref() != Some(&point.uuid));
    let views: Vec<PointView> = points
        .iter()
        .map(|point| PointView { id: point.uuid.clone(), taken_at: point.taken_at, held: point.held })
        .collect();
    let judgements = match ask(retention, &views, now).await {
        Ok(judgements) => judgements,
        Err(error) => {
            lane.warnings.push(format!("nothing was pruned: {error}"));
            return Ok(());
        }
    };
    let dropped = droppable(&views, &judgements);
    let dropped = points.iter().filter(|point| dropped.iter().any(|view| view.id == point.uuid));
    for point in superseded.chain(dropped) {
        // Somebody may have held it while the plugin was deciding.
        if view::is_held(&lane.session.get_record(&point.reference).await?) {
            continue;
        }
        snapshot::destroy(&lane.session, &point.reference).await?;
        lane.pruned.push(point.uuid.clone());
    }
    if !lane.pruned.is_empty() {
        lane.observe(identity).await?;
    }
    Ok(())
}

/// The rule's word on each point (oldest first).
pub(crate) async fn ask(
    retention: &dyn Retention,
    points: &[PointView],
    now: Timestamp,
) -> Result<Vec<Judgement>, PluginError> {
    same_length(retention.select(points, now).await?, points.len())
}

fn same_length(answer: Vec<Judgement>, asked: usize) -> Result<Vec<Judgement>, PluginError> {
    if answer.len() == asked {
        return Ok(answer);
    }
    Err(PluginError {
        plugin: PluginId { name: "retention".to_owned(), version: "?".to_owned() },
        call: "select".to_owned(),
        failure: PluginFailure::Nonsense(format!("{} judgements on {asked} recovery points", answer.len())),
    })
}

/// The points (oldest first) that may go: dropped by the rule, not held, and not the newest, which is the next run's
/// base.
pub(crate) fn droppable<'a>(points: &'a [PointView], judgements: &[Judgement]) -> Vec<&'a PointView> {
    let newest = points.len().saturating_sub(1);
    points
        .iter()
        .zip(judgements)
        .enumerate()
        .filter(|(age, (point, judgement))| !judgement.keep && !point.held && *age != newest)
        .map(|(_, (point, _))| point)
        .collect()
}
