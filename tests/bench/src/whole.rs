//! Whole runs through the program: a full copy, then a delta, beside `curl | curl` over the same streams.
//!
//! Xen Orchestra's own code was measured apart, doing the same between simulated pools, with `curl | curl` beside it: its
//! licence keeps it out of this tree. So it is compared by way of curl, which both were measured against.

use crate::measure::{Cost, measure, spread};
use crate::pool::{Disk, Pool};
use anyhow::ensure;
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use vmferry_xapi::records::{Sr, Vdi};
use vmferry_xapi::{IntoValue, Ref, Value, params};

/// A disk of 4 GiB, half of it data.
const DISK: Disk = Disk { gib: 4, blocks: 1024 };
/// What a delta finds changed: 200 MiB.
const CHANGED: u64 = 100;
/// As much data as 1 GiB has, on a disk of 1 TiB: memory must not tell the two apart.
const SPARSE: Disk = Disk { gib: 1024, blocks: 512 };
const DENSE: Disk = Disk { gib: 1, blocks: 512 };

/// Of the whole process while it streams, MB.
const PEAK_MB: f64 = 24.0;

/// What Xen Orchestra's code took for the same work (backups 0.74.2, medians of three runs), and `curl | curl` beside it.
struct Elsewhere {
    wall: f64,
    cpu: f64,
    peak_mib: f64,
    curl_wall: f64,
    curl_cpu: f64,
    /// At most this many times its figures: wall, CPU, memory.
    goals: [f64; 3],
}

const XO_FULL: Elsewhere =
    Elsewhere { wall: 9.2, cpu: 6.8, peak_mib: 173.0, curl_wall: 3.1, curl_cpu: 1.9, goals: [0.35, 0.15, 0.15] };
const XO_DELTA: Elsewhere =
    Elsewhere { wall: 4.7, cpu: 2.4, peak_mib: 148.0, curl_wall: 0.28, curl_cpu: 0.22, goals: [0.25, 0.15, 0.15] };

/// Arguments.
#[derive(Args)]
pub(crate) struct Whole {
    /// Interleaved rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// HTTPS on both sides, as nearly every real job; Xen Orchestra was measured without
    #[arg(long)]
    tls: bool,
}

/// One way of moving a disk, round by round.
#[derive(Default)]
struct Costs {
    full: Vec<Cost>,
    delta: Vec<Cost>,
}

impl Whole {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let program = std::env::current_exe()?.with_file_name("vmferry");
        ensure!(program.exists(), "{} is not built; use tests/bench/run", program.display());
        let runtime = tokio::runtime::Runtime::new()?;
        let mut source = Pool::start(self.tls, Some(DISK))?;
        let (mut digest, mut structure, mut curl) = (Costs::default(), Costs::default(), Costs::default());
        for round in 1..=self.rounds {
            for (costs, integrity) in [(&mut digest, "digest"), (&mut structure, "structure")] {
                let job = Job::new(&program, self.tls, &source, integrity)?;
                costs.full.push(job.run("full")?);
                source.write(CHANGED)?;
                costs.delta.push(job.run("delta")?);
            }
            let (full, delta) = runtime.block_on(self.curl(&mut source))?;
            curl.full.push(full);
            curl.delta.push(delta);
            println!("round {round} of {} done", self.rounds);
        }
        let scheme = if self.tls { "HTTPS" } else { "HTTP" };
        println!("\n2 GiB of data on 4 GiB, then 200 MiB changed, over {scheme}; {} interleaved rounds", self.rounds);
        println!("median (min - max)\n");
        for (name, costs) in [("vmferry, digest", &digest), ("vmferry, structure", &structure), ("curl | curl", &curl)]
        {
            print(&format!("{name}: full"), &costs.full);
            print(&format!("{name}: delta"), &costs.delta);
        }
        println!();
        compare("full", &digest.full, &curl.full, (!self.tls).then_some(&XO_FULL));
        compare("delta", &digest.delta, &curl.delta, (!self.tls).then_some(&XO_DELTA));
        for disk in [DENSE, SPARSE] {
            let source = Pool::start(self.tls, Some(disk))?;
            let cost = Job::new(&program, self.tls, &source, "digest")?.run("full")?;
            verdict(&format!("1 GiB of data on {} GiB: peak memory, MB", disk.gib), vec![mb(&cost)], PEAK_MB);
        }
        Ok(())
    }

    /// The same two streams by two curls each.
    async fn curl(&self, source: &mut Pool) -> anyhow::Result<(Cost, Cost)> {
        let target = Pool::start(self.tls, None)?;
        let (from, to) = (source.login().await?, target.login().await?);
        let disk: Ref<Vdi> = from.by_uuid(source.text("disk")).await?;
        let sr: Ref<Sr> = to.by_uuid(target.text("sr")).await?;
        let copy: Ref<Vdi> = to.call("VDI.create", params![new_disk(&sr)]).await?;
        let command = |export: &str, blocks: u64| {
            format!(
                "curl -sSkf '{}/export_raw_vdi?format=vhd&vdi={export}' | curl -sSkf -T - -H 'Transfer-Encoding:' \
                 -H 'Expect:' -H 'Content-Length: {}' '{}/import_raw_vdi?format=vhd&vdi={copy}'",
                source.authorised(),
                DISK.stream_length(blocks),
                target.authorised(),
            )
        };
        let base: Ref<Vdi> = from.call_async("VDI.snapshot", params![&disk]).await?;
        let (full, delta) = (command(base.as_str(), DISK.blocks), command(&format!("{disk}&base={base}"), CHANGED));
        let full = measure(&full)?;
        source.write(CHANGED)?;
        let delta = measure(&delta)?;
        from.call_async::<()>("VDI.destroy", params![&base]).await?;
        from.logout().await?;
        to.logout().await?;
        Ok((full, delta))
    }
}

fn new_disk(sr: &Ref<Sr>) -> Value {
    let mut record = BTreeMap::<String, Value>::new();
    for (key, value) in [("name_label", "copy"), ("type", "user"), ("SR", sr.as_str())] {
        record.insert(key.to_owned(), value.into_value());
    }
    record.insert("virtual_size".to_owned(), DISK.size().into_value());
    for key in ["sharable", "read_only"] {
        record.insert(key.to_owned(), false.into_value());
    }
    record.insert("other_config".to_owned(), Value::Struct(BTreeMap::default()));
    Value::Struct(record)
}

/// A job of the program onto a pool that is made for it.
pub(crate) struct Job {
    folder: TempDir,
    program: PathBuf,
    _target: Pool,
}

impl Job {
    fn new(program: &Path, tls: bool, source: &Pool, integrity: &str) -> anyhow::Result<Self> {
        Self::onto(program, source, Pool::start(tls, None)?, integrity)
    }

    pub(crate) fn onto(program: &Path, source: &Pool, target: Pool, integrity: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = format!(
            "{}{}[store]\npath = \"{}\"\n\n[job.bench]\nselect = {{ pool = \"source\", vms = [\"{}\"] }}\n\
             targets = [{{ name = \"target\", pool = \"target\", sr = \"{}\" }}]\nintegrity = \"{integrity}\"\n",
            source.section("source"),
            target.section("target"),
            folder.path().join("state").display(),
            source.text("vm"),
            target.text("sr"),
        );
        std::fs::write(folder.path().join("vmferry.toml"), config)?;
        Ok(Self { folder, program: program.to_owned(), _target: target })
    }

    /// One run, which has to go by `kind`.
    pub(crate) fn run(&self, kind: &str) -> anyhow::Result<Cost> {
        let (config, report) = (self.folder.path().join("vmferry.toml"), self.folder.path().join("report"));
        let (program, config) = (self.program.display(), config.display());
        let cost = measure(&format!("{program} --config {config} --json run bench > {}", report.display()))?;
        let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report)?)?;
        let ran = &report["vms"][0]["targets"][0]["disks"][0]["kind"];
        ensure!(ran == kind, "the run went by {ran}: {report}");
        Ok(cost)
    }
}

pub(crate) fn mb(cost: &Cost) -> f64 {
    cost.peak_mib * f64::from(1 << 20) / 1e6
}

fn print(name: &str, costs: &[Cost]) {
    let column = |of: fn(&Cost) -> f64| spread(costs.iter().map(of).collect());
    let (cpu, cpu_min, cpu_max) = column(|cost| cost.cpu);
    let (wall, wall_min, wall_max) = column(|cost| cost.wall);
    let (peak, ..) = column(mb);
    println!(
        "{name:<26} {cpu:.2} CPU-s ({cpu_min:.2} - {cpu_max:.2})  {wall:.2} s wall ({wall_min:.2} - {wall_max:.2})  {peak:.1} MB peak"
    );
}

/// What one run takes, in times of curl, and by way of that in times of Xen Orchestra.
fn compare(what: &str, ours: &[Cost], curls: &[Cost], elsewhere: Option<&Elsewhere>) {
    let ratios = |of: fn(&Cost) -> f64, by: f64| -> Vec<f64> {
        ours.iter().zip(curls).map(|(ours, curl)| of(ours) / of(curl) / by).collect()
    };
    for (figure, of) in [("wall", (|cost| cost.wall) as fn(&Cost) -> f64), ("CPU", |cost| cost.cpu)] {
        let (ratio, min, max) = spread(ratios(of, 1.0));
        println!("{what} / curl | curl: {figure} {ratio:.2} ({min:.2} - {max:.2})");
    }
    let Some(Elsewhere { wall, cpu, peak_mib, curl_wall, curl_cpu, goals: [by_wall, by_cpu, by_peak] }) = elsewhere
    else {
        return;
    };
    verdict(&format!("{what} / Xen Orchestra: wall"), ratios(|cost| cost.wall, wall / curl_wall), *by_wall);
    verdict(&format!("{what} / Xen Orchestra: CPU"), ratios(|cost| cost.cpu, cpu / curl_cpu), *by_cpu);
    let peaks = ours.iter().map(|cost| cost.peak_mib / peak_mib).collect();
    verdict(&format!("{what} / Xen Orchestra: peak memory"), peaks, *by_peak);
}

fn verdict(what: &str, values: Vec<f64>, at_most: f64) {
    let (median, min, max) = spread(values);
    let word = if median <= at_most { "reached" } else { "MISSED" };
    println!("{what} {median:.2} ({min:.2} - {max:.2}), goal at most {at_most}: {word}");
}
