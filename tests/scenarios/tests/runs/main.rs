//! Facts about runs, one file per subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod crash_table;
mod divergence;
mod doctor;
mod failover;
mod faults;
mod force_start;
mod gc;
mod keys;
mod kills;
mod large_disks;
mod leases;
mod main_job;
mod methods;
mod policies;
mod preflight;
mod refusals;
mod seed;
mod volumes;
mod xen_orchestra;
