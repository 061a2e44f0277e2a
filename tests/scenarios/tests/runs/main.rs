//! Facts about runs, one file per subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bases;
mod blocked_destroy;
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
mod memory;
mod methods;
mod offline;
mod policies;
mod preflight;
mod refusals;
mod replication_network;
mod restore;
mod seed;
mod seed_media;
mod seed_pair;
mod several_srs;
mod source_changes;
mod stores;
mod stories;
mod stress;
mod union;
mod volumes;
mod xen_orchestra;
mod xva;
