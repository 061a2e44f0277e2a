//! The command line.

use clap::{ArgAction, Args, Parser, Subcommand};
use std::path::PathBuf;

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
    /// Find what unfinished runs left on either side, and put it right
    Gc(Gc),
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
}

/// How to start from a replica.
#[derive(Debug, Subcommand)]
pub enum Failover {
    /// Make a VM of its own from a recovery point; the replica stays as it is
    Clone(CloneArgs),
}

/// Arguments of `failover clone`.
#[derive(Debug, Args)]
pub struct CloneArgs {
    /// The job's name
    pub job: String,
    /// The source VM
    #[arg(long, value_name = "UUID")]
    pub vm: String,
    /// The recovery point [default: the newest]
    #[arg(long, value_name = "UUID")]
    pub point: Option<String>,
    /// The target to clone on [default: the one with the newest point]
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// Connect all of the clone's interfaces to this network, or `none` for no interface [default: as the replica's]
    #[arg(long, value_name = "NAME|none")]
    pub network: Option<String>,
    /// Leave the clone halted
    #[arg(long)]
    pub no_start: bool,
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
        assert_eq!((clone.network.as_deref(), clone.no_start), (Some("none"), true));
    }
}
