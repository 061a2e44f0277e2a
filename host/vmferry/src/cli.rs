//! The command line.

use crate::config::secret::Secret;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use uuid::Uuid;
use vmferry_xapi::Trust;

/// Keeps standby copies of running XCP-ng and XenServer VMs a few minutes behind the originals.
#[derive(Debug, Parser)]
#[command(
    name = "vmferry",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 done in part, 4 refused or skipped by policy, \
                  5 locked by another run. Any other code means failure."
)]
pub struct Cli {
    /// What every verb takes.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Args)]
pub struct Common {
    /// The configuration file [default: ./vmferry.toml, else /etc/vmferry/vmferry.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Tell more on standard error; twice for every call
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Replicate a VM between two simulated pools; nothing to set up
    Demo(Demo),
    /// Run every job when its schedule says so, until SIGTERM
    Daemon,
    /// Run a job once, now
    Run(Run),
    /// Show what a run would send, and why
    Plan(JobAndVm),
    /// Recovery points
    #[command(subcommand)]
    Points(Points),
    /// Check that replicas are what was sent
    Verify(Verify),
    /// Start from a replica
    #[command(subcommand)]
    Failover(Failover),
    /// Make a VM, or files, of a recovery point of any target
    Restore(RestoreArgs),
    /// Begin with a copy that is on the target already
    Seed(Box<SeedArgs>),
    /// Find what unfinished runs left on either side, and put it right
    Gc(Gc),
    /// Try on scratch disks what the hosts of a pool really do
    Doctor(Doctor),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigVerb),
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Leave the pools up at the end, with a configuration file for every other verb
    #[arg(long)]
    pub keep: bool,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The job and its VM.
    #[command(flatten)]
    pub what: JobAndVm,
    /// Wait for another run that works on the same VM, instead of ending with code 5
    #[arg(long)]
    pub wait: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The job and its VM.
    #[command(flatten)]
    pub what: JobAndVm,
    /// Read every byte back and compare its digest, instead of asking the storage whether somebody wrote
    #[arg(long)]
    pub deep: bool,
}

/// Arguments of `gc`.
#[derive(Debug, Args)]
pub struct Gc {
    /// The job and its VM.
    #[command(flatten)]
    pub what: JobAndVm,
    /// Only tell what was found and what `--apply` would do; this is the default
    #[arg(long)]
    pub dry_run: bool,
    /// Remove what is garbage and put the rest right
    #[arg(long, conflicts_with = "dry_run")]
    pub apply: bool,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The pool's name
    pub pool: String,
    /// Make the scratch disks on this SR [default: the pool's default SR]
    #[arg(long, value_name = "UUID")]
    pub sr: Option<String>,
}

/// A job, or one VM of it.
#[derive(Debug, Args)]
pub struct JobAndVm {
    /// The job's name
    pub job: String,
    /// Only this VM of the job
    #[arg(long, value_name = "UUID")]
    pub vm: Option<String>,
}

/// What to do with recovery points.
#[derive(Debug, Subcommand)]
pub enum Points {
    /// List what could be restored
    List {
        /// Only this job's
        job: Option<String>,
    },
    /// Keep a recovery point, whatever retention says
    Hold(HeldPoint),
    /// Leave a recovery point to retention again
    Release(HeldPoint),
}

/// Which recovery point is held or released.
#[derive(Debug, Args)]
pub struct HeldPoint {
    /// The job's name
    pub job: String,
    /// The recovery point, as `points list` names it
    #[arg(long, value_name = "UUID")]
    pub point: String,
    /// Only on this target [default: on all that have it]
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("where").required(true).args(["to_pool", "onto", "to_files", "to_file"])))]
#[command(group(clap::ArgGroup::new("files").args(["to_files", "to_file"])))]
pub struct RestoreArgs {
    /// The job's name
    #[arg(required_unless_present = "xva")]
    pub job: Option<String>,
    /// The source VM
    #[arg(long, value_name = "UUID", required_unless_present = "xva")]
    pub vm: Option<String>,
    /// Make a new VM of this XVA, whoever exported it; it takes no job
    #[arg(long, value_name = "FILE", requires = "to_pool", conflicts_with_all = ["job", "vm", "point", "target"])]
    pub xva: Option<PathBuf>,
    /// The recovery point, as `points list` names it [default: the newest undamaged one]
    #[arg(long, value_name = "UUID")]
    pub point: Option<String>,
    /// The target to restore from [default: the one with the newest point]
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// Make a new VM on this pool
    #[arg(long, value_name = "POOL")]
    pub to_pool: Option<String>,
    /// The SR of a new VM's disks [default: the pool's default SR]
    #[arg(long, value_name = "UUID", requires = "to_pool")]
    pub sr: Option<String>,
    /// A new VM's name [default: the source's]
    #[arg(long, requires = "to_pool")]
    pub name: Option<String>,
    /// Where an interface goes: source network = network of the pool, or `none`; may be given again
    #[arg(long, value_name = "FROM=TO", requires = "to_pool", value_parser = network_pair)]
    pub network: Vec<(String, String)>,
    /// Write what differs onto this VM, which has to be halted; a snapshot keeps what it was
    #[arg(long, value_name = "VM_UUID")]
    pub onto: Option<String>,
    /// The pool of that VM [default: the job's source]
    #[arg(long, value_name = "POOL", requires = "onto")]
    pub on_pool: Option<String>,
    /// Write a file for each disk into this folder
    #[arg(long, value_name = "FOLDER")]
    pub to_files: Option<PathBuf>,
    /// Write the VM and its disks into this one new file
    #[arg(long, value_name = "FILE")]
    pub to_file: Option<PathBuf>,
    /// How a disk lies in its file [default: raw], or all of the VM in one [default: xva]
    #[arg(long, value_enum, requires = "files")]
    pub format: Option<FileFormat>,
}

/// How a disk lies in a file.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FileFormat {
    /// Byte by byte, zeroes as holes
    Raw,
    /// qcow2
    Qcow2,
    /// The VM as one file, which any pool imports by `xe vm-import`
    Xva,
}

fn network_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(from, to)| !from.is_empty() && !to.is_empty());
    pair.map(|(from, to)| (from.to_owned(), to.to_owned())).ok_or_else(|| "write FROM=TO".to_owned())
}

/// How to start from a replica.
#[derive(Debug, Subcommand)]
pub enum Failover {
    /// Make a VM of its own from a recovery point; the replica stays as it is
    Clone(CloneArgs),
    /// Start the replica itself from a recovery point; runs leave it alone from then on
    Start(StartArgs),
}

/// Which recovery point, and how what is made of it is connected.
#[derive(Debug, Args)]
pub struct PointArgs {
    /// The job's name
    pub job: String,
    /// The source VM
    #[arg(long, value_name = "UUID")]
    pub vm: String,
    /// The recovery point [default: the newest]
    #[arg(long, value_name = "UUID")]
    pub point: Option<String>,
    /// The target to start on [default: the one with the newest point]
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// Connect all interfaces to this network, or `none` for no interface [default: as the replica's]
    #[arg(long, value_name = "NAME|none")]
    pub network: Option<String>,
    /// Let it start by itself as its source does: auto power-on and high availability
    #[arg(long)]
    pub auto_start: bool,
}

/// Arguments of `failover clone`.
#[derive(Debug, Args)]
pub struct CloneArgs {
    /// The recovery point.
    #[command(flatten)]
    pub what: PointArgs,
    /// Leave the clone halted
    #[arg(long)]
    pub no_start: bool,
    /// Go on from the memory that the recovery point holds, instead of booting
    #[arg(long, conflicts_with_all = ["no_start", "new_macs"])]
    pub resume: bool,
    /// Let the pool make up hardware addresses, instead of keeping those of the source
    #[arg(long)]
    pub new_macs: bool,
    /// Wait until the agent in the guest reports; fail if it does not
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_start")]
    pub wait_guest: Option<u64>,
    /// What the guest has to report: `metrics` is an address, or that its drivers run [default: anything]
    #[arg(long, value_enum, requires = "wait_guest")]
    pub check: Option<Check>,
    /// Remove the clone and its disks at the end, whatever became of its guest
    #[arg(long, requires = "wait_guest")]
    pub remove_after: bool,
}

/// What a guest has to report to count as up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// An address, or that its drivers run.
    Metrics,
}

/// Arguments of `failover start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// The recovery point.
    #[command(flatten)]
    pub what: PointArgs,
    /// Do it: replication onto this replica ends until it is failed back, and a run that works on it is stopped
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `seed`.
#[derive(Debug, Args)]
#[command(
    subcommand_negates_reqs = true,
    after_help = "Without a subcommand: compares the copy with the snapshot and makes it the replica of its VM for a job of Xen Orchestra, or \
                  of vmferry with `xo = { job, schedule }`, without a configuration. With --config, its state folder keeps the digests \
                  that a job of vmferry uses."
)]
pub struct SeedArgs {
    /// Of a job in the configuration.
    #[command(subcommand)]
    pub verb: Option<Seed>,
    /// Of any job.
    #[command(flatten)]
    pub pair: Option<SeedPair>,
}

/// Arguments of `seed` without a subcommand.
#[derive(Debug, Args)]
pub struct SeedPair {
    /// The source's pool: https://USER:PASSWORD@HOST, special characters in user and password percent-encoded
    #[arg(value_name = "SOURCE_URL", value_parser = secret)]
    pub source: Secret,
    /// The snapshot VM of the source that the copy was made from; the job owns it afterwards
    #[arg(value_name = "SNAPSHOT_UUID")]
    pub snapshot: String,
    /// The target's pool, in the same form
    #[arg(value_name = "TARGET_URL", value_parser = secret)]
    pub target: Secret,
    /// The copy: a halted VM
    #[arg(value_name = "VM_UUID")]
    pub copy: String,
    /// The job that is to go on
    #[arg(value_name = "JOB_UUID", value_parser = job_id)]
    pub job: Uuid,
    /// Its schedule
    #[arg(value_name = "SCHEDULE_UUID", value_parser = job_id)]
    pub schedule: Uuid,
    /// Believe this certificate of the source alone, by its SHA-256 [default: what the system's authorities signed]
    #[arg(long, value_name = "SHA256", value_parser = pin, conflicts_with = "source_ca")]
    pub source_certificate: Option<Trust>,
    /// Believe what this authority signed for the source, a file in PEM
    #[arg(long, value_name = "FILE")]
    pub source_ca: Option<PathBuf>,
    /// The same for the target
    #[arg(long, value_name = "SHA256", value_parser = pin, conflicts_with = "target_ca")]
    pub target_certificate: Option<Trust>,
    /// The same for the target
    #[arg(long, value_name = "FILE")]
    pub target_ca: Option<PathBuf>,
}

#[expect(clippy::unnecessary_wraps, reason = "clap's parsers may fail")]
fn secret(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text))
}

fn job_id(text: &str) -> Result<Uuid, String> {
    let wanted = "give Xen Orchestra's uuid, or the one under `xo` of a job of vmferry; a job by its name takes `vmferry seed adopt`";
    Uuid::parse_str(text).map_err(|_| wanted.to_owned())
}

fn pin(text: &str) -> Result<Trust, String> {
    let wanted =
        "give the SHA-256 of the host's certificate as 64 hexadecimal digits: openssl x509 -noout -fingerprint -sha256";
    Trust::parse_pin(text).ok_or_else(|| wanted.to_owned())
}

/// How to begin with a copy.
#[derive(Debug, Subcommand)]
pub enum Seed {
    /// Make a copy the replica of its VM: it is compared in whole, and the next run sends only what differs
    Adopt(SeedAdopt),
    /// Write the first copy of a VM to a folder, to be carried to its target; its snapshot is kept meanwhile
    Export(SeedExport),
    /// Make a folder that `seed export` wrote the first recovery point of its VM; the source need not be reachable
    Import(SeedImport),
    /// Give up media that are lost: the snapshots kept for them go
    Forget(SeedForget),
}

/// Arguments of `seed export`.
#[derive(Debug, Args)]
pub struct SeedExport {
    /// The job's name
    pub job: String,
    /// The VM
    #[arg(long, value_name = "UUID")]
    pub vm: String,
    /// A snapshot of it, which the job owns afterwards [default: one is taken]
    #[arg(long, value_name = "UUID")]
    pub snapshot: Option<String>,
    /// The folder, on a file system that takes files as large as the disks; nothing in it is encrypted, so let the file system
    /// be, if it leaves the house
    #[arg(long, value_name = "FOLDER")]
    pub to: PathBuf,
}

/// Arguments of `seed import`.
#[derive(Debug, Args)]
pub struct SeedImport {
    /// The job's name
    pub job: String,
    /// The target [default: the only one]
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// The folder
    #[arg(long, value_name = "FOLDER")]
    pub from: PathBuf,
}

/// Arguments of `seed forget`.
#[derive(Debug, Args)]
pub struct SeedForget {
    /// The job's name
    pub job: String,
    /// The VM
    #[arg(long, value_name = "UUID")]
    pub vm: String,
}

/// Arguments of `seed adopt`.
#[derive(Debug, Args)]
pub struct SeedAdopt {
    /// The job's name
    pub job: String,
    /// The snapshot VM of the source that the copy was made from; the job owns it afterwards
    #[arg(long, value_name = "UUID")]
    pub snapshot: String,
    /// The copy: a halted VM on the target's storage repository
    #[arg(long, value_name = "UUID")]
    pub copy: String,
    /// The target it is on [default: the only one]
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Check everything that can be checked without touching a pool
    Check,
    /// Print the configuration as understood, secrets masked
    Show,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_all_verbs_may_stand_before_or_behind_the_verb() {
        for line in ["vmferry --json --config a.toml run erp --wait", "vmferry run erp --wait --config a.toml --json"] {
            let cli = Cli::parse_from(line.split(' '));
            assert!(cli.common.json);
            assert_eq!(cli.common.config, Some("a.toml".into()));
            assert!(
                matches!(cli.verb, Verb::Run(Run { wait: true, what: JobAndVm { ref job, vm: None } }) if job == "erp")
            );
        }
    }

    #[test]
    fn gc_only_looks_unless_it_is_told_to_apply() {
        let apply = |line: &str| match Cli::try_parse_from(line.split(' ')).map(|cli| cli.verb) {
            Ok(Verb::Gc(gc)) => Some(gc.apply),
            _ => None,
        };
        assert_eq!(apply("vmferry gc erp"), Some(false));
        assert_eq!(apply("vmferry gc erp --dry-run"), Some(false));
        assert_eq!(apply("vmferry gc erp --apply"), Some(true));
        assert_eq!(apply("vmferry gc erp --apply --dry-run"), None);
    }

    #[test]
    fn a_clone_needs_its_vm() {
        let error = Cli::try_parse_from(["vmferry", "failover", "clone", "erp"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let cli = Cli::parse_from(
            "vmferry failover clone erp --vm u --point p --target dr --network none --no-start".split(' '),
        );
        let Verb::Failover(Failover::Clone(clone)) = cli.verb else { panic!("another verb") };
        assert_eq!((clone.what.network.as_deref(), clone.no_start), (Some("none"), true));
    }

    #[test]
    fn a_seed_is_of_a_job_or_of_two_pools() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.verb);
        let Ok(Verb::Seed(seed)) = parse("vmferry seed adopt erp --snapshot s --copy c") else {
            panic!("another verb")
        };
        assert!(seed.pair.is_none() && matches!(seed.verb, Some(Seed::Adopt(_))));
        let (job, schedule) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let line = format!("vmferry seed https://root:a%23b@xen1 s http://root:b@xen2 c {job} {schedule}");
        let Ok(Verb::Seed(seed)) = parse(&line) else { panic!("another verb") };
        let SeedArgs { verb: None, pair: Some(pair) } = *seed else { panic!("another form") };
        assert_eq!((pair.source.reveal(), pair.job, pair.schedule), ("https://root:a%23b@xen1", job, schedule));
        assert!(!format!("{pair:?}").contains("a%23b"), "{pair:?}");

        let refused = |line: &str| parse(line).unwrap_err().to_string();
        assert!(refused(&line.replace(&job.to_string(), "nightly")).contains("give Xen Orchestra's uuid"));
        assert!(refused("vmferry seed https://root:b@xen1 s").contains("<TARGET_URL>"));
        assert!(refused(&format!("{line} --source-certificate 12")).contains("64 hexadecimal digits"));
    }

    #[test]
    fn a_boot_test_waits_for_its_guest() {
        let line = "vmferry failover clone erp --vm u --check metrics --remove-after";
        assert_eq!(Cli::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2);
        let cli = Cli::parse_from(format!("{line} --wait-guest 60").split(' '));
        let Verb::Failover(Failover::Clone(clone)) = cli.verb else { panic!("another verb") };
        assert_eq!((clone.wait_guest, clone.check, clone.remove_after), (Some(60), Some(Check::Metrics), true));
    }
}
