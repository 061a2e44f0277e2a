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
    let view = |point: &Point| PointView { id: point.uuid.clone(), taken_at: point.taken_at, held: point.held };
    let asked = points.iter().map(|point| (view(point), point.is_damaged())).collect();
    let going = match going(retention, asked, now).await {
        Ok(going) => going,
        Err(error) => {
            lane.warnings.push(format!("nothing was pruned: {error}"));
            return Ok(());
        }
    };
    for point in going.iter().filter_map(|id| points.iter().find(|point| point.uuid == *id)) {
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

/// The points that go, of these (oldest first, and whether each is damaged), by their identity.
pub(crate) async fn going(
    retention: &dyn Retention,
    points: Vec<(PointView, bool)>,
    now: Timestamp,
) -> Result<Vec<String>, PluginError> {
    let newest = points.last().map(|(point, _)| point.id.clone());
    // Damaged ones do not count as kept. Once there is a newer one, nobody can want them unless he holds them.
    let (damaged, sound): (Vec<_>, Vec<_>) = points.into_iter().partition(|(_, damaged)| *damaged);
    let sound: Vec<PointView> = sound.into_iter().map(|(point, _)| point).collect();
    let judgements = same_length(retention.select(&sound, now).await?, sound.len())?;
    let superseded = damaged.iter().map(|(point, _)| point);
    let superseded = superseded.filter(|point| !point.held && newest.as_ref() != Some(&point.id));
    Ok(superseded.chain(droppable(&sound, &judgements)).map(|point| point.id.clone()).collect())
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
fn droppable<'a>(points: &'a [PointView], judgements: &[Judgement]) -> Vec<&'a PointView> {
    let newest = points.len().saturating_sub(1);
    points
        .iter()
        .zip(judgements)
        .enumerate()
        .filter(|(age, (point, judgement))| !judgement.keep && !point.held && *age != newest)
        .map(|(_, (point, _))| point)
        .collect()
}
