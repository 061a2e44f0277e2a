//! The command: every contender in every round, then the goals.

use crate::contender::{Contender, Engine, Scheme, Transfer};
use crate::delta::{DISK_SIZE, touched_blocks};
use crate::forward::Report;
use crate::goal::{Bound, Figure, GOALS, contenders};
use crate::host::DISCARD;
use crate::measure::{Cost, Spread};
use crate::print;
use crate::scene::Scene;
use crate::stream::{Shape, Stream};
use anyhow::Context as _;
use clap::Args;

/// What every contender moves first, under the eyes of a sink that hashes.
const PROOF: Shape = Shape { disk_size: 128 << 20, used_blocks: 64 };

/// 1 GiB of data on two disks: memory must not tell them apart.
const FULL: Shape = Shape { disk_size: 1 << 30, used_blocks: 512 };
const SPARSE: Shape = Shape { disk_size: 1 << 40, used_blocks: 512 };

/// Of the whole program while it streams; what is measured here is a transfer alone.
const PEAK_MB: f64 = 24.0;
/// The block table of 1 TiB has 2.1 MB and is kept while the stream is checked; the rest is noise.
const GROWTH_MB: f64 = 3.0;
const ALLOCATIONS_PER_MIB: f64 = 0.1;
/// What rustls makes: one for each record of 16 KiB, in each direction.
const TLS_ALLOCATIONS_PER_MIB: f64 = 128.0;

/// Transfers whose memory and allocations are looked at.
const FLAT: [Transfer; 3] = [
    Transfer { scheme: Scheme::Https, engine: Engine::LockstepWithDigest, sinks: 1 },
    Transfer { scheme: Scheme::Http, engine: Engine::LockstepWithDigest, sinks: 1 },
    Transfer { scheme: Scheme::Http, engine: Engine::Splice, sinks: 1 },
];

/// Arguments.
#[derive(Args)]
pub(crate) struct Streaming {
    /// Size of the disk, all of it random data
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    gib: u64,
    /// Interleaved rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// What one contender took, round by round.
pub(crate) struct Measured {
    pub(crate) contender: Contender,
    pub(crate) costs: Vec<Cost>,
}

/// Peak memory and allocations of one transfer, round by round.
struct Flat {
    transfer: Contender,
    full_mb: Vec<f64>,
    sparse_mb: Vec<f64>,
    allocations_per_mib: Vec<f64>,
}

impl Streaming {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let shape = Shape::full(self.gib << 10);
        let mut scene = Scene::start(shape)?;
        let contenders = contenders();
        for contender in &contenders {
            scene.prove(*contender, PROOF)?;
        }
        println!("every contender moved a disk to where it was hashed, and all bytes were equal\n");

        let mut measured: Vec<Measured> =
            contenders.into_iter().map(|contender| Measured { contender, costs: Vec::new() }).collect();
        let mut flat = FLAT.map(Flat::new);
        for round in 0..self.rounds as usize {
            let load = load_average()?;
            // Nobody always follows the same one.
            let first = round % measured.len();
            for place in (first..measured.len()).chain(0..first) {
                let contender = measured[place].contender;
                measured[place].costs.push(scene.run(contender, shape, DISCARD)?.cost);
            }
            for flat in &mut flat {
                flat.measure(&mut scene)?;
            }
            println!("round {} of {}, load before it {load}", round + 1, self.rounds);
        }

        println!("\n{} GiB, {} interleaved rounds, load at the end {}", self.gib, self.rounds, load_average()?);
        println!("median (min - max)\n");
        print::costs(&measured, self.gib as f64);
        let mut figures: Vec<Figure> = GOALS.iter().flat_map(|goal| goal.figures(&measured)).collect();
        figures.extend(flat.iter().flat_map(Flat::figures));
        figures.push(delta(&mut scene)?);
        print::figures(&figures);
        Ok(())
    }
}

impl Flat {
    fn new(transfer: Transfer) -> Self {
        let transfer = Contender::Transfer(transfer);
        Self { transfer, full_mb: Vec::new(), sparse_mb: Vec::new(), allocations_per_mib: Vec::new() }
    }

    fn measure(&mut self, scene: &mut Scene) -> anyhow::Result<()> {
        let full = scene.run(self.transfer, FULL, DISCARD)?.cost;
        let sparse = scene.run(self.transfer, SPARSE, DISCARD)?.cost;
        let report: Report = serde_json::from_str(&full.output)?;
        self.full_mb.push(full.peak_mb);
        self.sparse_mb.push(sparse.peak_mb);
        self.allocations_per_mib.push(report.allocations as f64 / (FULL.disk_size >> 20) as f64);
        Ok(())
    }

    fn figures(&self) -> [Figure; 4] {
        let figure = |what: &str, values: Vec<f64>, most: f64| Figure {
            what: format!("{}: {what}", self.transfer),
            measured: Spread::of(values),
            goal: Bound::AtMost(most),
            floor: None,
        };
        let allocations = Figure {
            floor: (self.transfer.scheme() == Scheme::Https).then_some(TLS_ALLOCATIONS_PER_MIB),
            ..figure("allocations per MiB", self.allocations_per_mib.clone(), ALLOCATIONS_PER_MIB)
        };
        let growth = self.sparse_mb.iter().zip(&self.full_mb).map(|(sparse, full)| sparse - full).collect();
        [
            figure("peak memory at 1 GiB, MB", self.full_mb.clone(), PEAK_MB),
            figure("peak memory at 1 TiB sparse, MB", self.sparse_mb.clone(), PEAK_MB),
            figure("growth from 1 GiB to 1 TiB, MB", growth, GROWTH_MB),
            allocations,
        ]
    }
}

/// Bytes of the delta on the wire, against the whole blocks of 2 MiB that a VHD of it would have.
fn delta(scene: &mut Scene) -> anyhow::Result<Figure> {
    let vhd = Shape { disk_size: DISK_SIZE, used_blocks: touched_blocks() };
    let ratio = scene.delta_bytes()? as f64 / Stream::new(vhd)?.length() as f64;
    Ok(Figure {
        what: "4 KiB writes scattered over 64 GiB / their VHD: bytes sent".to_owned(),
        measured: Spread::of([ratio]),
        goal: Bound::AtMost(1.0 / 16.0),
        floor: Some(1.0 / 32.0),
    })
}

/// Of the last minute.
fn load_average() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().context("a load average")?.to_owned())
}
