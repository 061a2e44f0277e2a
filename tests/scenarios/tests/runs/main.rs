//! Facts about runs, one file per subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod divergence;
mod failover;
mod faults;
mod gc;
mod keys;
mod kills;
mod leases;
mod main_job;
mod methods;
mod policies;
mod preflight;
mod refusals;
mod volumes;
