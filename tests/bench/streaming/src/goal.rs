//! The figures to reach, as ratios.

use crate::contender::Contender::{self, Aead, BareCopy, BareSplice, Blake3, Curl, NbdCopy, NbdRead};
use crate::contender::Engine::{self, Lockstep, LockstepWithDigest, Splice};
use crate::contender::Scheme::{self, Http, Https};
use crate::contender::Transfer;
use crate::figures::Measured;
use crate::measure::{Cost, Spread};

/// What one contender has to reach against another, medians over interleaved rounds.
pub(crate) struct Goal {
    pub(crate) ours: Contender,
    pub(crate) against: Contender,
    /// CPU at most this many times the other's.
    pub(crate) cpu: f64,
    /// Bytes per second at least this many times the other's.
    pub(crate) rate: Option<f64>,
    /// What it cannot do without: the sum of their CPU is the lower bound.
    pub(crate) floor: &'static [Contender],
}

/// A measured figure beside its goal.
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) measured: Spread,
    pub(crate) goal: Bound,
    /// What cannot be undercut, where that is known.
    pub(crate) floor: Option<f64>,
}

#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

impl Goal {
    /// What the rounds say of it. Ratios are taken within a round.
    pub(crate) fn figures(&self, measured: &[Measured]) -> Vec<Figure> {
        let cpu = |cost: &Cost| cost.cpu;
        let of = |contender: Contender, figure: fn(&Cost) -> f64| -> Vec<f64> {
            let found = measured.iter().filter(|measured| measured.contender == contender);
            found.flat_map(|measured| measured.costs.iter().map(figure)).collect()
        };
        let ratios = |over: &[f64], under: &[f64]| Spread::of(over.iter().zip(under).map(|(over, under)| over / under));
        let against = of(self.against, cpu);
        let floors: Vec<Vec<f64>> = self.floor.iter().map(|part| of(*part, cpu)).collect();
        let floor: Vec<f64> = (0..against.len()).map(|round| floors.iter().map(|part| part[round]).sum()).collect();
        let cpu = Figure {
            what: format!("{} / {}: CPU", self.ours, self.against),
            measured: ratios(&of(self.ours, cpu), &against),
            goal: Bound::AtMost(self.cpu),
            floor: (!floors.is_empty()).then(|| ratios(&floor, &against).median),
        };
        let rate = self.rate.map(|goal| Figure {
            what: format!("{} / {}: rate", self.ours, self.against),
            measured: ratios(&of(self.against, |cost| cost.wall), &of(self.ours, |cost| cost.wall)),
            goal: Bound::AtLeast(goal),
            floor: None,
        });
        [cpu].into_iter().chain(rate).collect()
    }
}

const fn transfer(scheme: Scheme, engine: Engine, sinks: usize) -> Contender {
    Contender::Transfer(Transfer { scheme, engine, sinks })
}

const fn goal(ours: Contender, against: Contender, cpu: f64, rate: Option<f64>, floor: &'static [Contender]) -> Goal {
    Goal { ours, against, cpu, rate, floor }
}

const COPY: Contender = BareCopy { sinks: 1 };
const COPY_TO_3: Contender = BareCopy { sinks: 3 };
const SPLICED: Contender = BareSplice { sinks: 1 };
const SPLICED_TO_3: Contender = BareSplice { sinks: 3 };
/// To receive everything and drop it.
const RECEIVE: Contender = BareCopy { sinks: 0 };

/// Most important first.
pub(crate) const GOALS: &[Goal] = &[
    goal(transfer(Https, LockstepWithDigest, 1), Curl(Https), 0.75, Some(1.2), &[COPY, Aead, Blake3]),
    goal(transfer(Https, Lockstep, 1), Curl(Https), 0.60, Some(1.4), &[COPY, Aead]),
    goal(transfer(Http, LockstepWithDigest, 1), Curl(Http), 0.75, None, &[COPY, Blake3]),
    goal(transfer(Http, Lockstep, 1), Curl(Http), 0.45, Some(1.6), &[COPY]),
    goal(transfer(Http, Splice, 1), Curl(Http), 0.25, Some(2.0), &[SPLICED]),
    goal(transfer(Http, Splice, 1), SPLICED, 1.25, Some(0.85), &[SPLICED]),
    goal(transfer(Http, LockstepWithDigest, 3), Curl(Http), 1.05, None, &[COPY_TO_3, Blake3]),
    goal(transfer(Http, Lockstep, 3), Curl(Http), 0.80, None, &[COPY_TO_3]),
    goal(transfer(Http, Splice, 3), Curl(Http), 0.35, None, &[SPLICED_TO_3]),
    goal(NbdRead, NbdCopy, 0.80, Some(0.9), &[RECEIVE]),
];

/// What is measured, each once.
pub(crate) fn contenders() -> Vec<Contender> {
    let mut contenders: Vec<Contender> = Vec::new();
    for goal in GOALS {
        for contender in [goal.against, goal.ours].iter().chain(goal.floor) {
            if !contenders.contains(contender) {
                contenders.push(*contender);
            }
        }
    }
    contenders
}
