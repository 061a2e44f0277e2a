//! Facts about runs, one file per subject.

mod divergence;
mod failover;
mod faults;
mod keys;
mod kills;
mod leases;
mod main_job;
mod policies;
mod refusals;
