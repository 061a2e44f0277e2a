//! A full copy of one disk of random data: `vmferry run` against `curl | curl` with the same VHD stream.

use crate::measure::{Cost, measure, spread};
use anyhow::{Context as _, ensure};
use clap::Args;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use vmferry_xapi::records::{Sr, Vdi};
use vmferry_xapi::{Endpoint, Ref, Session, params};
use xapi_sim::{DiskSpec, Sim, SimConfig, VmSpec};

/// Arguments.
#[derive(Args)]
pub(crate) struct Full {
    /// Size of the disk, all of it random data
    #[arg(long, default_value_t = 4)]
    gib: u64,
    /// Interleaved rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// HTTPS on both sides, as nearly every real job
    #[arg(long)]
    tls: bool,
}

/// A pool in a process of its own, so that its CPU time is its own.
#[derive(Args)]
pub(crate) struct Serve {
    #[arg(long)]
    tls: bool,
    /// Size of the disk to make, in GiB; none for an empty pool
    #[arg(long)]
    gib: Option<u64>,
}

impl Serve {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        tokio::runtime::Runtime::new()?.block_on(async {
            let sim = Sim::start(SimConfig { tls: self.tls, ..SimConfig::default() }).await?;
            let vm = self.gib.map(|gib| random_vm(&sim, gib));
            let ready = serde_json::json!({
                "url": sim.url(), "sr": sim.default_sr(), "vm": vm,
                "disk": vm.as_ref().map(|vm| sim.vm_disks(vm).remove(0)),
                "pin": sim.certificate_sha256(),
            });
            println!("{ready}");
            std::io::stdout().flush()?;
            std::future::pending::<()>().await;
            Ok(())
        })
    }
}

/// A halted VM whose disk holds data that no block repeats (xorshift, fixed seed).
fn random_vm(sim: &Sim, gib: u64) -> String {
    let disk = DiskSpec { name: "disk".to_owned(), size: gib << 30, ..DiskSpec::default() };
    let vm = sim.add_vm(VmSpec { name: "vm".to_owned(), disks: vec![disk], ..VmSpec::default() });
    let disk = sim.vm_disks(&vm).remove(0);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0; 2 << 20];
    for number in 0..gib << 9 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        sim.write(&disk, number << 21, &block);
    }
    vm
}

/// A served pool; ends with its value.
struct Pool {
    process: Child,
    facts: serde_json::Value,
}

impl Pool {
    fn start(tls: bool, gib: Option<u64>) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").stdout(Stdio::piped());
        if tls {
            command.arg("--tls");
        }
        if let Some(gib) = gib {
            command.args(["--gib", &gib.to_string()]);
        }
        let mut process = command.spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("stdout")?).read_line(&mut line)?;
        Ok(Self { process, facts: serde_json::from_str(&line)? })
    }

    fn text(&self, key: &str) -> &str {
        self.facts[key].as_str().unwrap_or_default()
    }

    async fn login(&self) -> anyhow::Result<Session> {
        let endpoint = Endpoint::parse(self.text("url"))?.with_credentials("root", "password");
        let endpoint = match self.facts["pin"].as_str().and_then(vmferry_xapi::Trust::parse_pin) {
            Some(pin) => endpoint.with_trust(pin),
            None => endpoint,
        };
        Ok(Session::login(&endpoint, "bench").await?)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Full {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let program = std::env::current_exe()?.with_file_name("vmferry");
        ensure!(program.exists(), "{} is not built; use tests/bench/run", program.display());
        let source = Pool::start(self.tls, Some(self.gib))?;
        let folder = tempfile::tempdir()?;
        let runtime = tokio::runtime::Runtime::new()?;
        let (mut ours, mut digestless, mut curls) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=self.rounds {
            ours.push(self.vmferry(&program, &source, folder.path(), "digest")?);
            digestless.push(self.vmferry(&program, &source, folder.path(), "structure")?);
            curls.push(runtime.block_on(self.curl(&source))?);
            println!("round {round} of {} done", self.rounds);
        }
        let scheme = if self.tls { "HTTPS" } else { "HTTP" };
        println!("\n{} GiB full over {scheme}, medians of {} interleaved rounds (min - max)", self.gib, self.rounds);
        for (name, costs) in
            [("vmferry run, digest", &ours), ("vmferry run, structure", &digestless), ("curl | curl", &curls)]
        {
            self.print(name, costs);
        }
        for (name, costs) in [("digest", &ours), ("structure", &digestless)] {
            let ratio = |of: fn(&Cost) -> f64| {
                spread(costs.iter().zip(&curls).map(|(ours, curl)| of(ours) / of(curl)).collect())
            };
            let (cpu, cpu_min, cpu_max) = ratio(|cost| cost.cpu);
            let (wall, wall_min, wall_max) = ratio(|cost| cost.wall);
            println!(
                "vmferry ({name}) / curl | curl: CPU {cpu:.2} ({cpu_min:.2} - {cpu_max:.2}), wall {wall:.2} ({wall_min:.2} - {wall_max:.2})"
            );
        }
        Ok(())
    }

    fn print(&self, name: &str, costs: &[Cost]) {
        let column = |of: fn(&Cost) -> f64| spread(costs.iter().map(of).collect());
        let gib = self.gib as f64;
        let (cpu, cpu_min, cpu_max) = column(|cost| cost.cpu);
        let (wall, wall_min, wall_max) = column(|cost| cost.wall);
        let (peak, ..) = column(|cost| cost.peak_mib);
        println!(
            "{name:<24} {:.3} CPU-s/GiB ({:.3} - {:.3})  {wall:.2} s wall ({wall_min:.2} - {wall_max:.2})  {peak:.1} MiB peak",
            cpu / gib,
            cpu_min / gib,
            cpu_max / gib
        );
    }

    /// One first run of a job onto a pool that is made for it.
    fn vmferry(&self, program: &Path, source: &Pool, folder: &Path, integrity: &str) -> anyhow::Result<Cost> {
        let target = Pool::start(self.tls, None)?;
        let pool = |name: &str, pool: &Pool| {
            let pin = pool.facts["pin"].as_str().map(|pin| format!("certificate_sha256 = \"{pin}\"\n"));
            format!(
                "[pool.{name}]\nurl = \"{}\"\nusername = \"root\"\npassword = \"password\"\n{}\n",
                pool.text("url"),
                pin.unwrap_or_default()
            )
        };
        let config = format!(
            "{}{}[store]\npath = \"{}\"\n\n[job.bench]\nselect = {{ pool = \"source\", vms = [\"{}\"] }}\n\
             targets = [{{ name = \"target\", pool = \"target\", sr = \"{}\" }}]\nintegrity = \"{integrity}\"\n",
            pool("source", source),
            pool("target", &target),
            folder.join("state").display(),
            source.text("vm"),
            target.text("sr"),
        );
        let file = folder.join("vmferry.toml");
        std::fs::write(&file, config)?;
        let command = format!("{} --config {} --json run bench", program.display(), file.display());
        measure(&command)
    }

    /// The same stream from the same snapshot by two curls.
    async fn curl(&self, source: &Pool) -> anyhow::Result<Cost> {
        let target = Pool::start(self.tls, None)?;
        let (from, to) = (source.login().await?, target.login().await?);
        let disk: Ref<Vdi> = from.by_uuid(source.text("disk")).await?;
        let sr: Ref<Sr> = to.by_uuid(target.text("sr")).await?;
        let mut record = std::collections::BTreeMap::<String, vmferry_xapi::Value>::new();
        let size = self.gib << 30;
        for (key, value) in [("name_label", "copy"), ("type", "user"), ("SR", sr.as_str())] {
            record.insert(key.to_owned(), vmferry_xapi::IntoValue::into_value(value));
        }
        record.insert("virtual_size".to_owned(), vmferry_xapi::IntoValue::into_value(size));
        for key in ["sharable", "read_only"] {
            record.insert(key.to_owned(), vmferry_xapi::IntoValue::into_value(false));
        }
        record.insert("other_config".to_owned(), vmferry_xapi::Value::Struct(Default::default()));
        let copy: Ref<Vdi> = to.call("VDI.create", params![vmferry_xapi::Value::Struct(record)]).await?;
        let (entries, blocks) = (size >> 21, size >> 21);
        let length = 2048 + (4 * entries).next_multiple_of(512) + blocks * (512 + (2 << 20)) + 512;
        let authorised = |pool: &Pool| pool.text("url").replace("://", "://root:password@");
        let command = format!(
            "curl -sSkf '{}/export_raw_vdi?format=vhd&vdi={}' | curl -sSkf -T - -H 'Transfer-Encoding:' -H 'Expect:' \
             -H 'Content-Length: {length}' '{}/import_raw_vdi?format=vhd&vdi={}'",
            authorised(source),
            disk.as_str(),
            authorised(&target),
            copy.as_str()
        );
        let cost = measure(&command);
        from.logout().await?;
        to.logout().await?;
        cost
    }
}
